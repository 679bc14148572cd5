"""cnn2: cnn1's deeper sister, pairs of Conv-BatchNorm-ReLU and a wider dense head.

The source has this network without a list of its layers: that it is deeper and has pairs of Conv-BatchNorm-
ReLU and a wider dense head is the source's. Ours are four blocks of one pair and a MaxPool-Dropout each, the
filters (32, 64, 128, 256), the dense widths (512, 256, 128) and batch norm in the head.

Small inputs: a block ends without pooling where its map would fall below 3x3; 48x48 gives 24, 12, 6, 3.
"""

from dataclasses import dataclass

from torch import nn

from fer_scale.faces.images import Preprocessing
from fer_scale.families.layers import SMALLEST_MAP, conv3x3, scaled
from fer_scale.families.network import Network
from fer_scale.families.picking import Pick
from fer_scale.families.scratch import ScratchConfig, assemble

CHANNELS = (32, 64, 128, 256)
SIZES: list[int] = [48, 64]
"""Search choices: side in pixels."""


@dataclass(frozen=True, kw_only=True)
class Config(ScratchConfig):
    """What can be chosen in cnn2."""

    conv_dropout: float = 0.2
    dense: str = "512-256-128"
    dense_dropout: float = 0.4


def build(config: Config, preprocessing: Preprocessing, num_classes: int) -> Network:
    """The network for pictures [N, C, S, S], C and S from ``preprocessing``; always from scratch."""
    blocks: list[nn.Module] = []
    inputs, side = preprocessing.channels, preprocessing.size
    for base in CHANNELS:
        outputs = scaled(base, config.width)
        layers: list[nn.Module] = []
        for _ in range(2):
            layers += [conv3x3(inputs, outputs), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
            inputs = outputs
        if side // 2 >= SMALLEST_MAP:
            layers.append(nn.MaxPool2d(2))
            side //= 2
        blocks.append(nn.Sequential(*layers, nn.Dropout(config.conv_dropout)))
    return assemble(blocks, inputs, side, config, preprocessing.channels, num_classes)


def reference() -> tuple[Config, Preprocessing]:
    """The source's configuration as far as it is known: 48x48 gray."""
    return Config(), Preprocessing(size=48, channels=1)


def suggest(pick: Pick) -> Config:
    """Draw a configuration from the search space."""
    return Config(
        width=pick.choice("width", [0.5, 0.75, 1.0, 1.5]),
        conv_dropout=pick.float("conv_dropout", 0.0, 0.4),
        dense=pick.choice("dense", ["none", "256", "512-256", "512-256-128"]),
        dense_dropout=pick.float("dense_dropout", 0.1, 0.6),
    )
