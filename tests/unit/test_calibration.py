"""Temperature scaling finds the temperature that the answers were spoilt with."""

import numpy as np
import pytest
from scipy.special import softmax

from fer_scale.learning.calibration import fit_temperature, probabilities
from fer_scale.learning.metrics import expected_calibration_error


def answers(n: int = 20_000) -> tuple[np.ndarray, np.ndarray]:
    """Logits that are calibrated as they are, with labels drawn from them."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 1.5, (n, 4)).astype(np.float32)
    cumulated = softmax(logits.astype(np.float64), axis=1).cumsum(axis=1)
    labels = (rng.random((n, 1)) > cumulated[:, :3]).sum(axis=1)
    return logits, labels


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
def test_the_temperature_is_found(temperature: float) -> None:
    logits, labels = answers()
    assert fit_temperature(logits * np.float32(temperature), labels) == pytest.approx(temperature, rel=0.05)


def test_scaling_lowers_the_error_of_overconfident_answers_and_keeps_them() -> None:
    logits, labels = answers()
    sharp = logits * np.float32(3)
    after = probabilities(sharp, fit_temperature(sharp, labels))
    assert (
        expected_calibration_error(after, labels)
        < 0.02
        < 0.15
        < expected_calibration_error(probabilities(sharp), labels)
    )
    assert (after.argmax(axis=1) == sharp.argmax(axis=1)).all()


def test_probabilities_are_a_softmax_that_large_logits_do_not_break() -> None:
    got = probabilities(np.array([[1000.0, 0.0], [0.0, np.log(3)]], dtype=np.float32))
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, [[1, 0], [0.25, 0.75]], atol=1e-6)


def test_answers_that_are_all_right_give_a_bounded_temperature() -> None:
    logits = np.array([[4.0, 0.0], [0.0, 4.0]], dtype=np.float32)
    assert 0.05 <= fit_temperature(logits, np.array([0, 1])) <= 20
