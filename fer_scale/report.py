"""The self-contained HTML reports: one style sheet, shared parts, figures as inline SVG, no other host."""

import base64
import io
import json
from collections import Counter
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import jinja2
import pandas as pd
from PIL import Image

from fer_scale import __version__, figures
from fer_scale.durations import duration

TRIAL_COLUMNS = [
    "trial_id", "family", "configuration", "parameters", "input", "weights", "images_seen", "compute_seconds",
    "rung", "accuracy", "accuracy_low", "accuracy_high", "status", "reason", "started", "ended",
]  # fmt: skip
"""What `search` reads of trials.parquet."""

FACE_PIXELS = 96
"""Longest side of a picture in a report."""


def percent(value: float, digits: int = 1) -> str:
    """``0.8734`` -> ``"87.3 %"``, with a narrow no-break space."""
    return f"{100 * value:.{digits}f}\u202f%"


def interval(low: float, high: float, digits: int = 1) -> str:
    """``0.861, 0.884`` -> ``"86.1 to 88.4 %"``."""
    return f"{100 * low:.{digits}f} to {percent(high, digits)}"


def number(value: float) -> str:
    """``12345`` -> ``"12,345"``."""
    return f"{value:,.0f}"


def short(value: float) -> str:
    """``3_812_004`` -> ``"3.8 M"``, for parameters and images."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.{1 if value < 100 * size else 0}f}\u202f{unit}"
    return f"{value:.0f}"


def picture(image: Image.Image) -> str:
    """The picture as a PNG data URI, at most `FACE_PIXELS` on its longer side."""
    small = image.copy()
    small.thumbnail((FACE_PIXELS, FACE_PIXELS))
    buffer = io.BytesIO()
    small.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


@lru_cache(maxsize=1)
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("fer_scale"),
        autoescape=lambda name: name is not None and ".html" in name,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(pct=percent, num=number, short=short, duration=duration)
    environment.filters.update(plain_json=lambda value: json.dumps(value, indent=2))
    environment.globals.update(version=__version__, interval=interval)
    return environment


def render(template: str, **context: Any) -> str:
    """Fill one of `fer_scale/templates`; HTML ones extend ``base.html.j2`` and need ``title``.

    Values are escaped unless they are `markupsafe.Markup`, as the figures of `fer_scale.figures` are.

    Raises:
        jinja2.UndefinedError: the template uses a name that is not in the context.
    """
    made = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    return _environment().get_template(template).render(made=made, **context)


def search(trials: pd.DataFrame, facts: dict[str, Any]) -> str:
    """The report of a search as one HTML page.

    Args:
        trials: the rows of trials.parquet, in any order; accuracy and its interval are missing where
            a trial has none.
        facts: what else is to be told, name to value; ``seconds``, the wall time, goes to the top.
    """
    table = trials[TRIAL_COLUMNS].sort_values(["accuracy", "parameters"], ascending=[False, True], na_position="last")
    ranked = [{str(key): _known(value) for key, value in row.items()} for row in table.to_dict("records")]
    families = sorted({row["family"] for row in ranked})
    for rank, row in enumerate(ranked, 1):
        row.update(rank=rank, colour=families.index(row["family"]) % 8)
    scored = [row for row in ranked if row["accuracy"] is not None]
    best = scored[0] if scored else None
    boards = [_family([row for row in ranked if row["family"] == name], ranked) for name in families]
    low = min((row["accuracy_low"] for row in scored), default=0.0)
    high = max((row["accuracy_high"] for row in scored), default=1.0)
    return render(
        "search.html.j2",
        title="Search over " + ("one family" if len(families) == 1 else f"{len(families)} families"),
        best=best,
        configuration=json.loads(best["configuration"]) if best else {},
        ties=sum(row["accuracy_high"] >= best["accuracy"] for row in scored[1:]) if best else 0,
        axis=(low, max(high, low + 1e-6)),
        strip=_strip(ranked, facts),
        facts=[(name, _text(value)) for name, value in facts.items() if name not in ("seconds", "compute_seconds")],
        families=sorted(boards, key=lambda board: board["best"]["rank"] if board["best"] else len(ranked) + 1),
        rows=ranked,
        drawings=_drawings(scored, ranked, families) if scored else {},
    )


def _known(value: Any) -> Any:
    """pandas has NaN for what is missing, and makes floats of integers beside it."""
    return None if pd.isna(value) else value


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_text(one)}" for name, one in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value))
    return "not known" if value is None else str(value)


def _strip(trials: list[dict[str, Any]], facts: dict[str, Any]) -> list[tuple[str, str, str]]:
    count = Counter(row["status"] for row in trials)
    strip = [
        ("Trials", number(len(trials)), ", ".join(f"{n} {status}" for status, n in count.most_common())),
        ("Images seen", short(sum(row["images_seen"] or 0 for row in trials)), "over all trials"),
        ("Compute", duration(_compute(trials)), "over all trials"),
    ]
    return [*strip, ("Wall time", duration(facts["seconds"]), "")] if "seconds" in facts else strip


def _compute(trials: list[dict[str, Any]]) -> float:
    return float(sum(row["compute_seconds"] or 0.0 for row in trials))


def _family(own: list[dict[str, Any]], trials: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "name": own[0]["family"],
        "colour": own[0]["colour"],
        "trials": len(own),
        "completed": sum(row["status"] == "completed" for row in own),
        "best": own[0] if own[0]["accuracy"] is not None else None,
        "seconds": _compute(own),
        "share": _compute(own) / max(_compute(trials), 1e-9),
    }


def _drawings(scored: list[dict[str, Any]], trials: list[dict[str, Any]], families: list[str]) -> dict[str, Any]:
    began = min(row["started"] for row in trials if row["started"] is not None)
    ended = sorted((row for row in scored if row["ended"] is not None), key=lambda row: row["ended"])
    rungs = range(max(row["rung"] or 0 for row in trials) + 1)
    reached = [
        (
            name,
            [sum(row["family"] == name and (row["rung"] or 0) >= rung for row in trials) for rung in rungs],
        )
        for name in families
    ]
    return {
        "compute": figures.accuracy_against_compute(scored, families),
        "history": figures.best_so_far(
            [(row["ended"] - began) / 60 for row in ended], [row["accuracy"] for row in ended]
        ),
        "rungs": figures.survivors(["begun", *rungs[1:]], reached),
    }
