"""Pieces that the families share: convolution blocks, pooling, dense heads."""

from collections.abc import Sequence

from torch import Tensor, nn

SMALLEST_MAP = 3
"""Side in cells that halving a feature map must leave: a smile and a frown differ in where, not in what."""


def scaled(channels: int, width: float) -> int:
    """``channels`` times ``width``, rounded to a multiple of 8 (which AVX2 likes), at least 8."""
    return max(8, round(channels * width / 8) * 8)


def conv3x3(inputs: int, outputs: int, *, bias: bool = False) -> nn.Conv2d:
    """A 3x3 convolution that keeps the size; the padding is explicit because ``padding="same"`` is slower."""
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=bias)


def flatten(channels: int, side: int) -> tuple[nn.Sequential, int]:
    """Flatten a map [N, channels, side, side]; from 12 cells a side on it is averaged down to 6..11 first.

    Returns:
        The module, and the length of the vector that it gives.
    """
    kernel = max(1, side // 6)
    pool: nn.Module = nn.AvgPool2d(kernel) if kernel > 1 else nn.Identity()
    return nn.Sequential(pool, nn.Flatten()), channels * (side // kernel) ** 2


def dense_head(inputs: int, widths: Sequence[int], classes: int, *, dropout: float, batch_norm: bool) -> nn.Sequential:
    """Dense layers with ReLU, dropout and, if wanted, batch norm, then the output layer.

    [N, inputs] to [N, classes]. Without dense layers the dropout stands before the output layer. After one
    of 64 units or fewer half as much is dropped: a narrow layer has nothing to spare. The output layer starts
    near zero, so that a fit begins at the loss of a guess.
    """
    layers: list[nn.Module] = [] if widths else [nn.Dropout(dropout)]
    for width in widths:
        layers.append(nn.Linear(inputs, width, bias=not batch_norm))
        if batch_norm:
            layers.append(nn.BatchNorm1d(width))
        layers += [nn.ReLU(inplace=True), nn.Dropout(dropout if width > 64 else dropout / 2)]
        inputs = width
    output = nn.Linear(inputs, classes)
    head = nn.Sequential(*layers, output)
    initialise(head)
    nn.init.normal_(output.weight, std=0.01)
    return head


class GlobalAverage(nn.Module):
    """The mean over a feature map: [N, F, H, W] to [N, F]."""

    def forward(self, x: Tensor) -> Tensor:
        """[N, F, H, W] to [N, F]."""
        return x.mean((2, 3))


def initialise(module: nn.Module) -> None:
    """Initialise convolutions and dense layers that feed a ReLU (He et al. 2015, arXiv:1502.01852)."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight, mode="fan_in", nonlinearity="relu")
        if isinstance(layer, nn.Conv2d | nn.Linear) and layer.bias is not None:
            nn.init.zeros_(layer.bias)
