"""The table a person watches during a search: by family, the best so far, the time left."""

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from rich.live import Live
from rich.table import Table

from fer_scale.console import console, say
from fer_scale.durations import duration
from fer_scale.search.rows import interval, ranked, value


class SearchProgress:
    """A live table on a terminal; elsewhere (a job's log) a line a fit."""

    def __init__(self, families: Sequence[str], rungs: int, deadline: float) -> None:
        self._families = families
        self._rungs = rungs
        self._deadline = deadline
        self._rows: Iterable[dict[str, Any]] = []
        self._busy: Counter[int] = Counter()
        self._live: Live | None = None

    def __enter__(self) -> Self:
        if console.is_terminal and not console.quiet:
            self._live = Live(get_renderable=self._table, console=console, refresh_per_second=1)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, rows: Iterable[dict[str, Any]], busy: Iterable[int]) -> None:
        """Take in the state of the search: the rows of its trials, and the trials of the fits under way."""
        self._rows = rows
        self._busy = Counter(busy)

    def ended(self, row: dict[str, Any], rung: int, result: Mapping[str, Any]) -> None:
        """A fit of the row's trial ended; without a terminal this is the line about it."""
        if self._live is None:
            score = f"val {result['accuracy']:.4f}" if result.get("accuracy") is not None else result["reason"]
            best = max((r["accuracy"] for r in self._rows if r["accuracy"] is not None), default=0.0)
            left = duration(self._left())
            say(
                f"trial {row['trial_id']} {row['family']} {row['input']}, rung {rung}/{self._rungs}: {score} after "
                f"{result.get('compute_seconds', 0.0):.0f} s of compute (best {best:.4f}, {left} left)"
            )

    def _left(self) -> float:
        return max(self._deadline - time.time(), 0.0)

    def _table(self) -> Table:
        rows = list(self._rows)
        best = next(iter(ranked(rows)), None)
        said = f"best {best['family']} {best['accuracy']:.4f}" if best else "no score yet"
        table = Table(title=f"search: {said}, {len(rows)} trials, {duration(self._left())} left", title_justify="left")
        for name in (
            "family",
            "running",
            "trials",
            "best val accuracy",
            "95 % interval",
            "fresh seed",
            "rung",
            "compute",
        ):
            table.add_column(name, justify="left" if name == "family" else "right")
        for family in self._families:
            own = [row for row in rows if row["family"] == family]
            top = next(iter(ranked(own)), None)
            tie = top is not None and best is not None and top is not best and interval(top)[1] >= value(best)
            table.add_row(
                family,
                str(sum(self._busy[row["trial_id"]] for row in own)),
                str(len(own)),
                (f"{top['accuracy']:.4f}" + (" tie" if tie else "")) if top else "-",
                f"{top['accuracy_low']:.3f} to {top['accuracy_high']:.3f}" if top else "-",
                f"{top['confirmed']:.4f}" if top and top["confirmed"] is not None else "-",
                f"{top['rung']}/{self._rungs}" if top else "-",
                duration(sum(row["compute_seconds"] for row in own)),
                style="bold" if top is not None and top is best else "",
            )
        return table
