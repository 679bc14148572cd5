"""Dynamic batching: while one batch is computed the next gathers, so nobody waits for a batch to fill.

`ray.serve.batch` counts requests and waits a fixed time for company; here a request may hold many images, the
wait is exactly as long as the engine is busy, and what finds the queue full is refused at once.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Answer = npt.NDArray[np.float32] | Exception
"""Of one request: probabilities float32 ``[N, K]``, or why there are none."""

Picture = bytes | npt.NDArray[np.uint8]
"""An encoded image, or a face that was cut out already: uint8 ``[C, S, S]``."""


class Overloaded(Exception):
    """As many requests wait as may; this one was not taken."""


@dataclass
class Waiting:
    """A request in the queue or in a batch."""

    images: Sequence[Picture]
    answer: asyncio.Future[npt.NDArray[np.float32]]

    @property
    def gone(self) -> bool:
        """Whether nobody waits for its answer any more."""
        return self.answer.done()


Compute = Callable[[Sequence[Waiting]], list[Answer]]
"""Some requests to one answer a request; called on a thread of its own."""


class Batcher:
    """Feeds one compute function, one batch at a time, in order of arrival.

    Args:
        compute: what answers a batch.
        max_images: images that share a batch; a request with more makes a batch of its own.
        max_waiting: requests that wait or are computed; further ones are refused.
        observe: told the number of images of each batch.
    """

    def __init__(
        self,
        compute: Compute,
        *,
        max_images: int,
        max_waiting: int,
        observe: Callable[[int], None] | None = None,
    ) -> None:
        self._compute = compute
        self._max_images = max_images
        self._max_waiting = max_waiting
        self._observe = observe
        self._queue: deque[Waiting] = deque()
        self._inside = 0
        self._worker: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="engine")

    @property
    def waiting(self) -> int:
        """Requests taken and not answered yet."""
        return self._inside

    @property
    def full(self) -> bool:
        """Whether the next request would be refused."""
        return self._inside >= self._max_waiting

    async def submit(self, images: Sequence[Picture]) -> npt.NDArray[np.float32]:
        """Images to probabilities float32 ``[N, K]``.

        Raises:
            Overloaded: the queue is full.
            Exception: what `compute` gave for this request.
        """
        if self.full:
            raise Overloaded
        waiting = Waiting(images, asyncio.get_running_loop().create_future())
        self._queue.append(waiting)
        self._inside += 1
        try:
            if self._worker is None:
                self._worker = asyncio.create_task(self._work())
            return await waiting.answer
        finally:
            self._inside -= 1

    def close(self) -> None:
        """Let the thread end; what is being computed is finished."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _take(self) -> list[Waiting]:
        """The next batch; requests whose client has gone are dropped unseen."""
        batch: list[Waiting] = []
        images = 0
        while self._queue:
            head = self._queue[0]
            if not head.gone:
                if batch and images + len(head.images) > self._max_images:
                    break
                batch.append(head)
                images += len(head.images)
            self._queue.popleft()
        return batch

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while batch := self._take():
                if self._observe is not None:
                    self._observe(sum(len(waiting.images) for waiting in batch))
                answers: list[Answer]
                try:
                    answers = await loop.run_in_executor(self._thread, self._compute, batch)
                except Exception as error:  # a fault of the engine: each request's answer, not the queue's end
                    answers = [error] * len(batch)
                for waiting, answer in zip(batch, answers, strict=True):
                    if waiting.gone:
                        continue
                    if isinstance(answer, Exception):
                        waiting.answer.set_exception(answer)
                    else:
                        waiting.answer.set_result(answer)
        finally:
            self._worker = None
