"""complex_cnn: five blocks Conv-BatchNorm-LeakyReLU-MaxPool-Dropout, then dense 512 and 256, as in the
source.

The filters (32, 64, 128, 256, 512 at width 1) and the slope of the LeakyReLU are ours.

Small inputs: five poolings would leave 1x1 of 48x48, so a block whose map would fall below 3x3 does without
its pooling; 48x48 gives 24, 12, 6, 3, 3, and the head sees the nine cells apart.
"""

from dataclasses import dataclass

from torch import nn

from fer_scale.faces.images import Preprocessing
from fer_scale.families.checks import between
from fer_scale.families.layers import SMALLEST_MAP, conv3x3, scaled
from fer_scale.families.network import Network
from fer_scale.families.picking import Pick
from fer_scale.families.scratch import ScratchConfig, assemble

CHANNELS = (32, 64, 128, 256, 512)
SIZES: list[int] = [48, 64]
"""Search choices: side in pixels."""


@dataclass(frozen=True, kw_only=True)
class Config(ScratchConfig):
    """What can be chosen in complex_cnn."""

    conv_dropout: float = 0.2
    dense: str = "512-256"
    dense_dropout: float = 0.4
    slope: float = 0.1
    """Slope of the LeakyReLU for negative inputs, 0 to 0.5."""

    def __post_init__(self) -> None:
        super().__post_init__()
        between("slope", self.slope, 0, 0.5)


def build(config: Config, preprocessing: Preprocessing, num_classes: int) -> Network:
    """The network for pictures [N, C, S, S], C and S from ``preprocessing``; always from scratch."""
    blocks: list[nn.Module] = []
    inputs, side = preprocessing.channels, preprocessing.size
    for base in CHANNELS:
        outputs = scaled(base, config.width)
        layers = [conv3x3(inputs, outputs), nn.BatchNorm2d(outputs), nn.LeakyReLU(config.slope, inplace=True)]
        if side // 2 >= SMALLEST_MAP:
            layers.append(nn.MaxPool2d(2))
            side //= 2
        blocks.append(nn.Sequential(*layers, nn.Dropout(config.conv_dropout)))
        inputs = outputs
    return assemble(blocks, inputs, side, config, preprocessing.channels, num_classes)


def reference() -> tuple[Config, Preprocessing]:
    """The source's configuration: 48x48 gray."""
    return Config(), Preprocessing(size=48, channels=1)


def suggest(pick: Pick) -> Config:
    """Draw a configuration from the search space."""
    return Config(
        width=pick.choice("width", [0.5, 1.0, 1.5, 2.0]),
        slope=pick.choice("slope", [0.01, 0.1, 0.2]),
        conv_dropout=pick.float("conv_dropout", 0.0, 0.4),
        dense=pick.choice("dense", ["none", "256", "512-256"]),
        dense_dropout=pick.float("dense_dropout", 0.1, 0.6),
    )
