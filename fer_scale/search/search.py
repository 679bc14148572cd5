"""A search that is under way, or gone on with: what is fitted next, and what came of it, written down as it comes."""

import contextlib
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from fer_scale.console import warn
from fer_scale.errors import InputError
from fer_scale.faces.store import Store
from fer_scale.learning import metrics
from fer_scale.lease import Lease, LeaseLostError
from fer_scale.search import price, rows, settings
from fer_scale.search.journal import Journal
from fer_scale.search.ladder import COUNTED, SHORT, Policy
from fer_scale.search.progress import SearchProgress
from fer_scale.search.record import Record
from fer_scale.search.rungs import Rungs
from fer_scale.search.study import Fit, Study, new_name

ATTEMPTS = 2
"""How often a fit is begun whose process dies: the first time it may have been the machine."""
PRICING_SHARE, PRICING_SECONDS = 0.03, 60.0
"""Share of the time, and most of it, that is kept for measuring what the leaders cost to use."""


class Search:
    """A search's folder, open: says what to fit next, and hears what came of it."""

    def __init__(
        self,
        out: str,
        store: Store,
        families: Sequence[str],
        fixed: Mapping[str, Any],
        *,
        budget: float,
        slots: int,
        deadline: float,
        seed: int,
        max_trials: int | None = None,
        price_per_hour: float | None = None,
        cpus_per_trial: float = 1,
        gpus_per_trial: float = 0,
    ) -> None:
        self._out = out
        self._store = store
        given = {
            "name": new_name(),
            "fingerprint": store.fingerprint,
            "families": list(families),
            "fixed": dict(fixed),
            "seed": seed,
            "cpus_per_trial": cpus_per_trial,
            "gpus_per_trial": gpus_per_trial,
            "rungs": vars(Rungs.within(budget, slots, len(families))),
            "seconds": 0.0,
        }
        self._settings = settings.settled(out, given)
        self._earlier = float(self._settings["seconds"])
        self._began = time.time()
        self._end = deadline - self._earlier
        self.deadline = self._end - min(PRICING_SHARE * budget, PRICING_SECONDS)
        self.rungs = Rungs(**self._settings["rungs"])
        self.record = Record(out, store, self.rungs, seed=self._settings["seed"], price_per_hour=price_per_hour)
        self.progress = SearchProgress(families, self.rungs.count, self.deadline)
        self._max_trials = max_trials
        faces = store.rows("val")
        low, high = metrics.wilson_interval(faces / 2, faces)
        self._policy = Policy(self.rungs, families, slots=slots, spread=(high - low) / 2)
        self._first: dict[int, Fit] = {}
        self._running: dict[int, tuple[Fit, float, float]] = {}
        """By number: the fit, when it began, and the compute it was given."""
        self._again: list[tuple[int, Fit]] = []
        self._attempts: dict[int, int] = {}
        self._paces: deque[tuple[float, float]] = deque(maxlen=20)
        """Wall time and compute of the latest fits."""
        self._warned = False

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self._lease = stack.enter_context(Lease(self._out, self._settings["name"]))
            self._write_settings()
            self._journal = Journal(self._out)
            known = self._settings
            self._study = Study(self._journal, known["families"], known["fixed"], known["seed"], known["name"])
            for fit, result in self._study.ended:
                self._take(fit, result["started"])
                self._put(fit, result)
            for trial, speed in self._study.speeds.items():
                self.record.priced(trial, speed)
            for number, fit in self._study.unfinished:
                self._take(fit, time.time())
                self._again.append((number, fit))
            stack.enter_context(self.progress)
            self._stack = stack.pop_all()
        self._show()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._stack:
            if not isinstance(error, LeaseLostError):
                self.write()
                self._journal.close()

    def _show(self) -> None:
        busy = [fit.trial for fit, *_ in self._running.values()]
        self.progress.show(self.record.rows.values(), busy)

    def next(self) -> tuple[int, Fit] | None:
        """The number and the fit that a free slot takes on; None where nothing is worth it now.

        Raises:
            LeaseLostError: another run goes on with this search.
        """
        self._lease.check()
        wall, compute = (sum(part) for part in zip(*self._paces, strict=True)) if self._paces else (1.0, 1.0)
        left, pace = self.deadline - time.time(), max(wall / compute, 1.0)
        # one for which the time is too short stays open in the journal, for a resume with more of it
        in_time = [one for one in self._again if SHORT * self.rungs.compute(one[1].rung) <= left / pace]
        if in_time:
            self._again.remove(in_time[0])
            number, fit = in_time[0]
            compute = self.rungs.compute(fit.rung)
        else:
            may_open = self._max_trials is None or len(self.record.rows) < self._max_trials
            choice = self._policy.choose(left=left, pace=pace, may_open=may_open)
            if choice is None:
                return None
            if choice.kind == "new":
                number, fit = self._study.new()
            else:
                number, fit = self._study.again(
                    self._first[choice.trial], choice.rung, confirm=choice.kind == "confirm"
                )
            compute = choice.compute
            self._take(fit, time.time())
            self._keep()  # killed now, the fit is known
        self._running[number] = (fit, time.time(), compute)
        self._show()
        return number, fit

    def compute(self, number: int) -> float:
        """Compute of a fit under way, seconds: that of its rung, or more where it is its slot's last."""
        return self._running[number][2]

    @property
    def running(self) -> int:
        """Fits under way."""
        return len(self._running)

    def _take(self, fit: Fit, started: float) -> None:
        self._policy.begins(fit.trial, fit.configuration["family"], fit.rung, fit.confirm)
        self._first.setdefault(fit.trial, fit)
        self.record.begins(fit, started)

    def _put(self, fit: Fit, result: Mapping[str, Any]) -> dict[str, Any]:
        accuracy, cut = result.get("accuracy"), result.get("cut", False)
        self._policy.ends(fit.trial, fit.rung, accuracy, confirm=fit.confirm, cut=cut)
        return self.record.ends(fit, result)

    def end(self, number: int, result: Mapping[str, Any]) -> bool:
        """A fit ended; from here on it is on record.

        Args:
            number: of the fit.
            result: what :meth:`Trial.score <fer_scale.search.trial.Trial.score>` gives, the ``share`` of the fit's
                steps that were taken, and whether it was ``capped``; or a ``reason`` for there being no accuracy, and
                whether its process ``died``.

        Returns:
            Whether it is on record: what died for the first time is begun once more instead.
        """
        self._lease.check()
        fit, started, compute = self._running.pop(number)
        self._attempts[number] = self._attempts.get(number, 0) + 1
        if result.get("died") and self._attempts[number] < ATTEMPTS:
            self._again.append((number, fit))
            return False
        known = (*rows.OF_FIT, "compute_seconds", "share", "seconds", "reason")
        kept = {key: result[key] for key in known if key in result}
        kept |= {"started": started, "ended": time.time(), "top": fit.rung >= self.rungs.count}
        if kept.get("share", 0) >= 1 and "seconds" in kept and not result.get("capped"):  # that would be too fast
            self._paces.append((kept["seconds"], compute))
        if "accuracy" in kept:
            kept["share"] *= compute / self.rungs.compute(fit.rung)
            if kept["share"] < COUNTED and (fit.confirm or self.record.rows[fit.trial]["accuracy"] is not None):
                del kept["accuracy"]
                kept |= {"cut": True, "reason": f"given {100 * kept['share']:.0f} % of rung {fit.rung}, too little"}
        self._study.end(number, fit, kept)
        self._keep()
        row = self._put(fit, kept)
        if str(row["weights"]).startswith("none (") and not self._warned:
            self._warned = True
            warn(f"{row['family']} starts from scratch: weights {row['weights']}")
        if self.record.due:
            self._bravely(self.write)
        self.progress.ended(row, fit.rung, kept)
        self._show()
        return True

    def _keep(self) -> None:
        self._bravely(self._journal.keep)

    def _bravely(self, write: Callable[[], None]) -> None:
        """Write what will be written again: a disk or an S3 that errs for a while does not end the search."""
        try:
            write()
        except LeaseLostError:
            raise
        except Exception as error:
            warn(f"SEARCH could not be written, it is tried again after the next fit: {error}")

    def write(self) -> None:
        """Write journal, table and leaderboard, each file at once; the journal first, for it is the truth.

        Raises:
            LeaseLostError: another run goes on with this search.
        """
        self._lease.check()
        self._journal.keep()
        self.record.write(self.seconds)
        self._write_settings()

    def _write_settings(self) -> None:
        self._settings["seconds"] = round(self.seconds, 1)
        settings.write(self._out, self._settings)

    @property
    def seconds(self) -> float:
        """Wall time of the search so far, earlier runs counted in."""
        return self._earlier + time.time() - self._began

    def _measure_prices(self) -> None:
        """What the leaders cost to use, as far as the time goes."""
        ranked, classes = rows.ranked(self.record.ended()), len(self._store.classes)
        for trial, speed in price.measured(ranked, self._study.speeds, classes, self._end):
            self._study.measured(trial, speed)
            self.record.priced(trial, speed)

    def finish(self) -> dict[str, Any]:
        """Measure the leaders' prices and write everything, the report too; what `tune` gives back.

        Raises:
            InputError: no trial got a score.
        """
        self._measure_prices()
        self.record.close()
        self.write()
        board = self.record.leaderboard()
        if not board:
            reasons = "; ".join(sorted({str(row["reason"]) for row in self.record.ended()})) or "none began"
            raise InputError(
                f"a search without one scored trial ({reasons})",
                "at least one",
                "give a larger --time-budget",
            )
        lowest = {number: row["scores"][0] for number, row in self.record.rows.items() if row["scores"]}
        report = self.record.write_report(self.seconds, self._study.importances(lowest))
        facts = self.record.facts(self.seconds)
        return {
            "search": self._out,
            "best": board[0],
            "family": board[0]["family"],
            "val_accuracy": rows.value(board[0]),
            "val_accuracy_interval": rows.interval(board[0]),
            "trials": len(self.record.rows),
            "report": report,
            **{key: facts[key] for key in ("compute_seconds", "seconds")},
        }
