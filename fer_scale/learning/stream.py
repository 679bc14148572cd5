"""Batches of a split that does not fit into memory, in an order that the seed alone decides."""

import itertools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from fer_scale.faces.store import Faces
from fer_scale.faces.windows import Windows
from fer_scale.learning.batches import sent, targets_of
from fer_scale.learning.workers import place

Opened = Callable[[Windows, int, int, int], Iterator[Faces]]
"""(windows, first window, rank, workers) to this worker's faces, window after window, without an end."""


def here(windows: Windows, first: int, rank: int, workers: int) -> Iterator[Faces]:
    """Read and decode in this process, when they are asked for."""
    return (windows.read(window, rank, workers) for window in itertools.count(first))


class StreamedBatches:
    """A `Feed` that holds one window of faces and goes forward; elsewhere it opens the stream anew."""

    def __init__(self, windows: Windows, num_classes: int, device: torch.device, opened: Opened = here) -> None:
        self.size = windows.size
        self.steps_per_epoch = windows.steps_per_epoch
        self.steps_per_window = windows.steps_per_window
        self._windows, self._classes, self._device, self._opened = windows, num_classes, device, opened
        self._rank, self._workers = place()
        self._part = len(range(self._rank, self.size, self._workers))
        self._at = -1
        self._stream: Iterator[Faces] = iter(())
        self._faces: list[Faces] = []

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """This worker's part: uint8 ``[B, C, S, S]`` and targets float32 ``[B, K]``, on the device."""
        window, within = self._windows.at(step)
        if self._at != window:
            if self._at < 0 or self._at != window - 1:
                self._stream = self._opened(self._windows, window, self._rank, self._workers)
            self._faces.clear()  # before the next comes: never two in memory
            self._faces.append(next(self._stream))
            self._at = window
        faces = self._faces[0].rows(slice(within * self._part, (within + 1) * self._part))
        images, targets = torch.from_numpy(faces.images), targets_of(faces, self._classes)
        return sent(images, self._device), sent(targets, self._device)

    def ids(self, step: int) -> list[str]:
        """Which faces the global batch holds, read anew."""
        return self._windows.ids(step)
