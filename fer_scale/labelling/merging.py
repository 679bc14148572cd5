"""What people and query engines read of a run: a few large files, made of the parts that work units published.

They are a view: which there are, and what is in each, follows from the ledger alone. So nothing has to be remembered of
them, one that is missing is made again without inference, and a killed run leaves nothing that the next cannot mend.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.parquet as pq

from fer_scale import storage
from fer_scale.labelling.ledger import Entry
from fer_scale.labelling.parts import ERRORS_SCHEMA, part_path

KINDS = {"labels": "faces", "errors": "errors", "no_face": "no_face"}
"""Folders of the view, and the count in a unit's entry that says how many rows it has there."""
FILE_ROWS = 1_000_000
"""About as many a file: a quarter to twice."""
GROUP_ROWS = 131_072
"""A row group, at least, but for a file's last."""
AT_ONCE = 64
"""Parts in memory."""
NONE = "none"
"""Name of the empty file that stands in ``errors`` or ``no_face`` where there are none, so that it can be read."""


def settle_view(
    out: str,
    kinds: Iterable[str],
    entries: Iterable[Entry],
    origin: dict[str, str],
    check: Callable[[], None] = lambda: None,
) -> None:
    """Make the folders of the view say what the entries say: new files first, then those that are void are deleted.

    ``summary.json``, which says that a view can be read, goes before the first of them changes. ``check`` is called
    before each step, and ends the work where it raises.

    Args:
        origin: what made the rows (`ledger.origin`); stands in the metadata of each file.
    """
    entries = sorted(entries, key=lambda entry: (tuple(entry["span"]), entry["key"]))
    to_write: list[tuple[str, str, list[Entry]]] = []
    to_delete: list[str] = []
    for kind in kinds:
        wanted = dict(_files(kind, entries, origin))
        there = {storage.name(path).rpartition(".")[0]: path for path in paths(storage.join(out, kind))}
        to_write += [(kind, name, members) for name, members in wanted.items() if name not in there]
        to_delete += [path for name, path in there.items() if name not in wanted]
    if to_write or to_delete:
        check()
        storage.delete(storage.join(out, "summary.json"))
    for kind, name, members in to_write:
        check()
        _merge(out, kind, name, members, origin)
    storage.delete_files(to_delete, check)


def paths(folder: str) -> list[str]:
    """Of all files in a folder, which need not be there."""
    return [file.path for file in storage.list_files(folder)] if storage.exists(folder) else []


def _files(kind: str, entries: list[Entry], origin: dict[str, str]) -> Iterator[tuple[str, list[Entry]]]:
    """Name and units of each file, cut where a unit's hash says so: a unit that changes touches no other file."""
    count = KINDS[kind]
    held: list[Entry] = []
    rows = 0
    if kind != "labels":  # in which a unit without rows tells the columns
        entries = [entry for entry in entries if entry[count]]
    for entry in entries:
        held.append(entry)
        rows += entry[count]
        cuts = int.from_bytes(hashlib.blake2b(entry["key"].encode(), digest_size=8).digest()) % FILE_ROWS < entry[count]
        if rows >= 2 * FILE_ROWS or (rows >= FILE_ROWS // 4 and cuts):
            yield _name(held, origin), held
            held, rows = [], 0
    if held:
        yield _name(held, origin), held
    elif not entries:
        yield NONE, []


def _name(members: list[Entry], origin: dict[str, str]) -> str:
    """A hash of all that is known of the units; the seconds among it tell a unit from itself done again."""
    digest = hashlib.blake2b(digest_size=12)
    for entry in (origin, *members):
        digest.update(json.dumps(entry, sort_keys=True).encode())
    return digest.hexdigest()


def _merge(out: str, kind: str, name: str, members: list[Entry], origin: dict[str, str]) -> None:
    """Write one file, of which a row group is in memory at a time."""
    with storage.writing(storage.join(out, kind, f"{name}.parquet")) as local:
        if not members:
            pq.write_table(ERRORS_SCHEMA.with_metadata(origin).empty_table(), local, compression="zstd")
            return
        writer: pq.ParquetWriter | None = None
        try:
            for table in _grouped(_parts(out, kind, members)):
                writer = writer or pq.ParquetWriter(local, table.schema.with_metadata(origin), compression="zstd")
                writer.write_table(table, row_group_size=2 * GROUP_ROWS)
        finally:
            if writer is not None:
                writer.close()


def _parts(out: str, kind: str, members: list[Entry]) -> Iterator[pa.Table]:
    def read(entry: Entry) -> pa.Table:
        return pq.read_table(pa.BufferReader(storage.read_bytes(part_path(out, kind, entry["part"]))))

    with ThreadPoolExecutor(16) as pool:
        for at in range(0, len(members), AT_ONCE):
            yield from pool.map(read, members[at : at + AT_ONCE])


def _grouped(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    held: list[pa.Table] = []
    rows = 0
    for table in tables:
        held.append(table)
        rows += table.num_rows
        if rows >= GROUP_ROWS:
            yield pa.concat_tables(held)
            held, rows = [], 0
    if held:
        yield pa.concat_tables(held)
