"""The rows of the trials table, made from what is known of their fits."""

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

if TYPE_CHECKING:
    from fer_scale.search.rungs import Rungs
    from fer_scale.search.study import Fit

TRIALS_SCHEMA = pa.schema(
    [
        ("trial_id", pa.int64()),
        ("start", pa.string()),
        ("family", pa.string()),
        ("configuration", pa.string()),
        ("parameters", pa.int64()),
        ("input", pa.string()),
        ("weights", pa.string()),
        ("images_seen", pa.int64()),
        ("compute_seconds", pa.float64()),
        ("rung", pa.int64()),
        ("accuracy", pa.float64()),
        ("accuracy_low", pa.float64()),
        ("accuracy_high", pa.float64()),
        ("confirmed", pa.float64()),
        ("confirmed_low", pa.float64()),
        ("confirmed_high", pa.float64()),
        ("tie", pa.bool_()),
        ("images_per_second", pa.float64()),
        ("price_per_million", pa.float64()),
        ("scores", pa.list_(pa.float64())),
        ("scored", pa.list_(pa.float64())),
        ("seed", pa.int64()),
        ("status", pa.string()),
        ("reason", pa.string()),
        ("started", pa.float64()),
        ("ended", pa.float64()),
    ]
)
"""``accuracy``, ``images_seen`` and ``seed`` are of the fit for the highest rung, ``compute_seconds`` of all fits;
``images_per_second`` is of one thread, by ONNX Runtime, and ``price_per_million`` the money for a million images on one
core; both of the leaders alone. ``scores`` holds the accuracy at each rung from the lowest on (null where it was passed
over) and ``scored`` when it came; these, ``started`` and ``ended`` are unix seconds."""

OF_FIT = ("parameters", "weights", "images_seen", "accuracy", "accuracy_low", "accuracy_high")


def begun(fit: "Fit", started: float) -> dict[str, Any]:
    """The row of a trial that has just begun."""
    seen = fit.configuration["preprocessing"]
    return {
        **dict.fromkeys(TRIALS_SCHEMA.names),
        "trial_id": fit.trial,
        "start": fit.start,
        "family": fit.configuration["family"],
        "configuration": json.dumps(fit.configuration),
        "input": f"{seen['size']}x{seen['size']}x{seen['channels']}",
        "images_seen": 0,
        "compute_seconds": 0.0,
        "rung": 0,
        "tie": False,
        "scores": [],
        "scored": [],
        "seed": fit.seed,
        "status": "running",
        "reason": "",
        "started": started,
    }


def take_in(row: dict[str, Any], fit: "Fit", result: Mapping[str, Any], rungs: "Rungs") -> None:
    """A fit of the row's trial ended."""
    row["compute_seconds"] = round(row["compute_seconds"] + result.get("compute_seconds", 0.0), 3)
    row["ended"] = result["ended"]
    if fit.confirm:
        if result.get("accuracy") is None:
            row["reason"] += f"; on a fresh seed: {result['reason']}"
        return
    if result.get("accuracy") is None:
        known = row["accuracy"] is not None
        row.update({key: result[key] for key in OF_FIT[:2] if key in result})
        row["images_seen"] = row["images_seen"] if known else result.get("images_seen", 0)
        row["status"] = "time budget" if result.get("cut") else "failed"
        row["reason"] = result["reason"] + (f" (on the way to rung {fit.rung})" if known else "")
        return
    for name, key in (("scores", "accuracy"), ("scored", "ended")):
        row[name] = [*row[name], *[None] * (fit.rung - len(row[name]))]
        row[name][fit.rung - 1] = result[key]
    if fit.rung < row["rung"]:  # a last fit, for a higher rung, was faster
        return
    row.update({key: result[key] for key in OF_FIT})
    row["rung"], row["seed"] = fit.rung, fit.seed
    if result["share"] < 1:
        row["status"] = "time budget"
        row["reason"] = f"given {100 * result['share']:.0f} % of rung {fit.rung}, annealed to the deadline"
    elif fit.rung >= rungs.count:
        row["status"], row["reason"] = "completed", "reached the highest rung"
    else:
        row["status"], row["reason"] = "pruned", f"not promoted from rung {fit.rung}"


def confirm(row: dict[str, Any], result: Mapping[str, Any] | None) -> None:
    """What the fit on a fresh seed came to, for the rung that the row is of; None where there is none."""
    names = {"confirmed": "accuracy", "confirmed_low": "accuracy_low", "confirmed_high": "accuracy_high"}
    row.update({name: result[was] if result else None for name, was in names.items()})


def value(row: Mapping[str, Any]) -> float:
    """By what rows of one rung are ranked: the accuracy, or where it was confirmed the mean of both seeds."""
    accuracy: float = row["accuracy"]
    return accuracy if row["confirmed"] is None else (accuracy + row["confirmed"]) / 2


def interval(row: Mapping[str, Any]) -> tuple[float, float]:
    """The 95 % interval of the value.

    Both seeds are scored on the same faces, so their mean is known no better than one of them as far as that goes: its
    interval is as wide as theirs.
    """
    low, high = row["accuracy_low"], row["accuracy_high"]
    if row["confirmed"] is None:
        return low, high
    return (low + row["confirmed_low"]) / 2, (high + row["confirmed_high"]) / 2


def ranked(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The scored rows, best first: by rung, then what was confirmed, then by value.

    A high score at a low rung is luck more often than not, and so is one that no second seed has confirmed, unless val
    can tell it from the best that was: then it goes first.
    """
    scored = [row for row in rows if row["accuracy"] is not None]
    confirmed: dict[int, float] = {}
    for row in scored:
        if row["confirmed"] is not None:
            confirmed[row["rung"]] = max(value(row), confirmed.get(row["rung"], 0.0))

    def place(row: dict[str, Any]) -> tuple[float, ...]:
        doubtful = row["confirmed"] is None and interval(row)[0] <= confirmed.get(row["rung"], 0.0)
        return -row["rung"], doubtful, -value(row), row["parameters"]

    return sorted(scored, key=place)


def mark_ties(scored: Sequence[dict[str, Any]]) -> None:
    """Set ``tie`` on the ranked rows that val cannot tell from the best: their interval holds its accuracy, or more."""
    for rank, row in enumerate(scored):
        row["tie"] = rank > 0 and interval(row)[1] >= value(scored[0])
