"""What a free slot does next: the policy of a search, played with a clock of its own and made-up learning curves."""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache

import numpy as np
import pytest

from fer_scale.search.ladder import LAST, Choice, Policy
from fer_scale.search.rungs import Rungs

SIX = ("efficientnet", "resnet", "cnn2", "complex_cnn", "cnn1", "vgg16")
LIMIT = {"efficientnet": 0.80, "resnet": 0.73, "cnn2": 0.69, "complex_cnn": 0.71, "cnn1": 0.68, "vgg16": 0.69}
"""Accuracy after endless compute."""
HALF = {"efficientnet": 30.0, "resnet": 25.0, "cnn2": 25.0, "complex_cnn": 30.0, "cnn1": 25.0, "vgg16": 60.0}
"""Seconds of compute after which half of the way from FLOOR is gone: what ends best is hardly ahead at the start."""
FLOOR, NOISE = 0.35, 0.01
SPREAD = 0.031
"""Of a thousand faces."""


@dataclass
class Played:
    """What became of a search."""

    policy: Policy
    began: list[tuple[float, str, Choice]] = field(default_factory=list)
    """When, family and choice, with the trial's number filled in."""
    used: float = 0.0
    """Share of the slots' time in which something ran."""
    ended: float = 0.0
    limits: dict[int, float] = field(default_factory=dict)
    """How good each trial really is."""

    @property
    def winner(self) -> int:
        """The trial that is ranked first, as the leaderboard ranks."""
        scored = [one for one in self.policy.standings.values() if one.scores]
        return max(scored, key=lambda one: (one.rung, one.rung in one.confirmed, one.value)).trial

    def climbs(self, rung: int) -> list[tuple[float, str, Choice]]:
        return [one for one in self.began if one[2].kind == "climb" and one[2].rung == rung]


def play(
    seconds: float,
    slots: int,
    families: Sequence[str] = SIX,
    *,
    limit: int = 10**6,
    pace: float = 1.0,
    seed: int = 0,
    speed: float = 1.0,
) -> Played:
    """A search. The first trial of each family is its best; ``speed`` is of the learning."""
    rng = np.random.default_rng(seed)
    policy = Policy(Rungs.within(seconds, slots, len(families)), families, slots=slots, spread=SPREAD)
    played, now, family = Played(policy), 0.0, dict[int, str]()
    running: list[tuple[float, int, int, bool, float]] = []
    while True:
        while len(running) < slots:
            known = len(played.limits)
            choice = policy.choose(left=seconds - now, pace=pace, may_open=known < limit)
            if choice is None:
                break
            at = known if choice.kind == "new" else choice.trial
            if choice.kind == "new":
                family[at] = families[at] if at < len(families) else str(rng.choice(families))
                worse = 0.0 if at < len(families) else 0.03 + abs(rng.normal(0, 0.03))
                played.limits[at] = LIMIT[family[at]] - worse
            policy.begins(at, family[at], choice.rung, choice.kind == "confirm")
            took = min(choice.compute * pace + 1.0, seconds - now)
            heapq.heappush(running, (now + took, at, choice.rung, choice.kind == "confirm", took / pace))
            played.began.append((now, family[at], Choice(choice.kind, choice.rung, choice.compute, at)))
            played.used += took / slots / seconds
        if not running:
            return played
        now, at, rung, confirm, compute = heapq.heappop(running)
        learned = compute * speed / (compute * speed + HALF[family[at]])
        accuracy = FLOOR + (played.limits[at] - FLOOR) * learned + rng.normal(0, NOISE)
        policy.ends(at, rung, float(accuracy), confirm=confirm)
        played.ended = now


@cache
def paced(minutes: int, slots: int, seed: int) -> Played:
    """A search whose fits take a twentieth more than they should."""
    return play(60 * minutes, slots, seed=seed, pace=1.05)


@pytest.mark.parametrize("slots", [1, 2, 4, 8, 32])
@pytest.mark.parametrize("minutes", [10, 20, 40, 480])
def test_all_of_the_time_is_used_and_what_is_chosen_is_confirmed(minutes: int, slots: int) -> None:
    for seed in range(3):
        played = paced(minutes, slots, seed)
        policy = played.policy
        assert played.ended <= 60 * minutes
        assert played.used > 0.93
        winner = policy.standings[played.winner]
        assert winner.rung == policy.rungs.count
        assert winner.rung in winner.confirmed
        fits = [(choice.trial, choice.rung, choice.kind) for _, _, choice in played.began]
        assert len(set(fits)) == len(fits)
        last = [one for one in played.began if one[2].kind == "confirm"][-1]
        assert last[2].compute * 1.05 > 0.9 * policy.rungs.compute(policy.rungs.count)


def test_the_truly_best_is_chosen_where_there_is_time_to_tell() -> None:
    sizes = [(minutes, slots) for minutes in (10, 20, 40, 480) for slots in (1, 2, 4, 8, 32) if minutes * slots >= 20]
    winners = [paced(minutes, slots, seed).winner for minutes, slots in sizes for seed in range(3)]
    assert sum(winner != 0 for winner in winners) <= 1, "of 57 one may be bad luck: its scores are noisy"


def test_the_best_family_has_a_score_at_the_second_rung_after_a_quarter_of_the_search() -> None:
    played = play(1200, 2)
    began, family, _ = played.climbs(2)[0]
    assert family == "efficientnet"
    assert began + played.policy.rungs.compute(2) < 330
    before = {one[1] for one in played.began if one[0] <= began}
    assert 3 <= len(before) < 6


def test_families_that_are_worse_than_val_can_mistake_do_not_climb_in_a_short_search() -> None:
    policy = Policy(Rungs(first=50.0, count=3), SIX, slots=2, spread=SPREAD)
    for trial, name in enumerate(SIX):
        policy.begins(trial, name, 1)
        policy.ends(trial, 1, 0.62 if trial == 0 else 0.55)
    policy.begins(0, SIX[0], 2)
    for trial in range(6, 9):  # more of the best family, all of which are better than the other families
        policy.begins(trial, SIX[0], 1)
        policy.ends(trial, 1, 0.60 - trial / 1000)
    choice = policy.choose(left=1000.0, pace=1.0, may_open=True)
    assert choice is not None
    assert (choice.kind, choice.rung, choice.trial) == ("climb", 2, 6)


def test_what_is_clearly_beaten_does_not_climb_though_it_is_in_the_best_third() -> None:
    policy = Policy(Rungs(first=50.0, count=3), SIX, slots=2, spread=SPREAD)
    for trial, name in enumerate(SIX):
        policy.begins(trial, name, 1)
        policy.ends(trial, 1, 0.59 if trial == 0 else 0.37 + trial / 1000)
    policy.begins(0, SIX[0], 2)
    policy.ends(0, 2, 0.66)
    assert policy.choose(left=1000.0, pace=1.0, may_open=True) == Choice("new", 1, 50.0)
    policy.begins(6, SIX[0], 1)
    policy.ends(6, 1, 0.57)
    assert policy.choose(left=1000.0, pace=1.0, may_open=True) == Choice("climb", 2, 150.0, 6)


def test_where_time_allows_the_best_of_every_family_climbs() -> None:
    played = play(36000, 4)
    assert played.policy.rungs.families_to >= 2
    assert {one.family for one in played.policy.standings.values() if one.rung >= 2} == set(SIX)


def test_what_ties_climbs_in_the_order_in_which_it_began() -> None:
    policy = Policy(Rungs(first=50.0, count=3), ["cnn1", "cnn2", "vgg16"], slots=2, spread=SPREAD)
    for trial, (name, score) in enumerate([("cnn1", 0.52), ("cnn2", 0.54), ("vgg16", 0.50)]):
        policy.begins(trial, name, 1)
        policy.ends(trial, 1, score)
    assert policy.choose(left=1000.0, pace=1.0, may_open=True) == Choice("climb", 2, 150.0, 0)


@pytest.mark.parametrize(("other", "goes_up"), [(0.31, 0), (0.52, 1)], ids=["a tie", "better"])
def test_where_the_time_ends_at_the_lowest_rung_a_tie_goes_to_what_began_first(other: float, goes_up: int) -> None:
    policy = Policy(Rungs(first=4.0, count=3), ["efficientnet", "cnn1"], slots=2, spread=0.09)  # 100 faces on val
    for trial, (name, score) in enumerate([("efficientnet", 0.26), ("cnn1", other)]):
        policy.begins(trial, name, 1)
        policy.ends(trial, 1, score)
    choice = policy.choose(left=40.0, pace=1.0, may_open=True)
    assert choice is not None
    assert (choice.kind, choice.rung, choice.trial) == ("climb", 3, goes_up)


def test_the_first_of_a_family_is_the_best_at_that_rung() -> None:
    policy = Policy(Rungs(first=50.0, count=4, families_to=3), ["cnn1", "cnn2"], slots=2, spread=SPREAD)
    for trial, scores in enumerate([(0.50, 0.70), (0.60, 0.65)]):  # the second was ahead at the lowest rung alone
        for rung, score in enumerate(scores, 1):
            policy.begins(trial, "cnn1", rung)
            policy.ends(trial, rung, score)
    policy.begins(2, "cnn2", 1)
    policy.ends(2, 1, None)
    assert policy.choose(left=10_000.0, pace=1.0, may_open=True) == Choice("climb", 3, 450.0, 0)


def ending(*, first_running: bool = True) -> Policy:
    """Two families, time for nothing but the end; the better one may still be on its way to the second rung."""
    policy = Policy(Rungs(first=50.0, count=3), ["cnn1", "cnn2"], slots=2, spread=SPREAD)
    for trial, (name, score) in enumerate([("cnn1", 0.62), ("cnn2", 0.55)]):
        policy.begins(trial, name, 1)
        policy.ends(trial, 1, score)
    policy.begins(0, "cnn1", 2)
    if not first_running:
        policy.ends(0, 2, 0.70)
    return policy


def test_what_is_worse_than_what_runs_does_not_go_to_the_top() -> None:
    policy = ending()
    choice = policy.choose(left=500.0, pace=1.0, may_open=True)
    assert choice is not None
    assert (choice.kind, choice.rung, choice.trial) == ("climb", 3, 0)


def test_a_last_fit_takes_all_of_the_time_and_what_was_sent_up_is_confirmed_before_another_goes() -> None:
    policy = ending(first_running=False)
    climb = policy.choose(left=600.0, pace=1.2, may_open=True)
    assert climb == Choice("climb", 3, 600.0 * LAST, 0)
    policy.begins(0, "cnn1", 3)
    assert policy.choose(left=550.0, pace=1.2, may_open=True) == Choice("confirm", 3, 550.0 * LAST, 0)
    policy.begins(0, "cnn1", 3, confirm=True)
    assert policy.choose(left=550.0, pace=1.2, may_open=True) == Choice("climb", 3, 550.0 * LAST, 1)


def test_a_slow_machine_still_comes_to_an_end_that_is_confirmed() -> None:
    played = play(1200, 2, pace=2.5)
    assert {one[1] for one in played.began} == set(SIX)
    assert played.policy.standings[played.winner].confirmed


@pytest.mark.parametrize("limit", [1, 4, 8])
def test_few_trials_climb_to_the_top_without_more_of_them(limit: int) -> None:
    """Fewer than there are families, too; the time that is left then is not used up."""
    played = play(3600, 2, limit=limit)
    assert len(played.policy.standings) == limit
    winner = played.policy.standings[played.winner]
    assert winner.rung == played.policy.rungs.count
    assert winner.rung in winner.confirmed
    assert played.ended < 3600


def test_what_failed_neither_climbs_nor_holds_the_others_up() -> None:
    policy = Policy(Rungs(first=1.0, count=3), ["cnn1", "cnn2"], slots=2, spread=SPREAD)
    policy.begins(0, "cnn1", 1)
    policy.begins(1, "cnn2", 1)
    policy.ends(0, 1, None)
    policy.ends(1, 1, 0.5)
    assert policy.choose(left=9.5, pace=1.0, may_open=False) == Choice("climb", 3, 9.5 * LAST, 1)


def test_a_fit_that_the_deadline_cut_off_leaves_its_trial_where_it_was() -> None:
    policy = ending()
    policy.ends(0, 2, None, cut=True)
    assert policy.choose(left=1000.0, pace=1.0, may_open=False) == Choice("climb", 3, 450.0, 0)
    policy.begins(0, "cnn1", 3)
    policy.ends(0, 3, 0.8)
    policy.begins(0, "cnn1", 3, confirm=True)
    policy.ends(0, 3, None, confirm=True, cut=True)
    assert policy.choose(left=1000.0, pace=1.0, may_open=False) == Choice("confirm", 3, 450.0, 0)


def test_nothing_begins_for_which_there_is_no_time() -> None:
    policy = Policy(Rungs(first=50.0, count=3), SIX, slots=2, spread=SPREAD)
    assert policy.choose(left=20.0, pace=1.0, may_open=True) is None
