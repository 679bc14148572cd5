"""The report of a search as one HTML page."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from fer_scale.durations import duration
from fer_scale.report import number, render, short
from fer_scale.search import drawings
from fer_scale.search.price import front
from fer_scale.search.rows import interval, ranked, value

COORDINATES = 60
"""Most trials, the best, that are drawn as lines through their parameters."""


def page(trials: Sequence[Mapping[str, Any]], facts: Mapping[str, Any], importances: Mapping[str, float]) -> str:
    """The report.

    Args:
        trials: the rows of trials.parquet, in any order.
        facts: what else is to be told, name to value; ``seconds``, the wall time, goes to the top.
        importances: share of each parameter, most important first; empty where there were too few trials to tell.
    """
    scored = ranked([{**row} for row in trials])
    for row in scored:
        row["value"], (row["low"], row["high"]) = value(row), interval(row)
    board = [*scored, *({**row} for row in trials if row["accuracy"] is None)]
    families = sorted({row["family"] for row in board})
    for rank, row in enumerate(board, 1):
        row.update(rank=rank, colour=families.index(row["family"]) % 8, drawn=_drawn(json.loads(row["configuration"])))
    on_front = front(scored)
    best = scored[0] if scored else None
    boards = [_family([row for row in board if row["family"] == name], board) for name in families]
    low = min((row["accuracy_low"] for row in scored), default=0.0)
    high = max((row["accuracy_high"] for row in scored), default=1.0)
    return render(
        "search.html.j2",
        title="Search over " + ("one family" if len(families) == 1 else f"{len(families)} families"),
        best=best,
        configuration=json.loads(best["configuration"]) if best else {},
        ties=sum(row["tie"] for row in scored),
        axis=(low, max(high, low + 1e-6)),
        strip=_strip(board, facts),
        facts=[(name, _text(known)) for name, known in facts.items() if name not in ("seconds", "compute_seconds")],
        families=sorted(boards, key=lambda one: one["best"]["rank"] if one["best"] else len(board) + 1),
        rows=board,
        front=on_front,
        front_ids={row["trial_id"] for row in on_front},
        priced=any(row["price_per_million"] is not None for row in board),
        drawings=_drawings(scored, board, on_front, families, importances) if scored else {},
        compared=min(len(scored), COORDINATES),
    )


def _drawn(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """What every family has, name to value, for the parallel coordinates."""
    network = {key: known for key, known in configuration["network"].items() if key in ("dropout", "dense")}
    shared = {**configuration.get("preprocessing", {}), **network, **configuration.get("recipe", {})}
    return {"family": configuration["family"], **shared}


def _text(known: Any) -> str:
    if isinstance(known, dict):
        return ", ".join(f"{name} {_text(one)}" for name, one in known.items())
    if isinstance(known, list | tuple):
        return ", ".join(map(_text, known))
    return "not known" if known is None else str(known)


def _strip(trials: Sequence[Mapping[str, Any]], facts: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    count = Counter(row["status"] for row in trials)
    strip = [
        ("Trials", number(len(trials)), ", ".join(f"{n} {status}" for status, n in count.most_common())),
        ("Images seen", short(sum(row["images_seen"] or 0 for row in trials)), "over all trials"),
        ("Compute", duration(_compute(trials)), "over all trials"),
    ]
    return [*strip, ("Wall time", duration(facts["seconds"]), "")] if "seconds" in facts else strip


def _compute(trials: Sequence[Mapping[str, Any]]) -> float:
    return float(sum(row["compute_seconds"] or 0.0 for row in trials))


def _family(own: Sequence[dict[str, Any]], trials: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {
        "name": own[0]["family"],
        "colour": own[0]["colour"],
        "trials": len(own),
        "completed": sum(row["status"] == "completed" for row in own),
        "best": own[0] if own[0]["accuracy"] is not None else None,
        "seconds": _compute(own),
        "share": _compute(own) / max(_compute(trials), 1e-9),
    }


def _drawings(
    scored: list[dict[str, Any]],
    trials: list[dict[str, Any]],
    on_front: Sequence[Mapping[str, Any]],
    families: list[str],
    importances: Mapping[str, float],
) -> dict[str, Any]:
    began = min(row["started"] for row in trials if row["started"] is not None)
    fits = [fit for row in scored for fit in zip(row["scored"], row["scores"], strict=True) if fit[0] is not None]
    rungs = range(max(row["rung"] or 0 for row in trials) + 1)
    reached = [
        (name, [sum(row["family"] == name and (row["rung"] or 0) >= rung for row in trials) for rung in rungs])
        for name in families
    ]
    priced = [row for row in scored if row["images_per_second"]]
    return {
        "compute": drawings.accuracy_against_compute(scored, families),
        "history": drawings.best_so_far([((ended - began) / 60, accuracy) for ended, accuracy in sorted(fits)]),
        "rungs": drawings.survivors(["begun", *rungs[1:]], reached),
        "price": drawings.accuracy_against_price(priced, on_front, families) if priced else None,
        "importances": drawings.importances(importances) if importances else None,
        "parallel": drawings.parallel_coordinates(scored[:COORDINATES], families) if len(scored) > 1 else None,
    }
