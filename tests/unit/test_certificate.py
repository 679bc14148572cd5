"""The interval of a certificate, on drawn runs whose true error is known."""

import numpy as np
import pytest

from fer_scale.learning.certificate import estimate, exact_interval


@pytest.mark.parametrize(("error", "informed"), [(0.005, True), (0.05, False), (0.1, True), (0.25, False)])
def test_the_interval_covers_at_its_level(error: float, informed: bool) -> None:
    rng, size, draws = np.random.default_rng(0), 200, 2000
    doubt = rng.beta(0.6, 4, 20_000) * 0.75
    risk = doubt * error / doubt.mean() if informed else np.full(len(doubt), error)
    wrong = rng.random(len(doubt)) < risk
    covered, exact = 0, 0
    for _ in range(draws):
        drawn = rng.choice(len(doubt), size, replace=False)
        found = estimate(wrong[drawn], doubt[drawn], float(doubt.mean()))
        covered += found.low <= wrong.mean() <= found.high
        exact += found.method == "exact binomial"
    level = (exact * 0.95 + (draws - exact) * 0.94) / draws  # what the module and docs/certify.md say
    assert covered / draws >= level - 3 * np.sqrt(level * (1 - level) / draws)


def test_what_the_confidence_explains_narrows_the_interval() -> None:
    rng = np.random.default_rng(1)
    doubt = rng.beta(0.6, 2, 500)
    wrong = rng.random(500) < doubt
    found = estimate(wrong, doubt, 0.6 / 2.6)
    low, high = exact_interval(int(wrong.sum()), 500)
    assert found.method == "prediction-powered"
    assert found.high - found.low < 0.9 * (high - low)
    # ppi_mean_ci of ppi-python 0.2.3 on the same draw, with a million unlabelled rows of this mean
    assert (found.low, found.high) == (pytest.approx(0.2075, abs=1e-3), pytest.approx(0.2682, abs=1e-3))


def test_few_errors_are_left_to_the_exact_interval() -> None:
    rng = np.random.default_rng(2)
    doubt = rng.beta(0.6, 4, 200)
    found = estimate(np.zeros(200, dtype=bool), doubt, 0.1)
    assert (found.error, found.low, found.method) == (0.0, 0.0, "exact binomial")
    assert found.high == pytest.approx(1 - 0.025 ** (1 / 200))
    all_wrong = estimate(np.ones(50, dtype=bool), doubt[:50], 0.1)
    assert (all_wrong.error, all_wrong.high) == (1.0, 1.0)
    wrong = np.arange(200) < 19
    assert estimate(wrong, doubt, 0.1).method == "exact binomial"
    same = estimate(np.arange(200) < 50, np.full(200, 0.1), 0.1)
    assert same.method == "exact binomial", "a doubt that is the same everywhere explains nothing"
