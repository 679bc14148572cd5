"""The table a person watches during a search: by family, the best so far, the time left."""

import time
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any, Self

from rich.live import Live
from rich.table import Table

from fer_scale.console import console, say
from fer_scale.durations import duration


class SearchProgress:
    """A live table on a terminal; elsewhere (a job's log) a line a trial."""

    def __init__(self, families: Sequence[str], rungs: int, deadline: float) -> None:
        self._families = families
        self._rungs = rungs
        self._deadline = deadline
        self._rows: list[dict[str, Any]] = []
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

    def show(self, ended: Iterable[dict[str, Any]], running: Iterable[dict[str, Any]]) -> None:
        """Take in the state of the search."""
        self._rows = [*ended, *running]

    def ended(self, row: dict[str, Any]) -> None:
        """A trial ended; without a terminal this is the line about it."""
        if self._live is None:
            score = "no score" if row["accuracy"] is None else f"val {row['accuracy']:.4f}"
            best = max((r["accuracy"] for r in self._rows if r["accuracy"] is not None), default=0.0)
            say(
                f"trial {row['trial_id']} {row['family']} {row['input']}: {score}, {row['status']} at rung "
                f"{row['rung']}/{self._rungs} after {row['compute_seconds']:.0f} s of compute "
                f"(best {max(best, row['accuracy'] or 0.0):.4f}, {duration(self._left())} left)"
            )

    def _left(self) -> float:
        return max(self._deadline - time.time(), 0.0)

    def _table(self) -> Table:
        scored = [row for row in self._rows if row["accuracy"] is not None]
        best = max(scored, key=lambda row: row["accuracy"], default=None)
        said = f"best {best['family']} {best['accuracy']:.4f}" if best else "no score yet"
        table = Table(
            title=f"search: {said}, {len(self._rows)} trials, {duration(self._left())} left", title_justify="left"
        )
        for name in ("family", "running", "ended", "best val accuracy", "95 % interval", "rung", "compute"):
            table.add_column(name, justify="left" if name == "family" else "right")
        for family in self._families:
            rows = [row for row in self._rows if row["family"] == family]
            running = sum(row["status"] == "running" for row in rows)
            top = max((r for r in rows if r["accuracy"] is not None), key=lambda r: r["accuracy"], default=None)
            table.add_row(
                family,
                str(running),
                str(len(rows) - running),
                f"{top['accuracy']:.4f}" if top else "-",
                f"{top['accuracy_low']:.3f} to {top['accuracy_high']:.3f}" if top else "-",
                f"{top['rung']}/{self._rungs}" if top else "-",
                duration(sum(row["compute_seconds"] or 0.0 for row in rows)),
                style="bold" if top is not None and top is best else "",
            )
        return table
