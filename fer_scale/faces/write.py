"""Writing a face store: pictures to a spool while they are checked, then from it into their splits."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fer_scale.faces.index import CONFLICT, DUPLICATE, KEPT, Decision, Rows
from fer_scale.faces.shuffle import drawn, in_order
from fer_scale.faces.store import SPLITS, STORE_SCHEMA
from fer_scale.faces.votes import Votes

GROUP_ROWS = 1000
"""Rows in a row group: small enough that a store of some ten thousand faces can be read by many workers."""
GROUP_BYTES = 16 * 2**20
FILE_BYTES = 256 * 2**20

SPOOL_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("image", pa.binary()),
        ("label", pa.int32()),
        ("source", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
    ]
)
REJECTS_SCHEMA = pa.schema([(name, pa.string()) for name in ("id", "reason", "detail", "label", "source")])
SET_ASIDE_SCHEMA = pa.schema([(name, pa.string()) for name in ("id", "reason", "detail", "label", "split", "sha256")])


class PartWriter:
    """Rows into ``<folder>/<stem>-00000.parquet`` and on, with row groups and files of bounded size."""

    def __init__(self, folder: Path, stem: str, schema: pa.Schema) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._stem, self._schema = folder, stem, schema
        self._writer: pq.ParquetWriter | None = None
        self._tables: list[pa.Table] = []
        self._waiting_rows = self._waiting_bytes = self._file_bytes = self._files = 0

    def write(self, table: pa.Table) -> None:
        """Take rows of the schema; they reach the disk a row group at a time."""
        while table.num_rows:
            room = (GROUP_BYTES - self._waiting_bytes) * table.num_rows // max(table.nbytes, 1)
            step = max(1, min(GROUP_ROWS - self._waiting_rows, room))
            part, table = table.slice(0, step), table.slice(step)
            self._tables.append(part)
            self._waiting_rows += part.num_rows
            self._waiting_bytes += part.nbytes
            if self._waiting_rows >= GROUP_ROWS or self._waiting_bytes >= GROUP_BYTES:
                self._flush()

    def write_rows(self, rows: list[dict[str, Any]]) -> None:
        """The same for rows as dicts."""
        self.write(pa.Table.from_pylist(rows, schema=self._schema))

    def _flush(self) -> None:
        if self._writer is None:
            plain = {name: "none" if name == "image" else "zstd" for name in self._schema.names}
            repeated = [name for name in ("label", "split", "source", "reason") if name in self._schema.names]
            path = self._folder / f"{self._stem}-{self._files:05d}.parquet"
            self._writer = pq.ParquetWriter(path, self._schema, compression=plain, use_dictionary=repeated)
            self._files += 1
        if self._tables:
            self._writer.write_table(pa.concat_tables(self._tables), row_group_size=GROUP_ROWS)
        self._file_bytes += self._waiting_bytes
        self._tables, self._waiting_rows, self._waiting_bytes = [], 0, 0
        if self._file_bytes >= FILE_BYTES:
            self._end_file()

    def _end_file(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._writer, self._file_bytes = None, 0

    def close(self, empty: bool = False) -> None:
        """Write what waits; with ``empty`` there is a file even for no rows."""
        if self._tables or (empty and not self._files):
            self._flush()
        self._end_file()


def write_data(
    spool: Path, data: Path, rows: Rows, decision: Decision, classes: list[str], votes: Votes | None, seed: int
) -> dict[str, Any]:
    """The kept rows from the spool (which holds all rows, in order) into ``data/<split>-*.parquet``; empties the spool.

    Their order there is drawn, by seed and id: the source's is mostly class by class, and a streamed fit, which reads
    some row groups at a time, would see one class for a while and then another.

    Returns:
        counts by split and class, and the range of widths and heights.
    """
    counts = {split: dict.fromkeys(classes, 0) for split in SPLITS}
    low, high = np.full(2, np.iinfo(np.int32).max), np.zeros(2, dtype=np.int64)
    writers: dict[int, PartWriter] = {}
    size = sum(path.stat().st_size for path in spool.glob("*.parquet"))
    for table in in_order(_kept(spool, decision, seed), size, spool / "shuffle"):
        found = np.asarray(table["row"])
        for split in np.unique(decision.split[found]).tolist():
            local = np.flatnonzero(decision.split[found] == split)
            if split not in writers:
                writers[split] = PartWriter(data, SPLITS[split], STORE_SCHEMA)
            part, at = table.take(pa.array(local)), found[local]
            writers[split].write(_store_table(part, SPLITS[split], rows.hex_of(at), classes, votes))
            for label, number in zip(*np.unique(rows.label[at], return_counts=True), strict=True):
                counts[SPLITS[split]][classes[label]] += int(number)
            sizes = np.stack([np.asarray(part["width"]), np.asarray(part["height"])])
            low, high = np.minimum(low, sizes.min(axis=1)), np.maximum(high, sizes.max(axis=1))
    for writer in writers.values():
        writer.close()
    return {"splits": counts, "width": [int(low[0]), int(high[0])], "height": [int(low[1]), int(high[1])]}


def _kept(spool: Path, decision: Decision, seed: int) -> Iterator[pa.Table]:
    """The kept rows of the spool, each with its place among all rows and its draw."""
    start = 0
    for batch in _read(spool):
        local = np.flatnonzero(decision.status[start : start + batch.num_rows] == KEPT)
        part = pa.Table.from_batches([batch.take(pa.array(local))])
        yield part.append_column("row", pa.array(start + local)).append_column("draw", drawn(part["id"], seed))
        start += batch.num_rows


def _read(spool: Path) -> Iterator[pa.RecordBatch]:
    """The spool's rows; a file that was read is removed, so that no picture is on disk twice."""
    for path in sorted(spool.glob("*.parquet")):
        with pq.ParquetFile(path, pre_buffer=False) as file:
            for group in range(file.num_row_groups):
                yield from file.read_row_group(group, use_threads=False).combine_chunks().to_batches()
        path.unlink()


def _store_table(part: pa.Table, split: str, sha256: pa.Array, classes: list[str], votes: Votes | None) -> pa.Table:
    columns = {
        "id": part["id"],
        "image": part["image"],
        "label": pa.array(classes, pa.string()).take(part["label"]),
        "split": pa.array([split] * part.num_rows, pa.string()),
        "source": part["source"],
        "width": part["width"],
        "height": part["height"],
        "sha256": sha256,
        "votes": pa.array([votes and votes.of(ident) for ident in part["id"].to_pylist()], pa.list_(pa.float32())),
    }
    return pa.table([columns[name] for name in STORE_SCHEMA.names], schema=STORE_SCHEMA)


def write_set_aside(folder: Path, rows: Rows, decision: Decision, classes: list[str]) -> None:
    """Duplicates and conflicts, each with the reason and, for a duplicate, the row kept in its place."""
    writer = PartWriter(folder, "part", SET_ASIDE_SCHEMA)
    aside = np.flatnonzero(np.isin(decision.status, (DUPLICATE, CONFLICT)))
    for start in range(0, len(aside), GROUP_ROWS):
        at = aside[start : start + GROUP_ROWS]
        duplicate = decision.status[at] == DUPLICATE
        instead = rows.ids.take(pa.array(decision.kept_as[at])).to_pylist()
        columns = [
            rows.ids.take(pa.array(at)).cast(pa.string()),
            pa.array(np.where(duplicate, "duplicate", "conflict").tolist(), pa.string()),
            pa.array(
                [
                    f"same pixels as {other}, which is kept" if same else "same pixels with another label"
                    for same, other in zip(duplicate, instead, strict=True)
                ],
                pa.string(),
            ),
            pa.array([classes[i] for i in rows.label[at]], pa.string()),
            pa.array([SPLITS[i] if i >= 0 else None for i in rows.given[at]], pa.string()),
            rows.hex_of(at),
        ]
        writer.write(pa.table(columns, schema=SET_ASIDE_SCHEMA))
    writer.close(empty=True)
