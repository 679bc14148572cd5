"""Depthwise convolutions that can be fitted on a CPU: in float32, and on feature maps smaller than the kernel."""

from typing import Any, cast

import torch
from timm.layers.conv2d_same import Conv2dSame
from torch import Tensor, nn
from torch.nn import functional as F


class DepthwiseConv2d(nn.Conv2d):
    """A depthwise convolution that a CPU trains in its weights' own precision and on small maps by the kernel's taps.

    PyTorch's (oneDNN's) gradients of a depthwise convolution take four to five times as long in bfloat16 as in float32,
    so autocast, which pays in all other layers, ends here. Where the map is smaller than the kernel its weight gradient
    takes a path that is twenty times as slow, 36 ms against 2 for 1,152 channels of 3x3 pixels and a batch of 32, up to
    a quarter of a step of an EfficientNet on pictures of faces: there it is a sum over the kernel's taps.
    """

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] to [N, C, H', W'], as `torch.nn.Conv2d`."""
        if not self.training or x.device.type != "cpu":
            return super().forward(x)
        with torch.autocast("cpu", enabled=False):
            x = x.to(self.weight.dtype)
            if max(x.shape[2:]) < self.kernel_size[0] and _keeps_size(self):
                return cast(Tensor, _ByTaps.apply(x, self.weight))
            return super().forward(x)


class DepthwiseConv2dSame(DepthwiseConv2d, Conv2dSame):
    """The same with TensorFlow's padding, which timm takes where the map is halved."""


OURS: dict[type[nn.Module], type[DepthwiseConv2d]] = {nn.Conv2d: DepthwiseConv2d, Conv2dSame: DepthwiseConv2dSame}


def quicken_depthwise(model: nn.Module) -> None:
    """Make the depthwise convolutions of a model that CPUs are to train quickly `DepthwiseConv2d`."""
    for layer in model.modules():
        if type(layer) in OURS and layer.groups == layer.in_channels == layer.out_channels > 1:  # type: ignore[operator]
            layer.__class__ = OURS[type(layer)]  # its parameters, hooks and names stay what they are


def _keeps_size(layer: nn.Conv2d) -> bool:
    """Whether a layer is what the taps are written for: an odd square kernel that keeps the map's size, no bias."""
    side = layer.kernel_size[0]
    kept = layer.kernel_size == (side, side) and layer.padding == (side // 2, side // 2) and side % 2 == 1
    plain = layer.padding_mode == "zeros" and layer.bias is None
    return kept and plain and layer.stride == layer.dilation == (1, 1)


class _ByTaps(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.conv2d(x, weight, padding=weight.shape[-1] // 2, groups=len(weight))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        (x, weight), (gradient,) = ctx.saved_tensors, gradients
        side, (height, width) = weight.shape[-1], x.shape[2:]
        pad = side // 2
        # channels last, as the maps lie in memory: each tap is a product of two views, summed over pictures and pixels
        seen, given = F.pad(x.permute(0, 2, 3, 1), (0, 0, pad, pad, pad, pad)), gradient.permute(0, 2, 3, 1)
        taps = [
            (seen[:, row : row + height, column : column + width] * given).flatten(0, 2).sum(0)
            for row in range(side)
            for column in range(side)
        ]
        for_x = F.conv2d(gradient, weight.flip(2, 3), padding=pad, groups=len(weight))
        return for_x, torch.empty_like(weight).copy_(torch.stack(taps, 1).view_as(weight))  # in the parameter's layout
