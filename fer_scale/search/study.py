"""What a search knows: an Optuna study kept in a journal, from which every row of the trials table comes back.

The journal is the only truth. Each fit is a trial of Optuna's: what is to be fitted is written into it as the fit
begins, and what came of it before Optuna is told, so a search that was killed at any moment and opened again neither
loses nor repeats a fit. Nothing in it is pickled: it is JSON lines.
"""

import contextlib
import json
import statistics
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import BaseJournalBackend
from optuna.trial import TrialState

from fer_scale.errors import InputError
from fer_scale.learning.configuration import Configuration
from fer_scale.search.sampler import Sampler, running
from fer_scale.search.space import Asked, asked, pinned, suggest
from fer_scale.search.starts import STARTS

TELLING = 8
"""Drawn trials below which nothing is said of the importance of parameters."""
FRESH = 1_000_003
"""What is added to a seed for a confirmation."""


@dataclass(frozen=True, kw_only=True)
class Fit:
    """One fit: a trial's configuration, for one rung, with one seed."""

    trial: int
    start: str
    """``reference``, ``start`` or ``proposed``."""
    configuration: dict[str, Any]
    rung: int
    seed: int
    confirm: bool = False
    """Whether it is the confirmation of the chosen trial on a fresh seed."""


class Study:
    """Asks Optuna for configurations and tells it what came of them.

    The first trials are the families' first :data:`STARTS`, then come their others and the reference configurations;
    from there on the :class:`Sampler` decides. It has a study of its own, for in the journal's each fit is a trial.
    """

    def __init__(
        self, backend: BaseJournalBackend, families: Sequence[str], fixed: Mapping[str, Any], seed: int, name: str
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._study = optuna.create_study(
            study_name=name, storage=JournalStorage(backend), direction="maximize", load_if_exists=True
        )
        self._families = [
            *(name for name in STARTS if name in families),
            *(name for name in families if name not in STARTS),
        ]
        self._fixed = fixed
        self._seed = seed
        self.ended: list[tuple[Fit, dict[str, Any]]] = []
        """Fits of the journal that ended, with their results, in the order in which they began."""
        self.unfinished: list[tuple[int, Fit]] = []
        """Fits, with their numbers, that were running when the search was killed."""
        self._known = self._given()
        self._asked: dict[int, Asked] = {}
        self._drawn: set[int] = set()
        """Trials that were proposed, and so neither references nor starts."""
        self._scores: dict[int, list[tuple[int, float]]] = {}
        """Rung and accuracy of each trial's fits."""
        self._open: dict[int, optuna.Trial] = {}
        self._replay()

    def _replay(self) -> None:
        known: dict[int, Fit] = {}
        trials = [trial for trial in self._study.get_trials(deepcopy=False) if "fit" in trial.user_attrs]
        self._trials = 1 + max((json.loads(trial.user_attrs["fit"])["trial"] for trial in trials), default=-1)
        # Optuna takes 32 bits, and the largest seed is the largest of those
        self._sampler = Sampler((self._seed + self._trials) % 2**32, 2 * len(self._families))
        for trial in trials:
            told = json.loads(trial.user_attrs["fit"])
            told.setdefault("configuration", known[told["trial"]].configuration if told["trial"] in known else None)
            fit = Fit(**told)
            known.setdefault(fit.trial, fit)
            self._ask_for(fit)
            if not trial.state.is_finished():
                self._open[trial.number] = optuna.Trial(self._study, trial._trial_id)
            if "result" in trial.user_attrs:
                self.ended.append((fit, json.loads(trial.user_attrs["result"])))
                if not trial.state.is_finished():  # killed between the result and its telling
                    self._tell(trial.number, fit, self.ended[-1][1])
                else:
                    self._learn(fit, self.ended[-1][1])
            elif not trial.state.is_finished():
                self.unfinished.append((trial.number, fit))
        begun = [Configuration.from_dict(fit.configuration) for fit in known.values() if fit.start != "proposed"]
        self._known = [one for one in self._known if one[1] not in begun]

    def new(self) -> tuple[int, Fit]:
        """A new trial: its number in the journal, and its fit for the lowest rung.

        Raises:
            InputError: no draw goes together with what is fixed.
        """
        if self._known:
            return self._begin(*self._known.pop(0))
        draw = partial(suggest, families=self._families, fixed=self._fixed)
        return self._begin("proposed", self._sampler.propose(self._trials, draw))

    def _begin(self, start: str, configuration: Configuration) -> tuple[int, Fit]:
        at = self._trials
        self._trials += 1
        fit = Fit(trial=at, start=start, configuration=configuration.to_dict(), rung=1, seed=self._seed + at)
        self._ask_for(fit)
        return self._write(at, asdict(fit)), fit

    def _ask_for(self, fit: Fit) -> None:
        """Find out a trial's parameters from its configuration, in whatever way it came about."""
        if fit.trial not in self._asked:
            configuration = Configuration.from_dict(fit.configuration)
            self._asked[fit.trial] = asked(configuration, self._families, self._fixed)
            if fit.start == "proposed":
                self._drawn.add(fit.trial)

    def _write(self, at: int, told: dict[str, Any]) -> int:
        """A fit of a trial that begins, as one line of the journal; its number."""
        trial = running(self._study, self._asked[at], {"fit": json.dumps(told)})
        self._open[trial.number] = trial
        return trial.number

    def again(self, first: Fit, rung: int, *, confirm: bool) -> tuple[int, Fit]:
        """Another fit of a trial, for a higher rung or on a fresh seed."""
        seed = self._seed + first.trial + (FRESH if confirm else 0)
        fit = Fit(**{**asdict(first), "rung": rung, "seed": seed, "confirm": confirm})
        told = {key: value for key, value in asdict(fit).items() if key != "configuration"}
        return self._write(fit.trial, told), fit

    @property
    def speeds(self) -> dict[int, float]:
        """Images a second of the trials whose price was measured."""
        return {int(trial): speed for trial, speed in self._study.user_attrs.get("images_per_second", {}).items()}

    def measured(self, trial: int, speed: float) -> None:
        """The price of a trial was measured."""
        known = {str(one): found for one, found in {**self.speeds, trial: speed}.items()}
        self._study.set_user_attr("images_per_second", known)

    def importances(self, scores: Mapping[int, float]) -> dict[str, float]:
        """Share of each drawn parameter in what makes a trial good (PED-ANOVA), most important first.

        Args:
            scores: accuracy of each trial at the lowest rung, where all have the same compute.

        Returns:
            Nothing where fewer than `TELLING` of the trials were drawn.
        """
        scored = [(*self._asked[trial], accuracy) for trial, accuracy in scores.items()]
        if len(self._drawn & scores.keys()) < TELLING:
            return {}
        study = optuna.create_study(direction="maximize")
        for parameters, distributions, accuracy in scored:
            study.add_trial(optuna.create_trial(params=parameters, distributions=distributions, value=accuracy))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of parameters that too few trials have
            return {k: share for k, share in optuna.importance.get_param_importances(study).items() if share > 0}

    def end(self, number: int, fit: Fit, result: dict[str, Any]) -> None:
        """A fit ended; its result goes into the journal before the sampler hears of it."""
        self._open[number].set_user_attr("result", json.dumps(result))
        self._tell(number, fit, result)

    def _tell(self, number: int, fit: Fit, result: dict[str, Any]) -> None:
        """A fit below the highest rung counts as pruned there, a failed one not at all."""
        trial, accuracy = self._open.pop(number), result.get("accuracy")
        if accuracy is None:
            self._study.tell(trial, state=TrialState.FAIL)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a killed search may have come as far as this line
                trial.report(accuracy, fit.rung)
            if result["top"]:
                self._study.tell(trial, accuracy)
            else:
                self._study.tell(trial, state=TrialState.PRUNED)
        self._learn(fit, result)

    def _learn(self, fit: Fit, result: dict[str, Any]) -> None:
        """The sampler hears of a fit that ended."""
        self._sampler.ended(fit.trial)
        if result.get("accuracy") is None:
            return
        scores = self._scores.setdefault(fit.trial, [])
        scores.append((fit.rung, result["accuracy"]))
        rung = max(scores)[0]
        accuracy = statistics.mean(one for at, one in scores if at == rung)  # two where it was confirmed
        self._sampler.observe(fit.trial, self._asked[fit.trial], rung, accuracy, top=result["top"])

    def _given(self) -> list[tuple[str, Configuration]]:
        """What comes before proposals, with what is fixed or narrowed, as far as that goes together.

        A start of every family, or where it has none its reference; then the other starts, then the references.
        """
        firsts, starts, references = [], [], []
        for family in self._families:
            own: list[tuple[str, Configuration]] = []
            for start, values in [*(("start", values) for values in STARTS.get(family, [])), ("reference", {})]:
                with contextlib.suppress(InputError):
                    known = Configuration.from_dict({"family": family, **values})
                    known = known.with_fixed(pinned(self._fixed, known))
                    if known not in [one for _, one in own]:
                        own.append((start, known))
            firsts += own[:1]
            starts += [one for one in own[1:] if one[0] == "start"]
            references += [one for one in own[1:] if one[0] == "reference"]
        return [*firsts, *starts, *references]


def new_name() -> str:
    """A study name that no other search has."""
    return f"fer_scale-{time.time_ns():x}"
