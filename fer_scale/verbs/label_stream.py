"""The Ray Data pipeline of labelling: one task lists the units, actors label them, counts come back.

What travels is references to files and counts of answers. Pictures and probabilities never leave the actor
that reads, decodes, infers and writes them.
"""

import json
import logging
import warnings
from collections.abc import Callable, Iterator
from typing import Any, cast

import pyarrow as pa
import ray.data
from ray.data import ActorPoolStrategy, DataContext, Datasource
from ray.data.block import BlockMetadata
from ray.data.datasource import ReadTask
from ray.exceptions import RayActorError

from fer_scale.errors import FerScaleError, InputError
from fer_scale.labelling.ledger import Backlog, Entry
from fer_scale.labelling.sources import Source
from fer_scale.verbs.label_actor import UNITS_AT_ONCE, Job, Labeller, failed

ACTOR_CPUS = 1
LISTING_CPUS = 0
"""Nothing is reserved for the task that lists: actors may hold every CPU, and the driver's node may offer none."""
RESTARTS = 10
"""Of an actor in a run. A machine is lost now and then; a picture that kills takes four (`labelling.suspects`)."""
SEEN_AT_ONCE = 1000
"""Keys of finished units that are told together."""


class IncompleteError(RuntimeError):
    """Not all units that were listed came back."""


def stream(job: Job, backlog: Backlog, target: int, seen: set[str]) -> Iterator[Entry]:
    """Label all units that are to be done; gives the entry of each as it is published.

    Args:
        target: images a unit.
        seen: is filled with the keys of all units of the source; complete when the iterator has ended.

    Raises:
        InputError: the source, the bundle or the output cannot be used any more.
        IncompleteError: a unit was lost on the way.
    """
    expected: int | None = None
    for message in messages(job, lambda: _listing(job.source, backlog, target), Labeller):
        if "entry" in message:
            seen.add(message["entry"]["key"])
            yield message["entry"]
        seen.update(message.get("seen", ()))
        expected = message.get("units", expected)
    if expected != len(seen):
        raise IncompleteError(f"{expected} units were listed and {len(seen)} came back; run the same command again")


def messages(job: Job, rows: Callable[[], Iterator[pa.Table]], actor: type[Labeller]) -> Iterator[dict[str, Any]]:
    """What the actors, and the task that makes the rows, say to the driver.

    Args:
        rows: of ``unit``, to be labelled, or ``message``, see `row`.

    Raises:
        InputError: an actor or the task raised it.
        FerScaleError: an actor died again and again.
    """
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what fails is raised, and said once
    batches = _pipeline(job, rows, actor).iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
    try:
        for batch in batches:
            for text in cast(pa.Table, batch)["message"].to_pylist():
                message = json.loads(text)
                if "failed" in message:
                    raise InputError(*message["failed"])
                yield message
    except RayActorError as error:
        why = " ".join(str(error).split())
        raise FerScaleError(f"an actor died {RESTARTS + 1} times, perhaps of one picture: {why}") from error


def _pipeline(job: Job, rows: Callable[[], Iterator[pa.Table]], actor: type[Labeller]) -> ray.data.Dataset:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray's deprecations of its own settings, read while they are copied
        with DataContext.current(_quiet_context()):
            units = ray.data.read_datasource(Listing(rows), num_cpus=LISTING_CPUS, override_num_blocks=1)
            answers: ray.data.Dataset = units.map_batches(
                actor,
                fn_constructor_args=(job,),
                batch_size=1,
                batch_format="pyarrow",
                num_cpus=ACTOR_CPUS,
                num_gpus=1 if job.gpu else 0,
                max_restarts=RESTARTS,  # without which Ray Data would go on for ever
                max_task_retries=-1,  # each failed attempt to reach a machine that is gone counts as one
                compute=ActorPoolStrategy(
                    size=job.workers,
                    max_concurrent_calls_per_actor=UNITS_AT_ONCE if job.threads else 1,
                    enable_true_multi_threading=True,
                ),
            )
            return answers


def _quiet_context() -> DataContext:
    context = DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.enable_auto_log_stats = False
    context.print_on_execution_start = False
    context.execution_no_progress_timeout_s = (
        -1
    )  # a unit of photographs, or other jobs, may take more than half an hour
    context.target_max_block_size = 1  # bytes: each unit is a block of its own, sent as soon as it is listed
    return context


class Listing(Datasource):
    """One read task, on the driver's node, that lists the source while units are being labelled."""

    def __init__(self, rows: Callable[[], Iterator[pa.Table]]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._rows = rows

    @property
    def supports_distributed_reads(self) -> bool:
        """It reads what the driver reads."""
        return False

    def estimate_inmemory_data_size(self) -> int | None:
        """Not known before listing."""
        return None

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: DataContext | None = None
    ) -> list[ReadTask]:
        """One task, whatever the parallelism: a listing is sequential."""
        return [ReadTask(self._rows, BlockMetadata(None, None, None, None))]


def _listing(source: Source, backlog: Backlog, target: int) -> Iterator[pa.Table]:
    """Rows of ``unit`` (to be done) or ``message`` (for the driver); the last one says how many units there are."""
    held: list[str] = []
    units = 0
    try:
        for unit, to_do in backlog.match(source.units(target)):
            units += 1
            if to_do:
                yield row(unit=unit.to_bytes())
                continue
            held.append(unit.key)
            if len(held) == SEEN_AT_ONCE:
                yield row(message=json.dumps({"seen": held}))
                held = []
        yield row(message=json.dumps({"seen": held, "units": units}))
    except InputError as error:
        yield row(message=failed(error))


def row(unit: bytes = b"", message: str = "") -> pa.Table:
    """A unit for an actor, or a message for the driver."""
    return pa.table({"unit": pa.array([unit], pa.binary()), "message": pa.array([message], pa.string())})
