"""A small network first: what it may cost, and what is refused."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fer_scale.bundle import Bundle
from fer_scale.errors import InputError
from fer_scale.faces.images import Preprocessing
from fer_scale.learning.cascade import Calibrated, cascade, rows_needed
from tests.bundles import write_bundle


def answered(right: np.ndarray, confidence: np.ndarray) -> pd.DataFrame:
    """Half val, half calib; the truth is happy, and what is not right is sad."""
    rows, rest = len(right), (1 - confidence) / 3
    found = pd.DataFrame({"split": ["val", "calib"] * (rows // 2), "id": [str(n) for n in range(rows)]})
    return found.assign(label="happy", prob_happy=np.where(right, confidence, rest), prob_surprised=rest,
                        prob_sad=np.where(right, rest, confidence), prob_neutral=rest)  # fmt: skip


class Kept(Bundle):
    rows: pd.DataFrame

    def calibration(self) -> pd.DataFrame:
        return self.rows


def bundle(rows: pd.DataFrame, name: str = "m", classes: tuple[str, ...] = ("happy", "sad", "surprised", "neutral")):
    made = Kept(Path("."), {}, list(classes), Preprocessing(), 1.0, name, {})
    object.__setattr__(made, "rows", rows)
    return made


def drawn(seed: int, rows: int) -> tuple[Bundle, Bundle]:
    """The first is wrong the more often the less sure it is; keeping what is above c costs (1 - c)^2 / 5."""
    rng = np.random.default_rng(seed)
    sure = rng.uniform(0, 1, rows)
    right = rng.uniform(0, 1, rows) > 0.4 * (1 - sure)
    return bundle(answered(right, 0.3 + 0.6 * sure), "small"), bundle(answered(np.ones(rows, bool), np.full(rows, 0.9)))


def test_the_cost_stays_within_the_tolerance_as_often_as_promised() -> None:
    costs, shares = [], []
    for seed in range(100):
        found, _ = cascade(*drawn(seed, 4000), 0.02, False)
        assert found.threshold is not None
        sure = (found.threshold - 0.3) / 0.6
        costs.append((1 - sure) ** 2 / 5)
        shares.append(1 - sure)
    assert np.mean(np.array(costs) > 0.02) <= 0.05
    assert np.mean(shares) > 0.2, "at the tolerance itself it would be 0.32"


def test_a_first_that_is_as_good_answers_nearly_all_and_a_bad_one_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    rows, sure = 4000, np.random.default_rng(0).uniform(0.3, 0.9, 4000)
    good = answered(np.ones(rows, bool), sure)
    found, known = cascade(bundle(good, "small"), bundle(good), 0.005, False)
    assert (found.rows, found.lost, found.won) == (2000, 0, 0)
    assert found.kept > 1900
    assert len(known.calibration()) == rows
    found, known = cascade(bundle(answered(np.zeros(rows, bool), sure), "small"), second := bundle(good), 0.005, False)
    assert found.threshold is None
    assert known is second
    assert "--first is not used" in " ".join(capsys.readouterr().err.split())


def test_where_an_error_is_promised_too_no_row_decides_twice() -> None:
    found, known = cascade(*drawn(0, 4000), 0.02, True)
    assert isinstance(known, Calibrated)
    left = known.calibration()
    assert found.rows + (left["split"] == "calib").sum() == 2000
    assert 500 < (left["split"] == "calib").sum() < 850
    assert (left["split"] == "val").sum() == 2000
    low = left[["prob_happy", "prob_sad"]].max(axis=1) < found.threshold
    assert not low.any(), "where the first is not sure the second, at 0.9, answers"


def test_rows_that_proved_nothing_do_not_decide_twice_either() -> None:
    rows, sure = 4000, np.random.default_rng(0).uniform(0.3, 0.9, 4000)
    second = bundle(answered(np.ones(rows, bool), np.full(rows, 0.9)))
    found, known = cascade(bundle(answered(np.zeros(rows, bool), sure), "small"), second, 0.005, True)
    assert found.threshold is None
    left = known.calibration()
    assert found.rows + (left["split"] == "calib").sum() == 2000
    expected = second.calibration().set_index("id").loc[left["id"]].reset_index()
    pd.testing.assert_frame_equal(left.reset_index(drop=True), expected[left.columns], check_dtype=False)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    first, second = drawn(0, 2000)
    other = bundle(first.calibration(), "small", ("sad", "happy", "surprised", "neutral"))
    larger = replace(first, preprocessing=Preprocessing(size=64))
    bare = Bundle.load(write_bundle(tmp_path / "bare"))
    for one, tolerance, says in (
        (other, 0.01, "--first with classes"),
        (larger, 0.01, "--first with preprocessing"),
        (first, 0.001, f"1000 calib rows that both .*{rows_needed(0.001)} at least"),
        (first, 0.0, "a share between 0 and 1"),
        (bare, 0.01, "a bundle without calibration"),
    ):
        with pytest.raises(InputError, match=says):
            cascade(one, second, tolerance, False)
