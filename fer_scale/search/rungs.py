"""The ladder of a search: how many rungs of compute its time allows, and how large they are."""

import math
from dataclasses import dataclass

REDUCTION = 3
"""Each rung has this many times the compute of the one below, and a third of its trials."""
LOWEST_SECONDS = 240.0
"""A lowest rung above this gets another one below it."""
RUNGS = (3, 6)
"""Fewest and most rungs."""
KEPT_BACK = 0.08
"""Share of the time for starting up and for scoring."""
FAMILY_SHARE = 0.25
"""A rung that costs no more than this share of the search for all families together is open to the best of each."""


@dataclass(frozen=True, kw_only=True)
class Rungs:
    """The ladder of a search. Rungs count from 1."""

    first: float
    """Compute of a fit for the lowest rung: seconds of a trial that has its CPUs, or share of a GPU, to itself."""
    count: int
    """How many rungs there are."""
    families_to: int = 1
    """The highest rung that the best trial of each family reaches whatever the others do."""

    def compute(self, rung: int) -> float:
        """Compute of one fit for a rung, seconds."""
        return float(self.first * REDUCTION ** (rung - 1))

    @classmethod
    def within(cls, seconds: float, slots: int, families: int) -> "Rungs":
        """The ladder for a search of so much wall time with so many fits at once.

        It is as high as one round of successive halving allows that ends with one fit for the highest rung and its
        confirmation: the two run side by side where there are two slots.
        """
        for count in range(RUNGS[0], RUNGS[1] + 1):
            highest = REDUCTION ** (count - 1)
            rounds = sum(math.ceil(highest // size / slots) * size for size in _sizes(count)) + highest * (slots == 1)
            first = seconds * (1 - KEPT_BACK) / rounds
            if first <= LOWEST_SECONDS:
                break
        share = seconds * slots * FAMILY_SHARE / families
        reach = max((rung for rung, size in enumerate(_sizes(count), 1) if first * size <= share), default=1)
        return cls(first=first, count=count, families_to=min(reach, count - 1))


def _sizes(count: int) -> list[int]:
    """Compute of the rungs in units of the lowest."""
    return [REDUCTION**rung for rung in range(count)]
