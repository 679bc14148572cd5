"""One trial of a search: a configuration that climbs the rungs, each a fixed amount of compute."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fer_scale.bundle import build
from fer_scale.faces.store import Faces
from fer_scale.learning import metrics
from fer_scale.learning.configuration import Configuration
from fer_scale.learning.loop import Batches, Learner, fit

REDUCTION = 3
"""Each rung has this many times the compute of the one below (Li et al. 2020, ASHA, section 3)."""
MEASURED_STEPS = 3


@dataclass(frozen=True, kw_only=True)
class Rungs:
    """The ladder that every trial of a search stands on."""

    first: float
    """Compute of the lowest rung: seconds of a trial that has its CPUs, or share of a GPU, to itself."""
    count: int
    """How many rungs there are."""

    def compute(self, rung: int) -> float:
        """Compute from the start of a trial to the end of a rung (0 the lowest), seconds."""
        return float(self.first * REDUCTION**rung)

    @classmethod
    def within(cls, compute: float) -> "Rungs":
        """The ladder for a search that may spend ``compute`` trial-seconds in all.

        One trial to the top takes a seventh of it, and three rungs lead there: a lowest rung is a sixtieth, so the
        families' dozen of first trials take a fifth. A longer search has a higher ladder, not a coarser one.
        """
        top, count = compute / 7, 3
        while top / REDUCTION ** (count - 1) > 240 and count < 6:
            count += 1
        return cls(first=top / REDUCTION ** (count - 1), count=count)


class Trial:
    """A configuration with the state of its fit.

    The cost of a step is measured once, in seconds of this process's CPUs where the device is one, so that a busy
    neighbour does not change what a rung is. Each rung is one anneal of the learning rate that ends where the rung
    ends (warm restarts, Loshchilov & Hutter 2017): every score that is compared is that of a finished fit.
    """

    def __init__(
        self,
        configuration: Configuration,
        num_classes: int,
        train: Faces,
        val: Faces,
        rungs: Rungs,
        seed: int,
        device: torch.device,
    ) -> None:
        torch.manual_seed(seed)
        network = build(configuration, num_classes)
        counts = np.bincount(train.labels, minlength=num_classes).tolist()
        self.learner = Learner(network, configuration.recipe, class_counts=counts, seed=seed, device=device)
        self.weights = network.weights
        self.parameters = sum(parameter.numel() for parameter in network.parameters())
        self.rung = 0
        self.compute_seconds = 0.0
        self._batches = Batches(train, num_classes, configuration.recipe.batch_size, seed, device)
        self._val = val
        self._rungs = rungs
        self._clock: Callable[[], float] = _cpu_clock if device.type == "cpu" else _cuda_clock
        self._step_cost = 0.0

    def measure(self) -> None:
        """Take the first steps, at the low rate that every fit begins with, and time them.

        The first one also allocates, so the cheapest of the others counts.
        """
        costs = []
        for step in range(MEASURED_STEPS):
            began = self._clock()
            fit(self.learner, self._batches, step + 1, lambda _: 0.0)
            costs.append(self._clock() - began)
        self.compute_seconds += sum(costs)
        self._step_cost = max(min(costs[1:]), 1e-6)

    def steps(self, rung: int) -> int:
        """Steps from the start of the trial to the end of a rung."""
        return max(round(self._rungs.compute(rung) / self._step_cost), MEASURED_STEPS + 1)

    def seconds_left(self) -> float:
        """What the next rung is going to take."""
        return (self.steps(self.rung) - self.learner.step) * self._step_cost

    def climb(self, deadline: float) -> bool:
        """Train to the end of the next rung; False where the deadline (unix time) came first."""
        began, start, end = self._clock(), self.learner.step, self.steps(self.rung)

        def progress(step: int) -> float:
            return 1.0 if time.time() > deadline else (step - start) / (end - start)

        fit(self.learner, self._batches, end, progress)
        self.compute_seconds += self._clock() - began
        reached = self.learner.step == end
        self.rung += reached
        return reached

    def score(self) -> dict[str, Any]:
        """Accuracy on val, with its interval, and the facts."""
        began = self._clock()
        predicted = self.learner.logits(self._val.images).argmax(axis=1)
        self.compute_seconds += self._clock() - began
        correct = int((predicted == self._val.labels).sum())
        low, high = metrics.wilson_interval(correct, len(self._val))
        return {
            "rung": self.rung,
            "accuracy": correct / len(self._val),
            "accuracy_low": low,
            "accuracy_high": high,
            **self.facts(),
        }

    def facts(self) -> dict[str, Any]:
        """What a row of the trials table says of the trial so far."""
        return {
            "parameters": self.parameters,
            "weights": self.weights,
            "images_seen": self.learner.step * self._batches.size,
            "compute_seconds": round(self.compute_seconds, 3),
        }


def _cpu_clock() -> float:
    """Seconds of this process's CPUs over the number of them: wall time, were there no neighbours."""
    return time.process_time() / torch.get_num_threads()


def _cuda_clock() -> float:
    torch.cuda.synchronize()
    return time.perf_counter()
