"""Manifests: tables whose rows name images by URI, S3 Inventory's lists among them."""

import csv
import gzip
import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote_plus

from fer_scale import storage
from fer_scale.errors import InputError
from fer_scale.faces.sources import PARQUET_ENDINGS
from fer_scale.labelling.tables import open_parquet
from fer_scale.labelling.units import Item

URI = "uri"
"""The column by which a table is taken for a manifest when it has no pictures."""
VERSION = ("etag", "size", "lastmodifieddate")
INVENTORY = ("bucket", "key", "islatest", "isdeletemarker")
"""Columns of S3 Inventory, in lower case and without underscores: CSV and Parquet write them differently."""


@dataclass(frozen=True)
class Manifest:
    """Tables of URIs, in the order in which they are read."""

    tables: tuple[str, ...]
    uri_column: str | None
    """None: the tables are S3 Inventory's, with a bucket and a key."""
    id_column: str | None = None
    header: tuple[str, ...] | None = None
    """Columns of CSV tables whose first row is a row like any other."""

    @classmethod
    def of_inventory(cls, path: str) -> "Manifest | None":
        """What S3 Inventory's ``manifest.json`` lists, or None where the file is no such thing.

        Raises:
            InputError: the inventory is written as ORC, or says neither bucket nor key.
        """
        if storage.name(path) != "manifest.json" or storage.is_dir(path):
            return None
        told = storage.read_json(path)
        if not isinstance(told, dict) or not {"files", "fileFormat", "destinationBucket"} <= told.keys():
            return None
        form = told["fileFormat"]
        if form not in ("CSV", "Parquet"):
            raise InputError(f"an inventory in {form}", "one in CSV or Parquet", "set the inventory's output format")
        bucket = str(told["destinationBucket"]).rpartition(":")[2]
        tables = tuple(f"s3://{bucket}/{file['key']}" for file in told["files"])
        if not tables:
            raise InputError(f"{path}, which lists no files", "an inventory of a bucket with objects", "check the path")
        header = tuple(name.strip() for name in told["fileSchema"].split(",")) if form == "CSV" else None
        return cls(tables, None, None, header)

    def columns(self, path: str) -> list[str]:
        """The columns of one of its tables.

        Raises:
            InputError: it lacks one that is needed.
        """
        there = columns(path, self.header)
        wanted = [c for c in (self.uri_column, self.id_column) if c is not None]
        missing = [column for column in wanted if column not in there]
        if self.uri_column is None:
            missing = [name for name in ("bucket", "key") if name not in map(_plain, there)]
        if missing:
            raise InputError(
                f"{path} has no column {', '.join(missing)}, only {', '.join(there)}",
                "a column of URIs", "name yours with --uri-column and --id-column",
            )  # fmt: skip
        return there

    def items(self) -> Iterator[Item]:
        """Every image that the tables name, lazily; a row without a URI is an item that cannot be read."""
        for path in self.tables:
            folder = path.rpartition("/")[0]
            for number, cells in enumerate(_translated(path, self._rows(path))):
                if _gone(cells):
                    continue
                uri = self._uri(cells)
                if uri.startswith("s3://") and uri.endswith("/") and str(cells.get("size")) == "0":
                    continue  # consoles mark an empty folder so; listing passes over it, too
                version = "-".join(str(cells[name]) for name in VERSION if cells.get(name) not in (None, ""))
                size = str(cells.get("size") or "")
                yield Item(
                    str(cells["id"] if cells.get("id") not in (None, "") else uri or f"{storage.name(path)}#{number}"),
                    uri if not uri or "://" in uri or uri.startswith("/") else f"{folder}/{uri}",
                    int(size) if size.isdecimal() else 0,
                    version,
                )

    def _uri(self, cells: dict[str, Any]) -> str:
        if self.uri_column is not None:
            return str(cells["uri"] or "").strip()
        key = str(cells["key"] or "")
        return f"s3://{cells['bucket']}/{unquote_plus(key) if self.header else key}"  # CSV has them URL-encoded

    def _rows(self, path: str) -> Iterator[dict[str, Any]]:
        """The cells that matter, by the names that are used here."""
        names = {column: _plain(column) for column in self.columns(path)}
        wanted = {column: name for column, name in names.items() if name in VERSION}
        if self.uri_column is None:
            wanted.update((column, name) for column, name in names.items() if name in INVENTORY)
        else:
            wanted[self.uri_column] = "uri"
            if self.id_column is not None:
                wanted[self.id_column] = "id"
        if path.lower().endswith(PARQUET_ENDINGS):
            with open_parquet(path) as table:
                for batch in table.iter_batches(batch_size=8192, columns=list(wanted)):
                    yield from batch.rename_columns([wanted[name] for name in batch.schema.names]).to_pylist()
            return
        with _text(path) as text:
            rows = csv.DictReader(text, self.header, restval="")
            for row in rows:
                yield {name: row.get(column, "") for column, name in wanted.items()}


def _translated(path: str, rows: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    try:
        yield from rows
    except InputError:
        raise
    except Exception as error:  # what reads a table may raise anything at all on hostile bytes
        raise InputError(f"{path} ({str(error)[:120]})", "a whole table of URIs", "make the manifest anew") from error


def columns(path: str, header: tuple[str, ...] | None = None) -> list[str]:
    """The columns of a table; ``header`` are those of a CSV that does not say them itself."""
    if path.lower().endswith(PARQUET_ENDINGS):
        with open_parquet(path) as table:
            return list(table.schema_arrow.names)
    if header is not None:
        return list(header)
    with _text(path) as text:
        return next(csv.reader(text), [])


def _text(path: str) -> io.TextIOWrapper:
    data: Any = storage.open_input(path)
    if path.lower().endswith(".gz"):
        data = gzip.GzipFile(fileobj=data)
    return io.TextIOWrapper(data, encoding="utf-8-sig", newline="")


def _plain(column: str) -> str:
    return column.strip().lower().replace("_", "")


def _gone(cells: dict[str, Any]) -> bool:
    """An inventory of all versions also lists those that were overwritten or deleted."""
    latest, deleted = str(cells.get("islatest", "")).lower(), str(cells.get("isdeletemarker", "")).lower()
    return latest == "false" or deleted == "true"
