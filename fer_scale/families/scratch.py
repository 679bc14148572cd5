"""What the families without pretrained weights share: the fields of their configuration."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from fer_scale.families.checks import between, dense_widths
from fer_scale.families.layers import dense_head, flatten, initialise
from fer_scale.families.network import Network


@dataclass(frozen=True, kw_only=True)
class ScratchConfig:
    """What can be chosen in every family from scratch; each sets the defaults of its source."""

    width: float = 1.0
    """Multiplies the filters of every convolution, 0.25 to 4."""
    conv_dropout: float
    """Share of the activations dropped after each block, 0 to 0.9."""
    dense: str
    """Widths of the dense layers before the output, joined by ``-``, or ``none``."""
    dense_dropout: float
    """Share of the activations dropped after each dense layer, 0 to 0.9."""

    def __post_init__(self) -> None:
        between("width", self.width, 0.25, 4)
        between("conv_dropout", self.conv_dropout, 0, 0.9)
        between("dense_dropout", self.dense_dropout, 0, 0.9)
        dense_widths(self.dense)


def assemble(
    blocks: Sequence[nn.Module],
    features: int,
    side: int,
    config: ScratchConfig,
    channels: int,
    classes: int,
    *,
    batch_norm: bool = True,
) -> Network:
    """Put blocks, flattening and head together.

    Args:
        blocks: from pictures [N, C, S, S] to the last feature map.
        features: channels of that map.
        side: its height and width.
        config: of the head.
        channels: C of the pictures.
        classes: number of classes.
        batch_norm: after each dense layer.
    """
    backbone = nn.Sequential()
    for index, block in enumerate(blocks, start=1):
        backbone.add_module(f"block{index}", block)
    pool, length = flatten(features, side)
    backbone.add_module("pool", pool)
    initialise(backbone)
    head = dense_head(length, dense_widths(config.dense), classes, dropout=config.dense_dropout, batch_norm=batch_norm)
    return Network(backbone, head, channels=channels)
