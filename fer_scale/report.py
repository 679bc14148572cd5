"""The self-contained HTML reports: one style sheet, shared parts, figures as inline SVG, no other host."""

import base64
import io
import json
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import jinja2
from PIL import Image

from fer_scale import __version__
from fer_scale.durations import duration

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
