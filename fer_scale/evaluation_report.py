"""The page that ``evaluate`` writes: what the figures mean, drawn and said."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
from markupsafe import Markup

from fer_scale import figures as draw
from fer_scale.bundle import Bundle
from fer_scale.faces.images import decode
from fer_scale.faces.store import Store
from fer_scale.learning.calibration import probabilities
from fer_scale.learning.comparison import error_by_share
from fer_scale.learning.metrics import calibration_bins, wilson_interval
from fer_scale.report import picture, render

MISTAKES = 24
"""Wrong answers shown of a single model; of several, half as many each."""
FEW = 100
"""Below so many faces the report says that they decide little."""


@dataclass(frozen=True)
class Model:
    """A bundle and what it said of one split; arrays are in the order of the store's rows and classes."""

    name: str
    bundle: Bundle
    ids: list[str]
    labels: npt.NDArray[np.int64]
    """``[N]``"""
    logits: npt.NDArray[np.float32]
    """``[N, K]``"""

    @cached_property
    def probabilities(self) -> npt.NDArray[np.float32]:
        """``[N, K]``, at the bundle's temperature."""
        return probabilities(self.logits, self.bundle.temperature)

    @property
    def uncalibrated(self) -> npt.NDArray[np.float32]:
        """``[N, K]``, at temperature 1."""
        return probabilities(self.logits)

    @cached_property
    def predicted(self) -> npt.NDArray[np.int64]:
        """``[N]``, class indices."""
        return np.asarray(self.probabilities.argmax(axis=1), dtype=np.int64)

    @property
    def correct(self) -> npt.NDArray[np.bool_]:
        """``[N]``"""
        return np.asarray(self.predicted == self.labels)

    @cached_property
    def parameters(self) -> int:
        """Trainable or not, buffers left out."""
        if "parameters" in self.bundle.config:
            return int(self.bundle.config["parameters"])
        return sum(value.numel() for value in self.bundle.network().parameters())


def page(
    models: Sequence[Model],
    figures: Sequence[dict[str, Any]],
    comparison: dict[str, Any] | None,
    store: Store,
    split: str,
) -> str:
    """The report as one HTML file.

    Args:
        models: in the order in which they were given.
        figures: metrics.json's entry of each.
        comparison: metrics.json's `comparison`, of several models.
    """
    sections = [
        _section(model, own, store, split, MISTAKES if len(models) == 1 else MISTAKES // 2)
        for model, own in zip(models, figures, strict=True)
    ]
    ranked = sorted(zip(models, sections, strict=True), key=lambda one: -one[1]["figures"]["accuracy"])
    support = {name: row["support"] for name, row in figures[0]["per_class"].items()}
    commonest = max(support, key=lambda name: support[name])
    lows, highs = zip(*(own["accuracy_interval"] for own in figures), strict=True)
    margin = 0.1 * (max(highs) - min(lows)) + 1e-6
    return render(
        "evaluate.html.j2",
        title=f"{models[0].name if len(models) == 1 else f'{len(models)} models'} on the {split} split",
        sections=[section for _, section in ranked],
        comparison=comparison,
        curves=_curves_figure([model for model, _ in ranked]) if len(models) > 1 else None,
        axis=(max(0.0, min(lows) - margin), min(1.0, max(highs) + margin)),
        classes=store.classes,
        commonest=(commonest, support[commonest] / max(figures[0]["n"], 1)),
        split=split,
        store=store.path,
        fingerprint=store.fingerprint,
        n=figures[0]["n"],
        warnings=_of_the_split(figures[0], split),
    )


def _section(model: Model, figures: dict[str, Any], store: Store, split: str, mistakes: int) -> dict[str, Any]:
    after, before = model.probabilities, model.uncalibrated
    shares, errors = error_by_share(after, model.labels)
    per_class = [
        {
            "name": name,
            **row,
            "recall_interval": wilson_interval(row["recall"] * row["support"], row["support"]),
        }
        for name, row in figures["per_class"].items()
    ]
    return {
        "name": model.name,
        "figures": figures,
        "per_class": per_class,
        "preprocessing": model.bundle.preprocessing,
        "configuration": model.bundle.config["configuration"],
        "versions": model.bundle.config.get("versions") or {},
        "warnings": _of_the_model(model, figures, store, split),
        "reliability": draw.reliability(
            calibration_bins(before, model.labels),
            calibration_bins(after, model.labels),
            model.bundle.temperature,
        ),
        "error_by_share": _error_figure(shares, errors),
        "curve": _curve_figure(model),
        "mistakes": _mistakes(model, store, split, mistakes),
        "wrong": int((~model.correct).sum()),
    }


def _error_figure(shares: npt.NDArray[np.float64], errors: npt.NDArray[np.float64]) -> Markup:
    # The very first faces jump between 0 and 1: the curve starts where it rests on 20 of them.
    start = min(19, len(shares) - 1)
    keep = np.unique(np.linspace(start, len(shares) - 1, 400).astype(int))
    return draw.lines(
        [("error", list(shares[keep]), list(errors[keep]))],
        "Error among the surest faces, by their share",
        "share accepted, the surest first",
        "error among them",
        percent=(True, True),
    )


def _curve_figure(model: Model) -> Markup | None:
    title = "Validation accuracy by epoch"
    if (series := _curve(model, "epoch")) is None:
        return None
    return draw.lines([series], title, "epoch", "validation accuracy", percent=(False, True))


def _curves_figure(models: Sequence[Model]) -> Markup | None:
    """In the order of the table, whose colours they have; one without a curve keeps its place."""
    found = [_curve(model, "seconds") or (model.name, [], []) for model in models]
    series = [(name, [value / 60 for value in seconds], accuracy) for name, seconds, accuracy in found]
    if not any(minutes for _, minutes, _ in series):
        return None
    title, x, y = "Validation accuracy by time", "minutes of fitting", "validation accuracy"
    return draw.lines(series, title, x, y, percent=(False, True), size=(10.0, 3.6))


def _curve(model: Model, over: str) -> tuple[str, list[float], list[float]] | None:
    """The model's name, a column of its curve and the accuracy on val there; None where that is no curve."""
    curve = pq.read_table(model.bundle.directory / "curve.parquet").to_pydict()
    if len(curve.get(over, ())) < 2 or "val_accuracy" not in curve:
        return None
    return model.name, curve[over], curve["val_accuracy"]


def _mistakes(model: Model, store: Store, split: str, count: int) -> list[dict[str, Any]]:
    """The wrong answers with the highest confidence, as pictures."""
    confidence = model.probabilities.max(axis=1)
    wrong = np.flatnonzero(~model.correct)
    rows = wrong[np.argsort(-confidence[wrong], kind="stable")][:count]
    if not len(rows):
        return []
    images = store.pictures(split, [model.ids[row] for row in rows])
    return [
        {
            "src": picture(decode(images[model.ids[row]])),
            "id": model.ids[row],
            "said": store.classes[model.predicted[row]],
            "truth": store.classes[model.labels[row]],
            "confidence": float(confidence[row]),
        }
        for row in rows
    ]


def _of_the_split(figures: dict[str, Any], split: str) -> list[str]:
    found = []
    if figures["n"] < FEW:
        found.append(f"{figures['n']} faces decide little: read the intervals, not the figures.")
    empty = [name for name, row in figures["per_class"].items() if not row["support"]]
    if empty:
        found.append(f"{split} has no face of {', '.join(empty)}, which counts as 0 in macro-F1.")
    return found


def _of_the_model(model: Model, figures: dict[str, Any], store: Store, split: str) -> list[str]:
    """What makes a figure look better than it is."""
    trained_on = figures["trained_on"]
    if trained_on != store.fingerprint:
        return [
            f"{model.name} was fitted on other data ({trained_on or 'no fingerprint'}); "
            "whether any of these faces were among them is not known here."
        ]
    if split == "train":
        return [
            f"{model.name} was fitted on these very faces: this is its training accuracy, not what new faces will get."
        ]
    if split == "val":
        return [f"{model.name} was chosen and its temperature set on these faces: the figures are a little too good."]
    return []
