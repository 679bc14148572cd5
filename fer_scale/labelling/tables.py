"""Tables with a column of pictures: opened, checked, and read row by row."""

import csv
import io
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from fer_scale import storage
from fer_scale.errors import InputError
from fer_scale.faces.tables import ENCODED, MAX_CELL, TEXT, find_column, is_struct_of_bytes

if TYPE_CHECKING:
    import pandas as pd

GROWTH = 2**22
"""Hashes of ids for which room is made at a time, 32 MiB."""


class NoColumnError(Exception):
    """A table lacks a column that was named."""


def open_parquet(path: str) -> pq.ParquetFile:
    """A Parquet file that is read piece by piece, not ahead into memory."""
    return pq.ParquetFile(storage.open_input(path), pre_buffer=False, buffer_size=1 << 20)


def picture_column(schema: pa.Schema, image_column: str, id_column: str | None) -> pa.DataType:
    """The type of the picture column, when a picture can be made of it."""
    for column in (image_column, id_column):
        if column is not None and column not in schema.names:
            raise NoColumnError(f"there is no column {column!r}, only {', '.join(schema.names)}")
    kind = schema.field(image_column).type
    if is_struct_of_bytes(kind) or any(check(kind) for check in (*ENCODED, *TEXT)):
        return kind
    raise NoColumnError(f"column {image_column!r} is {kind}, not encoded pictures, pixel text or paths")


def cells(column: pa.Array) -> list[Any]:
    """The values; text that is no UTF-8 is written as `csv_rows` does."""
    try:
        values: list[Any] = column.to_pylist()
    except UnicodeDecodeError:
        raw = [value.as_buffer() for value in column]
        values = [None if data is None else data.to_pybytes().decode(errors="backslashreplace") for data in raw]
    return values


def csv_rows(path: str, image_column: str, id_column: str | None) -> Iterator[tuple[str, str]]:
    """``(id or "", picture cell)`` of every row; fer2013.csv's ``pixels`` stands in for a column ``image``."""
    csv.field_size_limit(MAX_CELL)
    with storage.open_input(path) as data:
        # A byte that is no UTF-8 is a flaw of its cell, not of the file.
        rows = csv.reader(io.TextIOWrapper(data, encoding="utf-8-sig", errors="backslashreplace", newline=""))
        header = [cell.strip() for cell in next(rows, [])]

        def at(*names: str) -> int:
            found = find_column(header, *names)
            if found is None:
                raise NoColumnError(f"there is no column {names[0]!r}, only {', '.join(header)}"[:300])
            return found

        image = at(image_column, *(["pixels"] if image_column == "image" else []))
        ident = None if id_column is None else at(id_column)
        for row in rows:
            if row:
                cells = row + [""] * (len(header) - len(row))
                yield ("" if ident is None else cells[ident].strip()), cells[image]


def check_unique(batches: Callable[[], Iterator["pd.Series[str]"]], where: str) -> None:
    """Refuse ids that stand twice; 8 bytes an id in memory.

    Args:
        batches: gives all ids; called again to name the one that stands twice.

    Raises:
        InputError: an id stands twice.
    """
    import pandas as pd  # here alone: the actors, which load this module too, do without

    suspects = _twice(pd.util.hash_pandas_object(ids, index=False).to_numpy() for ids in batches())
    seen: set[str] = set()
    for ids in batches() if suspects else ():
        for value in ids[pd.util.hash_pandas_object(ids, index=False).isin(suspects)]:
            if value in seen:
                raise repeated(value, where)
            seen.add(value)


def repeated(value: str, where: str) -> InputError:
    """Says that an id stands twice."""
    return InputError(
        f"id {value!r} stands more than once in {where}",
        "an id of its own for every row",
        "name another column with --id-column, or remove the second",
    )


def _twice(pieces: Iterable[npt.NDArray[Any]]) -> set[int]:
    """Hashes that stand more than once."""
    every, count = np.zeros(0, dtype=np.uint64), 0
    for piece in pieces:
        if count + len(piece) > len(every):
            every.resize(count + len(piece) + GROWTH, refcheck=False)  # of many pages, which are moved, not copied
        every[count : count + len(piece)] = piece
        count += len(piece)
    every.resize(count, refcheck=False)
    every.sort()
    found: set[int] = set()
    for start in range(0, count - 1, GROWTH):
        here = every[start : start + GROWTH + 1]
        found.update(here[1:][here[1:] == here[:-1]].tolist())
    return found
