"""The promise of `--max-error`, on drawn outcomes whose true error is known."""

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from scipy.stats import binom

from fer_scale.errors import InputError
from fer_scale.learning.acceptance import Outcomes, accept, rows_needed


def error_at(confidence: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The true chance of a wrong label; not falling with the confidence, as networks go."""
    return np.where(confidence > 0.97, 0.06, 0.6 * (1 - confidence) ** 1.2).astype(np.float32)


def draw(rng: np.random.Generator, rows: int) -> Outcomes:
    confidence = rng.beta(4, 1.2, rows).astype(np.float32)
    return Outcomes(confidence, rng.random(rows) >= error_at(confidence))


def test_the_promise_holds_as_often_as_it_says() -> None:
    rng, draws, level = np.random.default_rng(0), 400, 0.9
    world = draw(rng, 200_000).confidence
    risks = error_at(world)
    broken = accepting = 0
    for _ in range(draws):
        found = accept(draw(rng, 600), draw(rng, 600), 0.08, level)
        if found.threshold is not None:
            accepting += 1
            broken += float(risks[world >= found.threshold].mean()) > 0.08
    assert accepting > 0.75 * draws, "a promise that accepts nothing is no use"
    assert broken <= binom.ppf(0.999, draws, 1 - level)


def test_a_network_without_mistakes_is_accepted_as_a_whole() -> None:
    rng = np.random.default_rng(1)
    sure = Outcomes(rng.random(59).astype(np.float32), np.ones(59, dtype=bool))
    found = accept(sure, sure, 0.05)
    assert (found.accepted, found.wrong) == (59, 0)
    assert found.threshold == sure.confidence.min()


def test_where_nothing_can_be_promised_nothing_is_accepted() -> None:
    rng = np.random.default_rng(2)
    coin = Outcomes(rng.random(500).astype(np.float32), rng.random(500) < 0.5)
    found = accept(coin, coin, 0.05)
    assert found.threshold is None
    assert not found.mask(np.array([1.0], np.float32), np.array(["happy"], object)).any()


def test_too_few_calib_rows_say_how_many_are_needed() -> None:
    few = Outcomes(np.ones(58, np.float32), np.ones(58, dtype=bool))
    assert rows_needed(0.05) == 59
    with pytest.raises(InputError, match="a calib split of 58 rows; expected 59 at least"):
        accept(few, few, 0.05)
    with pytest.raises(InputError, match="a share between 0 and 1"):
        accept(few, few, 5)


def test_what_is_taken_for_other_is_never_accepted() -> None:
    rows = pd.DataFrame({"label": ["other"] * 300 + ["happy"] * 300, "prob_happy": [0.1] * 300 + [0.9] * 300})
    rows["prob_other"] = 1 - rows["prob_happy"]
    outcomes = Outcomes.of(rows, ["happy", "other"])
    found = accept(outcomes, outcomes, 0.05)
    assert found.accepted == 300
    accepted = found.mask(np.array([0.99, 0.99], np.float32), np.array(["other", "happy"], object))
    assert accepted.tolist() == [False, True]
