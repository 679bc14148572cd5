"""The drift figure, on drawn answers and on a labelling run without Ray."""

import numpy as np
import numpy.typing as npt
import pandas as pd

from fer_scale.learning.drift import Answered, Drift, answered, compare


def draw(rng: np.random.Generator, rows: int, sharpness: float = 4.0, happy: float = 0.4) -> Answered:
    confidence: npt.NDArray[np.float32] = rng.beta(sharpness, 1.2, rows).astype(np.float32)
    rest = (1 - happy) / 3
    labels = rng.choice(np.array(["happy", "sad", "surprised", "neutral"], object), rows, p=[happy, rest, rest, rest])
    return answered(confidence, labels)


def found(run: Answered, calib: Answered) -> Drift:
    drift = compare(run, calib)
    assert drift is not None
    return drift


def test_pictures_drawn_like_calib_are_no_drift() -> None:
    rng = np.random.default_rng(0)
    for rows in (5, 30, 300, 100_000):
        warned = sum(found(draw(rng, rows), draw(rng, 500)).found for _ in range(200))
        assert warned <= 4, f"{warned} false alarms in 200 runs of {rows}"


def test_another_confidence_or_other_labels_are_drift() -> None:
    rng = np.random.default_rng(1)
    calib = draw(rng, 500)
    unsure, happier = (found(draw(rng, 2000, **how), calib) for how in ({"sharpness": 2.5}, {"happy": 0.7}))
    assert unsure.found
    assert unsure.confidence > 0.1
    assert unsure.labels < 0.1
    assert happier.found
    assert happier.labels > 0.1
    assert happier.confidence < 0.1
    assert "not drawn like the calib split" in unsure.remark


def test_significant_is_not_large_and_large_is_not_significant() -> None:
    rng = np.random.default_rng(2)
    slight = found(draw(rng, 500_000, happy=0.42), draw(rng, 500_000))
    assert slight.labels_p < 1e-6
    assert not slight.found
    few = found(draw(rng, 10, happy=0.7), draw(rng, 500))
    assert few.labels > 0.1
    assert not few.found


def test_the_distance_is_that_of_the_distribution_functions() -> None:
    one = Answered([10] + [0] * 19, {"happy": 10})
    other = Answered([5] + [0] * 18 + [5], {"happy": 5, "sad": 5})
    drift = found(one, other)
    assert drift.confidence == 0.5
    shares = pd.Series({"happy": 10.5 / 11, "sad": 0.5 / 11}), pd.Series({"happy": 0.5, "sad": 0.5})
    index = ((shares[0] - shares[1]) * np.log(shares[0] / shares[1])).sum()
    assert drift.labels == round(index, 4)
    assert compare(one, Answered([0] * 20, {})) is None
