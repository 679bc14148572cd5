"""What the workers of a fit tell each other; where torch.distributed is not running, one worker tells itself."""

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor

from fer_scale.errors import FerScaleError


def place() -> tuple[int, int]:
    """This worker's rank, and how many there are."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def share(rows: Tensor) -> Tensor:
    """This worker's rows of those of the global batch."""
    rank, workers = place()
    return rows[rank::workers]


def from_first(*values: float) -> list[float]:
    """The first worker's numbers, on every worker."""
    if place()[1] == 1:
        return list(values)
    told = _told(values)
    dist.broadcast(told, src=0)
    return list(told.tolist())


def summed(*values: float) -> list[float]:
    """The sums of all workers' numbers, on every worker."""
    if place()[1] == 1:
        return list(values)
    told = _told(values)
    dist.all_reduce(told)
    return list(told.tolist())


def everywhere(true: Tensor) -> bool:
    """Whether all of a mask is true on every worker; afterwards it holds what is true on all of them."""
    if place()[1] > 1:
        shared = true.float()
        dist.all_reduce(shared, dist.ReduceOp.MIN)
        true.copy_(shared > 0)
    return bool(true.all())


def first_error(mine: FerScaleError | None) -> FerScaleError | None:
    """That of the first worker that has one, on every worker: all end by it, and none waits for another."""
    if place()[1] == 1:
        return mine
    found: list[FerScaleError | None] = [None] * place()[1]
    dist.all_gather_object(found, mine)
    return next((error for error in found if error is not None), None)


def equalise(tensors: Iterable[Tensor]) -> None:
    """Give each worker the mean of all workers' tensors, in place; what was the same stays the same to the last bit."""
    workers = place()[1]
    if workers > 1:
        for tensor in tensors:
            total = tensor.double()
            dist.all_reduce(total)
            tensor.copy_(total / workers)


def _told(values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, device="cuda" if dist.get_backend() == "nccl" else "cpu")
