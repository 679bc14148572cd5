"""What the leaders of a search cost to use: measured through ONNX Runtime, on one thread of this machine."""

import json
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fer_scale.bundle import build, export_onnx
from fer_scale.console import warn
from fer_scale.learning.configuration import Configuration
from fer_scale.predictor import OnnxEngine
from fer_scale.search.rows import value

LEADERS = 12
"""Most networks that are measured: the best of each family, then the best of all."""
BATCH, REPEATS = 64, 3
MILLION = 1_000_000
SECONDS_PER_HOUR = 3600


def leaders(ranked: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The trials whose price is worth knowing: of the ranked rows the best of each family, then the best of all."""
    firsts: dict[str, Mapping[str, Any]] = {}
    for row in ranked:
        firsts.setdefault(row["family"], row)
    others = (row for row in ranked if row is not firsts[row["family"]])
    return [*firsts.values(), *others][:LEADERS]


def architecture(row: Mapping[str, Any]) -> str:
    """What decides the price of a row's network: the same text, the same price."""
    whole = json.loads(row["configuration"])
    network = {key: given for key, given in whole["network"].items() if key not in ("weights", "unfreeze", "dropout")}
    return json.dumps([whole["family"], network, whole["preprocessing"], whole["test_time_flip"]], sort_keys=True)


def images_per_second(configuration: Configuration, num_classes: int) -> float:
    """Images a second of one thread, by the engine that labels on CPUs; random weights cost what fitted ones do.

    It is counted in CPU seconds of the thread that infers, so that a busy neighbour does not change it.
    """
    seen = configuration.preprocessing
    network = build(configuration, num_classes, pretrained=False)
    with tempfile.TemporaryDirectory(prefix="fer_scale-price-") as folder:
        export_onnx(network, seen, path := Path(folder) / "model.onnx")
        engine = OnnxEngine(path, threads=1)
    images = np.random.default_rng(0).integers(0, 256, (BATCH, seen.channels, seen.size, seen.size), dtype=np.uint8)
    engine.logits(images[:2])
    costs = []
    for _ in range(REPEATS):
        began = time.thread_time()
        engine.logits(images)
        costs.append(time.thread_time() - began)
    return BATCH / min(costs)


def measured(
    ranked: Sequence[Mapping[str, Any]], known: Mapping[int, float], num_classes: int, deadline: float
) -> Iterator[tuple[int, float]]:
    """Trial and images a second of each leader that is not known yet; the best in any case, the others in time.

    Args:
        ranked: rows of the trials table, best first.
        known: what was measured before, by trial.
        deadline: unix time after which nothing but the best is measured.
    """
    speeds = {architecture(row): known[row["trial_id"]] for row in ranked if row["trial_id"] in known}
    for row in leaders(ranked):
        if row["trial_id"] in known:
            continue
        which = architecture(row)
        if which not in speeds:
            if row is not ranked[0] and time.time() > deadline:
                continue
            try:
                configuration = Configuration.from_dict(json.loads(row["configuration"]))
                speeds[which] = images_per_second(configuration, num_classes)
            except Exception as error:  # an export that fails costs its price, and not the search's report
                warn(f"no price of trial {row['trial_id']}: {type(error).__name__}: {error}".splitlines()[0])
                continue
        yield row["trial_id"], round(speeds[which], 1)


def per_million(speed: float | None, price_per_hour: float | None) -> float | None:
    """Money for a million images on one core at ``price_per_hour``; None where either is not known."""
    if speed is None or price_per_hour is None:
        return None
    return MILLION / speed / SECONDS_PER_HOUR * price_per_hour


def front(rows: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The Pareto front, cheapest first: the rows that none beats or equals in accuracy at the same or a lower price."""
    kept: list[Mapping[str, Any]] = []
    for row in sorted((r for r in rows if r["images_per_second"]), key=lambda r: (-r["images_per_second"], -value(r))):
        if not kept or value(row) > value(kept[-1]):
            kept.append(row)
    return kept
