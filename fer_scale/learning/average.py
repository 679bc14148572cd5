"""The averaged weights of a fit, which score better than the last ones (Polyak & Juditsky 1992)."""

import copy

import torch
from torch import Tensor

from fer_scale.families.network import Network


class Average:
    """A network whose weights and buffers are the exponential average of another's.

    Its memory grows with the steps taken, up to ``decay``. torch's AveragedModel would give the same numbers, but its
    count of steps lies on the device, and a GPU is waited for whenever it is read.
    """

    def __init__(self, network: Network, decay: float) -> None:
        self.network = copy.deepcopy(network)
        self._decay = decay
        self._averaged, self._counters = _tensors(self.network)
        self._current, self._counts = _tensors(network)

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights that a step has led to; those of step 0 are taken as they are."""
        share = 1 - min(self._decay, (1 + step) / (10 + step)) if step else 1.0
        torch._foreach_lerp_(self._averaged, self._current, share)
        if self._counters:
            torch._foreach_copy_(self._counters, self._counts)


def _tensors(network: Network) -> tuple[list[Tensor], list[Tensor]]:
    """Those that can be averaged, and counters such as batch norm's number of batches."""
    every = [*network.parameters(), *network.buffers()]
    return [one for one in every if one.is_floating_point()], [one for one in every if not one.is_floating_point()]
