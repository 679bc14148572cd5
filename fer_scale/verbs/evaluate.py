"""``fer-scale evaluate``: how good one or several bundles are on a split, as JSON and as a report to read."""

import json
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from fer_scale import storage
from fer_scale.bundle import Bundle
from fer_scale.console import progress, say, set_quiet
from fer_scale.errors import InputError
from fer_scale.evaluation_report import Model, page
from fer_scale.faces.store import Store
from fer_scale.learning.comparison import paired_test, share_at_error
from fer_scale.learning.metrics import expected_calibration_error, summarise
from fer_scale.predictor import Predictor
from fer_scale.report import interval, percent

PathLike = str | os.PathLike[str]
CHUNK = 1024
"""Faces that are decoded and answered at a time."""
ERRORS = (0.01, 0.02, 0.05, 0.10)
"""Errors for which the share of the surest faces is told."""


def evaluate(
    bundles: PathLike | Sequence[PathLike],
    store: PathLike,
    *,
    out: PathLike,
    split: str = "test",
    overwrite: bool = False,
    seed: int = 0,
    quiet: bool = False,
) -> dict[str, Any]:
    """Predict one split of a face store with every bundle, and write report, figures and predictions.

    Args:
        bundles: one bundle or several, local or s3://.
        store: a face store with the classes of the bundles, in any order.
        out: the folder for the report, local or s3://.
        split: train, val, calib or test.
        overwrite: replace an `out` that is not empty.
        seed: taken like everywhere; nothing is drawn here.
        quiet: say nothing on stderr.

    Returns:
        What metrics.json holds: the figures of the one bundle, or ``{"models": [...], "comparison": ...}`` in
        the order in which the bundles were given. `comparison` sets the two most accurate side by side.

    Raises:
        InputError: an unreadable bundle or store, other classes, no such split, or `out` is not empty.
    """
    set_quiet(quiet)
    paths = [os.fspath(path) for path in ([bundles] if isinstance(bundles, str | os.PathLike) else bundles)]
    if not paths:
        raise InputError("no bundle", "one bundle or more", "name a folder that fer-scale train wrote")
    storage.check_output(out, overwrite, inputs=[*paths, store])
    faces = Store.open(os.fspath(store))
    models = _predict([_load(path, faces) for path in paths], _names(paths), faces, split)
    figures = [_figures(model, faces, split, path) for model, path in zip(models, paths, strict=True)]
    result: dict[str, Any] = figures[0] if len(models) == 1 else {"models": figures, "comparison": _compare(models)}
    with storage.publishing(out, overwrite, last="metrics.json") as folder:
        pq.write_table(
            pa.concat_tables([_table(model, faces.classes) for model in models]),
            folder / "predictions.parquet",
        )
        (folder / "report.html").write_text(page(models, figures, result.get("comparison"), faces, split), "utf-8")
        (folder / "metrics.json").write_text(json.dumps(result, indent=2) + "\n", "utf-8")
    for model, own in zip(models, figures, strict=True):
        say(
            f"{model.name}: accuracy {percent(own['accuracy'])} ({interval(*own['accuracy_interval'])}), "
            f"macro-F1 {own['macro_f1']:.3f}, {own['n']:,} faces"
        )
    return {**result, "report": storage.join(out, "report.html")}


def _load(path: str, store: Store) -> Bundle:
    bundle = Bundle.load(path)
    if sorted(bundle.classes) != sorted(store.classes):
        raise InputError(
            f"bundle {path} with the classes {', '.join(bundle.classes)}",
            f"those of {store.path}: {', '.join(store.classes)}",
            "evaluate it on a store with its classes, or ingest with --classes and --rename",
        )
    return bundle


def _names(paths: Sequence[str]) -> list[str]:
    """The last part of each path, or as many parts as it takes to tell them apart."""
    parts = [storage.normal(path).rstrip("/").split("/") for path in paths]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{part[-1]} ({at})" for at, part in enumerate(parts, 1)]


def _predict(bundles: list[Bundle], names: list[str], store: Store, split: str) -> list[Model]:
    """Bundles that see the same pixels share one decoding; of the pictures some are in memory at a time."""
    store.check(split)
    models: dict[int, Model] = {}
    for inputs in dict.fromkeys(bundle.preprocessing for bundle in bundles):
        predictors = {i: Predictor.load(one) for i, one in enumerate(bundles) if one.preprocessing == inputs}
        parts: dict[int, list[npt.NDArray[np.float32]]] = {i: [] for i in predictors}
        ids: list[str] = []
        labels = []
        title = f"{', '.join(names[i] for i in predictors)} on {split}"
        with progress(title, store.rows(split)) as meter:
            for faces in store.parts(split, inputs, rows=CHUNK):
                ids += faces.ids
                labels.append(faces.labels)
                for i, predictor in predictors.items():
                    parts[i].append(predictor.logits(faces.images))
                meter.advance(len(faces))
        for i in predictors:
            columns = [bundles[i].classes.index(name) for name in store.classes]
            logits = np.concatenate(parts[i])[:, columns]
            models[i] = Model(names[i], bundles[i], ids, np.concatenate(labels), logits)
    return [models[i] for i in range(len(bundles))]


def _figures(model: Model, store: Store, split: str, path: str) -> dict[str, Any]:
    config = model.bundle.config
    return {
        **summarise(model.probabilities, model.labels, store.classes),
        "ece_uncalibrated": expected_calibration_error(model.uncalibrated, model.labels),
        "temperature": model.bundle.temperature,
        "share_at_error": {f"{error:g}": share_at_error(model.probabilities, model.labels, error) for error in ERRORS},
        "split": split,
        "model_id": model.bundle.model_id,
        "bundle": path,
        "family": config["family"],
        "parameters": model.parameters,
        "weights": config.get("weights"),
        "trained_on": config.get("data_fingerprint"),
        "data_fingerprint": store.fingerprint,
        "commit": config.get("commit"),
    }


def _compare(models: list[Model]) -> dict[str, Any]:
    """The two most accurate, the better one first; of equal ones the first given."""
    first, second = sorted(models, key=lambda model: -model.correct.mean())[:2]
    return {"first": first.name, "second": second.name, **paired_test(first.correct, second.correct)}


def _table(model: Model, classes: list[str]) -> pa.Table:
    probabilities = model.probabilities
    return pa.table(
        {
            "id": pa.array(model.ids, pa.string()),
            "label": [classes[i] for i in model.labels],
            "predicted": [classes[i] for i in model.predicted],
            "confidence": probabilities.max(axis=1),
            **{f"prob_{name}": probabilities[:, i] for i, name in enumerate(classes)},
            "model_id": [model.bundle.model_id] * len(model.ids),
            "bundle": [model.name] * len(model.ids),
        }
    )
