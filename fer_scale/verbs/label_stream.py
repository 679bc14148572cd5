"""The pipeline of labelling: a thread lists the units, actors (`label_crew`) label them, counts come back.

What travels is references to files and counts of answers. Pictures and probabilities never leave the actor
that reads, decodes, infers and writes them.
"""

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from fer_scale.errors import InputError
from fer_scale.faces.detection import Detection, Detector
from fer_scale.labelling.ledger import Entry, Plan
from fer_scale.labelling.reading import Reader
from fer_scale.labelling.sources import Source
from fer_scale.labelling.units import Unit
from fer_scale.labelling.worker import Answers, Worker
from fer_scale.learning.acceptance import Acceptance
from fer_scale.learning.cascade import Cascade
from fer_scale.storage import CONNECTIONS, is_s3, limit_requests, write_bytes
from fer_scale.verbs.label_crew import Ahead, Crew, Row

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
        return THREADS if is_s3(self.source.path) or self.source.manifest else 0


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


def messages(job: Job, rows: Callable[[], Iterator[Row]], actor: type["Labeller"]) -> Iterator[dict[str, Any]]:
    """What the actors, and the listing that makes the rows, say to the driver.

    Args:
        rows: units to be labelled or messages, see `row`; made by a thread, ahead of the actors.

    Raises:
        InputError: an actor or the listing raised it.
        FerScaleError: the actors die again and again.
    """
    with Ahead(rows(), 2 * job.workers) as listing, Crew(job, actor) as crew:
        for text in crew.answers(listing):
            message = json.loads(text)
            if "failed" in message:
                raise InputError(*message["failed"])
            yield message


def _listing(source: Source, plan: Plan, target: int) -> Iterator[Row]:
    """Units that are to be done, and messages for the driver; the last one says how many units there are."""
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


def row(unit: bytes = b"", message: str = "") -> Row:
    """A unit for an actor, or a message for the driver."""
    return unit, message


def _failed(error: InputError) -> str:
    return json.dumps({"failed": [error.received, error.expected, error.do]})


class Labeller:
    """An actor: a loaded model that labels one unit a call; two calls at a time where it fetches ahead."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self._worker: Worker | None = None
        self._predictor: Answers | None = None
        self._loading = threading.Lock()

    def ready(self) -> None:
        """Answers as soon as the actor has been started."""

    def answer(self, unit: bytes) -> str:
        """Label a unit; gives a message for the driver."""
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
        return worker_of(self.job, self._predictor)

    def told(self, worker: Worker, unit: Unit) -> dict[str, Any]:
        """Label the unit; gives the message for the driver."""
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


def worker_of(job: Job, predictor: Answers, write: Callable[[str, bytes], None] = write_bytes) -> Worker:
    """What labels with a predictor; ``write`` publishes."""
    if job.requests_per_second is not None:
        limit_requests(job.requests_per_second / job.workers)
    reader = Reader(job.source.image_column, job.source.id_column)
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
