"""What the transfer families share: a timm network without its output layer, cut, partly frozen, under a
dense head."""

from collections.abc import Sequence
from dataclasses import dataclass

from timm.models import get_pretrained_cfg
from torch import nn

from fer_scale.errors import InputError
from fer_scale.faces.images import Preprocessing
from fer_scale.families import weights as sources
from fer_scale.families.checks import between, dense_widths
from fer_scale.families.layers import GlobalAverage, dense_head
from fer_scale.families.network import GRAY_LEVELS, PLAIN_MEAN, PLAIN_STD, Network
from fer_scale.families.picking import Pick

SMALL_INPUT = 96
"""Side in pixels below which a backbone made for 224x224 shrinks the picture less at its start."""


@dataclass(frozen=True, kw_only=True)
class TransferConfig:
    """What can be chosen in every transfer family."""

    variant: str
    """timm's name of the network, or one of the family's own."""
    weights: str = "auto"
    """``auto``, ``imagenet``, ``none``, or a state dict's path, local or s3://."""
    cut: int
    """The last stage of the backbone that is kept, counted from the input: the stem is 0."""
    unfreeze: int | None = None
    """How many of the last kept stages are trained; None, and always from scratch: all."""
    dense: str = "none"
    """Widths of the dense layers with batch norm before the output, joined by ``-``, or ``none``."""
    dropout: float = 0.3
    """Share of the activations dropped after each dense layer, 0 to 0.9."""

    def check(self, stages: int) -> None:
        """Check the shared fields; ``stages`` is the number of stages after the stem.

        Raises:
            InputError: a value out of range.
        """
        between("cut", self.cut, 1, stages)
        if self.unfreeze is not None:
            between("unfreeze", self.unfreeze, 0, self.cut + 1)
        between("dropout", self.dropout, 0, 0.9)
        dense_widths(self.dense)
        if not self.weights:
            raise InputError("empty weights", "auto, imagenet, none or a path", "name the weights")


def assemble(
    stages: Sequence[tuple[str, nn.Module]],
    features: int,
    config: TransferConfig,
    used: str,
    inputs: Preprocessing,
    classes: int,
) -> Network:
    """Put stages, pooling and head together.

    Args:
        stages: the stem and the kept stages by name.
        features: channels of the last stage.
        config: head, freezing and variant.
        used: the weights really loaded, from :func:`fer_scale.families.weights.load`.
        inputs: what the network sees.
        classes: number of classes.
    """
    backbone = nn.Sequential()
    for name, stage in stages:
        backbone.add_module(name, stage)
    backbone.add_module("pool", GlobalAverage())
    head = dense_head(features, dense_widths(config.dense), classes, dropout=config.dropout, batch_norm=True)
    pretrained = not used.startswith("none")
    mean, std = _normalisation(config.variant, inputs.channels) if pretrained else ([PLAIN_MEAN], [PLAIN_STD])
    frozen = max(0, len(stages) - config.unfreeze) if pretrained and config.unfreeze is not None else 0
    return Network(backbone, head, channels=inputs.channels, mean=mean, std=std, weights=used, frozen=frozen)


def suggest_weights(pick: Pick, variant: str) -> str:
    """From ImageNet or from scratch: a question only where the weights can be had, else both are the same."""
    return pick.choice("weights", ["auto", "none"] if sources.pretrained(variant, "auto") else ["auto"])


def suggest_unfreeze(pick: Pick, variant: str, weights: str, values: Sequence[int | None]) -> int | None:
    """How many stages to train: a question only where the weights are not random."""
    return pick.choice("unfreeze", values) if sources.pretrained(variant, weights) else None


def _normalisation(variant: str, channels: int) -> tuple[list[float], list[float]]:
    """Mean and deviation that the weights were fitted with, in gray levels; for gray their average."""
    cfg = get_pretrained_cfg(variant)
    if cfg is None:
        return [PLAIN_MEAN], [PLAIN_STD]
    mean, std = [GRAY_LEVELS * value for value in cfg.mean], [GRAY_LEVELS * value for value in cfg.std]
    return (mean, std) if channels == 3 else ([sum(mean) / 3], [sum(std) / 3])
