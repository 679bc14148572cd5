"""Ingest's first pass: decode and hash every row, spool pictures to disk, remember only the index."""

import os
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fer_scale.console import progress
from fer_scale.faces.images import ImageError, decode, pixel_sha256
from fer_scale.faces.index import REPEATED_ID, Decision, Index, Rows
from fer_scale.faces.labels import Labels
from fer_scale.faces.records import Record
from fer_scale.faces.sources import Source
from fer_scale.faces.store import SPLITS
from fer_scale.faces.votes import Votes
from fer_scale.faces.write import REJECTS_SCHEMA, SPOOL_SCHEMA, PartWriter

TASK_ROWS = 64
TASK_BYTES = 8 * 2**20
REMOTE_THREADS = 32
"""Threads where each picture is fetched over a network: they mostly wait."""


@dataclass(slots=True)
class Checked:
    """A record and what became of its bytes."""

    record: Record
    image: bytes = b""
    sha256: bytes = b""
    width: int = 0
    height: int = 0
    problem: ImageError | None = None


def check(record: Record) -> Checked:
    """Fetch, decode and hash one row's picture."""
    try:
        data = record.payload if isinstance(record.payload, bytes) else record.payload()
        image = decode(data)
    except ImageError as error:
        return Checked(record, problem=error)
    return Checked(record, data, bytes.fromhex(pixel_sha256(image)), image.width, image.height)


def checked(records: Iterable[Record], threads: int) -> Iterator[Checked]:
    """`check` over a stream, in its order, in threads, with a bounded number of rows in memory."""
    pool = ThreadPoolExecutor(threads, thread_name_prefix="ingest")
    waiting: deque[Future[list[Checked]]] = deque()
    try:
        for task in _tasks(records):
            waiting.append(pool.submit(lambda rows: [check(row) for row in rows], task))
            if len(waiting) > 2 * threads:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _tasks(records: Iterable[Record]) -> Iterator[list[Record]]:
    task: list[Record] = []
    size = 0
    for record in records:
        task.append(record)
        size += record.size
        if len(task) >= TASK_ROWS or size >= TASK_BYTES:
            yield task
            task, size = [], 0
    if task:
        yield task


class Spool:
    """What the first pass leaves: the index in memory; pictures and rejects on disk below ``staging``."""

    def __init__(self, labels: Labels, staging: Path) -> None:
        self.labels = labels
        self.folder = staging / "spool"
        self.read = 0
        self.seen: Counter[str] = Counter()
        """Rows by raw label."""
        self.reasons: Counter[str] = Counter()
        """Rejected rows by reason."""
        self.dropped = 0
        """Rows of labels not asked for."""
        self._index = Index()
        self._pictures = PartWriter(self.folder, "part", SPOOL_SCHEMA)
        self._rejects = PartWriter(staging / "rejects", "part", REJECTS_SCHEMA)
        self._buffer: list[dict[str, Any]] = []
        self._buffer_bytes = 0

    def fill(self, source: Source, *, remote: bool, relabel: Votes | None = None) -> Rows:
        """Read the whole source.

        Args:
            source: the rows.
            remote: whether pictures are fetched over a network.
            relabel: votes whose majority takes the place of the source's label.

        Returns:
            The index of all rows of the classes asked for that could be decoded.
        """
        threads = REMOTE_THREADS if remote else max(2, os.cpu_count() or 2)
        records = source.records() if relabel is None else relabel.labelled(source.records())
        with progress("reading", source.total) as meter:
            for row in checked(self._asked(records), threads):
                self._take(row)
                meter.advance(self.read - meter.done)
        self._write_buffer()
        self._pictures.close()
        return self._index.finish()

    def _asked(self, records: Iterable[Record]) -> Iterator[Record]:
        """The rows of the classes asked for; no picture of the others is decoded, or even fetched."""
        for record in records:
            self.read += 1
            self.seen[record.label] += 1
            if not record.label:
                self.reject(record.id, "no_label", "the source gives it no label", "", record.source)
            elif self.labels.place(record.label) is None:
                self.dropped += 1
            else:
                yield record

    def _take(self, row: Checked) -> None:
        record, problem = row.record, row.problem
        place = self.labels.place(record.label)
        if problem is not None or place is None:
            reason, detail = (problem.reason, problem.detail) if problem else ("no_label", "")
            self.reject(record.id, reason, detail, record.label, record.source)
            return
        self._index.add(row.sha256, record.id, place, SPLITS.index(record.split) if record.split else -1)
        kept = (record.id, row.image, place, record.source, row.width, row.height)
        self._buffer.append(dict(zip(SPOOL_SCHEMA.names, kept, strict=True)))
        self._buffer_bytes += len(row.image)
        if len(self._buffer) >= 256 or self._buffer_bytes >= TASK_BYTES:
            self._write_buffer()

    def _write_buffer(self) -> None:
        self._pictures.write_rows(self._buffer)
        self._buffer, self._buffer_bytes = [], 0

    def reject(self, ident: str, reason: str, detail: str, label: str, source: str | None) -> None:
        """Note one row that cannot be used."""
        self.reasons[reason] += 1
        self._rejects.write_rows([dict(zip(REJECTS_SCHEMA.names, (ident, reason, detail, label, source), strict=True))])

    def end_rejects(self, rows: Rows, decision: Decision) -> None:
        """Reject the rows whose id another picture already has, and close the table of rejects."""
        for at in np.flatnonzero(decision.status == REPEATED_ID).tolist():
            label = self.labels.classes[int(rows.label[at])]
            self.reject(rows.ids[at].as_py(), "duplicate_id", "another picture has this id", label, None)
        self._rejects.close(empty=True)
