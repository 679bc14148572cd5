"""The work on one unit: read, decode, infer, write its parts, and tell the counts."""

import json
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fer_scale import storage
from fer_scale.faces.cutting import Cut, cut
from fer_scale.faces.detection import Detector, NoFaceError
from fer_scale.faces.images import ImageError, Preprocessing
from fer_scale.labelling.parts import (
    ERRORS_SCHEMA,
    labels_schema,
    notes_path,
    packed,
    parquet,
    part_path,
    shown,
    unpacked,
)
from fer_scale.labelling.reading import Held, Payload, Reader
from fer_scale.labelling.tally import EXAMPLES, Failure, Tally
from fer_scale.labelling.units import Unit
from fer_scale.learning import drift
from fer_scale.learning.acceptance import Acceptance

SHOWN = 8
"""Photographs of a unit, the first, among which the report's examples are."""

AHEAD_BYTES = 2**28
"""Of pictures out of tables and archives that wait for a thread or to be taken; of a unit."""

Pixels = npt.NDArray[np.uint8]


class Answers(Protocol):
    """What a worker needs of `fer_scale.predictor.Predictor`."""

    classes: list[str]
    model_id: str
    preprocessing: Preprocessing

    def probabilities(self, images: Pixels) -> npt.NDArray[np.float32]:
        """uint8 ``[N, C, S, S]`` to float32 ``[N, K]``."""


class Worker:
    """Labels units; from two threads two at a time, so that one is fetched or published while the other is inferred.

    Args:
        predictor: gives the probabilities.
        out: the folder that is written.
        reader: of the source.
        batch: images inferred at once.
        threads: that fetch and decode ahead, for all units together; 0 does it in line, which is best where the
            files are near and the network runs on the same core.
        acceptance: says which labels are accepted; None leaves the column out.
        write: publishes bytes at a path; a dry run's throws them away.
        detector: finds the faces of photographs; None takes pictures as they are.
    """

    def __init__(
        self,
        predictor: Answers,
        out: str,
        reader: Reader,
        *,
        batch: int = 128,
        threads: int = 0,
        acceptance: Acceptance | None = None,
        write: Callable[[str, bytes], None] = storage.write_bytes,
        detector: Detector | None = None,
    ) -> None:
        self._predictor = predictor
        self._write = write
        self._out = out
        self._reader = reader
        self._batch = batch
        self._ahead = ThreadPoolExecutor(threads) if threads else None
        self._engine = threading.Lock()
        self._acceptance = acceptance
        self._detector = detector
        self._schema = labels_schema(
            predictor.classes, accepting=acceptance is not None, detecting=detector is not None
        )
        shape = (predictor.preprocessing.channels, predictor.preprocessing.size, predictor.preprocessing.size)
        self._buffer: Pixels = np.empty((batch, *shape), dtype=np.uint8)

    def label(self, unit: Unit, retry_errors: bool = False) -> dict[str, Any]:
        """Label one unit and publish it; safe to do again, also at the same time by somebody else.

        Returns:
            The unit's entry for the ledger: key, part, span, and its counts.
        """
        began = time.monotonic()
        tally = Tally()
        done = self._carry_over(unit, tally, retry_errors) if unit.former else frozenset()
        waiting: list[tuple[str, int, Pixels]] = []
        for ident, found in self._prepared(unit, done):
            if isinstance(found, ImageError):
                tally.fail(ident, found, no_face=isinstance(found, NoFaceError))
                continue
            for number, digest in tally.begin(ident, found):
                row = tally.known.get(digest)
                if row is None:
                    row = tally.known[digest] = tally.inferred + len(waiting)
                    waiting.append((ident, number, found.pixels[number]))
                tally.row(ident, number, row)
                if len(waiting) == self._batch:
                    self._infer(waiting, tally)
                    waiting = []
        if waiting:
            self._infer(waiting, tally)
        return self._publish(unit, tally, time.monotonic() - began)

    def _prepared(self, unit: Unit, done: frozenset[str]) -> Iterator[tuple[str, Cut | ImageError]]:
        numbers = count()

        def one(ident: str, payload: Payload) -> tuple[str, Cut | ImageError]:
            try:
                data = payload()
                show = self._detector is not None and next(numbers) < SHOWN
                return ident, cut(data, self._predictor.preprocessing, self._detector, show)
            except ImageError as error:
                return ident, error

        wanted = ((ident, payload) for ident, payload in self._reader.read(unit) if ident not in done)
        if self._ahead is None:
            for ident, payload in wanted:
                yield one(ident, payload)
        else:
            yield from _ahead(self._ahead, one, wanted, 2 * self._batch)

    def _infer(self, waiting: list[tuple[str, int, Pixels]], tally: Tally) -> None:
        with self._engine:
            images = self._buffer[: len(waiting)]
            for at, (_, _, pixels) in enumerate(waiting):
                images[at] = pixels
            began = time.monotonic()
            found = self._predictor.probabilities(images)
            tally.inferring += time.monotonic() - began
        tally.probabilities.append(found)
        tally.inferred += len(waiting)
        confidence = found.max(axis=1)
        order = np.argsort(confidence, kind="stable")
        for kept, rows, highest in ((tally.surest, order[::-1], True), (tally.unsurest, order, False)):
            for row in rows[:EXAMPLES]:
                label = self._predictor.classes[int(found[row].argmax())]
                ident, number, pixels = waiting[row]
                sure = float(confidence[row])
                kept.append({"id": ident, "face": number, "label": label, "confidence": sure, "pixels": pixels})
            kept.sort(key=_confidence, reverse=highest)
            del kept[EXAMPLES:]

    def _carry_over(self, unit: Unit, tally: Tally, retry_errors: bool) -> frozenset[str]:
        """Take answers of files that have not changed from parts of an earlier listing; gives their ids."""
        stamps = {item.id: item.stamp() for item in unit.items}
        taken: set[str] = set()
        for part in unit.former:
            notes = storage.read_json(notes_path(self._out, part))
            known = dict(zip(unpacked(notes["stamps"]), unpacked(notes["pixels"]), strict=True))
            same = {ident for ident, stamp in stamps.items() if stamp in known} - taken
            with pq.ParquetFile(storage.open_input(part_path(self._out, "labels", part))) as file:
                rows = file.read()
            rows = rows.filter(pa.array([ident in same for ident in rows["id"].to_pylist()], pa.bool_()))
            tally.carried_labels.append(rows)
            labelled = rows["id"].to_pylist()
            tally.digests.update((ident, known[stamps[ident]]) for ident in labelled)
            taken.update(labelled)
            others = [(tally.no_face, "no_face", notes["no_face"])]
            if not retry_errors:
                others.append((tally.errors, "errors", notes["errors"]))
            for kept_rows, kind, some in others:
                bad = self._failures(part_path(self._out, kind, part), same) if some else []
                kept_rows.extend(bad)
                taken.update(row[0] for row in bad)
            for kept, name in ((tally.surest, "surest"), (tally.unsurest, "unsurest")):
                kept.extend(example for example in notes[name] if example["id"] in same)
                kept.sort(key=_confidence, reverse=name == "surest")
            tally.photographs.extend(one for one in notes["photographs"] if one["id"] in same)
        tally.carried = len(taken)
        return frozenset(taken)

    @staticmethod
    def _failures(path: str, wanted: set[str]) -> list[Failure]:
        with pq.ParquetFile(storage.open_input(path)) as file:
            rows = file.read().to_pylist()
        return [(row["id"], row["reason"], row["detail"]) for row in rows if row["id"] in wanted]

    def _publish(self, unit: Unit, tally: Tally, seconds: float) -> dict[str, Any]:
        """Notes, errors and images without a face first, labels last; the driver's ledger makes them count."""
        rows = tally.table(self._schema, self._predictor.classes, self._predictor.model_id, self._acceptance)
        labelled, no_face, errors = len(tally.digests), len(tally.no_face), len(tally.errors)
        if labelled + no_face + errors != unit.size:
            raise RuntimeError(f"{labelled} labelled, {no_face} without a face, {errors} errors of {unit.size} images")
        files = unit.items if unit.kind == "files" else ()
        notes = {
            "stamps": packed(item.stamp() for item in files),
            "pixels": packed(tally.digests.get(item.id, bytes(8)) for item in files),
            "errors": errors,
            "no_face": no_face,
            "surest": [shown(example) for example in tally.surest[:EXAMPLES]],
            "unsurest": [shown(example) for example in tally.unsurest[:EXAMPLES]],
            "photographs": tally.kept_photographs(rows),
        }
        self._write(notes_path(self._out, unit.part), json.dumps(notes).encode())
        for failures, kind in ((tally.errors, "errors"), (tally.no_face, "no_face")):
            if failures:
                bad = pa.table([list(column) for column in zip(*failures, strict=True)], schema=ERRORS_SCHEMA)
                self._write(part_path(self._out, kind, unit.part), parquet(bad))
        self._write(part_path(self._out, "labels", unit.part), parquet(rows))
        confidence = rows["confidence"].to_numpy()
        return {
            "key": unit.key,
            "part": unit.part,
            "span": unit.span,
            "inputs": unit.size,
            "labelled": labelled,
            "no_face": no_face,
            "errors": errors,
            "faces": rows.num_rows,
            "duplicates": labelled - len(set(tally.digests.values())),
            "carried": tally.carried,
            "accepted": pc.sum(rows["accepted"]).as_py() or 0 if self._acceptance else 0,
            "shares": dict(Counter(rows["label"].to_pylist())),
            "reasons": dict(Counter(reason for _, reason, _ in tally.errors)),
            "histogram": drift.bins(confidence),
            "seconds": round(seconds, 4),
            "inferring": round(tally.inferring, 4),
        }


def _ahead(
    pool: ThreadPoolExecutor,
    work: Callable[[str, Payload], tuple[str, Cut | ImageError]],
    wanted: Iterator[tuple[str, Payload]],
    window: int,
) -> Iterator[tuple[str, Cut | ImageError]]:
    """The work on each, in order, with at most ``window`` of them, or `AHEAD_BYTES`, begun and not yet taken."""
    begun: deque[tuple[Future[tuple[str, Cut | ImageError]], int]] = deque()
    held = 0
    for ident, payload in wanted:
        size = len(payload.data) if isinstance(payload, Held) else 0
        begun.append((pool.submit(work, ident, payload), size))
        held += size
        while len(begun) >= window or held > AHEAD_BYTES:
            future, size = begun.popleft()
            held -= size
            yield future.result()
    for future, _ in begun:
        yield future.result()


def _confidence(example: dict[str, Any]) -> float:
    confidence: float = example["confidence"]
    return confidence
