"""Whether the pictures of a run are drawn like the calib split, as far as the answers can say.

The promise of `label --max-error` assumes it, and no label of the run is known. What can be compared is what the
network answers: how sure it is, and what it says.

- Confidence: the two-sample Kolmogorov-Smirnov statistic, the largest distance of the two distribution functions
  (Smirnov 1939), at the edges of the histogram's bins. Its p-value is the asymptotic one of continuous data, which is
  too large for binned ones: it warns too seldom rather than too often.
- Labels: the population stability index, the sum of (p - q) ln(p / q) over the classes (Siddiqi 2006, "Credit risk
  scorecards", ch. 9), and the p-value of a chi-square test of homogeneity.

A run of a million pictures makes any difference significant, and a run of thirty makes a large one by chance: it is
drift where one of the two tests rejects (at half of `CHANCE`, as there are two) and one of the two figures is large.
Drift does not prove that the promise is broken (a bucket
with more happy faces is easier), and none does not prove that it holds: pictures that the network takes for its own
with the same confidence look alike from here. `fer-scale certify` measures it.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import chdtrc, kolmogorov  # scipy.stats takes seconds to import

from fer_scale.errors import InputError
from fer_scale.learning.acceptance import Known

BINS = 20
"""Of a histogram of confidences, from 0 to 1."""
CHANCE = 0.01
"""How often, at most, the two tests together reject pictures that are drawn like calib."""
LARGE_KS = 0.05
"""Distance of the confidences from which on it is large. Measured: 30 % faces of no class among the pictures, which
double the errors among the accepted, move it to 0.05 to 0.10, and a visible blur beyond 0.1 (docs/results.md)."""
LARGE_PSI = 0.1
"""Stability index of the labels from which on it is large: the custom in credit scoring, from where it is."""


@dataclass(frozen=True)
class Answered:
    """What a network answered, in counts."""

    histogram: list[int]
    """Of the confidences, `BINS` of them."""
    labels: dict[str, int]
    """By class."""

    @property
    def rows(self) -> int:
        """All answers."""
        return sum(self.labels.values())


@dataclass(frozen=True)
class Drift:
    """How far the answers of a run are from those on calib."""

    confidence: float
    """Kolmogorov-Smirnov statistic, 0 to 1."""
    confidence_p: float
    labels: float
    """Population stability index, 0 and up."""
    labels_p: float
    found: bool
    """Whether the difference is beyond chance and large."""
    calib_rows: int

    @property
    def remark(self) -> str:
        """What a person is told where drift was found."""
        return (
            f"these pictures are not drawn like the calib split: confidences are {self.confidence:.2f} apart (KS, "
            f"large from {LARGE_KS:g}), labels {self.labels:.2f} (PSI, large from {LARGE_PSI:g})"
        )


def answered(confidence: npt.NDArray[np.float32], labels: npt.NDArray[np.object_]) -> Answered:
    """Count ``[N]`` answers."""
    names, counts = np.unique(labels.astype(str), return_counts=True)
    return Answered(bins(confidence), dict(zip(names.tolist(), counts.tolist(), strict=True)))


def bins(confidence: npt.NDArray[np.float32]) -> list[int]:
    """The histogram of ``[N]`` confidences."""
    counts: list[int] = np.histogram(confidence, BINS, (0.0, 1.0))[0].tolist()
    return counts


def on_calib(bundle: Known) -> dict[str, Any] | None:
    """What a bundle's network answered on calib, as plain values; None where the bundle does not keep it."""
    try:
        rows = bundle.calibration()
    except InputError:
        return None
    found = rows.loc[rows["split"] == "calib", [f"prob_{name}" for name in bundle.classes]].to_numpy(np.float32)
    if not len(found):
        return None
    said = np.array(bundle.classes, dtype=object)[found.argmax(axis=1)]
    return asdict(answered(found.max(axis=1), said))


def compare(run: Answered, calib: Answered) -> Drift | None:
    """The drift of a run, see the module; None where one of the two has no answers."""
    n, m = run.rows, calib.rows
    if not n or not m:
        return None
    here, there = (np.cumsum(np.array(one.histogram)) / one.rows for one in (run, calib))
    distance = float(np.abs(here - there).max())
    distance_p = float(kolmogorov(np.sqrt(n * m / (n + m)) * distance))
    names = sorted({*run.labels, *calib.labels})
    counts = np.array([[one.labels.get(name, 0) for name in names] for one in (run, calib)], dtype=np.float64)
    index = stability_index(counts)
    index_p = _homogeneity(counts)
    found = min(distance_p, index_p) < CHANCE / 2 and (distance >= LARGE_KS or index >= LARGE_PSI)
    return Drift(round(distance, 4), distance_p, round(index, 4), index_p, found, m)


def stability_index(counts: npt.NDArray[np.float64]) -> float:
    """Of ``[2, K]`` counts; half a row is added to each, so that a class that one side lacks is no infinity."""
    smoothed = counts + 0.5
    p, q = smoothed / smoothed.sum(axis=1, keepdims=True)
    return float(((p - q) * np.log(p / q)).sum())


def _homogeneity(counts: npt.NDArray[np.float64]) -> float:
    """The chi-square test's p-value for ``[2, K]`` counts; a class without any row is left out."""
    counts = counts[:, counts.sum(axis=0) > 0]
    expected = counts.sum(axis=1, keepdims=True) * counts.sum(axis=0, keepdims=True) / counts.sum()
    statistic = float(((counts - expected) ** 2 / expected).sum())
    return float(chdtrc(counts.shape[1] - 1, statistic)) if counts.shape[1] > 1 else 1.0
