"""How much of a fit is done: by steps, or by the clock."""

import time

import torch
import torch.distributed as dist


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

    @property
    def used(self) -> float:
        """Seconds spent so far."""
        return time.monotonic() - self._began

    def progress(self, step: int) -> float:
        """The share that is spent before a step."""
        if self._steps is not None:
            return step / self._steps
        return from_first(self.used / (self._seconds or 1.0))[0]


def from_first(*values: float) -> list[float]:
    """The numbers that the first worker has, on every worker."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return list(values)
    told = torch.tensor(values, dtype=torch.float64, device="cuda" if dist.get_backend() == "nccl" else "cpu")
    dist.broadcast(told, src=0)
    return list(told.tolist())
