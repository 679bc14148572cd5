"""Two networks that answer as one: the second is asked where the first is not sure."""

import threading

import numpy as np
import numpy.typing as npt

from fer_scale.predictor import Images, Predictor


class Cascaded:
    """What a worker takes for a predictor.

    Args:
        first: small and quick; of the same classes and preprocessing as the second.
        threshold: from this confidence on the first one's answer stands.
    """

    def __init__(self, first: Predictor, second: Predictor, threshold: float) -> None:
        self.classes = second.classes
        self.preprocessing = second.preprocessing
        self.model_id = f"{first.model_id}+{second.model_id}"
        self._first = first
        self._second = second
        self._threshold = np.float32(threshold)
        self._counts = threading.local()

    def probabilities(self, images: Images) -> npt.NDArray[np.float32]:
        """uint8 ``[N, C, S, S]`` to calibrated probabilities float32 ``[N, K]``; rows sum to 1."""
        found = self._first.probabilities(images)
        unsure = np.flatnonzero(found.max(axis=1) < self._threshold)
        if len(unsure):
            found[unsure] = self._second.probabilities(images[unsure])
        first, second = getattr(self._counts, "answered", (0, 0))
        self._counts.answered = (first + len(images) - len(unsure), second + len(unsure))
        return found

    def counted(self) -> tuple[int, int]:
        """How many images the first and the second answered since this thread asked last."""
        found: tuple[int, int] = getattr(self._counts, "answered", (0, 0))
        self._counts.answered = (0, 0)
        return found
