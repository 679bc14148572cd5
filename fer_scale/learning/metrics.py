"""Figures of merit of a classifier, from its probabilities."""

from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

Probabilities = npt.NDArray[np.floating[Any]]
Labels = npt.NDArray[np.int64]

BINS = 15
"""Of confidence, equally wide."""


def wilson_interval(correct: float, n: int) -> tuple[float, float]:
    """95 % score interval of a proportion (Wilson 1927), which holds near 0 and 1 and for small ``n``."""
    if n == 0:
        return 0.0, 1.0
    p, z = correct / n, 1.959964
    centre = p + z * z / (2 * n)
    half = z * ((p * (1 - p) + z * z / (4 * n)) / n) ** 0.5
    scale = 1 + z * z / n
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def calibration_bins(probabilities: Probabilities, labels: Labels) -> list[dict[str, float]]:
    """Rows of the reliability diagram: mean confidence and accuracy of equal-width confidence bins."""
    confidence = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == labels
    at = np.minimum((confidence * BINS).astype(int), BINS - 1)
    rows = []
    for b in range(BINS):
        here = at == b
        if here.any():
            rows.append(
                {
                    "confidence": float(confidence[here].mean()),
                    "accuracy": float(correct[here].mean()),
                    "share": float(here.mean()),
                }
            )
    return rows


def expected_calibration_error(probabilities: Probabilities, labels: Labels) -> float:
    """Mean gap between confidence and accuracy over equal-width bins (Naeini et al. 2015; Guo et al. 2017, §2)."""
    rows = calibration_bins(probabilities, labels)
    return float(sum(row["share"] * abs(row["confidence"] - row["accuracy"]) for row in rows))


def summarise(probabilities: Probabilities, labels: Labels, classes: list[str]) -> dict[str, Any]:
    """The figures of one model on one split.

    Args:
        probabilities: ``[N, K]``, rows sum to 1.
        labels: ``[N]`` class indices.
        classes: the K class names, in order.

    Returns:
        accuracy, accuracy_interval (95 %), macro_f1, per_class (precision, recall, f1, support), confusion
        (rows true, columns predicted), classes, ece and n.
    """
    predicted = probabilities.argmax(axis=1)
    n = len(labels)
    indices = np.arange(len(classes))
    precision, recall, f1, support = precision_recall_fscore_support(
        labels, predicted, labels=indices, zero_division=0.0
    )
    correct = int((predicted == labels).sum())
    return {
        "accuracy": correct / max(n, 1),
        "accuracy_interval": list(wilson_interval(correct, n)),
        "macro_f1": float(np.mean(f1)),
        "per_class": {
            name: {
                "precision": float(precision[i]),
                "recall": float(recall[i]),
                "f1": float(f1[i]),
                "support": int(support[i]),
            }
            for i, name in enumerate(classes)
        },
        "confusion": confusion_matrix(labels, predicted, labels=indices).tolist(),
        "classes": list(classes),
        "ece": expected_calibration_error(probabilities, labels),
        "n": n,
    }
