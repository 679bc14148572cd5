"""A split that does not fit into memory: its row groups in an order that seed and epoch decide, read window by window.

What a global batch holds depends on the seed and the step alone, as it does for faces in memory, so that a streamed
fit too can go on after a kill, with any number of workers.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from fer_scale import storage
from fer_scale.errors import InputError
from fer_scale.faces.images import Preprocessing
from fer_scale.faces.store import STORE_SCHEMA, Faces, Store

WINDOW_BYTES = 64 * 2**20
"""Of a window's faces, as they are stored or decoded, whichever is more: both are in memory when it is read."""


@dataclass(frozen=True)
class Group:
    """A row group."""

    path: str
    index: int
    rows: int
    bytes: int


class Windows:
    """One split as windows of whole global batches.

    Each epoch draws an order of the row groups; a window is a stretch of that order, and its rows are drawn too.
    Windows are numbered on from epoch to epoch.

    Args:
        store: where the faces lie.
        split: must be there.
        preprocessing: how they are decoded.
        batch_size: global.
        seed: of the order.
        window_bytes: of the faces of a window, about.

    Raises:
        InputError: the store is not whole.
    """

    def __init__(
        self,
        store: Store,
        split: str,
        preprocessing: Preprocessing,
        *,
        batch_size: int,
        seed: int,
        window_bytes: int = WINDOW_BYTES,
    ) -> None:
        self._store, self._split, self._preprocessing, self._seed = store, split, preprocessing, seed
        self._groups = _groups(store, split)
        self._rows = np.array([group.rows for group in self._groups])
        rows = int(self._rows.sum())
        self.size = min(batch_size, rows)
        self.steps_per_epoch = rows // self.size
        stored = sum(group.bytes for group in self._groups) // max(rows, 1)
        face = max(preprocessing.channels * preprocessing.size**2, stored)
        self.steps_per_window = max(1, min(window_bytes // (face * self.size), self.steps_per_epoch))
        """Of an epoch's last one it may be fewer."""
        self.per_epoch = -(-self.steps_per_epoch // self.steps_per_window)

    def at(self, step: int) -> tuple[int, int]:
        """The window of a step's global batch, and the batch's place within it."""
        epoch, step = divmod(step, self.steps_per_epoch)
        window, place = divmod(step, self.steps_per_window)
        return epoch * self.per_epoch + window, place

    def read(self, window: int, rank: int = 0, workers: int = 1) -> Faces:
        """The rows of a window that belong to one worker, decoded, batch after batch.

        Every batch has as many of them: those at ``rank``, ``rank + workers``, ... of the global batch.
        """
        table = self._table(window, ["id", "image", "label", "votes"])
        order = self._order(window, table.num_rows)
        mine = order.reshape(-1, self.size)[:, rank::workers].ravel()
        return self._store.decode(table.take(pa.array(mine)).to_batches(), len(mine), self._preprocessing)

    def ids(self, step: int) -> list[str]:
        """Which faces the global batch of a step holds."""
        window, place = self.at(step)
        table = self._table(window, ["id"])
        order = self._order(window, table.num_rows)
        return list(table["id"].take(pa.array(order[place * self.size : (place + 1) * self.size])).to_pylist())

    def _order(self, window: int, rows: int) -> npt.NDArray[np.int64]:
        epoch, within = divmod(window, self.per_epoch)
        drawn = np.random.default_rng((self._seed, epoch, 1, within)).permutation(rows)
        return drawn[: rows // self.size * self.size]

    def _table(self, window: int, columns: list[str]) -> pa.Table:
        epoch, within = divmod(window, self.per_epoch)
        first = within * self.steps_per_window * self.size
        last = min(first + self.steps_per_window * self.size, self.steps_per_epoch * self.size)
        return pa.concat_tables(self._pieces(epoch, first, last, columns)).combine_chunks()

    def _pieces(self, epoch: int, first: int, last: int, columns: list[str]) -> Iterator[pa.Table]:
        filesystem, _ = storage.filesystem(self._store.path)
        order = np.random.default_rng((self._seed, epoch, 0)).permutation(len(self._groups))
        ends = np.cumsum(self._rows[order])
        for place in range(int(np.searchsorted(ends, first, side="right")), len(order)):
            group = self._groups[order[place]]
            begin = int(ends[place]) - group.rows
            if begin >= last:
                break
            fragment = ds.ParquetFileFormat().make_fragment(group.path, filesystem, row_groups=[group.index])
            table = fragment.to_table(schema=STORE_SCHEMA, columns=columns, use_threads=False)
            yield table.slice(max(first - begin, 0), min(last, int(ends[place])) - max(first, begin))


def decoded_bytes(store: Store, inputs: Preprocessing) -> int:
    """Bytes of the splits that a fit keeps in memory, decoded."""
    rows = store.rows("train") + store.rows("val")
    return rows * inputs.channels * inputs.size**2


def _groups(store: Store, split: str) -> list[Group]:
    """The row groups of a split; ingest writes each split into files of its own."""
    here = pc.field("split") == split
    found = [
        Group(part.path, group.id, group.num_rows, group.total_byte_size)
        for fragment in store.dataset().get_fragments(filter=here)
        for part in fragment.split_by_row_group(filter=here)
        for group in part.row_groups
    ]
    rows, expected = sum(group.rows for group in found), store.rows(split)
    if rows != expected:
        raise InputError(
            f"{store.path} holds {rows:,} rows in the row groups of {split}, not the {expected:,} of its manifest",
            "a whole face store, with a split in files of its own",
            "ingest the source again with --overwrite",
        )
    return found
