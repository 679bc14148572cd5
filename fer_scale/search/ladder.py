"""Which fit comes next: successive halving on rungs of equal compute, and the end that it has to come to in time.

Promotion and not early stopping (Li et al. 2020, ASHA, algorithm 2): every fit aims for one rung with a schedule that
fits it, and a trial that is promoted is fitted anew. Nothing in here knows Ray, Optuna or PyTorch.
"""

import math
from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

REDUCTION = 3
"""Each rung has this many times the compute of the one below, and a third of its trials."""
LOWEST_SECONDS = 240.0
"""A lowest rung above this gets another one below it."""
RUNGS = (3, 6)
"""Fewest and most rungs."""
KEPT_BACK = 0.08
"""Share of the time for starting up and for scoring."""
SHORT = 0.6
"""Share of its rung below which a fit that the deadline shortens is not begun."""
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


@dataclass(kw_only=True, eq=False)
class Standing:
    """What is known of one trial."""

    trial: int
    family: str
    scores: dict[int, float] = field(default_factory=dict)
    """Accuracy at each rung that it was fitted for."""
    aim: int = 0
    """The highest rung that it was ever sent to."""
    running: int = 0
    """Fits under way."""
    failed: bool = False
    confirmed: float | None = None
    """Accuracy of the confirmation, on a fresh seed."""
    confirming: bool = False
    """Whether a confirmation was begun."""

    @property
    def rung(self) -> int:
        """The highest rung with a score; 0 none."""
        return max(self.scores, default=0)

    @property
    def value(self) -> float:
        """By what trials are ranked: the accuracy at the highest rung, the mean of both seeds once confirmed."""
        accuracy = self.scores[self.rung]
        return accuracy if self.confirmed is None else (accuracy + self.confirmed) / 2


@dataclass(frozen=True)
class Choice:
    """What a free slot is to do."""

    kind: Literal["new", "climb", "confirm"]
    rung: int
    trial: int = -1


class _Rung:
    """The scores of one rung, in order, and which of its trials have not climbed on."""

    def __init__(self) -> None:
        self.scores: list[float] = []
        self.climbed = 0
        self.firsts: dict[str, Standing] = {}
        self._waiting: list[tuple[float, int, Standing]] = []

    def add(self, one: Standing, score: float) -> None:
        insort(self.scores, -score)
        insort(self._waiting, (-score, one.trial, one))
        first = self.firsts.get(one.family)
        if first is None or score > first.scores[min(first.scores)]:
            self.firsts[one.family] = one

    def best(self, rung: int) -> tuple[int, Standing] | None:
        """The best that has not climbed on and is not running, with its rank from 0 among all of the rung."""
        self._waiting = [item for item in self._waiting if item[2].aim <= rung and not item[2].failed]
        for score, _, one in self._waiting:
            if not one.running:
                return bisect_left(self.scores, score), one
        return None


class Policy:
    """Decides what a free slot does.

    Every family opens before anything climbs. Then whatever is in the best third of its rung climbs, the highest rung
    first, and where nothing does a new trial begins. When the time left is just enough for the end, the end comes
    first: the best climbs to the highest rung and is confirmed there on a fresh seed.
    """

    def __init__(self, rungs: Rungs, families: Sequence[str]) -> None:
        self.rungs = rungs
        self.standings: dict[int, Standing] = {}
        self._unopened = set(families)
        self._unscored = set(families)
        self._rungs = {rung: _Rung() for rung in range(1, rungs.count + 1)}
        self._aims: dict[int, set[Standing]] = {rung: set() for rung in range(rungs.count + 1)}
        self._running = 0

    def begins(self, trial: int, family: str, rung: int, confirm: bool = False) -> None:
        """A fit begins."""
        one = self.standings.setdefault(trial, Standing(trial=trial, family=family))
        self._unopened.discard(family)
        one.running += 1
        self._running += 1
        if confirm:
            one.confirming = True
        elif rung > one.aim:
            if one.rung:
                self._rungs[one.rung].climbed += 1
            self._aims[one.aim].discard(one)
            self._aims[rung].add(one)
            one.aim = rung

    def ends(self, trial: int, rung: int, accuracy: float | None, confirm: bool = False) -> None:
        """A fit ended, with an accuracy or without one; a trial whose fit failed does not go on."""
        one = self.standings[trial]
        one.running -= 1
        self._running -= 1
        self._unscored.discard(one.family)
        if confirm:
            one.confirmed = accuracy
        elif accuracy is None:
            one.failed = True
            self._aims[one.aim].discard(one)
        else:
            one.scores[rung] = accuracy
            self._rungs[rung].add(one, accuracy)

    def choose(self, *, left: float, pace: float, may_open: bool) -> Choice | None:
        """The next fit; None where nothing is worth it now.

        Args:
            left: seconds of wall time.
            pace: wall seconds that a second of compute takes here, 1 or more.
            may_open: whether another trial is allowed.
        """
        if may_open and self._unopened:
            return Choice("new", 1)
        left /= pace
        usual, end = self._usual(left, may_open), self._end(left)
        if end and (usual is None or left - self.rungs.compute(usual.rung) < self.rungs.compute(end.rung)):
            return end
        return usual

    def _usual(self, left: float, may_open: bool) -> Choice | None:
        if not self._unscored:
            for rung in range(self.rungs.count - 1, 0, -1):
                if self.rungs.compute(rung + 1) <= left and (one := self._promoted(rung)) is not None:
                    return Choice("climb", rung + 1, one.trial)
        # a trial that could not climb any more would tell nothing
        enough = left >= self.rungs.first + self.rungs.compute(2)
        return Choice("new", 1) if may_open and enough else None

    def _promoted(self, at: int) -> Standing | None:
        """What may climb past a rung: at the lowest the best of each family before the second of any."""
        rung = self._rungs[at]
        quota = len(rung.scores) // REDUCTION
        if at == 1 or at < self.rungs.families_to:
            firsts = [t for t in rung.firsts.values() if t.aim == at and not t.running and not t.failed]
            first = max(firsts, key=lambda t: t.scores[at], default=None)
            if first is not None and (rung.climbed < quota or at < self.rungs.families_to):
                return first
        best = rung.best(at) if rung.climbed < quota else None
        return best[1] if best is not None and best[0] < quota else None

    def _end(self, left: float) -> Choice | None:
        """The end that is still due: a fit for the highest rung within reach, then its confirmation."""
        top = self.rungs.count
        reached = max((rung for rung, members in self._aims.items() if members), default=0)
        if reached < top:
            reach = max((r for r in range(1, top + 1) if self.rungs.compute(r) * SHORT <= left), default=0)
            ready = (self._rungs[rung].best(rung) for rung in range(top, 0, -1))
            best = next((found[1] for found in ready if found is not None), None)
            if best is not None and reach > reached:
                return Choice("climb", reach, best.trial)
            if self._running and reach > 1:
                return None  # a better one may come out of what runs
        # while the first fit for the highest rung runs, it is what will be chosen
        chosen = max((t for t in self._aims[reached] if t.scores), key=lambda t: t.value, default=None)
        if chosen is None or chosen.confirming:
            return None
        rung = chosen.aim if chosen.running else chosen.rung
        return Choice("confirm", rung, chosen.trial) if self.rungs.compute(rung) * SHORT <= left else None
