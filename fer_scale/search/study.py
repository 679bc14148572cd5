"""What a search knows: an Optuna study kept in a journal, from which every row of the trials table comes back.

The journal is the only truth. Each fit is a trial of Optuna's: what is to be fitted is written into it as the fit
begins, and what came of it before Optuna is told, so a search that was killed at any moment and opened again neither
loses nor repeats a fit. Nothing in it is pickled: it is JSON lines.
"""

import contextlib
import json
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from fer_scale.errors import InputError
from fer_scale.learning.configuration import Configuration
from fer_scale.search.space import pinned, suggest
from fer_scale.search.starts import STARTS

ATTEMPTS = 100
"""Draws for one proposal before what is fixed is called impossible."""
Asked = tuple[dict[str, Any], dict[str, Any]]
"""Parameters and their distributions."""
REMEMBERED = 400
"""Ended fits that stay with the sampler, half of them the best and half the latest, whenever it knows twice as many."""
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
    from there on grouped TPE (Bergstra et al. 2011) decides. It ranks fits for the highest rung first, then those for
    the next.

    TPE looks at every trial of its study for each proposal, so it has one of its own, in memory, of which only the best
    and the latest stay, so that what a proposal costs depends on them and on the fits that are running.
    """

    def __init__(
        self, backend: JournalFileBackend, families: Sequence[str], fixed: Mapping[str, Any], seed: int, name: str
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # group=True is one
            self._sampler = optuna.samplers.TPESampler(
                seed=seed,
                multivariate=True,
                group=True,
                constant_liar=True,
                n_startup_trials=2 * len(families),
            )
        self._study = optuna.create_study(
            study_name=name, storage=JournalStorage(backend), direction="maximize", load_if_exists=True
        )
        self._memory = optuna.create_study(sampler=self._sampler, direction="maximize")
        self._drawn: dict[int, optuna.Trial] = {}
        self._known_to_sampler: list[optuna.trial.FrozenTrial] = []
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
        self._open: dict[int, optuna.Trial] = {}
        self._trials = 0
        self._replay()

    def _replay(self) -> None:
        known: dict[int, Fit] = {}
        for trial in self._study.get_trials(deepcopy=False):
            if "fit" not in trial.user_attrs:
                continue
            told = json.loads(trial.user_attrs["fit"])
            told.setdefault("configuration", known[told["trial"]].configuration if told["trial"] in known else None)
            fit = Fit(**told)
            known.setdefault(fit.trial, fit)
            self._asked.setdefault(fit.trial, (trial.params, trial.distributions))
            if not trial.state.is_finished():
                self._open[trial.number] = optuna.Trial(self._study, trial._trial_id)
            if "result" in trial.user_attrs:
                self.ended.append((fit, json.loads(trial.user_attrs["result"])))
                if not trial.state.is_finished():  # killed between the result and its telling
                    self._tell(trial.number, fit, self.ended[-1][1])
                else:
                    self._learn(trial.number, fit, self.ended[-1][1])
            elif not trial.state.is_finished():
                self.unfinished.append((trial.number, fit))
        self._trials = 1 + max(known, default=-1)
        begun = [Configuration.from_dict(fit.configuration) for fit in known.values() if fit.start != "proposed"]
        self._known = [one for one in self._known if one[1] not in begun]

    def new(self) -> tuple[int, Fit]:
        """A new trial: its number in the journal, and its fit for the lowest rung.

        Raises:
            InputError: no draw goes together with what is fixed.
        """
        if self._known:
            start, configuration = self._known.pop(0)
            # given, not drawn: of its parameters the sampler learns the family alone
            families = optuna.distributions.CategoricalDistribution(self._families)
            return self._begin(({"family": configuration.family}, {"family": families}), start, configuration)
        for _ in range(ATTEMPTS):
            trial = self._memory.ask()
            try:
                configuration = suggest(trial, self._families, self._fixed)
            except InputError:  # a draw that does not go with what is fixed, such as a width for resnet50
                self._memory.tell(trial, state=TrialState.FAIL)
                continue
            number, fit = self._begin((trial.params, trial.distributions), "proposed", configuration)
            self._drawn[number] = trial
            return number, fit
        raise InputError(
            f"fix {dict(self._fixed)}", "values that go together with what is searched", "fix fewer or others"
        )

    def _begin(self, asked: Asked, start: str, configuration: Configuration) -> tuple[int, Fit]:
        at = self._trials
        self._trials += 1
        fit = Fit(trial=at, start=start, configuration=configuration.to_dict(), rung=1, seed=self._seed + at)
        self._asked[at] = asked
        return self._write(asked, asdict(fit)), fit

    def _write(self, asked: Asked, told: dict[str, Any]) -> int:
        """A fit that begins, as one line of the journal; its number."""
        trial = _running(self._study, asked, {"fit": json.dumps(told)})
        self._open[trial.number] = trial
        return trial.number

    def again(self, first: Fit, rung: int, *, confirm: bool) -> tuple[int, Fit]:
        """Another fit of a trial, for a higher rung or on a fresh seed."""
        seed = self._seed + first.trial + (FRESH if confirm else 0)
        fit = Fit(**{**asdict(first), "rung": rung, "seed": seed, "confirm": confirm})
        told = {key: value for key, value in asdict(fit).items() if key != "configuration"}
        return self._write(self._asked[fit.trial], told), fit

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
            scores: accuracy of each trial at the lowest rung, where all have the same compute. Trials that were not
                drawn, references and starts, tell of their family alone. Empty where fewer than `TELLING` were drawn.
        """
        scored = [(*self._asked[trial], accuracy) for trial, accuracy in scores.items()]
        if sum(len(parameters) > 1 for parameters, _, _ in scored) < TELLING:
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
        self._learn(number, fit, result)

    def _learn(self, number: int, fit: Fit, result: dict[str, Any]) -> None:
        """The sampler hears of a fit that ended."""
        drawn, accuracy = self._drawn.pop(number, None), result.get("accuracy")
        if drawn is not None:  # no longer one of those that run
            self._memory.tell(drawn, state=TrialState.FAIL)
        if accuracy is None:
            return
        parameters, distributions = self._asked[fit.trial]
        self._known_to_sampler.append(
            optuna.create_trial(
                state=TrialState.COMPLETE if result["top"] else TrialState.PRUNED,
                value=accuracy,
                params=parameters,
                distributions=distributions,
                intermediate_values={fit.rung: accuracy},
            )
        )
        self._memory.add_trial(self._known_to_sampler[-1])
        if len(self._known_to_sampler) >= 2 * REMEMBERED:
            self._forget()

    def _forget(self) -> None:
        """Begin the sampler's study anew with the best and the latest of what it knows, and with what runs."""
        earlier = self._known_to_sampler[: -REMEMBERED // 2]
        earlier.sort(key=lambda trial: max(trial.intermediate_values.items()), reverse=True)
        kept = [*earlier[: REMEMBERED // 2], *self._known_to_sampler[-REMEMBERED // 2 :]]
        self._known_to_sampler = kept
        memory = optuna.create_study(sampler=self._sampler, direction="maximize")
        memory.add_trials(kept)
        for number, trial in self._drawn.items():
            self._drawn[number] = _running(memory, (trial.params, trial.distributions), {})
        self._memory = memory

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


def _running(study: optuna.Study, asked: Asked, attributes: dict[str, Any]) -> optuna.Trial:
    """A trial that has just begun, written at once: `ask` writes it piece by piece and looks through all the others."""
    begun = optuna.create_trial(
        state=TrialState.RUNNING, params=asked[0], distributions=asked[1], user_attrs=attributes
    )
    return optuna.Trial(study, study._storage.create_new_trial(study._study_id, template_trial=begun))


def new_name() -> str:
    """A study name that no other search has."""
    return f"fer_scale-{time.time_ns():x}"
