"""The global batches of a fit: which faces each holds depends on the seed and the step alone."""

from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from fer_scale.faces.store import Faces
from fer_scale.learning.workers import place


class Feed(Protocol):
    """Where a fit's batches come from: faces in memory, or a stream."""

    size: int
    """Faces of a global batch."""
    steps_per_epoch: int

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """This worker's part of a step's global batch: uint8 ``[B, C, S, S]``, targets float32 ``[B, K]``."""
        ...

    def ids(self, step: int) -> list[str]:
        """Which faces the global batch holds."""
        ...


class Batches:
    """Faces in memory as global batches in an order that the seed alone decides.

    Each batch can be asked for by its step, so a resumed fit goes on with the very next one, and every worker
    takes its own slice of the same global batch: the result does not depend on how many there are.
    """

    def __init__(self, faces: Faces, num_classes: int, batch_size: int, seed: int, device: torch.device) -> None:
        self.size = min(batch_size, len(faces))
        self.steps_per_epoch = len(faces) // self.size
        self._faces = faces
        self._targets = targets_of(faces, num_classes)
        self._seed = seed
        self._device = device
        self._epoch = -1
        self._order: npt.NDArray[np.int64] = np.empty(0, dtype=np.int64)
        self._rank, self._workers = place()

    def indices(self, step: int) -> npt.NDArray[np.int64]:
        """Which faces the global batch of a step holds: int64 ``[size]``."""
        epoch, at = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = np.random.default_rng((self._seed, epoch)).permutation(len(self._faces))
        return self._order[at * self.size : (at + 1) * self.size]

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """This worker's part: uint8 ``[B, C, S, S]`` and targets float32 ``[B, K]``, on the device."""
        mine = self.indices(step)[self._rank :: self._workers]
        images, targets = torch.from_numpy(self._faces.images[mine]), self._targets[torch.from_numpy(mine)]
        return sent(images, self._device), sent(targets, self._device)

    def ids(self, step: int) -> list[str]:
        """Which faces those are."""
        return [self._faces.ids[at] for at in self.indices(step)]


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of this process's memory on a device, which is not waited for."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def targets_of(faces: Faces, num_classes: int) -> Tensor:
    """What is learned, float32 ``[N, K]``: the shares of the votes where there are any, else the label alone."""
    targets = F.one_hot(torch.tensor(faces.labels), num_classes).float()
    if faces.votes is not None:
        votes = torch.from_numpy(faces.votes)
        total = votes.sum(dim=1, keepdim=True)
        targets = torch.where(total > 0, votes / total.clamp_min(1e-9), targets)
    return targets
