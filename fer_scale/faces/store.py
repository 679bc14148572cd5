"""The face store: labelled faces as Parquet with a manifest, written by ``ingest``, read by all else."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from fer_scale import storage
from fer_scale.errors import InputError
from fer_scale.faces.images import Preprocessing, prepare

if TYPE_CHECKING:
    import pyarrow.dataset as ds

SPLITS = ("train", "val", "calib", "test")
"""train fits weights; val stops, selects, sets the temperature; calib sets acceptance; test is reported."""

STORE_VERSION = 1
FACES_COLUMNS = ["id", "image", "label", "votes"]
TOGETHER = 64
"""Pictures that a thread decodes at a time: small ones take as long as handing one over does."""

STORE_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("image", pa.binary()),
        ("label", pa.string()),
        ("split", pa.string()),
        ("source", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("sha256", pa.string()),
        ("votes", pa.list_(pa.float32())),
    ]
)


@dataclass(frozen=True)
class Faces:
    """One split in memory."""

    images: npt.NDArray[np.uint8]
    """``[N, C, S, S]``"""
    labels: npt.NDArray[np.int64]
    """``[N]``, indices into the store's classes."""
    ids: list[str]
    votes: npt.NDArray[np.float32] | None = None
    """Annotators' votes by class, ``[N, K]``, zeros for a row without; None where no row has any."""

    def __len__(self) -> int:
        return len(self.labels)

    def rows(self, at: slice) -> "Faces":
        """A stretch of them, as views."""
        return Faces(self.images[at], self.labels[at], self.ids[at], None if self.votes is None else self.votes[at])


class Store:
    """A face store opened for reading."""

    def __init__(self, path: str, manifest: dict[str, Any]) -> None:
        self.path = path
        self.manifest = manifest
        self.classes: list[str] = list(manifest["classes"])
        self.fingerprint: str = manifest["fingerprint"]

    @classmethod
    def open(cls, path: str) -> "Store":
        """Open STORE by its manifest.

        Raises:
            InputError: nothing is there, it is not a face store, or it is of another version.
        """
        manifest_path = storage.join(path, "manifest.json")
        if not storage.exists(manifest_path):
            raise InputError(
                f"{path}",
                "a face store (a folder with manifest.json)",
                "make one with: fer-scale ingest SOURCE STORE",
            )
        manifest = storage.read_json(manifest_path)
        if not isinstance(manifest, dict) or manifest.get("version") != STORE_VERSION:
            found = manifest.get("version") if isinstance(manifest, dict) else type(manifest).__name__
            raise InputError(
                f"{manifest_path} of version {found}", f"version {STORE_VERSION}", "ingest the source again"
            )
        return cls(path, manifest)

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        """Rows by split and class."""
        counts: dict[str, dict[str, int]] = self.manifest["counts"]["splits"]
        return counts

    def rows(self, split: str) -> int:
        """Of one split."""
        return sum(self.counts.get(split, {}).values())

    def class_counts(self, split: str) -> list[int]:
        """Rows of each class of one split, in the order of the classes."""
        return [self.counts.get(split, {}).get(name, 0) for name in self.classes]

    def check(self, split: str) -> None:
        """Refuse a split that is not there or not whole, without reading it.

        Raises:
            InputError: the store has no such split (the line lists those it has), or is not whole.
        """
        expected = self.rows(split)
        if not expected:
            there = ", ".join(filter(self.rows, self.counts))
            raise InputError(f"split {split!r} of {self.path}", f"one of {there}", "name one of them")
        rows = self.dataset().count_rows(filter=pc.field("split") == split)
        if rows != expected:  # files of another store, or too few: what a replacement that broke off leaves
            raise InputError(
                f"{self.path} holds {rows:,} rows of {split}, not the {expected:,} of its manifest",
                "a whole face store",
                "ingest the source again with --overwrite",
            )

    def pictures(self, split: str, ids: list[str]) -> dict[str, bytes]:
        """The encoded pictures of some rows of a split, by id."""
        wanted = (pc.field("split") == split) & pc.field("id").isin(ids)
        found = self.dataset().to_table(columns=["id", "image"], filter=wanted)
        return dict(zip(found["id"].to_pylist(), found["image"].to_pylist(), strict=True))

    def dataset(self) -> "ds.Dataset":
        """Its Parquet files, unread."""
        import pyarrow.dataset as ds  # brings pandas, and who does not come here does without

        filesystem, inner = storage.filesystem(storage.join(self.path, "data"))
        return ds.dataset(inner, filesystem=filesystem, format="parquet", schema=STORE_SCHEMA)

    def faces(self, split: str, preprocessing: Preprocessing) -> Faces:
        """One split decoded into memory: ``N * C * S * S`` bytes.

        Raises:
            InputError: as `check`.
        """
        self.check(split)
        return self.decode(self._batches(split), self.rows(split), preprocessing)

    def parts(
        self, split: str, preprocessing: Preprocessing, rows: int = 4096, share: tuple[int, int] = (0, 1)
    ) -> Iterator[Faces]:
        """The same, in the same order, some rows at a time; with a ``share`` of (rank, workers) one worker's rows."""
        rank, workers = share
        for batch in self._batches(split, rows):
            mine = batch.take(pa.array(np.arange(rank, batch.num_rows, workers)))
            yield self.decode([mine], mine.num_rows, preprocessing)

    def _batches(self, split: str, rows: int = 4096) -> Iterator[pa.RecordBatch]:
        """A split as it is stored, at most a row group at a time, while the next one is read."""
        found = self.dataset().to_batches(
            columns=FACES_COLUMNS, filter=pc.field("split") == split, batch_size=rows, batch_readahead=1,
            fragment_readahead=1,
        )  # fmt: skip
        return (batch for batch in found if batch.num_rows)

    def decode(self, batches: Iterable[pa.RecordBatch], rows: int, preprocessing: Preprocessing) -> Faces:
        """So many rows with id, image, label and votes, decoded; as they are stored they are needed batch by batch."""
        index = {name: i for i, name in enumerate(self.classes)}
        images = np.empty((rows, preprocessing.channels, preprocessing.size, preprocessing.size), dtype=np.uint8)
        ids: list[str] = []
        labels: list[int] = []
        votes: list[list[float] | None] = []
        with ThreadPoolExecutor() as pool:
            for batch in batches:

                def fill(start: int, stored: pa.Array = batch["image"], first: int = len(ids)) -> None:
                    for at, data in enumerate(stored.slice(start, TOGETHER).to_pylist(), first + start):
                        images[at] = prepare(data, preprocessing)

                list(pool.map(fill, range(0, batch.num_rows, TOGETHER)))
                ids += batch["id"].to_pylist()
                labels += [index[name] for name in batch["label"].to_pylist()]
                votes += batch["votes"].to_pylist()
        return Faces(images, np.array(labels, dtype=np.int64), ids, self._votes(votes))

    def _votes(self, found: list[list[float] | None]) -> npt.NDArray[np.float32] | None:
        """``[N, K]``; older stores have none."""
        if all(votes is None for votes in found):
            return None
        nothing = [0.0] * len(self.classes)
        return np.array([nothing if votes is None else votes for votes in found], dtype=np.float32)
