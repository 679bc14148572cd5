"""The work on one unit: read, decode, infer, write its parts, and tell the counts."""

import hashlib
import json
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fer_scale import storage
from fer_scale.faces.images import ImageError, Preprocessing, prepare
from fer_scale.labelling.parts import (
    ERRORS_SCHEMA,
    errors_path,
    labels_path,
    labels_schema,
    notes_path,
    packed,
    parquet,
    shown,
    unpacked,
)
from fer_scale.labelling.reading import Payload, Reader
from fer_scale.labelling.units import Unit
from fer_scale.learning import drift
from fer_scale.learning.acceptance import Acceptance

EXAMPLES = 2
"""The surest and the least sure images that a unit keeps for the report."""

Pixels = npt.NDArray[np.uint8]


class Answers(Protocol):
    """What a worker needs of `fer_scale.predictor.Predictor`."""

    classes: list[str]
    model_id: str
    preprocessing: Preprocessing

    def probabilities(self, images: Pixels) -> npt.NDArray[np.float32]:
        """uint8 ``[N, C, S, S]`` to float32 ``[N, K]``."""


@dataclass
class _Tally:
    """What a unit has come to, in memory until it is published."""

    ids: list[str] = field(default_factory=list)
    answers: list[int] = field(default_factory=list)
    """For each id the row of ``probabilities`` that answers it."""
    probabilities: list[npt.NDArray[np.float32]] = field(default_factory=list)
    inferred: int = 0
    inferring: float = 0.0
    """Seconds that the engine took."""
    errors: list[tuple[str, str, str]] = field(default_factory=list)
    known: dict[bytes, int] = field(default_factory=dict)
    """Digest of the pixels to the row that answers them."""
    digests: dict[str, bytes] = field(default_factory=dict)
    """Id to the first 8 bytes of its pixels' digest, of all that are labelled."""
    surest: list[dict[str, Any]] = field(default_factory=list)
    unsurest: list[dict[str, Any]] = field(default_factory=list)
    carried_labels: list[pa.Table] = field(default_factory=list)
    carried_errors: int = 0


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
    ) -> None:
        self._predictor = predictor
        self._write = write
        self._out = out
        self._reader = reader
        self._batch = batch
        self._ahead = ThreadPoolExecutor(threads) if threads else None
        self._engine = threading.Lock()
        self._acceptance = acceptance
        self._schema = labels_schema(predictor.classes, accepting=acceptance is not None)
        shape = (predictor.preprocessing.channels, predictor.preprocessing.size, predictor.preprocessing.size)
        self._buffer: Pixels = np.empty((batch, *shape), dtype=np.uint8)

    def label(self, unit: Unit, retry_errors: bool = False) -> dict[str, Any]:
        """Label one unit and publish it; safe to do again, also at the same time by somebody else.

        Returns:
            The unit's entry for the ledger: key, part, span, and its counts.
        """
        began = time.monotonic()
        tally = _Tally()
        done = self._carry_over(unit, tally, retry_errors) if unit.former else frozenset()
        waiting: list[tuple[str, bytes, Pixels]] = []
        for ident, pixels in self._prepared(unit, done):
            if isinstance(pixels, ImageError):
                tally.errors.append((ident, pixels.reason, pixels.detail))
                continue
            digest = hashlib.blake2b(pixels.tobytes(), digest_size=16).digest()
            row = tally.known.get(digest)
            if row is None:
                row = tally.known[digest] = tally.inferred + len(waiting)
                waiting.append((ident, digest, pixels))
            tally.ids.append(ident)
            tally.answers.append(row)
            tally.digests[ident] = digest[:8]
            if len(waiting) == self._batch:
                self._infer(waiting, tally)
                waiting = []
        if waiting:
            self._infer(waiting, tally)
        return self._publish(unit, tally, time.monotonic() - began)

    def _prepared(self, unit: Unit, done: frozenset[str]) -> Iterator[tuple[str, Pixels | ImageError]]:
        def one(ident: str, payload: Payload) -> tuple[str, Pixels | ImageError]:
            try:
                return ident, prepare(payload(), self._predictor.preprocessing)
            except ImageError as error:
                return ident, error

        wanted = ((ident, payload) for ident, payload in self._reader.read(unit) if ident not in done)
        if self._ahead is None:
            for ident, payload in wanted:
                yield one(ident, payload)
        else:
            yield from _ahead(self._ahead, one, wanted, 2 * self._batch)

    def _infer(self, waiting: list[tuple[str, bytes, Pixels]], tally: _Tally) -> None:
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
                ident, _, pixels = waiting[row]
                kept.append({"id": ident, "label": label, "confidence": float(confidence[row]), "pixels": pixels})
            kept.sort(key=_confidence, reverse=highest)
            del kept[EXAMPLES:]

    def _carry_over(self, unit: Unit, tally: _Tally, retry_errors: bool) -> frozenset[str]:
        """Take answers of files that have not changed from parts of an earlier listing; gives their ids."""
        stamps = {item.id: item.stamp() for item in unit.items}
        taken: set[str] = set()
        for part in unit.former:
            notes = storage.read_json(notes_path(self._out, part))
            known = dict(zip(unpacked(notes["stamps"]), unpacked(notes["pixels"]), strict=True))
            same = {ident for ident, stamp in stamps.items() if stamp in known} - taken
            with pq.ParquetFile(storage.open_input(labels_path(self._out, part))) as file:
                rows = file.read()
            rows = rows.filter(pa.array([ident in same for ident in rows["id"].to_pylist()], pa.bool_()))
            tally.carried_labels.append(rows)
            labelled = rows["id"].to_pylist()
            tally.digests.update((ident, known[stamps[ident]]) for ident in labelled)
            taken.update(labelled)
            if notes["errors"] and not retry_errors:
                with pq.ParquetFile(storage.open_input(errors_path(self._out, part))) as file:
                    bad = [tuple(row.values()) for row in file.read().to_pylist() if row["id"] in same]
                tally.errors.extend(bad)
                tally.carried_errors += len(bad)
                taken.update(row[0] for row in bad)
            for kept, name in ((tally.surest, "surest"), (tally.unsurest, "unsurest")):
                kept.extend(example for example in notes[name] if example["id"] in same)
                kept.sort(key=_confidence, reverse=name == "surest")
        return frozenset(taken)

    def _rows(self, tally: _Tally) -> pa.Table:
        classes = self._predictor.classes
        distinct = np.concatenate([np.zeros((0, len(classes)), dtype=np.float32), *tally.probabilities])
        found = distinct[tally.answers] if tally.answers else distinct[:0]
        labels = np.array(classes, dtype=object)[found.argmax(axis=1)]
        confidence = found.max(axis=1, initial=0.0)
        columns: list[Any] = [
            tally.ids,
            np.zeros(len(found), dtype=np.int32),
            labels,
            confidence,
            *found.T,
            [self._predictor.model_id] * len(found),
        ]
        if self._acceptance is not None:
            columns.append(self._acceptance.mask(confidence, labels))
        fresh = pa.table(columns, schema=self._schema)
        return pa.concat_tables([fresh, *(rows.cast(self._schema) for rows in tally.carried_labels)])

    def _publish(self, unit: Unit, tally: _Tally, seconds: float) -> dict[str, Any]:
        """Errors and notes first, labels last; the ledger, which the driver writes, makes them count."""
        rows = self._rows(tally)
        if rows.num_rows + len(tally.errors) != unit.size:
            raise RuntimeError(f"{rows.num_rows} labels and {len(tally.errors)} errors for {unit.size} images")
        files = unit.items if unit.kind == "files" else ()
        notes = {
            "stamps": packed(item.stamp() for item in files),
            "pixels": packed(tally.digests.get(item.id, bytes(8)) for item in files),
            "errors": len(tally.errors),
            "surest": [shown(example) for example in tally.surest[:EXAMPLES]],
            "unsurest": [shown(example) for example in tally.unsurest[:EXAMPLES]],
        }
        self._write(notes_path(self._out, unit.part), json.dumps(notes).encode())
        if tally.errors:
            bad = pa.table([list(column) for column in zip(*tally.errors, strict=True)], schema=ERRORS_SCHEMA)
            self._write(errors_path(self._out, unit.part), parquet(bad))
        self._write(labels_path(self._out, unit.part), parquet(rows))
        confidence = rows["confidence"].to_numpy()
        return {
            "key": unit.key,
            "part": unit.part,
            "span": unit.span,
            "inputs": unit.size,
            "labelled": rows.num_rows,
            "no_face": 0,
            "errors": len(tally.errors),
            "faces": rows.num_rows,
            "duplicates": rows.num_rows - len(set(tally.digests.values())),
            "carried": sum(t.num_rows for t in tally.carried_labels) + tally.carried_errors,
            "accepted": pc.sum(rows["accepted"]).as_py() or 0 if self._acceptance else 0,
            "shares": dict(Counter(rows["label"].to_pylist())),
            "reasons": dict(Counter(reason for _, reason, _ in tally.errors)),
            "histogram": drift.bins(confidence),
            "seconds": round(seconds, 4),
            "inferring": round(tally.inferring, 4),
        }


def _ahead(
    pool: ThreadPoolExecutor,
    work: Callable[[str, Payload], tuple[str, Pixels | ImageError]],
    wanted: Iterator[tuple[str, Payload]],
    window: int,
) -> Iterator[tuple[str, Pixels | ImageError]]:
    """The work on each, in order, with at most ``window`` of them begun and not yet taken."""
    begun: deque[Any] = deque()
    for ident, payload in wanted:
        begun.append(pool.submit(work, ident, payload))
        if len(begun) >= window:
            yield begun.popleft().result()
    while begun:
        yield begun.popleft().result()


def _confidence(example: dict[str, Any]) -> float:
    confidence: float = example["confidence"]
    return confidence
