"""cnn1: the source's small network, three times Conv-MaxPool-Dropout and four dense layers.

The source names the layers and their order, the last dense layer being the output over the classes; the
numbers of filters (32, 64, 128), the dense widths (128, 64, 32) and ReLU are ours. The source's last
activation, the softmax, is part of the loss and of the predictor: the network gives logits.

Small inputs: three poolings turn 48x48 into 6x6, which is flattened, so that the head sees where on the face
a filter answered. Larger maps are averaged down to 6..11 cells a side before, which bounds the head.
"""

from dataclasses import dataclass

from torch import nn

from fer_scale.faces.images import Preprocessing
from fer_scale.families.layers import conv3x3, scaled
from fer_scale.families.network import Network
from fer_scale.families.picking import Pick
from fer_scale.families.scratch import ScratchConfig, assemble

CHANNELS = (32, 64, 128)
SIZES: list[int] = [48, 64]
"""Search choices: side in pixels."""


@dataclass(frozen=True, kw_only=True)
class Config(ScratchConfig):
    """What can be chosen in cnn1."""

    conv_dropout: float = 0.25
    dense: str = "128-64-32"
    dense_dropout: float = 0.25


def build(config: Config, preprocessing: Preprocessing, num_classes: int) -> Network:
    """The network for pictures [N, C, S, S], C and S from ``preprocessing``; always from scratch."""
    blocks: list[nn.Module] = []
    inputs, side = preprocessing.channels, preprocessing.size
    for base in CHANNELS:
        outputs = scaled(base, config.width)
        layers = [conv3x3(inputs, outputs, bias=True), nn.ReLU(inplace=True), nn.MaxPool2d(2)]
        blocks.append(nn.Sequential(*layers, nn.Dropout(config.conv_dropout)))
        inputs, side = outputs, side // 2
    return assemble(blocks, inputs, side, config, preprocessing.channels, num_classes, batch_norm=False)


def reference() -> tuple[Config, Preprocessing]:
    """The source's configuration: 48x48 gray."""
    return Config(), Preprocessing(size=48, channels=1)


def suggest(pick: Pick) -> Config:
    """Draw a configuration from the search space."""
    return Config(
        width=pick.choice("width", [0.5, 1.0, 1.5, 2.0]),
        conv_dropout=pick.float("conv_dropout", 0.0, 0.4),
        dense=pick.choice("dense", ["128", "128-64-32", "256-128", "512-256-128"]),
        dense_dropout=pick.float("dense_dropout", 0.0, 0.5),
    )
