"""One fit of a search, with a fixed amount of compute."""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from fer_scale.faces.store import Faces
from fer_scale.families.network import Network
from fer_scale.learning import metrics
from fer_scale.learning.batches import Feed
from fer_scale.learning.loop import Learner, anneal, fit
from fer_scale.learning.recipe import Recipe
from fer_scale.learning.stream import StreamedBatches

MEASURED_STEPS = {"cpu": 3, "cuda": 20}
"""How many steps are timed. One on a GPU is short, and where trials share it the neighbours' slices of its time lie in
some of them. CUDA's events are read on the device's clock and count these too, so the cheapest of many tells most."""
SCORING = 0.04
"""Share of the time left that is kept back for scoring, where the deadline shortens a fit."""


class Trial:
    """One fit of a search: a network, fitted with so much compute and scored on val.

    The cost of a step is measured first, in seconds of this process's CPUs where the device is one, so that a busy
    neighbour does not change how much a fit is given. From then on the fit is a number of steps, and the learning rate
    anneals over just these.

    Args:
        compute: seconds of the device.
        most_epochs: what the fit is enough with even where compute is left.
        cpus: that the process has, for :func:`clock`.
    """

    def __init__(
        self,
        network: Network,
        recipe: Recipe,
        batches: Feed,
        counts: Sequence[int],
        val: Callable[[], Iterable[Faces]],
        *,
        compute: float,
        seed: int,
        device: torch.device,
        most_epochs: int | None = None,
        cpus: float = 1,
    ) -> None:
        self.learner = Learner(network, recipe, class_counts=list(counts), seed=seed, device=device)
        self.compute_seconds = 0.0
        self._measured = MEASURED_STEPS[device.type]
        self._most = most_epochs * batches.steps_per_epoch if most_epochs else math.inf
        self.steps = self._measured + 1
        """Of the whole fit, known once it is measured."""
        self.capped = False
        """Whether the epochs end it before its compute does."""
        self._compute = compute
        self._batches = batches
        self._steps_per_window = batches.steps_per_window if isinstance(batches, StreamedBatches) else math.inf
        self._val = val
        self._clock = clock(device, cpus)

    def measure(self) -> None:
        """Take the first steps, at the low rate that every fit begins with, and time them.

        The first one also allocates, so the cheapest of the others counts. To it comes its share of reading a window,
        where the faces are streamed.
        """
        reads, costs = [], []
        for _ in range(self._measured):
            began = self._clock()
            self._batches.batch(self.learner.step)  # a stream reads a window here, and the step finds it in memory
            read = self._clock()
            self.learner.train_step(self._batches, anneal(self.learner.recipe, 0.0))  # of all stages, whatever thaws
            reads.append(read - began)
            costs.append(self._clock() - read)
        self.compute_seconds += sum(reads) + sum(costs)
        paid = self._compute / max(min(costs[1:]) + reads[0] / self._steps_per_window, 1e-6)
        self.capped = paid > self._most
        self.steps = max(round(min(paid, self._most)), self._measured + 1)

    def run(self, deadline: float) -> float:
        """Fit; the share of the steps that was taken: less than 1 where the deadline (unix time) came first.

        Then the learning rate goes by the clock, so that what is scored is a finished fit all the same.
        """
        began, start, now = self._clock(), self.learner.step, time.time()
        allowed = max((deadline - now) * (1 - SCORING), 1e-3)

        def progress(step: int) -> float:
            return max((step - start) / (self.steps - start), (time.time() - now) / allowed)

        fit(self.learner, self._batches, self.steps, progress)
        self.compute_seconds += self._clock() - began
        return self.learner.step / self.steps

    def score(self) -> dict[str, Any]:
        """Accuracy on val, with its interval, and the facts."""
        began = self._clock()
        right = [self.learner.logits(part.images).argmax(axis=1) == part.labels for part in self._val()]
        self.compute_seconds += self._clock() - began
        correct, count = sum(int(part.sum()) for part in right), sum(len(part) for part in right)
        low, high = metrics.wilson_interval(correct, count)
        return {
            "accuracy": correct / count,
            "accuracy_low": low,
            "accuracy_high": high,
            **self.facts(),
        }

    def facts(self) -> dict[str, Any]:
        """What a row of the trials table says of the fit so far."""
        return {
            "images_seen": self.learner.step * self._batches.size,
            "compute_seconds": round(self.compute_seconds, 3),
        }


def clock(device: torch.device, cpus: float = 1) -> Callable[[], float]:
    """Seconds of compute on a device; on CPUs wall time, were there no neighbours but those it shares a core with.

    Args:
        device: whose time counts.
        cpus: that this process has. With a share of one, a second of CPU takes as many seconds as have that share.
    """
    if device.type != "cpu":
        return _cuda_clock
    return lambda: time.process_time() / (torch.get_num_threads() * min(cpus, 1))


def _cuda_clock() -> float:
    torch.cuda.synchronize()
    return time.perf_counter()
