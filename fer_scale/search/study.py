"""What a search knows: an Optuna study kept in a journal, from which every row of the trials table comes back.

The journal is the only truth. A row is put into it before the trial is told, so a search that was killed at any
moment and opened again neither loses nor repeats a finished trial. Nothing in it is pickled: it is JSON lines.
"""

import json
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from fer_scale.errors import InputError
from fer_scale.learning.configuration import Configuration
from fer_scale.search.space import suggest
from fer_scale.search.starts import STARTS

ATTEMPTS = 100
"""Draws for one proposal before what is fixed is called impossible."""

STATES = {"completed": TrialState.COMPLETE, "pruned": TrialState.PRUNED}


class Study:
    """Asks Optuna for configurations and tells it what came of them.

    The first trials are the families' reference configurations, the next those of
    :data:`STARTS`; from there on grouped TPE (Bergstra et al. 2011) decides.
    """

    def __init__(self, journal: Path, families: Sequence[str], fixed: Mapping[str, Any], seed: int, name: str) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # group=True is one
            sampler = optuna.samplers.TPESampler(
                seed=seed,
                multivariate=True,
                group=True,
                constant_liar=True,
                n_startup_trials=2 * len(families),
            )
        self._study = optuna.create_study(
            study_name=name,
            storage=JournalStorage(JournalFileBackend(str(journal))),
            sampler=sampler,
            direction="maximize",
            load_if_exists=True,
        )
        self._families = [
            *(name for name in STARTS if name in families),
            *(name for name in families if name not in STARTS),
        ]
        self._fixed = fixed
        self._trials: dict[int, optuna.Trial] = {}
        for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            self._study.tell(trial.number, state=TrialState.FAIL)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """A row for every trial that ended, in the order in which they began."""
        trials = self._study.get_trials(deepcopy=False)
        return [json.loads(t.user_attrs["row"]) for t in trials if "row" in t.user_attrs]

    def ask(self) -> tuple[int, str, Configuration]:
        """Number, kind (``reference``, ``start`` or ``proposed``) and configuration of the next trial."""
        begun = {t.user_attrs.get("start") for t in self._study.get_trials(deepcopy=False) if self._counts(t)}
        for kind in ("reference", "start"):
            for family in self._families:
                if f"{kind} {family}" not in begun and (known := self._known(kind, family)) is not None:
                    return self._start(kind, family, known)
        for _ in range(ATTEMPTS):
            trial = self._study.ask()
            try:
                configuration = suggest(trial, self._families, self._fixed)
            except InputError:  # a draw that does not go with what is fixed, such as a width for resnet50
                self._study.tell(trial.number, state=TrialState.FAIL)
                continue
            self._trials[trial.number] = trial
            return trial.number, "proposed", configuration
        raise InputError(
            f"fix {dict(self._fixed)}", "values that go together with what is searched", "fix fewer or others"
        )

    def _counts(self, trial: optuna.trial.FrozenTrial) -> bool:
        return trial.state == TrialState.RUNNING or "row" in trial.user_attrs

    def _known(self, kind: str, family: str) -> Configuration | None:
        """A family's reference or start with what is fixed; None where that does not go together."""
        if kind == "start" and family not in STARTS:
            return None
        values = {"family": family, **(STARTS[family] if kind == "start" else {})}
        try:
            return Configuration.from_dict(values).with_fixed(self._fixed)
        except InputError:
            return None

    def _start(self, kind: str, family: str, known: Configuration) -> tuple[int, str, Configuration]:
        """A trial that is given, not drawn; of its parameters the sampler learns the family alone."""
        self._study.enqueue_trial({"family": family})
        trial = self._study.ask()
        trial.suggest_categorical("family", self._families)
        trial.set_user_attr("start", f"{kind} {family}")
        self._trials[trial.number] = trial
        return trial.number, kind, known

    def report(self, number: int, rung: int, accuracy: float) -> None:
        """Record the score of a rung."""
        self._trials[number].report(accuracy, rung)

    def tell(self, number: int, row: dict[str, Any]) -> None:
        """End a trial: its row goes into the journal first, then the sampler hears of it.

        A pruned trial counts with its last rung's score, a failed one not at all.
        """
        trial = self._trials.pop(number)
        trial.set_user_attr("row", json.dumps(row))
        state = STATES.get(row["status"], TrialState.FAIL)
        if row["status"] == "time budget" and row["accuracy"] is not None:
            state = TrialState.PRUNED
        self._study.tell(number, row["accuracy"] if state == TrialState.COMPLETE else None, state=state)


def new_name() -> str:
    """A study name that no other search has."""
    return f"fer_scale-{time.time_ns():x}"
