"""Progress and remarks for people: all of it goes to stderr, so that stdout stays the result's alone."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

console = Console(stderr=True, highlight=False, soft_wrap=True)
"""The one console of the package; it says nothing once `set_quiet(True)` was called."""

LINE_SECONDS = 10.0
"""Where stderr is no terminal, a line of progress at most this often."""


def set_quiet(quiet: bool) -> None:
    """Silence (or give back) everything that is printed through `console`."""
    console.quiet = quiet


def say(message: str) -> None:
    """Print one remark, taken literally: brackets in it (paths, say) are no markup."""
    console.print(message, markup=False)


def warn(message: str) -> None:
    """Print one warning, taken literally."""
    console.print(f"warning: {message}", markup=False, style="yellow")


class Meter:
    """How far one task is; made by `progress`."""

    def __init__(self, description: str, total: int | None, bar: Progress | None) -> None:
        self.description = description
        self.total = total
        self.done = 0
        self._bar = bar
        self._task = None if bar is None else bar.add_task(description, total=total, note="")
        self._began = self._said = time.monotonic()

    def advance(self, count: int = 1, note: str = "") -> None:
        """`count` more units are done; `note` is shown behind the bar."""
        self.done += count
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, advance=count, note=note)
        elif time.monotonic() - self._said >= LINE_SECONDS:
            self._said = time.monotonic()
            of = "" if self.total is None else f"/{self.total:,}"
            rate = self.done / max(self._said - self._began, 1e-9)
            speed = f" ({rate:,.0f}/s)" if rate >= 1 else ""
            say(f"{self.description}: {self.done:,}{of}{speed} {note}".rstrip())

    def expect(self, total: int) -> None:
        """The whole is now known to be `total` units."""
        self.total = total
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, total=total)


@contextmanager
def progress(description: str, total: int | None = None) -> Iterator[Meter]:
    """A bar on a terminal; elsewhere (a job's log) a plain line every `LINE_SECONDS`.

    Args:
        description: what is being done, e.g. ``"reading"``.
        total: units in the whole, or None where it is not known yet (see `Meter.expect`).
    """
    if console.quiet or not console.is_terminal:
        yield Meter(description, total, None)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        yield Meter(description, total, bar)
