"""How much of a fit is done: by steps, or by the clock."""

import math
import time

from fer_scale.learning.workers import from_first, place

HEARD_SECONDS = 0.5
"""About how old the first worker's clock may be on the others: to hear it, a GPU is waited for."""
HEARD_STEPS = 20
"""And in steps."""


class Budget:
    """A number of steps, or of seconds of wall time; progress goes from 0 to 1.

    By the clock a fit takes just the time that it was given, whatever the load, and its learning rate still
    anneals to the end. All workers go by the first one's clock.

    Args:
        steps: of the whole fit; None to go by the clock.
        seconds: of the whole fit.
        used: seconds that were spent before this process took the fit over.
    """

    def __init__(self, *, steps: int | None, seconds: float | None, used: float = 0.0) -> None:
        self._steps = steps
        self._seconds = seconds
        self._began = time.monotonic() - used
        self._heard, self._every, self._next = -math.inf, 1, 0

    @property
    def used(self) -> float:
        """Seconds spent so far."""
        return time.monotonic() - self._began

    def progress(self, step: int) -> float:
        """The share that is spent before a step."""
        if self._steps is not None:
            return step / self._steps
        return self.clock(step) / (self._seconds or 1.0)

    def hear_anew(self) -> None:
        """The time went on without a step; to be called by all workers at the same one."""
        self._next = 0

    def clock(self, step: int) -> float:
        """Seconds spent before a step, the same on every worker."""
        if place()[1] == 1:
            return self.used
        if step >= self._next:
            used = self.used
            steps = self._every * HEARD_SECONDS / max(used - self._heard, 1e-3)
            self._heard, every = from_first(used, min(max(steps, 1), HEARD_STEPS))
            self._every = int(every)
            self._next = step + self._every
        return self._heard
