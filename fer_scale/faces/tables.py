"""Sources that are tables: Parquet with mapped columns, fer2013.csv, any CSV of pixels or picture paths."""

import csv
import io
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from fer_scale import storage
from fer_scale.errors import InputError
from fer_scale.faces.images import MAX_BYTES, ImageError, too_large
from fer_scale.faces.records import FER2013_LABELS, Columns, Record, is_pixel_text, png_of_pixel_text

BATCH_ROWS = 256
BATCH_BYTES = 8 * 2**20
BUFFER_BYTES = 2**20
"""Read at a time from a column: without it, Arrow holds the column's whole row group."""
MAX_CELL = 64 * 2**20
"""Characters in one CSV cell: above it the file is refused."""


class ParquetSource:
    """Parquet files with one mapping of columns for all of them.

    Files that lack a mapped column are left out with a remark; where all lack one it is an `InputError`.
    """

    def __init__(self, root: str, names: list[str], columns: Columns) -> None:
        """``names`` are relative to the folder ``root``."""
        self.root = root
        self.columns = columns
        self.remarks: list[str] = []
        self.total: int | None = 0
        self._wanted = [c for c in (columns.image, columns.label, columns.id, columns.split) if c is not None]
        self._names = [name for name in names if self._usable(name)]
        if not self._names:
            raise InputError(
                f"{self.remarks[0] if self.remarks else root}",
                f"the columns {', '.join(self._wanted)}",
                "name yours with --image-column, --label-column, --id-column, --split-column",
            )

    def _usable(self, name: str) -> bool:
        with self._open(name) as file:
            there = file.schema_arrow.names
            missing = [column for column in self._wanted if column not in there]
            if missing:
                self.remarks.append(
                    f"{name} has no column {', '.join(missing)} (it has {', '.join(there)}) and is left out"
                )
                return False
            kind = file.schema_arrow.field(self.columns.image).type
            if _reader_of(kind) is None:
                raise InputError(
                    f"column {self.columns.image!r} of {name} is {kind}",
                    "encoded pictures (binary), pixel text, paths, or a struct with bytes",
                    "name the picture column with --image-column",
                )
            for column in (self.columns.label, self.columns.split):
                kind = None if column is None else file.schema_arrow.field(column).type
                if kind is not None and pa.types.is_nested(kind):
                    raise InputError(
                        f"column {column!r} of {name} is {kind}",
                        "one text or number a row",
                        "name another with --label-column or --split-column",
                    )
            if self.columns.split is None and "split" in there:
                self.remarks.append(f"{name} has a column 'split' that is not used; --split-column split uses it")
            self.total = (self.total or 0) + file.metadata.num_rows
        return True

    def _open(self, name: str) -> pq.ParquetFile:
        path = storage.join(self.root, name)
        try:
            return pq.ParquetFile(storage.open_input(path), pre_buffer=False, buffer_size=BUFFER_BYTES)
        except (pa.ArrowException, OSError) as error:
            raise _damaged(path, error) from error

    def _batches(self, name: str, file: pq.ParquetFile, rows: int, columns: list[str]) -> Iterator[pa.RecordBatch]:
        try:
            yield from file.iter_batches(batch_size=rows, columns=columns)
        except (pa.ArrowException, OSError) as error:  # a page may be damaged where the footer is sound
            raise _damaged(storage.join(self.root, name), error) from error

    def labels(self) -> Counter[str]:
        """Rows by raw label, from the label column alone; split names are checked on the way.

        Raises:
            InputError: a split name that is not known.
        """
        counts: Counter[str] = Counter()
        for name in self._names:
            with self._open(name) as file:
                wanted = [c for c in (self.columns.label, self.columns.split) if c is not None]
                for batch in self._batches(name, file, 65536, wanted):
                    counts.update(
                        {_text(v["values"]): v["counts"] for v in batch[self.columns.label].value_counts().to_pylist()}
                    )
                    if self.columns.split is not None:
                        for value in batch[self.columns.split].unique().to_pylist():
                            self.columns.split_of_cell(value, f"column {self.columns.split!r} of {name}")
        return counts

    def records(self) -> Iterator[Record]:
        """All rows, file by file, `BATCH_ROWS` or `BATCH_BYTES` at a time in memory."""
        columns = self.columns
        for name in self._names:
            row = 0
            folder = storage.join(self.root, name).rpartition("/")[0]
            with self._open(name) as file:
                read = _reader_of(file.schema_arrow.field(columns.image).type) or _bytes_of
                for batch in self._batches(name, file, batch_rows(file), self._wanted):
                    for cells in batch.to_pylist():
                        value = None if columns.id is None else cells[columns.id]
                        given = "" if value is None else str(value)
                        payload = read(cells[columns.image], folder)
                        yield Record(
                            id=given or f"{name}#{row}",
                            payload=payload,
                            label=_text(cells[columns.label]),
                            split="" if columns.split is None else columns.split_of_cell(cells[columns.split], name),
                            source=name,
                            size=len(payload) if isinstance(payload, bytes) else 0,
                        )
                        row += 1


def _damaged(path: str, error: Exception) -> InputError:
    return InputError(f"{path} ({str(error)[:120]})", "a sound Parquet file", "check or remove the file")


def batch_rows(file: pq.ParquetFile) -> int:
    """Rows that make about `BATCH_BYTES` by the file's own account, `BATCH_ROWS` at most."""
    groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
    widest = max((group.total_byte_size // max(group.num_rows, 1) for group in groups), default=1)
    return min(BATCH_ROWS, max(1, BATCH_BYTES // max(widest, 1)))


ENCODED = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view, pa.types.is_fixed_size_binary)
TEXT = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
"""Pixels as text, or paths."""
Reader = Callable[[Any, str], bytes | Callable[[], bytes]]


def _reader_of(kind: pa.DataType) -> Reader | None:
    if any(check(kind) for check in ENCODED):
        return _bytes_of
    if any(check(kind) for check in TEXT):
        return text_payload
    if is_struct_of_bytes(kind):
        return _bytes_of_struct
    return None


def is_struct_of_bytes(kind: pa.DataType) -> bool:
    """As the pictures of Hugging Face's datasets are."""
    return bool(pa.types.is_struct(kind)) and kind.get_field_index("bytes") >= 0


def _bytes_of(value: bytes | None, folder: str) -> bytes:
    return value or b""


def _bytes_of_struct(value: dict[str, Any] | None, folder: str) -> bytes:
    return (value or {}).get("bytes") or b""


def text_payload(value: str | None, folder: str) -> bytes | Callable[[], bytes]:
    """A text cell: pixels, or the path of a picture, relative to the table's folder."""
    if not value or not value.strip():
        return b""
    if is_pixel_text(value):
        return partial(png_of_pixel_text, value)
    absolute = "://" in value or value.startswith("/")
    return partial(read_picture, value if absolute else storage.join(folder, value))


def read_picture(path: str, size: int = 0) -> bytes:
    """The bytes of one picture file, up to the limit.

    Args:
        path: local or s3://.
        size: as it was listed; one that is too large is not asked for.

    Raises:
        ImageError: it cannot be read, or is too large; the cause says why.
        InputError: nothing can be read any more (no network, no credentials).
    """
    if size > MAX_BYTES:
        raise too_large(size)
    try:
        data = storage.read_bytes(path, MAX_BYTES + 1)  # a manifest may say anything
    except InputError as error:
        if storage.is_outage(error):
            raise
        raise ImageError("unreadable", str(error)[:200]) from error
    except (OSError, ValueError) as error:  # a cell may hold anything: a name that is too long, one with a NUL
        raise ImageError("unreadable", f"{type(error).__name__}: {error}"[:200]) from error
    if len(data) > MAX_BYTES:
        raise ImageError("too_large", f"more than {MAX_BYTES:,} bytes, which is the limit")
    return data


OpenText = Callable[[str], AbstractContextManager[io.TextIOWrapper]]


class CsvSource:
    """CSV files: fer2013.csv (emotion, pixels, Usage), or the mapped columns with pixels or picture paths."""

    def __init__(self, names: list[str], open_text: OpenText, folder: str, columns: Columns):
        """``open_text(name)`` opens one of ``names``; ``folder`` is where relative picture paths start."""
        self.columns = columns
        self.remarks: list[str] = []
        self.total: int | None = None
        self._names = names
        self._open = open_text
        self._folder = folder

    def labels(self) -> None:
        """Not known ahead: a CSV is read once."""
        return None

    def records(self) -> Iterator[Record]:
        """All rows, one at a time in memory.

        Raises:
            InputError: a column is missing, a split name is not known, or the file is no CSV.
        """
        csv.field_size_limit(MAX_CELL)
        for name in self._names:
            with self._open(name) as text:
                rows = csv.reader(text)
                try:
                    yield from self._rows(rows, name)
                except (csv.Error, UnicodeDecodeError) as error:
                    raise InputError(
                        f"{name}, line {rows.line_num} ({error})",
                        "CSV text in UTF-8",
                        "mend or convert the file",
                    ) from None

    def _rows(self, rows: Iterator[list[str]], name: str) -> Iterator[Record]:
        columns = self.columns
        header = [cell.strip() for cell in next(rows, [])]
        image = self._find(header, columns.image, "image", "pixels", name)
        label = self._find(header, columns.label, "label", "emotion", name)
        numbered = header[label].lower() == "emotion"
        ident = None if columns.id is None else self._find(header, columns.id, None, None, name)
        if columns.split is not None:
            split: int | None = self._find(header, columns.split, None, None, name)
        else:
            split = next((i for i, cell in enumerate(header) if cell.lower() == "usage"), None)
        for number, row in enumerate(row for row in rows if row):
            cells = row + [""] * (len(header) - len(row))
            given = cells[label].strip()
            if numbered and given.isdecimal() and int(given) < len(FER2013_LABELS):
                given = FER2013_LABELS[int(given)]
            yield Record(
                id=(cells[ident].strip() if ident is not None else "") or f"{name}#{number}",
                payload=text_payload(cells[image], self._folder),
                label=given,
                split="" if split is None else columns.split_of_cell(cells[split], f"column {header[split]!r}"),
                source=name,
                size=len(cells[image]),
            )

    @staticmethod
    def _find(header: list[str], wanted: str, default: str | None, other: str | None, name: str) -> int:
        """Where a column is: by its name, or by FER2013's name for a default."""
        at = find_column(header, wanted, *([other] if other and wanted == default else []))
        if at is not None:
            return at
        raise InputError(
            f"{name} has no column {wanted} (it has {', '.join(header)[:200] or 'no header'})",
            "fer2013.csv's emotion, pixels, Usage, or the columns named",
            "name yours with --image-column, --label-column, --id-column, --split-column",
        )


def find_column(header: Sequence[str], *names: str) -> int | None:
    """Where the first of these columns is that is there, by its name or by its name in another case."""
    lower = [cell.lower() for cell in header]
    for name in names:
        if name in header:
            return header.index(name)
        if name.lower() in lower:
            return lower.index(name.lower())
    return None


def _text(value: object) -> str:
    return "" if value is None else str(value).strip()
