"""A small network first, and the large one for what the small one is not sure of: from which confidence on?

Both bundles keep what they answered on val and calib. On a row that the small network keeps, the loss is 1 where it is
wrong and the large one would have been right, -1 the other way round, else 0; its mean over all rows is how much
accuracy the cascade costs. For each threshold the hypothesis "it costs more than the tolerance" is tested on calib by
betting against it (Waudby-Smith and Ramdas 2024, "Estimating means of bounded random variables by betting", §4): a
fortune of 1 is multiplied by 1 + stake (tolerance - loss), row after row. If the hypothesis holds it does not grow on
average, so it exceeds 1 / (1 - level) with a probability of 1 - level at most (Ville's inequality), whatever the
number of rows. val, which the test does not read, fixes the stakes. Thresholds are tested from the highest downwards
until one fails, which needs no correction for their number (fixed-sequence testing, as in `learning.acceptance`).

The assumption is that of the acceptance: the pictures are drawn like calib was. Where a run promises an error, too,
a third of calib, by the hash of its ids, is left to that promise, so that no row decides twice.
"""

import hashlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from fer_scale.bundle import Bundle
from fer_scale.console import warn
from fer_scale.errors import InputError
from fer_scale.learning.acceptance import LEVEL, candidates

if TYPE_CHECKING:
    import pandas as pd

STAKES = np.linspace(0.05, 0.95, 19)
"""Shares of the fortune that are bet; one that bets all is ruined by the first loss."""


@dataclass(frozen=True)
class Cascade:
    """From which confidence on the first network's answer stands, and what that was proven on."""

    first_model_id: str
    tolerance: float
    level: float
    threshold: float | None
    """None: at none, and the second network answers all."""
    rows: int
    """Of calib, that both networks answered."""
    kept: int
    """Of these, answered by the first alone."""
    lost: int
    """Of these, wrong where the second is right."""
    won: int
    """Of these, right where the second is wrong."""


@dataclass(frozen=True)
class Calibrated:
    """What a cascade answers on val and on the calib rows that did not decide its threshold."""

    classes: list[str]
    rows: "pd.DataFrame"

    def calibration(self) -> "pd.DataFrame":
        """As `Bundle.calibration`."""
        return self.rows


def cascade(first: Bundle, second: Bundle, tolerance: float, promising: bool) -> tuple[Cascade, Calibrated | Bundle]:
    """The lowest threshold that calib proves, see the module.

    Args:
        tolerance: accuracy that may be lost, within 0 and 1.
        promising: the run promises an error as well, by calib rows that are left for it.

    Returns:
        The cascade, and what to calibrate anything else on.

    Raises:
        InputError: ``tolerance`` is no share, the networks do not fit together, or too few calib rows are in both
            bundles.
    """
    if not 0 < tolerance < 1:
        raise InputError(f"tolerance {tolerance:g}", "a share between 0 and 1, as 0.005", "give another")
    _check_fit(first, second)
    both = first.calibration().merge(second.calibration(), on=["split", "id", "label"], suffixes=("_1", "_2"))
    truth = both["label"].to_numpy(object)
    answers = [both[[f"prob_{name}_{n}" for name in second.classes]].to_numpy(np.float32) for n in (1, 2)]
    right = [np.array(second.classes, dtype=object)[found.argmax(axis=1)] == truth for found in answers]
    confidence, loss = answers[0].max(axis=1), right[1].astype(int) - right[0].astype(int)
    val = (both["split"] == "val").to_numpy(bool)
    spared = np.array([_third(str(ident)) for ident in both["id"]], dtype=bool) & promising
    calib = (both["split"] == "calib").to_numpy(bool) & ~spared
    needed = rows_needed(tolerance)
    if calib.sum() < needed:
        raise InputError(
            f"{int(calib.sum())} calib rows that both bundles answered" + (", a third left out" if promising else ""),
            f"{needed} at least, to lose at most {tolerance:g} of the accuracy with {LEVEL:.0%} confidence",
            "train both on one store, with more faces, or allow a larger --tolerance",
        )
    threshold = _lowest(confidence[val], loss[val], confidence[calib], loss[calib], tolerance)
    kept = calib & (confidence >= np.float32(np.inf if threshold is None else threshold))
    if not kept.any():
        threshold = None
    found = Cascade(first.model_id, tolerance, LEVEL, threshold, int(calib.sum()), int(kept.sum()),
                    int((loss[kept] > 0).sum()), int((loss[kept] < 0).sum()))  # fmt: skip
    if threshold is None:
        warn(f"no confidence of {first.model_id} keeps the accuracy within {tolerance:g}: --first is not used")
        if not promising:
            return found, second
    stands = (confidence >= np.float32(np.inf if threshold is None else threshold))[:, None]
    rows = both[["split", "id", "label"]].assign(
        **{f"prob_{name}": each for name, each in zip(second.classes, np.where(stands, *answers).T, strict=True)}
    )
    return found, Calibrated(second.classes, rows[~calib | (not promising)])


def rows_needed(tolerance: float, level: float = LEVEL) -> int:
    """Rows without any loss that prove a tolerance, at the highest stake."""
    return math.ceil(-math.log(1 - level) / math.log1p(float(STAKES[-1]) * tolerance))


def _check_fit(first: Bundle, second: Bundle) -> None:
    for what, one, other in (
        ("classes", first.classes, second.classes),
        ("preprocessing", first.preprocessing, second.preprocessing),
    ):
        if one != other:
            raise InputError(
                f"--first with {what} {one}, before a model with {what} {other}", f"the same {what} in both",
                "train the first on the same store" + (" at the same input size" if what == "preprocessing" else ""),
            )  # fmt: skip


def _third(ident: str) -> bool:
    return int.from_bytes(hashlib.blake2b(ident.encode(), digest_size=8).digest()) % 3 == 0


def _lowest(
    val_confidence: npt.NDArray[np.float32],
    val_loss: npt.NDArray[np.int_],
    confidence: npt.NDArray[np.float32],
    loss: npt.NDArray[np.int_],
    tolerance: float,
) -> float | None:
    best: float | None = None
    if not len(val_confidence):
        return best
    for threshold in candidates(val_confidence):
        val = np.append(np.where(val_confidence >= threshold, val_loss, 0), 1)  # as if one more were lost: never ruined
        stake = max(STAKES, key=lambda each: _fortune(val, tolerance, float(each)))
        if _fortune(np.where(confidence >= threshold, loss, 0), tolerance, float(stake)) < -math.log(1 - LEVEL):
            break
        best = float(threshold)
    return best


def _fortune(loss: npt.NDArray[np.int_], tolerance: float, stake: float) -> float:
    """Its logarithm."""
    lost, won = int((loss > 0).sum()), int((loss < 0).sum())
    counts = ((lost, tolerance - 1), (won, tolerance + 1), (len(loss) - lost - won, tolerance))
    return sum(count * math.log1p(stake * gain) for count, gain in counts)
