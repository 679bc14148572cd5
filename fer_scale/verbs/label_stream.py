"""The Ray Data pipeline of labelling: one task lists the units, actors label them, counts come back.

What travels is references to files and counts of answers. Pictures and probabilities never leave the actor
that reads, decodes, infers and writes them.
"""

import json
import logging
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, cast

import pyarrow as pa
import ray
import ray.data
from ray.data import ActorPoolStrategy, DataContext, Datasource
from ray.data.block import BlockMetadata
from ray.data.datasource import ReadTask
from ray.exceptions import RayActorError

from fer_scale.errors import FerScaleError, InputError
from fer_scale.faces.detection import Detection, Detector
from fer_scale.labelling.ledger import Entry, Plan
from fer_scale.labelling.reading import Reader
from fer_scale.labelling.sources import Source
from fer_scale.labelling.suspects import SparingReader, noted
from fer_scale.labelling.units import Unit
from fer_scale.labelling.worker import Answers, Worker
from fer_scale.learning.acceptance import Acceptance
from fer_scale.learning.cascade import Cascade
from fer_scale.storage import CONNECTIONS, limit_requests, write_bytes

ACTOR_CPUS = 1
LISTING_CPUS = 0
"""Nothing is reserved for the task that lists: actors may hold every CPU, and the driver's node may offer none."""
UNITS_AT_ONCE = 2
"""Units that an actor which fetches ahead has in hand: one is inferred while the other is fetched or published."""
RESTARTS = 10
"""Of an actor in a run. A machine is lost now and then; a picture that kills takes four (`labelling.suspects`)."""
THREADS = 32
"""That fetch and decode ahead for an actor without a GPU: a thousand images a second where a get takes 30 ms."""
SEEN_AT_ONCE = 1000
"""Keys of finished units that are told together."""


@dataclass(frozen=True)
class Wish:
    """What may be another the next time: it changes no answer."""

    workers: int | None
    requests_per_second: float | None
    retry_errors: bool
    first: str | None = None
    """Where the first model of a cascade is; which one it is, is a setting."""


@dataclass(frozen=True)
class Job:
    """What an actor needs to label."""

    bundle: str
    model_id: str
    source: Source
    out: str
    engine: Literal["onnx", "torch"]
    gpu: bool
    retry_errors: bool
    acceptance: Acceptance | None
    detection: Detection | None
    """None takes pictures as they are."""
    workers: int
    """Actors."""
    cascade: Cascade | None
    first: str | None
    """The first model's bundle."""
    requests_per_second: float | None
    """To S3, of all actors together."""

    @classmethod
    def of(
        cls, settings: dict[str, Any], bundle: str, source: Source, out: str, wish: Wish, workers: int, gpu: bool
    ) -> "Job":
        """The job of a run's settings, for so many actors."""
        promised = settings["acceptance"]
        return cls(
            bundle=bundle,
            model_id=settings["model_id"],
            source=source,
            out=out,
            engine=settings["engine"],
            gpu=gpu,
            retry_errors=wish.retry_errors,
            acceptance=Acceptance(**promised) if promised else None,
            detection=Detection(**faces) if (faces := settings["faces"]) else None,
            cascade=Cascade(**settings["cascade"]) if settings.get("cascade") else None,
            first=wish.first,
            workers=workers,
            requests_per_second=wish.requests_per_second,
        )

    @property
    def threads(self) -> int:
        """That fetch and decode ahead in each actor; none where files are near and the network has the same core."""
        if self.gpu:
            return CONNECTIONS
        return THREADS if self.source.remote else 0


class IncompleteError(RuntimeError):
    """Not all units that were listed came back."""


def stream(job: Job, plan: Plan, target: int, seen: set[str]) -> Iterator[Entry]:
    """Label all units that are to be done; gives the entry of each as it is published.

    Args:
        target: images a unit.
        seen: is filled with the keys of all units of the source; complete when the iterator has ended.

    Raises:
        InputError: the source, the bundle or the output cannot be used any more.
        IncompleteError: a unit was lost on the way.
    """
    expected: int | None = None
    for message in messages(job, lambda: _listing(job.source, plan, target), Labeller):
        if "entry" in message:
            seen.add(message["entry"]["key"])
            yield message["entry"]
        seen.update(message.get("seen", ()))
        expected = message.get("units", expected)
    if expected != len(seen):
        raise IncompleteError(f"{expected} units were listed and {len(seen)} came back; run the same command again")


def messages(job: Job, rows: Callable[[], Iterator[pa.Table]], actor: type["Labeller"]) -> Iterator[dict[str, Any]]:
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


def _pipeline(job: Job, rows: Callable[[], Iterator[pa.Table]], actor: type["Labeller"]) -> ray.data.Dataset:
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


def _listing(source: Source, plan: Plan, target: int) -> Iterator[pa.Table]:
    """Rows of ``unit`` (to be done) or ``message`` (for the driver); the last one says how many units there are."""
    held: list[str] = []
    units = 0
    try:
        for unit, to_do in plan.match(source.units(target)):
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
        yield row(message=_failed(error))


def row(unit: bytes = b"", message: str = "") -> pa.Table:
    """A unit for an actor, or a message for the driver."""
    return pa.table({"unit": pa.array([unit], pa.binary()), "message": pa.array([message], pa.string())})


def _failed(error: InputError) -> str:
    return json.dumps({"failed": [error.received, error.expected, error.do]})


class Labeller:
    """An actor: a loaded model that labels one unit a call; two calls at a time where it fetches ahead."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self._worker: Worker | None = None
        self._predictor: Answers | None = None
        self._reader = SparingReader(job.source.image_column, job.source.id_column)
        self._loading = threading.Lock()
        self._alone = threading.Lock()
        # What its predecessor died of is among what comes first.
        self._to_note = 2 * UNITS_AT_ONCE if ray.get_runtime_context().was_current_actor_reconstructed else 0

    def __call__(self, batch: pa.Table) -> pa.Table:
        """``unit`` and ``message`` ``[1]`` to ``message`` ``[1]``."""
        return pa.table({"message": [self._answer(batch["unit"][0].as_py(), batch["message"][0].as_py())]})

    def _answer(self, unit: bytes, message: str) -> str:
        if not unit:
            return message
        try:
            with self._loading:
                if self._worker is None:
                    self._worker = self.load()
            return json.dumps(self.told(self._worker, Unit.from_bytes(unit)))
        except InputError as error:  # for the driver, who says it in one line
            return _failed(error)

    def load(self) -> Worker:
        """What labels in this actor."""
        self._predictor = predictor_of(self.job)
        return worker_of(self.job, self._predictor, self._reader)

    def told(self, worker: Worker, unit: Unit) -> dict[str, Any]:
        """Label the unit; gives the message for the driver."""
        if self._to_note <= 0 or self._predictor is None:
            return self._labelled(worker, unit)
        self._to_note -= 1
        with self._alone, noted(self.job.out, unit, self._reader, self._predictor, self.job.detection):
            return self._labelled(worker, unit)

    def _labelled(self, worker: Worker, unit: Unit) -> dict[str, Any]:
        counted = getattr(self._predictor, "counted", None)  # of a cascade: who answered, in this thread
        if counted is None:
            return {"entry": worker.label(unit, self.job.retry_errors)}
        counted()
        entry = worker.label(unit, self.job.retry_errors)
        entry["first"], entry["second"] = counted()
        return {"entry": entry}


def predictor_of(job: Job) -> Answers:
    """Load the model, or the two of a cascade."""
    # Here alone, so that the process that lists, which loads this module too, does without what a model takes.
    from fer_scale.bundle import Bundle
    from fer_scale.labelling.cascaded import Cascaded
    from fer_scale.predictor import Predictor

    def load(path: str, model_id: str) -> Predictor:
        bundle = Bundle.load(path)
        if bundle.model_id != model_id:
            raise InputError(
                f"{path} is model {bundle.model_id} on another machine", f"model {model_id} everywhere",
                "put the bundle where all machines read the same",
            )  # fmt: skip
        return Predictor.load(bundle, engine=job.engine, threads=1)

    second = load(job.bundle, job.model_id)
    if job.first is None or job.cascade is None or job.cascade.threshold is None:
        return second
    return Cascaded(load(job.first, job.cascade.first_model_id), second, job.cascade.threshold)


def worker_of(
    job: Job, predictor: Answers, reader: Reader, write: Callable[[str, bytes], None] = write_bytes
) -> Worker:
    """What labels with a predictor; ``write`` publishes."""
    if job.requests_per_second is not None:
        limit_requests(job.requests_per_second / job.workers)
    batch = 1024 if job.gpu else 128
    detector = Detector(job.detection) if job.detection else None
    return Worker(
        predictor,
        job.out,
        reader,
        batch=batch,
        threads=job.threads,
        acceptance=job.acceptance,
        detector=detector,
        write=write,
    )
