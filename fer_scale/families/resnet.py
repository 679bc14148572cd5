"""resnet: residual networks (He et al. 2015, arXiv:1512.03385) from timm, and slim ones for small pictures.

The source names the family, not the variant: resnet18 as the reference is ours. The slim variants have the
same basic blocks with half the channels (32, 64, 128, 256 at width 1); there are no ImageNet weights for
them.

Small inputs: a ResNet shrinks the picture to a quarter before its first block and 48x48 to 2x2 at its end.
``stem`` says how much the stem shrinks: 4 as in the paper, 2 with the first convolution at stride 1, 1
without the pooling too. Left open, it is 2 for inputs under 96 pixels, which ends 48x48 as 3x3 (6x6 with stem
1 or cut 3), and 4 from there on. Pretrained filters stay as they are.

From scratch a residual branch begins at full strength, and not at zero (Goyal et al. 2017, section 5.1), which timm
takes: a fit of minutes would spend its first epochs at the majority class.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import timm
from timm.models.resnet import BasicBlock, ResNet
from torch import nn

from fer_scale.errors import InputError
from fer_scale.faces.images import Preprocessing
from fer_scale.families.checks import between, one_of
from fer_scale.families.layers import scaled
from fer_scale.families.network import Network
from fer_scale.families.picking import Pick
from fer_scale.families.transfer import (
    SMALL_INPUT,
    TransferConfig,
    assemble,
    suggest_unfreeze,
    suggest_weights,
)
from fer_scale.families.weights import load

SLIM: dict[str, Sequence[int]] = {"slim10": (1, 1, 1, 1), "slim14": (1, 1, 2, 2), "slim18": (2, 2, 2, 2)}
"""Basic blocks in each stage of our own variants."""
SLIM_CHANNELS = (32, 64, 128, 256)
VARIANTS = (*SLIM, "resnet10t", "resnet14t", "resnet18", "resnet26", "resnet34", "resnet50")
STAGES = 4
SIZES: list[int] = [48, 64]
"""Search choices: side in pixels."""


@dataclass(frozen=True, kw_only=True)
class Config(TransferConfig):
    """What can be chosen in resnet, beyond what every transfer family has."""

    variant: str = "resnet18"
    cut: int = STAGES
    dense: str = "256"
    width: float = 1.0
    """Multiplies the channels of a slim variant, 0.25 to 4; 1 for all others."""
    stem: int | None = None
    """How much the stem shrinks the picture: 1, 2 or 4; None chooses by the input size."""

    def __post_init__(self) -> None:
        one_of("variant", self.variant, VARIANTS)
        self.check(STAGES)
        between("width", self.width, 0.25, 4)
        one_of("stem", self.stem, (None, 1, 2, 4))
        if self.width != 1 and self.variant not in SLIM:
            expected = f"width=1, or one of {', '.join(SLIM)}"
            raise InputError(f"width={self.width} for {self.variant}", expected, "change one of the two")
        if self.variant in SLIM and self.weights == "imagenet":
            raise InputError(f"weights=imagenet for {self.variant}", "auto, none or a path", "change one of the two")


def build(config: Config, preprocessing: Preprocessing, num_classes: int) -> Network:
    """The network for pictures [N, C, S, S] with ``C`` and ``S`` from ``preprocessing``.

    Raises:
        InputError: weights asked for by name cannot be had.
    """
    model: Any
    if config.variant in SLIM:
        model = _slim(config, preprocessing.channels)
        used = "none" if config.weights == "auto" else load(model, config.variant, config.weights)
    else:
        channels = preprocessing.channels
        model = timm.create_model(config.variant, in_chans=channels, num_classes=0, zero_init_last=False)
        used = load(model, config.variant, config.weights)
    shrink = config.stem or (2 if preprocessing.size < SMALL_INPUT else 4)
    stem = [model.conv1, model.bn1, model.act1]
    if shrink < 4:
        _first_convolution(model.conv1).stride = (1, 1)
    if shrink > 1:
        stem.append(model.maxpool)
    stages: list[tuple[str, nn.Module]] = [("stem", nn.Sequential(*stem))]
    stages += [(f"layer{index}", getattr(model, f"layer{index}")) for index in range(1, config.cut + 1)]
    features = model.feature_info[config.cut]["num_chs"]
    return assemble(stages, features, config, used, preprocessing, num_classes)


def _slim(config: Config, channels: int) -> Any:
    """timm's ResNet of basic blocks with a narrower 3x3 stem: timm fixes the plain stem at 64 channels."""
    widths = tuple(scaled(base, config.width) for base in SLIM_CHANNELS)
    block: Any = BasicBlock  # timm annotates the argument as an instance
    model: Any = ResNet(
        block,
        tuple(SLIM[config.variant]),
        num_classes=0,
        in_chans=channels,
        stem_type="deep",
        stem_width=widths[0] // 2,
        channels=widths,
        zero_init_last=False,
    )
    model.conv1 = nn.Conv2d(channels, widths[0], 3, stride=2, padding=1, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    return model


def _first_convolution(stem: nn.Module) -> nn.Conv2d:
    """The convolution that sees the picture: the stem itself, or the first of a deep stem."""
    return next(layer for layer in stem.modules() if isinstance(layer, nn.Conv2d))


def reference() -> tuple[Config, Preprocessing]:
    """The source's configuration as far as it is known: RGB as ImageNet's weights want it, on 48x48."""
    return Config(), Preprocessing(size=48, channels=3)


def suggest(pick: Pick) -> Config:
    """Draw a configuration from the search space."""
    variant = pick.choice("variant", [*SLIM, "resnet10t", "resnet18", "resnet50"])
    dense = pick.choice("dense", ["none", "256", "512-256"])
    dropout = pick.float("dropout", 0.0, 0.5)
    cut = pick.choice("cut", [3, 4])
    if variant in SLIM:
        width = pick.choice("width", [0.75, 1.0, 1.5, 2.0])
        # A stem that does not shrink costs four times the compute: only for the narrow ones.
        stem = pick.choice("stem", [None, 1]) if width <= 1 else None
        return Config(variant=variant, weights="none", cut=cut, dense=dense, dropout=dropout, width=width, stem=stem)
    weights = suggest_weights(pick, variant)
    unfreeze = suggest_unfreeze(pick, variant, weights, [0, 2, 3, None])
    return Config(variant=variant, weights=weights, cut=cut, unfreeze=unfreeze, dense=dense, dropout=dropout)
