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
    ) -> None:
        self.learner = Learner(network, recipe, class_counts=list(counts), seed=seed, device=device)
        self.compute_seconds = 0.0
        self._measured = MEASURED_STEPS[device.type]
        self._most = most_epochs * batches.steps_per_epoch if most_epochs else math.inf
        self.steps = self._measured + 1
        """Of the whole fit, known once it is measured."""
        self._compute = compute
        self._batches = batches
        self._val = val
        self._clock = clock(device)

    def measure(self) -> None:
        """Take the first steps, at the low rate that every fit begins with, and time them.

        The first one also allocates, so the cheapest of the others counts.
        """
        costs = []
        for _ in range(self._measured):
            began = self._clock()
            self.learner.train_step(self._batches, anneal(self.learner.recipe, 0.0))  # of all stages, whatever thaws
            costs.append(self._clock() - began)
        self.compute_seconds += sum(costs)
        paid = self._compute / max(min(costs[1:]), 1e-6)
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


def clock(device: torch.device) -> Callable[[], float]:
    """Seconds of compute on a device."""
    return _cpu_clock if device.type == "cpu" else _cuda_clock


def _cpu_clock() -> float:
    """Seconds of this process's CPUs over the number of them: wall time, were there no neighbours."""
    return time.process_time() / torch.get_num_threads()


def _cuda_clock() -> float:
    torch.cuda.synchronize()
    return time.perf_counter()
