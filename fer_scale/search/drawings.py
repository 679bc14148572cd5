"""The figures of a search's report."""

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from fer_scale.figures import INK, MARKERS, MUTED, Series, colour, percent_axis, plot

Rows = Sequence[Mapping[str, Any]]
MAX_IMPORTANCES = 12
LOGARITHMIC = ("lr", "weight_decay")
ROOM = 1.25
"""Factor beyond the outermost values of a logarithmic axis."""


def accuracy_against_compute(trials: Rows, families: Sequence[str]) -> Markup:
    """Every trial's validation accuracy against its compute (logarithmic); whiskers are 95 % intervals.

    Args:
        trials: rows with family, compute_seconds, accuracy, accuracy_low and accuracy_high.
        families: in the order of their colours.
    """
    title = "Validation accuracy against compute, by family"
    with plot(title, "compute of the trial, seconds", "validation accuracy", (9.6, 4.0)) as drawing:
        axes = drawing.axes
        axes.set_xscale("log")
        for index, family in enumerate(families):
            own = [row for row in trials if row["family"] == family]
            x, y = [max(row["compute_seconds"], 1e-3) for row in own], [row["accuracy"] for row in own]
            below = [row["accuracy"] - row["accuracy_low"] for row in own]
            above = [row["accuracy_high"] - row["accuracy"] for row in own]
            shade = colour(index)
            axes.errorbar(x, y, [below, above], fmt="none", ecolor=shade, elinewidth=0.9, alpha=0.45)
            axes.scatter(x, y, s=28, marker=MARKERS[index % 8], color=shade, label=family, linewidths=0, zorder=3)
        percent_axis(axes.yaxis)
        _logarithmic(axes, [max(row["compute_seconds"], 1e-3) for row in trials])
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), handletextpad=0.2)
    return drawing.svg


def best_so_far(fits: Sequence[tuple[float, float]]) -> Markup:
    """The best validation accuracy known after so much wall time.

    Args:
        fits: minutes since the search began at which each fit ended, ascending, and its accuracy.
    """
    ends, accuracies = zip(*fits, strict=True)
    best = list(accumulate(accuracies, max))
    with plot(
        "Best validation accuracy so far, over time", "minutes since the start", "validation accuracy"
    ) as drawing:
        axes = drawing.axes
        axes.scatter(ends, accuracies, s=14, color=MUTED, alpha=0.55, linewidths=0, label="a fit")
        axes.step(ends, best, where="post", color=colour(0), label="best so far")
        axes.set_xlim(left=0)
        percent_axis(axes.yaxis)
        axes.legend(loc="best")
    return drawing.svg


def survivors(rungs: Sequence[Any], counts: Sequence[tuple[str, Sequence[int]]]) -> Markup:
    """How many trials reached each rung, stacked by family.

    Args:
        rungs: the rungs' names, lowest first.
        counts: (family, trials that reached each rung), in the order of the families' colours.
    """
    with plot("Trials that reached each rung, by family", "rung reached", "trials") as drawing:
        axes = drawing.axes
        below = [0] * len(rungs)
        at = range(len(rungs))
        for index, (family, reached) in enumerate(counts):
            axes.bar(at, reached, bottom=below, color=colour(index), label=family, width=0.7, alpha=0.85)
            below = [a + b for a, b in zip(below, reached, strict=True)]
        axes.set_xticks(list(at), [str(rung) for rung in rungs])
        axes.grid(visible=False, axis="x")
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.legend(loc="upper right")
    return drawing.svg


def accuracy_against_price(trials: Rows, front: Rows, families: Sequence[str]) -> Markup:
    """Accuracy against images a second (logarithmic) of the trials whose price was measured, and their Pareto front.

    Args:
        trials: rows with family, images_per_second, value, and the value's interval as low and high.
        front: those that nothing cheaper matches, cheapest first.
        families: in the order of their colours.
    """
    title = "Validation accuracy against images a second, with the Pareto front"
    with plot(title, "images a second on one core", "validation accuracy", (9.6, 4.0)) as drawing:
        axes = drawing.axes
        axes.set_xscale("log")
        x, y = ([row[name] for row in front] for name in ("images_per_second", "value"))
        axes.step(x, y, where="post", color=MUTED, linewidth=1.2, linestyle=(0, (4, 3)), label="Pareto front", zorder=1)
        for index, family in enumerate(families):
            own = [row for row in trials if row["family"] == family]
            if not own:
                continue
            at, values = [row["images_per_second"] for row in own], [row["value"] for row in own]
            low = [row["value"] - row["low"] for row in own]
            high = [row["high"] - row["value"] for row in own]
            axes.errorbar(at, values, [low, high], fmt="none", ecolor=colour(index), elinewidth=0.9, alpha=0.45)
            edges = [INK if row in front else "none" for row in own]
            marker, shade = MARKERS[index % 8], colour(index)
            axes.scatter(at, values, s=44, marker=marker, color=shade, label=family, edgecolors=edges, zorder=3)
        percent_axis(axes.yaxis)
        _logarithmic(axes, [row["images_per_second"] for row in trials])
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), handletextpad=0.2)
    return drawing.svg


def _logarithmic(axes: Axes, values: Series) -> None:
    """An x axis with room about its values, one alone too; numbers stand at the ticks that begin with 1, 2 or 5."""

    def text(value: float, _: Any) -> str:
        leads = value > 0 and round(value / 10 ** math.floor(math.log10(value) + 1e-9)) in (1, 2, 5)
        return (f"{value:,.0f}" if value >= 1 else f"{value:g}") if leads else ""

    axes.set_xlim(min(values) / ROOM, max(values) * ROOM)
    axes.xaxis.set_major_formatter(FuncFormatter(text))
    axes.xaxis.set_minor_formatter(FuncFormatter(text))


def importances(shares: Mapping[str, float]) -> Markup:
    """How much of the variance of the scores each parameter explains.

    Args:
        shares: by parameter, most important first; their sum is 1.
    """
    shown = list(shares.items())[:MAX_IMPORTANCES]
    size = (9.6, 0.8 + 0.26 * len(shown))
    with plot("Importance of each parameter", "share of the importance", "", size) as drawing:
        axes = drawing.axes
        axes.barh(range(len(shown)), [share for _, share in shown], color=colour(0), alpha=0.85, height=0.66)
        axes.set_yticks(range(len(shown)), [name for name, _ in shown], color=INK)
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        percent_axis(axes.xaxis)
    return drawing.svg


def parallel_coordinates(trials: Rows, families: Sequence[str]) -> Markup:
    """A line a trial through its parameters to its accuracy, the best on top and darkest (Inselberg 1985).

    Args:
        trials: rows with family, value and parameters (name to value), best first.
        families: in the order of their colours.
    """
    named = {name for row in trials for name in row["drawn"]}
    names = [n for n in _order(trials) if n in named and len({_text(row["drawn"].get(n)) for row in trials}) > 1]
    scales = [_Scale(name, [row["drawn"][name] for row in trials if name in row["drawn"]]) for name in names]
    scales.append(_Scale("val accuracy", [row["value"] for row in trials], percent=True))
    with plot("Parameters of every trial, and its accuracy", "", "", (9.6, 4.2)) as drawing:
        axes = drawing.axes
        axes.set_axis_off()
        for place, scale in enumerate(scales):
            axes.plot([place, place], [0, 1], color=MUTED, linewidth=0.8, zorder=4)
            axes.text(place, 1.06, scale.name.replace("_", " "), rotation=24, fontsize=8.5, color=INK)
            for at, text in scale.ticks:
                axes.text(place + 0.05, at, text, fontsize=7, color=INK, va="center", zorder=5)
        for rank, row in reversed(list(enumerate(trials))):
            values = [row["drawn"].get(scale.name) for scale in scales[:-1]] + [row["value"]]
            # a little apart where many share a value; the same for the same trial
            aside = 0.02 * ((rank * 0.618) % 1 - 0.5)
            y = [math.nan if v is None else s.place(v) + aside for s, v in zip(scales, values, strict=True)]
            alpha = max(0.9 - 0.8 * rank / max(len(trials) / 2, 4), 0.15)
            shade = colour(families.index(row["family"]))
            axes.plot(range(len(scales)), y, color=shade, alpha=alpha, linewidth=2.0 if rank == 0 else 1.1)
        axes.set_xlim(-0.1, len(scales) - 0.2)
        axes.set_ylim(-0.06, 1.3)
    return drawing.svg


def _order(trials: Rows) -> list[str]:
    """Every name once, in the order of the first row that has it."""
    return list(dict.fromkeys(name for row in trials for name in row["drawn"]))


def _text(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


class _Scale:
    """One vertical axis: where a value stands, from 0 to 1, and what is written beside it."""

    def __init__(self, name: str, values: Sequence[Any], percent: bool = False) -> None:
        self.name = name
        numbers = all(isinstance(value, int | float) for value in values)
        levels = sorted(set(values), key=lambda level: (isinstance(level, str), level))
        self._levels = None if percent or (numbers and len(levels) > 4) else levels
        self._log = name in LOGARITHMIC and self._levels is None
        if self._levels is not None:
            self.ticks = [(self.place(level), _text(level)) for level in self._levels]
            return
        self._low, self._high = self._along(min(values)), self._along(max(values))
        ends = (min(values), max(values))
        self.ticks = [(float(at), f"{100 * v:.1f} %" if percent else _text(float(v))) for at, v in enumerate(ends)]

    def _along(self, value: float) -> float:
        return math.log(max(value, 1e-12)) if self._log else value

    def place(self, value: Any) -> float:
        """From 0 to 1."""
        if self._levels is not None:
            return self._levels.index(value) / (len(self._levels) - 1) if len(self._levels) > 1 else 0.5
        return (self._along(value) - self._low) / max(self._high - self._low, 1e-12)
