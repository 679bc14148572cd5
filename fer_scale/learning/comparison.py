"""Two classifiers on the same faces, and one classifier that may leave some faces to a person."""

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import binomtest

from fer_scale.learning.metrics import Labels, Probabilities

Correct = npt.NDArray[np.bool_]


def paired_test(first: Correct, second: Correct) -> dict[str, Any]:
    """Whether two classifiers differ in accuracy on the same ``N`` faces.

    Args:
        first, second: ``[N]``, where each was right.

    Returns:
        first_only and second_only (faces that only one got right), p_value (exact, two-sided, McNemar 1947),
        difference in accuracy (first minus second) and its 95 % difference_interval (Bonett & Price 2012).
    """
    n = len(first)
    first_only, second_only = int((first & ~second).sum()), int((~first & second).sum())
    apart = first_only + second_only
    p_value = float(binomtest(first_only, apart, 0.5).pvalue) if apart else 1.0
    a, b = (first_only + 1) / (n + 2), (second_only + 1) / (n + 2)
    half = 1.959964 * ((a + b - (a - b) ** 2) / (n + 2)) ** 0.5
    return {
        "first_only": first_only,
        "second_only": second_only,
        "p_value": p_value,
        "difference": (first_only - second_only) / max(n, 1),
        "difference_interval": [a - b - half, a - b + half],
    }


def error_by_share(
    probabilities: Probabilities, labels: Labels
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The error among the surest faces, for every share of them (El-Yaniv & Wiener 2010).

    Faces of equal confidence are accepted together, so that the order of the rows decides nothing.

    Returns:
        shares and errors, ascending in the share; the last is 1 and the error of the whole split.
    """
    confidence = probabilities.max(axis=1)
    order = np.argsort(-confidence, kind="stable")
    wrong = (probabilities.argmax(axis=1) != labels)[order]
    ends = np.flatnonzero(np.append(np.diff(confidence[order]) != 0, True)) if len(labels) else np.empty(0, dtype=int)
    return (ends + 1) / max(len(labels), 1), np.cumsum(wrong)[ends] / (ends + 1)


def share_at_error(probabilities: Probabilities, labels: Labels, error: float) -> float:
    """The largest share of faces, the surest first, that has at most this error among it."""
    shares, errors = error_by_share(probabilities, labels)
    return float(shares[errors <= error].max(initial=0.0))
