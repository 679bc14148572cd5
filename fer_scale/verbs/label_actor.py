"""What labels a unit: an actor with its model, and the job that it is given."""

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa
import ray

from fer_scale.errors import InputError
from fer_scale.faces.detection import Detection, Detector
from fer_scale.labelling.reading import Reader
from fer_scale.labelling.sources import Source
from fer_scale.labelling.suspects import SparingReader, noted
from fer_scale.labelling.units import Unit
from fer_scale.labelling.worker import Answers, Worker
from fer_scale.learning.acceptance import Acceptance
from fer_scale.learning.cascade import Cascade
from fer_scale.storage import CONNECTIONS, limit_requests, write_bytes

UNITS_AT_ONCE = 2
"""Units that an actor which fetches ahead has in hand: one is inferred while the other is fetched or published."""
THREADS = 32
"""That fetch and decode ahead for an actor without a GPU: a thousand images a second where a get takes 30 ms."""


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


def failed(error: InputError) -> str:
    """The message by which a mistake of the user's reaches the driver, who says it in one line."""
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
        except InputError as error:
            return failed(error)

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
