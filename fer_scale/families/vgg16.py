"""vgg16: VGG with batch norm (Simonyan and Zisserman 2014, arXiv:1409.1556, configurations A, B, D) from
timm.

The source puts a dense head 512, 256, 128, 64, 32 on VGG16 without its output layer; batch norm in the
convolutions (timm's vgg16_bn) is ours, VGG16 without it hardly learns from scratch.

Small inputs: VGG halves five times, 48x48 would end as 1x1. A block whose map would fall below 3x3 does
without its pooling: 48x48 gives 24, 12, 6, 3, 3.
"""

from dataclasses import dataclass
from typing import Any

import timm
from torch import nn

from fer_scale.faces.images import Preprocessing
from fer_scale.families.checks import one_of
from fer_scale.families.layers import SMALLEST_MAP
from fer_scale.families.network import Network
from fer_scale.families.picking import Pick
from fer_scale.families.transfer import TransferConfig, assemble, suggest_unfreeze, suggest_weights
from fer_scale.families.weights import load

VARIANTS = ("vgg11_bn", "vgg13_bn", "vgg16_bn", "vgg19_bn")
STAGES = 5
SIZES: list[int] = [48, 64]
"""Search choices: side in pixels."""


@dataclass(frozen=True, kw_only=True)
class Config(TransferConfig):
    """What can be chosen in vgg16, as in every transfer family; the stages are five blocks, no stem."""

    variant: str = "vgg16_bn"
    cut: int = STAGES
    dense: str = "512-256-128-64-32"

    def __post_init__(self) -> None:
        one_of("variant", self.variant, VARIANTS)
        self.check(STAGES)


def build(config: Config, preprocessing: Preprocessing, num_classes: int) -> Network:
    """The network for pictures [N, C, S, S] with ``C`` and ``S`` from ``preprocessing``.

    Raises:
        InputError: weights asked for by name cannot be had.
    """
    # timm builds a head of 120 M parameters even without an output layer; mlp_ratio makes it next to nothing.
    model: Any = timm.create_model(config.variant, in_chans=preprocessing.channels, num_classes=0, mlp_ratio=1 / 4096)
    model.pre_logits = nn.Identity()
    used = load(model, config.variant, config.weights)
    stages: list[tuple[str, nn.Module]] = []
    block: list[nn.Module] = []
    side = preprocessing.size
    for layer in model.features:
        if not isinstance(layer, nn.MaxPool2d):
            block.append(layer)
            continue
        if side // 2 >= SMALLEST_MAP:
            block.append(layer)
            side //= 2
        stages.append((f"block{len(stages) + 1}", nn.Sequential(*block)))
        block = []
    features = model.feature_info[config.cut - 1]["num_chs"]
    return assemble(stages[: config.cut], features, config, used, preprocessing, num_classes)


def reference() -> tuple[Config, Preprocessing]:
    """The source's configuration: VGG16 with its head, RGB as ImageNet's weights want it, on 48x48."""
    return Config(), Preprocessing(size=48, channels=3)


def suggest(pick: Pick) -> Config:
    """Draw a configuration from the search space."""
    variant = pick.choice("variant", ["vgg11_bn", "vgg13_bn", "vgg16_bn"])
    weights = suggest_weights(pick, variant)
    return Config(
        variant=variant,
        weights=weights,
        cut=pick.choice("cut", [3, 4, 5]),
        unfreeze=suggest_unfreeze(pick, variant, weights, [0, 2, 3, None]),
        dense=pick.choice("dense", ["none", "256", "512-256", "512-256-128-64-32"]),
        dropout=pick.float("dropout", 0.1, 0.6),
    )
