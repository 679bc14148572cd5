"""Temperature scaling: confidence that means what it says."""

import numpy as np
import numpy.typing as npt
from scipy.special import log_softmax, softmax


def probabilities(logits: npt.NDArray[np.float32], temperature: float = 1.0) -> npt.NDArray[np.float32]:
    """Softmax of ``logits / temperature``: ``[N, K]`` to float32 ``[N, K]``, worked out in float64."""
    scaled: npt.NDArray[np.float32] = softmax(logits.astype(np.float64) / temperature, axis=1).astype(np.float32)
    return scaled


def fit_temperature(logits: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]) -> float:
    """The temperature with the least negative log-likelihood (Guo et al. 2017, §4.2), within 0.05 to 20.

    Args:
        logits: ``[N, K]`` of a split that no weight was fitted on (val).
        labels: ``[N]`` class indices.
    """
    from scipy.optimize import minimize_scalar  # slow to import, and whoever only infers does without

    rows = np.arange(len(labels))
    wide = logits.astype(np.float64)

    def loss(log_temperature: float) -> float:
        return float(-log_softmax(wide / np.exp(log_temperature), axis=1)[rows, labels].mean())

    found = minimize_scalar(loss, bounds=(np.log(0.05), np.log(20.0)), method="bounded")
    return float(np.exp(found.x))
