"""Faces in photographs, on a thread of its own: a search takes as long as hundreds of crops, which should not wait."""

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.util import find_spec

from fer_scale.faces.cutting import Cut, cut
from fer_scale.faces.detection import Detection, Detector
from fer_scale.faces.images import Preprocessing
from fer_scale.verbs.serve.batching import Overloaded
from fer_scale.verbs.serve.limits import Limits


def available() -> bool:
    """Whether the extra `detect` is installed."""
    return find_spec("mtcnn") is not None


class Finder:
    """Searches one photograph at a time, in order of arrival, as `label --faces detect` does.

    The detector is loaded with the first one: most endpoints are asked for crops alone.
    """

    def __init__(self, preprocessing: Preprocessing, limits: Limits) -> None:
        self._preprocessing = preprocessing
        self._limits = limits
        self.settings = Detection(most_faces=limits.max_faces)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="faces")
        self._detector: Detector | None = None
        self.waiting = 0
        """Photographs of requests that have not been answered."""

    @property
    def full(self) -> bool:
        """Whether a further photograph would be refused."""
        return self.waiting >= self._limits.max_waiting

    @contextmanager
    def room(self, photographs: int) -> Iterator[None]:
        """Hold room for all photographs of a request: a part of them would be searched for nothing.

        Raises:
            Overloaded: so many more would be more than may wait, unless no other does.
        """
        if self.waiting and self.waiting + photographs > self._limits.max_waiting:
            raise Overloaded
        self.waiting += photographs
        try:
            yield
        finally:
            self.waiting -= photographs

    async def cut(self, photograph: bytes) -> Cut:
        """The faces of a photograph, cut out; a caller who is cancelled in time costs nothing.

        Raises:
            ImageError: the bytes give no picture.
            NoFaceError: there is no face in it.
        """
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._cut, photograph)

    def close(self) -> None:
        """Let the thread end; the photograph that is being searched is finished."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _cut(self, photograph: bytes) -> Cut:
        if self._detector is None:
            self._detector = Detector(self.settings)
        limits = self._limits
        return cut(
            photograph,
            self._preprocessing,
            self._detector,
            max_bytes=limits.max_bytes,
            max_pixels=limits.max_pixels,
        )
