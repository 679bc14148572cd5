"""Which labels to accept, so that few of them are wrong: a threshold on the confidence, with a guarantee.

Learn then Test (Angelopoulos et al. 2021, "Learn then Test: calibrating predictive algorithms to achieve risk
control", theorem 1 with fixed-sequence testing, §2.2). For each threshold the hypothesis "more than max_error of
what it accepts is wrong" is tested on calib; given how many rows a threshold accepts, the wrong ones among them
are binomial, so the exact binomial tail is its p-value. val, which calib has nothing to do with, names the
thresholds and their order: first the one that val finds easiest to prove, then lower and lower ones until one
cannot be proven. Tests in an order fixed beforehand need no correction for their number.

The assumption: calib and the pictures to be labelled are drawn alike, and the model was fixed before it saw calib.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt
from scipy.special import bdtr  # the binomial's distribution function; scipy.stats takes seconds to import

from fer_scale.console import warn
from fer_scale.errors import InputError
from fer_scale.faces.labels import OTHER

if TYPE_CHECKING:
    import pandas as pd

LEVEL = 0.95
"""With what probability, over the draw of calib, the promise holds."""
CANDIDATES = 300
"""Thresholds that are tried: even quantiles of val's confidences."""
NEVER = -1.0
"""Confidence of a label that no threshold accepts."""


class Known(Protocol):
    """A bundle or a cascade, as far as it is calibrated on."""

    @property
    def classes(self) -> list[str]:
        """In order."""

    def calibration(self) -> "pd.DataFrame":
        """As `fer_scale.bundle.Bundle.calibration`."""


@dataclass(frozen=True)
class Outcomes:
    """What the finished network answered on a split whose labels are known."""

    confidence: npt.NDArray[np.float32]
    """``[N]``; `NEVER` where the label is `other`."""
    correct: npt.NDArray[np.bool_]
    """``[N]``"""

    @classmethod
    def of(cls, rows: "pd.DataFrame", classes: list[str]) -> "Outcomes":
        """From the columns ``label`` (the truth) and ``prob_<class>`` of a bundle's calibration.parquet."""
        found = rows[[f"prob_{name}" for name in classes]].to_numpy(np.float32)
        said = np.array(classes, dtype=object)[found.argmax(axis=1)]
        return cls(acceptable(found.max(axis=1), said), said == rows["label"].to_numpy(object))

    def above(self, threshold: float) -> tuple[int, int]:
        """How many rows a threshold accepts, and how many of these are wrong."""
        taken = self.confidence >= np.float32(threshold)
        return int(taken.sum()), int((taken & ~self.correct).sum())


@dataclass(frozen=True)
class Acceptance:
    """A threshold and what it was proven on."""

    max_error: float
    level: float
    threshold: float | None
    """Labels of at least this confidence are accepted; None: none can be, and all go to review."""
    rows: int
    """Of calib."""
    accepted: int
    """Of these rows."""
    wrong: int
    """Of those accepted."""

    def mask(self, confidence: npt.NDArray[np.float32], labels: npt.NDArray[np.object_]) -> npt.NDArray[np.bool_]:
        """Which of ``[N]`` labels are accepted."""
        if self.threshold is None:
            return np.zeros(len(confidence), dtype=bool)
        accepted: npt.NDArray[np.bool_] = acceptable(confidence, labels) >= np.float32(self.threshold)
        return accepted


def acceptable(confidence: npt.NDArray[np.float32], labels: npt.NDArray[np.object_]) -> npt.NDArray[np.float32]:
    """The confidence, or `NEVER` where the label is `other`: that is nobody's expression."""
    return np.where(labels == OTHER, np.float32(NEVER), confidence).astype(np.float32)


def candidates(confidences: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Thresholds to try for ``[N]`` confidences of val, the highest first."""
    return np.unique(np.quantile(confidences, np.linspace(0, 1, CANDIDATES + 1), method="lower"))[::-1]


def rows_needed(max_error: float, level: float = LEVEL) -> int:
    """Accepted rows without a mistake that prove an error of ``max_error`` at most: (1 - max_error)^n <= 1 - level."""
    return math.ceil(math.log(1 - level) / math.log(1 - max_error))


def accept(val: Outcomes, calib: Outcomes, max_error: float, level: float = LEVEL) -> Acceptance:
    """The lowest threshold that calib proves, see the module.

    Args:
        val: names the thresholds and the order of the tests.
        calib: decides; nothing else may have read it.
        max_error: the largest share of wrong labels among those accepted, within 0 and 1.

    Raises:
        InputError: ``max_error`` is no share, or calib has too few rows to prove it.
    """
    if not 0 < max_error < 1:
        raise InputError(f"max_error {max_error:g}", "a share between 0 and 1, as 0.05", "give another")
    rows, needed = len(calib.confidence), rows_needed(max_error, level)
    if rows < needed:
        raise InputError(
            f"a calib split of {rows} rows",
            f"{needed} at least, to promise at most {max_error:g} errors with {level:.0%} confidence",
            "label more faces and train again, or allow a larger --max-error",
        )
    best: tuple[float | None, int, int] = (None, 0, 0)
    for threshold in _sequence(val, max_error):
        accepted, wrong = calib.above(threshold)
        if not accepted or bdtr(wrong, accepted, max_error) > 1 - level:
            break
        best = (threshold, accepted, wrong)
    return Acceptance(max_error, level, best[0], rows, best[1], best[2])


def promise(bundle: Known, max_error: float) -> Acceptance:
    """`accept` on what a bundle keeps of val and calib; warns where nothing can be accepted.

    Raises:
        InputError: as `accept`, or the bundle keeps nothing.
    """
    rows = bundle.calibration()
    val, calib = (Outcomes.of(rows[rows["split"] == split], bundle.classes) for split in ("val", "calib"))
    found = accept(val, calib, max_error)
    if found.threshold is None:
        warn(f"no confidence keeps errors within {max_error:g} on the calib rows: every label is for review")
    return found


def _sequence(val: Outcomes, max_error: float) -> list[float]:
    """Thresholds in the order of the tests: from the one with val's smallest p-value downwards."""
    confidences = val.confidence[val.confidence > NEVER]
    if not len(confidences):
        return []
    thresholds = candidates(confidences)
    p_values = [float(bdtr(wrong, accepted, max_error)) for accepted, wrong in map(val.above, thresholds)]
    first = min(range(len(thresholds)), key=lambda at: (p_values[at], -at))
    return [float(threshold) for threshold in thresholds[first:]]
