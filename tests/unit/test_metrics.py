"""Figures of merit against values worked out by hand or by another library."""

import numpy as np
import pytest
from scipy.stats import binomtest

from fer_scale.learning.comparison import error_by_share, paired_test, share_at_error
from fer_scale.learning.metrics import (
    calibration_bins,
    expected_calibration_error,
    summarise,
    wilson_interval,
)

CLASSES = ["happy", "sad", "surprised"]


def drawn(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet([0.7] * 3, n).astype(np.float32)
    labels = np.array([rng.choice(3, p=row / row.sum()) for row in probabilities.astype(np.float64)])
    return probabilities, labels


@pytest.mark.parametrize(("correct", "n"), [(0, 10), (10, 10), (77, 100), (1969, 2556)])
def test_wilson_interval_is_scipys(correct: int, n: int) -> None:
    expected = binomtest(correct, n).proportion_ci(method="wilson")
    assert wilson_interval(correct, n) == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_wilson_interval_of_nothing_is_everything() -> None:
    assert wilson_interval(0, 0) == (0.0, 1.0)


def test_summary_by_hand() -> None:
    probabilities = np.array([[0.8, 0.1, 0.1], [0.6, 0.3, 0.1], [0.2, 0.7, 0.1], [0.1, 0.6, 0.3]], dtype=np.float32)
    summary = summarise(probabilities, np.array([0, 1, 1, 2]), CLASSES)
    assert summary["accuracy"] == 0.5
    assert summary["confusion"] == [[1, 0, 0], [1, 1, 0], [0, 1, 0]]
    assert summary["per_class"]["sad"] == {"precision": 0.5, "recall": 0.5, "f1": 0.5, "support": 2}
    assert summary["per_class"]["surprised"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 1}
    assert summary["macro_f1"] == pytest.approx((2 / 3 + 0.5 + 0) / 3)
    assert summary["n"] == 4


def test_calibration_error_by_hand() -> None:
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.6, 0.4]], dtype=np.float32)
    # two at 0.9, one of them right: a gap of 0.4; two at 0.6, both right: a gap of 0.4
    assert expected_calibration_error(probabilities, np.array([0, 1, 0, 0])) == pytest.approx(0.4)


def test_calibration_error_is_small_where_confidence_is_true_and_large_where_it_is_not() -> None:
    probabilities, labels = drawn(20_000)
    assert expected_calibration_error(probabilities, labels) < 0.02
    sharp = probabilities**3 / (probabilities**3).sum(axis=1, keepdims=True)
    assert expected_calibration_error(sharp, labels) > 0.1


def test_calibration_bins_hold_every_face_once() -> None:
    rows = calibration_bins(*drawn(500))
    assert sum(row["share"] for row in rows) == pytest.approx(1)
    assert calibration_bins(np.array([[1.0, 0.0]]), np.array([0])) == [
        {"confidence": 1.0, "accuracy": 1.0, "share": 1.0}
    ]


def test_paired_test_by_hand() -> None:
    first = np.array([True] * 9 + [False] * 1 + [True] * 90)
    second = np.array([False] * 9 + [True] * 1 + [True] * 90)
    test = paired_test(first, second)
    assert (test["first_only"], test["second_only"]) == (9, 1)
    assert test["p_value"] == pytest.approx(2 * (1 + 10) / 2**10)
    assert test["difference"] == pytest.approx(0.08)
    low, high = test["difference_interval"]
    assert 0 < low < 0.08 < high


def test_the_same_answers_are_not_told_apart() -> None:
    correct = np.array([True, False, True])
    test = paired_test(correct, correct)
    assert test["p_value"] == 1.0
    assert test["difference"] == 0.0


def test_interval_of_the_difference_covers_as_it_says() -> None:
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(400):
        both = rng.random(300)
        low, high = paired_test(both < 0.80, (both < 0.70) | (both > 0.97))["difference_interval"]
        held += low <= 0.80 - 0.73 <= high
    assert 0.92 <= held / 400 <= 0.98


def test_error_by_share_takes_the_surest_first_and_ties_together() -> None:
    probabilities = np.array([[0.9, 0.1], [0.6, 0.4], [0.6, 0.4], [0.8, 0.2]], dtype=np.float32)
    shares, errors = error_by_share(probabilities, np.array([0, 1, 0, 0]))
    assert shares.tolist() == [0.25, 0.5, 1.0]
    assert errors.tolist() == [0.0, 0.0, 0.25]
    assert share_at_error(probabilities, np.array([0, 1, 0, 0]), 0.1) == 0.5
    assert share_at_error(probabilities, np.array([1, 1, 1, 1]), 0.1) == 0.0


def test_error_by_share_does_not_depend_on_the_order_of_rows() -> None:
    probabilities, labels = drawn(300)
    probabilities = np.round(probabilities, 1)
    turned = np.random.default_rng(3).permutation(300)
    for here, there in zip(
        error_by_share(probabilities, labels),
        error_by_share(probabilities[turned], labels[turned]),
        strict=True,
    ):
        np.testing.assert_allclose(here, there)
