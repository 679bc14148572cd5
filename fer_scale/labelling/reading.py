"""The images of one work unit, encoded, one after the other."""

import csv
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from typing import Any

import pyarrow as pa

from fer_scale import storage
from fer_scale.errors import MissingPathError
from fer_scale.faces.images import MAX_BYTES, ImageError, too_large
from fer_scale.faces.tables import read_picture, text_payload
from fer_scale.labelling.tables import csv_rows, open_parquet
from fer_scale.labelling.units import Item, Unit

Payload = Callable[[], bytes]
"""Gives the encoded bytes when it is called, maybe in another thread; raises `ImageError`."""

ROWS = 128


class Reader:
    """Reads units; keeps the last zip archive open, whose directory is long to read.

    Args:
        image_column, id_column: of tables.
    """

    def __init__(self, image_column: str, id_column: str | None) -> None:
        self._image = image_column
        self._id = id_column
        self._zip: tuple[str, zipfile.ZipFile] | None = None

    def read(self, unit: Unit) -> Iterator[tuple[str, Payload]]:
        """``(id, payload)`` of every image of the unit, in its order: as many as it has, whatever breaks."""
        if unit.kind == "files":
            for item in unit.items:
                yield item.id, partial(_file, unit.path + item.name, item)
        elif unit.kind in ("parquet", "csv"):
            yield from self._table(unit)
        elif unit.kind == "zip":
            yield from self._members(unit, self._open_zip(unit))
        elif unit.kind == "tar":
            with storage.open_input(unit.path) as data:
                for item in unit.items:
                    yield (
                        item.id,
                        partial(bytes, _at(data, item)) if item.size <= MAX_BYTES else _too_large(item),
                    )
        elif unit.kind == "stream":
            yield from _stream(unit)
        else:
            for item in unit.items:
                yield item.id, _failing("unreadable", item.version)

    def _table(self, unit: Unit) -> Iterator[tuple[str, Payload]]:
        folder = unit.path.rpartition("/")[0]
        rows = self._parquet_rows(unit) if unit.kind == "parquet" else self._csv_rows(unit)
        at = unit.start
        try:
            for given, cell in islice(rows, unit.size):
                yield given or f"{unit.name}#{at}", _cell(cell, folder)
                at += 1
        except (pa.ArrowException, OSError, csv.Error, UnicodeDecodeError) as error:
            reason = f"{type(error).__name__}: {error}"[:200]
        else:
            reason = "the file ended before this row"
        for row in range(at, unit.stop):
            yield f"{unit.name}#{row}", _failing("unreadable", reason)

    def _parquet_rows(self, unit: Unit) -> Iterator[tuple[str, Any]]:
        columns = [self._image, *([self._id] if self._id else [])]
        with open_parquet(unit.path) as table:
            groups: list[int] = []
            first = begin = 0
            for index in range(table.metadata.num_row_groups):
                stop = begin + table.metadata.row_group(index).num_rows
                if stop > unit.start and begin < unit.stop:
                    first = begin if not groups else first
                    groups.append(index)
                begin = stop
            skip, wanted = unit.start - first, unit.size
            for batch in table.iter_batches(batch_size=ROWS, row_groups=groups, columns=columns):
                here = batch.slice(skip, wanted)
                skip = max(0, skip - batch.num_rows)
                wanted -= here.num_rows
                images = here.column(self._image).to_pylist()
                ids = here.column(self._id).to_pylist() if self._id else [None] * len(images)
                for given, image in zip(ids, images, strict=True):
                    yield "" if given is None else str(given), image
                if not wanted:
                    return

    def _csv_rows(self, unit: Unit) -> Iterator[tuple[str, Any]]:
        return islice(csv_rows(unit.path, self._image, self._id), unit.start, unit.stop)

    def _open_zip(self, unit: Unit) -> zipfile.ZipFile:
        name = f"{unit.path}\0{unit.version}"
        if self._zip is None or self._zip[0] != name:
            self._zip = (name, zipfile.ZipFile(storage.open_input(unit.path)))
        return self._zip[1]

    def _members(self, unit: Unit, archive: zipfile.ZipFile) -> Iterator[tuple[str, Payload]]:
        for item in unit.items:
            if item.size > MAX_BYTES:
                yield item.id, _too_large(item)
                continue
            try:
                with archive.open(item.name) as member:
                    data = member.read(MAX_BYTES + 1)
            except Exception as error:  # an archive's decoder may raise anything at all on hostile bytes
                yield item.id, _failing("unreadable", f"{type(error).__name__}: {error}"[:200])
            else:
                yield item.id, partial(bytes, data)


def _file(path: str, item: Item) -> bytes:
    try:
        return read_picture(path, item.size or None)  # a manifest need not say the size
    except ImageError as error:
        if isinstance(error.__cause__, MissingPathError):
            raise ImageError("missing", "there is no such file, or it was removed after it was listed") from None
        raise


def _cell(value: Any, folder: str) -> Payload:
    if isinstance(value, dict):
        value = value.get("bytes")
    if value is None:
        return _failing("empty", "no value in the picture column")
    payload = text_payload(value, folder) if isinstance(value, str) else bytes(value)
    return payload if callable(payload) else partial(bytes, payload)


def _at(data: pa.NativeFile, item: Item) -> bytes:
    data.seek(int(item.version))
    read: bytes = data.read(item.size)
    return read


def _stream(unit: Unit) -> Iterator[tuple[str, Payload]]:
    """Members of a compressed tar; of several of one name the last one counts, as it does in the unit."""
    left = {(item.name, item.version): item for item in unit.items}
    try:
        with storage.open_input(unit.path) as data, tarfile.open(fileobj=data, mode="r|*") as archive:
            for member in archive if left else ():
                item = left.pop((member.name, str(member.offset_data)), None)
                if item is None:
                    continue
                file = archive.extractfile(member) if item.size <= MAX_BYTES else None
                yield item.id, _too_large(item) if file is None else partial(bytes, file.read())
                if not left:
                    break
    except (tarfile.TarError, OSError, EOFError) as error:
        reason = f"{type(error).__name__}: {error}"[:200]
    else:
        reason = "the archive ended before this member"
    for item in left.values():
        yield item.id, _failing("unreadable", reason)


def _failing(reason: str, detail: str) -> Payload:
    def fail() -> bytes:
        raise ImageError(reason, detail)

    return fail


def _too_large(item: Item) -> Payload:
    def fail() -> bytes:
        raise too_large(item.size)

    return fail
