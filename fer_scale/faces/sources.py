"""Any SOURCE as a stream of records: a folder, an archive, a CSV, a Parquet file or a folder of them."""

import io
import posixpath
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Protocol

from fer_scale import storage
from fer_scale.errors import InputError, MissingPathError
from fer_scale.faces.archives import TAR_ENDINGS, ZIP_ENDINGS, open_archive
from fer_scale.faces.folders import FolderSource, list_folder
from fer_scale.faces.records import Columns, Record
from fer_scale.faces.tables import CsvSource, ParquetSource

PARQUET_ENDINGS = (".parquet", ".pq")
ACCEPTED = "class folders, a zip or tar of them, a CSV, a Parquet file or a folder of Parquet files"


class Source(Protocol):
    """Labelled pictures, opened and checked as far as that is cheap."""

    total: int | None
    """Rows, where known ahead."""
    remarks: list[str]
    """What the user should know about what is left out."""

    def labels(self) -> Counter[str] | None:
        """Rows by raw label, where they can be counted without reading pictures."""

    def records(self) -> Iterator[Record]:
        """The rows, in an order that depends on the source's content alone."""


def open_source(source: storage.PathLike, columns: Columns, classes: Collection[str]) -> Source:
    """Find out what SOURCE is, and open it.

    Args:
        source: a local path or s3://.
        columns: how columns and split names map; class folders use the split names alone.
        classes: the classes asked for, to tell a class folder from a folder that only wraps others.

    Raises:
        InputError: nothing is there, it is empty, or it is nothing that ingest reads.
    """
    path = storage.normal(source)
    if storage.is_dir(path):
        return _open_folder(path, columns, classes)
    if not storage.exists(path):
        raise MissingPathError(f"there is no {path}", ACCEPTED)
    lower = path.lower()
    root, _, name = path.rpartition("/")
    if lower.endswith(PARQUET_ENDINGS):
        return ParquetSource(root, [name], columns)
    if lower.endswith(".csv"):
        return CsvSource([name], partial(_text_of, root), root, columns)
    if lower.endswith(ZIP_ENDINGS + TAR_ENDINGS):
        opened = open_archive(path, columns, classes)
        if opened.total == 0:
            raise InputError(f"{path} holds no pictures", ACCEPTED, "choose another source")
        return opened
    raise InputError(f"{path} is a {posixpath.splitext(name)[1] or 'nameless'} file", ACCEPTED, "choose another source")


def _open_folder(path: str, columns: Columns, classes: Collection[str]) -> Source:
    try:
        listing = list_folder(path)
    except MissingPathError:
        listing = None
    if listing is None or not listing.endings:
        raise InputError(f"{path} is empty", ACCEPTED, "choose another source")
    tables = [name for name, _ in listing if name.lower().endswith(PARQUET_ENDINGS)]
    if tables:
        source: Source = ParquetSource(path, tables, columns)
        others = sum(listing.endings.values()) - len(tables)
        if others:
            source.remarks.append(f"left out: {others} file(s) that are no Parquet")
        return source
    folder = FolderSource(path, listing, columns, classes)
    sheets = [name for name, _ in listing if name.lower().endswith(".csv")]
    if sheets and not folder.layout.has_class_folders(name for name, _ in listing):
        return CsvSource(sheets, partial(_text_of, path), path, columns)
    if set(folder.labels()) - {""}:
        return folder
    raise InputError(
        f"{path} has no class folders", ACCEPTED, "put the pictures of each class into a folder of its name"
    )


@contextmanager
def _text_of(root: str, name: str) -> Iterator[io.TextIOWrapper]:
    with (
        storage.open_input(storage.join(root, name)) as file,
        io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as text,
    ):
        yield text
