"""The images of one work unit, encoded, one after the other."""

import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import IO, Any

from fer_scale import storage
from fer_scale.errors import InputError, MissingPathError
from fer_scale.faces.archives import Header
from fer_scale.faces.images import MAX_BYTES, ImageError, too_large
from fer_scale.faces.tables import batch_rows, read_picture, text_payload
from fer_scale.labelling.tables import cells, csv_rows, open_parquet
from fer_scale.labelling.units import Item, Unit

Payload = Callable[[], bytes]
"""Gives the encoded bytes when it is called, maybe in another thread; raises `ImageError`."""

ROWS = 128


@dataclass(frozen=True, slots=True)
class Held:
    """A payload that is in memory already."""

    data: bytes

    def __call__(self) -> bytes:
        return self.data


def fault(error: Exception) -> ImageError:
    """The error row of what stands in a file that cannot be read; an outage is not the file's fault and goes on up."""
    if isinstance(error, InputError) and storage.is_outage(error):
        raise error
    if isinstance(error, MissingPathError):
        return ImageError("missing", "there is no such file, or it was removed after it was listed")
    return ImageError("unreadable", f"{type(error).__name__}: {error}"[:200])


@contextmanager
def open_tar(path: str) -> Iterator[tarfile.TarFile]:
    """An archive, plain or compressed, of which a damaged header is an error."""
    mode = "r:" if path.lower().endswith(".tar") else "r|*"
    with storage.open_input(path) as data, tarfile.open(fileobj=data, mode=mode, tarinfo=Header) as archive:  # type: ignore[call-overload]
        yield archive


class Reader:
    """Reads units; keeps the last zip archive of each thread open, whose directory is long to read.

    Args:
        image_column, id_column: of tables.
    """

    def __init__(self, image_column: str, id_column: str | None) -> None:
        self._image = image_column
        self._id = id_column
        self._last = threading.local()  # two threads in one file would each make the other's buffer void

    def read(self, unit: Unit) -> Iterator[tuple[str, Payload]]:
        """``(id, payload)`` of every image of the unit, in its order: as many as it has, whatever breaks.

        Raises:
            InputError: nothing can be read any more (no network, no credentials).
        """
        if unit.kind == "files":
            for item in unit.items:
                yield item.id, partial(_file, unit.path + item.name, item)
        elif unit.kind in ("parquet", "csv"):
            yield from self._table(unit)
        elif unit.kind in ("zip", "tar"):
            yield from self._members(unit)
        elif unit.kind == "stream":
            yield from _stream(unit)
        else:
            for item in unit.items:
                yield item.id, _failing(ImageError("unreadable", item.version))

    def _table(self, unit: Unit) -> Iterator[tuple[str, Payload]]:
        folder = unit.path.rpartition("/")[0]
        rows = self._parquet_rows(unit) if unit.kind == "parquet" else self._csv_rows(unit)
        at = unit.start
        try:
            for given, cell in islice(rows, unit.size):
                yield given or f"{unit.name}#{at}", _payload(cell, folder)
                at += 1
        except Exception as error:  # what reads a table or an archive may raise anything at all on hostile bytes
            why = fault(error)
        else:
            why = ImageError("unreadable", "the file ended before this row")
        for row in range(at, unit.stop):
            yield f"{unit.name}#{row}", _failing(why)

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
            rows = min(ROWS, batch_rows(table))
            for batch in table.iter_batches(batch_size=rows, row_groups=groups, columns=columns):
                here = batch.slice(skip, wanted)
                skip = max(0, skip - batch.num_rows)
                wanted -= here.num_rows
                images = cells(here.column(self._image))
                ids = cells(here.column(self._id)) if self._id else [None] * len(images)
                for given, image in zip(ids, images, strict=True):
                    yield "" if given is None else str(given), image
                if not wanted:
                    return

    def _csv_rows(self, unit: Unit) -> Iterator[tuple[str, Any]]:
        return islice(csv_rows(unit.path, self._image, self._id), unit.start, unit.stop)

    def _members(self, unit: Unit) -> Iterator[tuple[str, Payload]]:
        try:
            if unit.kind == "zip":
                read = partial(_unpacked, self._open_zip(unit))
            else:
                read = partial(_at, storage.open_input(unit.path))
        except Exception as error:  # as above
            why = fault(error)
            yield from ((item.id, _failing(why)) for item in unit.items)
            return
        for item in unit.items:
            try:
                yield item.id, Held(read(item)) if item.size <= MAX_BYTES else _failing(too_large(item.size))
            except Exception as error:  # as above
                yield item.id, _failing(fault(error))

    def _open_zip(self, unit: Unit) -> zipfile.ZipFile:
        name = f"{unit.path}\0{unit.version}"
        if getattr(self._last, "name", None) != name:
            self._last.zip, self._last.name = zipfile.ZipFile(storage.open_input(unit.path)), name
        archive: zipfile.ZipFile = self._last.zip
        return archive


def _file(path: str, item: Item) -> bytes:
    try:
        return read_picture(path, item.size)
    except ImageError as error:
        if isinstance(error.__cause__, MissingPathError):
            raise fault(error.__cause__) from None
        raise


def _payload(cell: Any, folder: str) -> Payload:
    """Of a cell, whose fault is no other row's."""
    try:
        value = cell.get("bytes") if isinstance(cell, dict) else cell
        if value is None:
            return _failing(ImageError("empty", "no value in the picture column"))
        if not isinstance(value, str | bytes):
            return _failing(ImageError("unreadable", f"a {type(value).__name__} in the picture column"))
        payload = text_payload(value, folder) if isinstance(value, str) else value
        return partial(_called, payload) if callable(payload) else Held(payload)
    except Exception as error:  # as in `Reader`
        return _failing(fault(error))


def _called(payload: Payload) -> bytes:
    try:
        return payload()
    except (ImageError, InputError):
        raise
    except Exception as error:  # as in `Reader`
        raise fault(error) from error


def _unpacked(archive: zipfile.ZipFile, item: Item) -> bytes:
    with archive.open(item.name) as member:
        return member.read(MAX_BYTES + 1)


def _at(data: IO[bytes], item: Item) -> bytes:
    if not item.version.isdecimal():
        raise MissingPathError(item.version)
    data.seek(int(item.version))
    return data.read(item.size)


def _stream(unit: Unit) -> Iterator[tuple[str, Payload]]:
    """Members of a compressed tar; of several of one name the last one counts, as it does in the unit."""
    left = {(item.name, item.version): item for item in unit.items}
    try:
        with open_tar(unit.path) as archive:
            for member in archive:
                archive.members = []  # type: ignore[attr-defined] # it would remember them all
                item = left.get((member.name, str(member.offset_data)))
                if item is None or not member.isreg():  # to what a link leads has gone by
                    continue
                file = archive.extractfile(member) if item.size <= MAX_BYTES else None
                payload = _failing(too_large(item.size)) if file is None else Held(file.read())
                del left[item.name, item.version]
                yield item.id, payload
                if not left:
                    return
    except Exception as error:  # as above
        why = fault(error)
    else:
        why = ImageError("unreadable", "a link, or the archive ended before this member")
    for item in left.values():
        yield item.id, _failing(why)


def _failing(error: ImageError) -> Payload:
    def fail() -> bytes:
        raise ImageError(error.reason, error.detail)

    return fail
