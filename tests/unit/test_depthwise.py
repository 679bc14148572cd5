"""The depthwise convolutions that CPUs train quickly are PyTorch's and timm's in all they give."""

import copy

import pytest
import torch
from timm.layers.conv2d_same import Conv2dSame
from torch import nn

from fer_scale.faces.images import Preprocessing
from fer_scale.families import efficientnet
from fer_scale.families.depthwise import DepthwiseConv2d, DepthwiseConv2dSame, quicken_depthwise


@pytest.mark.parametrize(
    ("kernel", "height", "width"), [(5, 3, 3), (5, 1, 1), (5, 4, 3), (5, 5, 2), (3, 2, 1), (3, 2, 2)]
)
def test_answers_and_gradients_are_those_of_torch(kernel: int, height: int, width: int) -> None:
    torch.manual_seed(0)
    plain = nn.Conv2d(6, 6, kernel, padding=kernel // 2, groups=6, bias=False).double()
    plain = plain.to(memory_format=torch.channels_last)
    small = copy.deepcopy(plain)
    quicken_depthwise(small)
    assert type(small) is DepthwiseConv2d
    pictures = torch.randn(3, 6, height, width).double().contiguous(memory_format=torch.channels_last)
    weighting = torch.randn_like(pictures)
    found = []
    for layer in (plain, small):
        seen = pictures.clone().requires_grad_()
        given = layer(seen)
        (given * weighting).sum().backward()
        found.append((given.detach(), seen.grad, layer.weight.grad))
    torch.testing.assert_close(found[1], found[0])
    assert small.weight.grad is not None
    assert small.weight.grad.stride() == small.weight.stride(), "else DDP copies it, and says so"


@pytest.mark.parametrize(("height", "training", "ours"), [(4, True, True), (5, True, False), (4, False, False)])
def test_torch_keeps_larger_maps_and_what_is_exported(height: int, training: bool, ours: bool) -> None:
    layer = nn.Conv2d(6, 6, 5, padding=2, groups=6, bias=False)
    quicken_depthwise(layer)
    answer = layer.train(training)(torch.zeros(2, 6, height, 4))
    assert answer.grad_fn is not None
    assert answer.grad_fn.name().startswith("_ByTaps") == ours, answer.grad_fn.name()


class Standardised(nn.Conv2d):
    """A layer with a forward of its own."""


def test_a_layer_that_does_something_else_goes_on_doing_it() -> None:
    reflecting = nn.Conv2d(6, 6, 5, padding=2, groups=6, bias=False, padding_mode="reflect")
    other = Standardised(6, 6, 5, padding=2, groups=6, bias=False)
    pictures = torch.randn(2, 6, 4, 4)
    expected = reflecting(pictures)
    quicken_depthwise(nn.ModuleList([reflecting, other]))
    torch.testing.assert_close(reflecting(pictures), expected)
    assert type(other) is Standardised


@pytest.mark.parametrize("same", [False, True])
@pytest.mark.parametrize("size", [2, 8])
def test_under_autocast_they_answer_in_float32_as_without_it(same: bool, size: int) -> None:
    torch.manual_seed(0)
    layer: nn.Conv2d = Conv2dSame(6, 6, 5, stride=2, groups=6) if same else nn.Conv2d(6, 6, 5, padding=2, groups=6)
    pictures = torch.randn(3, 6, size, size).bfloat16()
    expected = layer(pictures.float())
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(pictures).dtype == torch.bfloat16, "what autocast does to a convolution of torch's or timm's"
        quicken_depthwise(layer)
        assert type(layer) is (DepthwiseConv2dSame if same else DepthwiseConv2d)
        answer = layer(pictures)
    torch.testing.assert_close(answer, expected)


def test_all_of_an_efficientnet_are_and_all_its_weights_learn_in_bfloat16() -> None:
    network = efficientnet.build(efficientnet.Config(weights="none"), Preprocessing(size=48, channels=1), 4)
    kinds = [type(layer) for layer in network.modules() if isinstance(layer, nn.Conv2d) and layer.groups > 1]
    assert (kinds.count(DepthwiseConv2d), kinds.count(DepthwiseConv2dSame), len(kinds)) == (12, 4, 16)
    small = torch.randint(0, 256, (2, 1, 48, 48), dtype=torch.uint8)
    with torch.autocast("cpu", torch.bfloat16):
        answer = network.train()(small)
    answer.float().sum().backward()
    assert all(
        parameter.grad is not None and parameter.grad.dtype == torch.float32 for parameter in network.parameters()
    )
