"""Faces of a store larger than memory, decoded by Ray Data wherever the cluster has room, in the fit's own order.

What travels to a task is the number of a window; it reads the row groups of the window and decodes the rows of one
worker. The blocks keep their order, so that the stream is as repeatable as faces in memory are.
"""

import itertools
import logging
import warnings
from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import ray.data
from ray.data import DataContext, ExecutionResources, TaskPoolStrategy

from fer_scale.faces.store import Faces
from fer_scale.faces.windows import WINDOW_BYTES, Windows
from fer_scale.learning.stream import Opened

READERS_CPUS = 1 / 16
"""Reserved by all tasks that read and decode for a worker of the fit, out of what it leaves. A power of two: Ray adds
workers up in floats, and of ten that ask for 0.8 CPUs it would count nine."""
WINDOWS_A_RUN = 512
"""Read by one run of Ray Data, across epochs: a fit waits for the first window of each, some seconds."""
WINDOWS_A_READER = 4
"""Decoded windows for which each task has room in the object store. Ray Data 2.60 keeps half of it back, and
counts what runs as well as what waits: with room for two a task, only one of two tasks runs."""


def opened(threads: int) -> Opened:
    """How a worker of so many threads reads its windows."""
    tasks = max(2, threads)
    cpus = int(10_000 * READERS_CPUS / tasks) / 10_000  # each, in the ten-thousandths that Ray counts in

    def stream(windows: Windows, first: int, rank: int, workers: int) -> Iterator[Faces]:
        for start in itertools.count(first, WINDOWS_A_RUN):
            yield from run(windows, start, rank, workers)

    def run(windows: Windows, first: int, rank: int, workers: int) -> Iterator[Faces]:
        logging.getLogger("ray.data").setLevel(logging.ERROR)

        def read(row: Any) -> Any:
            faces = windows.read(int(row["window"][0]), rank, workers)
            votes = np.empty((len(faces), 0), dtype=np.float32) if faces.votes is None else faces.votes
            return {"images": faces.images, "labels": faces.labels, "votes": votes}

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Ray's deprecations of its own settings, read while they are copied
            with DataContext.current(_context(tasks)):
                numbers = [{"window": at} for at in range(first, first + WINDOWS_A_RUN)]
                found = ray.data.from_items(numbers, override_num_blocks=len(numbers)).map_batches(
                    read, batch_size=1, num_cpus=cpus, compute=TaskPoolStrategy(size=tasks)
                )
                blocks = found.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=1)
        for block in blocks:
            columns = cast(dict[str, npt.NDArray[Any]], block)
            votes = columns["votes"] if columns["votes"].shape[1] else None
            yield Faces(columns["images"], columns["labels"], [], votes)

    return stream


def _context(tasks: int) -> DataContext:
    context = DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.enable_auto_log_stats = False
    context.print_on_execution_start = False
    context.target_max_block_size = None  # a window is one block
    context.execution_options.preserve_order = True
    room = WINDOWS_A_READER * tasks * WINDOW_BYTES
    context.execution_options.resource_limits = ExecutionResources(object_store_memory=room)
    return context
