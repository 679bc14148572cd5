"""Which fit comes next: successive halving on rungs of equal compute, and the end that it has to come to in time.

Promotion and not early stopping (Li et al. 2020, ASHA, algorithm 2): every fit aims for one rung with a schedule that
fits it, and a trial that is promoted is fitted anew. Nothing in here knows Ray, Optuna or PyTorch.
"""

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from fer_scale.search.rungs import REDUCTION, Rungs

SHORT = 0.6
"""Share of its rung below which a fit that the deadline shortens is not begun."""
COUNTED = 0.5
"""Share of its rung below which a fit that was shortened counts for nothing, where its trial has another score."""
LAST = 0.95
"""Share of the time left that a slot's last fit takes: the rest is for starting and scoring it."""


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
    confirmed: dict[int, float] = field(default_factory=dict)
    """Accuracy at a rung on a fresh seed."""
    confirming: int = 0
    """The highest rung that a confirmation was begun for."""

    @property
    def rung(self) -> int:
        """The highest rung with a score; 0 none."""
        return max(self.scores, default=0)

    @property
    def value(self) -> float:
        """By what trials are ranked: the accuracy at the highest rung, the mean of both seeds once confirmed."""
        accuracy = self.scores[self.rung]
        return (accuracy + self.confirmed.get(self.rung, accuracy)) / 2


@dataclass(frozen=True)
class Choice:
    """What a free slot is to do."""

    kind: Literal["new", "climb", "confirm"]
    rung: int
    compute: float
    """Seconds; a slot's last fit is given more than its rung."""
    trial: int = -1


class _Rung:
    """The scores of one rung, in order, and which of its trials have not climbed on."""

    def __init__(self) -> None:
        self.scores: list[float] = []
        self.climbed = 0
        self.firsts: dict[str, tuple[float, Standing]] = {}
        """The best of each family, by its score at this rung."""
        self._waiting: list[tuple[float, int, Standing]] = []

    def add(self, one: Standing, score: float) -> None:
        """Take in a fit's score on this rung."""
        insort(self.scores, -score)
        self.wait(one, score)
        if one.family not in self.firsts or score > self.firsts[one.family][0]:
            self.firsts[one.family] = (score, one)

    def wait(self, one: Standing, score: float) -> None:
        """The trial may climb on."""
        insort(self._waiting, (-score, one.trial, one), key=lambda item: item[:2])

    def best(self, rung: int) -> tuple[int, Standing] | None:
        """The best that has not climbed on and is not running, with its rank from 0 among all of the rung."""
        self._waiting = [item for item in self._waiting if item[2].aim <= rung and not item[2].failed]
        for score, _, one in self._waiting:
            if not one.running:
                return bisect_left(self.scores, score), one
        return None


class Policy:
    """Decides what a free slot does.

    First every family opens. Whatever is in the best third of its rung climbs, the highest rung first, the best already
    while the second half of the families opens; where nothing does a new trial begins. When the time left no longer
    allows for a fit that could still matter and a fit for the highest rung, each slot takes its last one: the best
    climbs to the highest rung, then it is fitted there on a fresh seed, then the same with the next best. A last fit
    gets all of the time that is left.

    Args:
        rungs: the ladder.
        families: their names.
        slots: fits at once.
        spread: half of the 95 % interval of a score: two that are closer are a tie.
    """

    def __init__(self, rungs: Rungs, families: Sequence[str], *, slots: int, spread: float) -> None:
        self.rungs = rungs
        self.standings: dict[int, Standing] = {}
        self._spread = spread
        self._in_a_row = 2 if slots == 1 else 1
        self._unopened = set(families)
        self._unscored = set(families)
        self._half = len(self._unscored) / 2
        self._opened: dict[str, int] = {}
        self._rungs = {rung: _Rung() for rung in range(1, rungs.count + 1)}
        self._highest = 0
        self._running = 0
        self._over = False

    def begins(self, trial: int, family: str, rung: int, confirm: bool = False) -> None:
        """A fit begins."""
        one = self.standings.setdefault(trial, Standing(trial=trial, family=family))
        self._unopened.discard(family)
        self._opened.setdefault(family, len(self._opened))
        one.running += 1
        self._running += 1
        if confirm:
            one.confirming = max(rung, one.confirming)
        elif rung > one.aim:
            if one.rung:
                self._rungs[one.rung].climbed += 1
            one.aim = rung
            self._highest = max(self._highest, rung)

    def ends(self, trial: int, rung: int, accuracy: float | None, *, confirm: bool = False, cut: bool = False) -> None:
        """A fit ended, with an accuracy or without one; a trial whose fit failed does not go on.

        Args:
            trial: whose fit it was.
            rung: that it was for.
            accuracy: on val.
            confirm: whether it was on a fresh seed.
            cut: whether it has no accuracy only because the deadline left it too little: then it may be begun again.
        """
        one = self.standings[trial]
        one.running -= 1
        self._running -= 1
        self._unscored.discard(one.family)
        if accuracy is not None:
            (one.confirmed if confirm else one.scores)[rung] = accuracy
            if not confirm:
                self._rungs[rung].add(one, accuracy)
        elif confirm:
            one.confirming = 0 if cut else one.confirming
        elif cut:
            one.aim = one.rung
            self._rungs[one.rung].climbed -= 1
            self._rungs[one.rung].wait(one, one.scores[one.rung])
        else:
            one.failed = True

    def choose(self, *, left: float, pace: float, may_open: bool) -> Choice | None:
        """The next fit; None where nothing is worth it now.

        Args:
            left: seconds of wall time.
            pace: wall seconds that a second of compute takes here, 1 or more.
            may_open: whether another trial is allowed.
        """
        spare = left / pace - self._in_a_row * self.rungs.compute(self.rungs.count)
        opening = may_open and bool(self._unopened) and left / pace >= SHORT * self.rungs.first
        early = len(self._unscored) > self._half or self._rungs[1].climbed > 0
        # a trial that could not climb any more would tell too little
        over = self._over or spare < self.rungs.first + self.rungs.compute(2)
        if not over and not (opening and early):
            for rung in range(self.rungs.count - 1, 0, -1):
                if self.rungs.compute(rung + 1) <= spare and (one := self._promoted(rung)) is not None:
                    return self._choice("climb", rung + 1, one)
        if opening or (may_open and not over):
            return Choice("new", 1, self.rungs.first)
        if not over:
            return self._close()
        last = self._last(left * LAST, pace)
        self._over = last is not None  # from here on whatever slot is free takes its last fit, too
        return last

    def _choice(self, kind: Literal["climb", "confirm"], rung: int, one: Standing) -> Choice:
        return Choice(kind, rung, self.rungs.compute(rung), one.trial)

    def _promoted(self, at: int) -> Standing | None:
        """What may climb past a rung: at the lowest the best of each family before the second of any.

        That is for families which val cannot tell from the best one, or which cost little; those that are a tie with it
        go in the order in which they began, for what is likely to be good begins first. What is clearly beaten does not
        climb, though it be in the best third: a new trial is worth more.
        """
        rung = self._rungs[at]
        if not rung.scores:
            return None
        best = -rung.scores[0]
        beaten = best - 2 * self._spread
        quota = len(rung.scores) // REDUCTION
        free, all_may = rung.climbed < quota, at < self.rungs.families_to and not self._unscored
        if all_may or (at == 1 and free):
            firsts = [
                (score < best - self._spread, self._opened[name] if score >= best - self._spread else -score, one)
                for name, (score, one) in rung.firsts.items()
                if one.aim == at and not one.running and not one.failed
                if all_may or score >= beaten
            ]
            if firsts:
                return min(firsts, key=lambda item: item[:2])[2]
        found = rung.best(at) if free else None
        if found is None or found[0] >= quota or found[1].scores[at] < beaten:
            return None
        return found[1]

    def _last(self, left: float, pace: float) -> Choice | None:
        """A slot's last fit: until the deadline, for the highest rung within reach.

        It is given as much compute as there is wall time: where that takes longer here, it anneals by the clock.
        """
        rungs = range(1, self.rungs.count + 1)
        reach = max((rung for rung in rungs if self.rungs.compute(rung) * SHORT <= left / pace), default=0)

        def may(one: Standing) -> bool:
            return one.aim < reach or (self._highest <= reach and one.aim > one.confirming and one.aim == self._highest)

        able = [one for one in self.standings.values() if one.scores and not one.failed and may(one)]
        chosen = [one for one in able if one.aim == self._highest >= reach]
        # what was sent to the highest rung is confirmed before the next goes there, where no score there says otherwise
        best = _best(chosen if chosen and not self._rungs[self._highest].scores else able, self._spread)
        if best is None:
            return None
        if best.aim >= reach:
            return Choice("confirm", best.aim, left, best.trial)
        half = left / 2 / pace  # of one slot, which confirms it afterwards
        alone = self._in_a_row > 1 and half >= self.rungs.compute(reach) * SHORT
        return Choice("climb", reach, half if alone else left, best.trial)

    def _close(self) -> Choice | None:
        """All trials that are allowed have begun, and there is time: the best is brought to the top and confirmed."""
        best = _best([one for one in self.standings.values() if one.scores and not one.failed], self._spread)
        if best is None or self._running > best.running:
            return None  # a better one may come out of what runs
        if best.aim < self.rungs.count:
            return self._choice("climb", self.rungs.count, best)
        return self._choice("confirm", best.aim, best) if best.confirming < best.aim else None


def _best(able: Sequence[Standing], spread: float) -> Standing | None:
    """The best of trials, at different rungs and whether they run or not: the best of the highest rung.

    Of the lowest rung the first that is a tie with it. One that stands lower is better only if val can tell so from
    their scores at the rung where it stands.
    """
    best = max(able, key=lambda one: (one.rung, one.value), default=None)
    if best is not None and best.rung == 1:
        # val cannot tell these apart, and what is likely to be good began first
        ties = (one for one in able if one.rung == 1 and one.value >= best.value - spread)
        return min(ties, key=lambda one: one.trial)
    for one in able:
        below = best is not None and one.rung < best.rung and one.rung in best.scores
        if best is not None and below and one.scores[one.rung] > best.scores[one.rung] + spread:
            best = one
    return best
