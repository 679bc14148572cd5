"""What the families without pretrained weights share: the fields of their configuration."""

from dataclasses import dataclass

from fer_scale.families.checks import between, dense_widths


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
