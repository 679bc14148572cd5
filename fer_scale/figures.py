"""Figures as inline SVG that takes its colours and type from the page around it, in light and dark.

matplotlib draws with stand-in colours; `_svg` puts the page's CSS variables in their place.
"""

import hashlib
import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

Series = Sequence[float]

_NAMES = ("ink", "muted", "grid", "paper", "accent", "bad", *(f"c{i}" for i in range(8)))
_STAND_IN = {name: f"#0e00{i:02x}" for i, name in enumerate(_NAMES)}
INK, MUTED, GRID, PAPER, ACCENT, BAD = (_STAND_IN[name] for name in _NAMES[:6])
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "fer_scale",
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "lines.linewidth": 1.6,
    "legend.frameon": False,
    "legend.fontsize": 9,
}


def colour(index: int) -> str:
    """The stand-in of the page's ``--c0`` to ``--c7``, the same as ``var(--c<index>)`` in its HTML."""
    return _STAND_IN[f"c{index % 8}"]


class Plot:
    """A figure that is being drawn: `axes` to draw on, `svg` once the `plot` block has ended."""

    def __init__(self, axes: Axes) -> None:
        self.axes = axes
        self.svg = Markup()


@contextmanager
def plot(title: str, x: str, y: str, size: tuple[float, float] = (5.0, 3.2)) -> Iterator[Plot]:
    """Draw one figure in the house style.

    Args:
        title: what it shows, for those who cannot see it.
        x, y: the axes' labels, with units.
        size: width and height, inches; the page scales it to its column.
    """
    # while a layout is sought, an axis of one single value may have no height for a moment
    with matplotlib.rc_context(_STYLE), np.errstate(divide="ignore", invalid="ignore"):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasSVG(figure)
        drawing = Plot(figure.subplots())
        drawing.axes.set_xlabel(x)
        drawing.axes.set_ylabel(y)
        yield drawing
        drawing.svg = _svg(figure, title)


def _svg(figure: Figure, title: str) -> Markup:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>\s*|<style.*?</style>\s*", "", text[text.index("<svg") :], flags=re.S)
    box = re.search(r'viewBox="[^"]*"', text)
    body = text[text.index(">") + 1 :].replace("xlink:href", "href")
    body = re.sub(r"font-family: [^;\"]*", "font-family: inherit", body)
    for name, stand_in in _STAND_IN.items():
        body = body.replace(stand_in, f"var(--{name})")
    # Figures share a page: only names that are referred to stay, and those of two figures must not meet.
    prefix = "f" + hashlib.sha256(body.encode()).hexdigest()[:8]
    used = set(re.findall(r'(?:href="|url\()#([^")]+)', body))
    body = re.sub(r'\sid="([^"]*)"', lambda m: f' id="{prefix}-{m[1]}"' if m[1] in used else "", body)
    body = re.sub(r'(href="|url\()#', rf"\g<1>#{prefix}-", body)
    return Markup(f'<svg role="img" {box[0] if box else ""}><title>{escape(title)}</title>{body}')


def percent_axis(axis: Any) -> None:
    """Ticks of a share, in per cent."""
    axis.set_major_locator(MaxNLocator(8, steps=[1, 2, 5, 10]))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.3g} %"))


def reliability(before: Sequence[dict[str, float]], after: Sequence[dict[str, float]], temperature: float) -> Markup:
    """Accuracy against confidence, before and after temperature scaling (Guo et al. 2017, Figure 1).

    Args:
        before, after: rows of `fer_scale.learning.metrics.calibration_bins`; a point's area is its share.
    """
    with plot("Reliability diagram", "confidence", "accuracy", (5.0, 3.6)) as drawing:
        axes = drawing.axes
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)))
        for rows, shade, label in (
            (before, MUTED, "before, T = 1"),
            (after, colour(0), f"after, T = {temperature:.2f}"),
        ):
            x, y = [row["confidence"] for row in rows], [row["accuracy"] for row in rows]
            axes.plot(x, y, color=shade, linewidth=1.2, label=label)
            axes.scatter(
                x,
                y,
                s=[8 + 160 * row["share"] for row in rows],
                color=shade,
                alpha=0.75,
                linewidths=0,
            )
        low = min((row["confidence"] for row in (*before, *after)), default=0.0)
        axes.set_xlim(max(0.0, low - 0.06), 1.02)
        axes.set_ylim(0, 1.02)
        percent_axis(axes.xaxis)
        percent_axis(axes.yaxis)
        axes.legend(loc="lower right")
    return drawing.svg


def plain(name: str) -> str:
    """A name as matplotlib writes it: it reads $ as the beginning of a formula and leaves out what begins with _."""
    return (" " if name.startswith("_") else "") + name.replace("$", r"\$")


def lines(
    series: Sequence[tuple[str, Series, Series]],
    title: str,
    x: str,
    y: str,
    *,
    percent: tuple[bool, bool] = (False, False),
    size: tuple[float, float] = (5.0, 3.2),
) -> Markup:
    """Lines over one pair of axes.

    Args:
        series: (name, x values, y values).
        percent: whether x and y are shares, to be written in per cent.
        size: as of :func:`plot`.
    """
    with plot(title, x, y, size) as drawing:
        axes = drawing.axes
        for index, (name, at, values) in enumerate(series):
            style = ("-", "--", ":")[index // 8 % 3]  # where the colours begin anew
            axes.plot(at, values, color=colour(index), linestyle=style, label=plain(name))
        if percent[0]:
            percent_axis(axes.xaxis)
        elif all(float(value).is_integer() for _, at, _ in series for value in at):
            axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        if percent[1]:
            percent_axis(axes.yaxis)
        if len(series) > 1:
            axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return drawing.svg
