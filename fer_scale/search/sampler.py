"""What proposes configurations: grouped TPE on a study in memory that has one observation a trial."""

import math
import random
import warnings
from collections.abc import Callable
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from fer_scale.errors import InputError
from fer_scale.learning.configuration import Configuration
from fer_scale.search.space import DRAWS, Asked

REMEMBERED = 200
"""Observations that stay, half of them the best and half the latest, whenever there are twice as many."""
MOST_RUNNING = 100
"""Trials that run and that TPE keeps away from, the latest: a proposal takes the longer, the more it looks at."""
GOOD, MOST_GOOD = 0.25, 25
"""Share of the observations, and most of them, that TPE takes for good; Optuna's tenth of thirty would be three."""
SMALL = 100
"""Observations below which every other proposal is a mutation: in twenty dimensions TPE knows little of them yet."""
MUTATED, ANEW = 0.5, 0.2
"""Share of such proposals, and of the best trial's parameters that are drawn anew in one."""


class Sampler:
    """Grouped TPE (Bergstra et al. 2011), which looks at every observation that stays for each proposal.

    A trial is one observation whatever its fits: its accuracy at the highest rung that it was fitted for. Were each fit
    one, a good trial would lie among the bad ones too, with its lower rungs. Higher rungs rank first.

    Args:
        seed: not the one that a search began with where it goes on, or it would draw what it has drawn.
        startup: observations before which proposals are random.
    """

    def __init__(self, seed: int, startup: int) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._random = random.Random(seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # group=True is experimental, gamma goes with Optuna 6
            self._tpe = optuna.samplers.TPESampler(
                seed=seed,
                multivariate=True,
                group=True,
                constant_liar=True,
                n_startup_trials=startup,
                gamma=lambda count: min(math.ceil(GOOD * count), MOST_GOOD),
            )
        self._study = optuna.create_study(sampler=self._tpe, direction="maximize")
        self._observed: dict[int, FrozenTrial] = {}
        self._places: dict[int, int] = {}
        """Ids in the study, by trial of the search."""
        self._running: dict[int, optuna.Trial] = {}

    def propose(self, trial: int, draw: Callable[[optuna.Trial], Configuration]) -> Configuration:
        """A configuration for a trial of the search, which runs from here on.

        Raises:
            InputError: no draw goes together with what is fixed.
        """
        for left in reversed(range(DRAWS)):
            if 0 < len(self._observed) < SMALL and self._random.random() < MUTATED:
                self._study.enqueue_trial(self._mutated())
            asked = self._study.ask()
            try:
                configuration = draw(asked)
            except InputError:  # a draw that does not go with what is fixed, such as a width for resnet50
                self._study.tell(asked, state=TrialState.FAIL)
                if left:
                    continue
                raise
            self._running[trial] = asked
            if len(self._running) > MOST_RUNNING:
                self.ended(next(iter(self._running)))
            break
        return configuration

    def _mutated(self) -> dict[str, Any]:
        """The parameters of the best trial that a proposal keeps; TPE draws the others."""
        best = max(self._observed.values(), key=_rank).params
        return {name: value for name, value in best.items() if self._random.random() >= ANEW}

    def ended(self, trial: int) -> None:
        """A trial is no longer one of those that run."""
        if trial in self._running:
            self._study.tell(self._running.pop(trial), state=TrialState.FAIL)

    def observe(self, trial: int, asked: Asked, rung: int, accuracy: float, *, top: bool) -> None:
        """The accuracy of a trial at the highest rung that it has reached, and whether there is none above."""
        seen = optuna.create_trial(
            state=TrialState.COMPLETE if top else TrialState.PRUNED,
            value=accuracy,
            params=asked[0],
            distributions=asked[1],
            intermediate_values={rung: accuracy},
        )
        self._observed.pop(trial, None)
        self._observed[trial] = seen  # the latest last
        self._put(trial, seen)
        if len(self._observed) >= 2 * REMEMBERED:
            self._forget()

    def _put(self, trial: int, seen: FrozenTrial) -> None:
        """Into the study, where what was known of the trial lay: Optuna has no way to take an observation back."""
        storage: Any = self._study._storage
        if trial not in self._places:
            self._places[trial] = storage.create_new_trial(self._study._study_id, template_trial=seen)
            return
        place = self._places[trial]
        seen.number, seen._trial_id = storage.get_trial_number_from_id(place), place
        storage._set_trial(place, seen)

    def _forget(self) -> None:
        """Begin the study anew with the best and the latest of what is known, and with what runs."""
        known = list(self._observed.items())
        latest, earlier = known[-REMEMBERED // 2 :], known[: -REMEMBERED // 2]
        earlier.sort(key=lambda one: _rank(one[1]), reverse=True)
        self._study = optuna.create_study(sampler=self._tpe, direction="maximize")
        self._observed = dict([*earlier[: REMEMBERED // 2], *latest])
        self._places = {}
        for trial, seen in self._observed.items():
            self._put(trial, seen)
        for trial, one in self._running.items():
            self._running[trial] = running(self._study, (one.params, one.distributions), {})


def running(study: optuna.Study, asked: Asked, attributes: dict[str, Any]) -> optuna.Trial:
    """A trial that has just begun, written at once: `ask` writes it piece by piece and looks through all the others."""
    begun = optuna.create_trial(
        state=TrialState.RUNNING, params=asked[0], distributions=asked[1], user_attrs=attributes
    )
    return optuna.Trial(study, study._storage.create_new_trial(study._study_id, template_trial=begun))


def _rank(seen: FrozenTrial) -> tuple[int, float]:
    """The highest rung, and the accuracy there."""
    return max(seen.intermediate_values.items())
