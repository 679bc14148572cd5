"""How tables are cut into work units, and what archives hold."""

import csv
import posixpath
import zipfile
from functools import lru_cache

from fer_scale import storage
from fer_scale.labelling.reading import fault, open_tar
from fer_scale.labelling.tables import csv_rows, open_parquet, picture_column
from fer_scale.labelling.units import SLICES, Item, Unit, broken, ranges

MOST_LINKS = 40
"""That lead from one to the next, as Linux counts them."""


def parquet(name: str, file: storage.FileInfo, image_column: str, id_column: str | None, target: int) -> list[Unit]:
    """Whole row groups together, or parts of large ones, of about ``target`` rows.

    Raises:
        NoColumnError: a column is not there.
    """
    with open_parquet(file.path) as table:
        picture_column(table.schema_arrow, image_column, id_column)
        groups = [table.metadata.row_group(i).num_rows for i in range(table.metadata.num_row_groups)]
    spans, start, stop = [], 0, 0
    for rows in groups:
        if rows >= 2 * target:  # within a row group all rows before must be read over
            if stop > start:
                spans.append((start, stop))
            spans += [(stop + low, stop + high) for low, high in ranges(rows, max(target, rows // SLICES))]
            start = stop = stop + rows
            continue
        stop += rows
        if stop - start >= target:
            spans.append((start, stop))
            start = stop
    if stop > start:
        spans.append((start, stop))
    return [Unit("parquet", file.path, name, file.version, *span) for span in spans]


def csv_table(name: str, file: storage.FileInfo, image_column: str, id_column: str | None, target: int) -> list[Unit]:
    """Rows of a CSV; where it is damaged in its middle, one broken unit stands for the rest.

    Raises:
        NoColumnError: a column is not there.
        csv.Error: it is damaged before its first row.
    """
    total, why = _csv_length(file.path, file.version, image_column, id_column)
    rest = [broken(file.path, file, name, why)] if why else []
    length = max(target, total // SLICES)
    return [Unit("csv", file.path, name, file.version, *span) for span in ranges(total, length)] + rest


@lru_cache(maxsize=1)
def _csv_length(path: str, version: str, image_column: str, id_column: str | None) -> tuple[int, str]:
    """Rows, and what is wrong with what follows; remembered as `tar_members` is."""
    total = 0
    try:
        for _ in csv_rows(path, image_column, id_column):
            total += 1
    except csv.Error as error:
        if not total:
            raise
        return total, f"after row {total}: {error}"[:200]
    return total, ""


def zip_members(path: str) -> list[Item]:
    """The files of a zip; of two of one name the later."""
    with storage.open_input(path) as data, zipfile.ZipFile(data) as archive:
        return list(
            {m.filename: Item("", m.filename, m.file_size) for m in archive.infolist() if not m.is_dir()}.values()
        )


@lru_cache(maxsize=1)
def tar_members(path: str, version: str) -> tuple[list[Item], str]:
    """The files of a tar, of two of one name the later, which unpacking leaves; and what is wrong with what follows.

    A link stands for the file that it leads to, under its own name. The last archive is remembered, by its
    ``version``: looking at a source begins anew several times, and all of a tar is read for that.
    """
    members: dict[str, Item] = {}
    links: dict[str, str] = {}
    folders = {"."}
    why = ""
    try:
        with open_tar(path) as archive:
            for m in archive:
                archive.members = []  # type: ignore[attr-defined] # it would remember them all
                if m.isreg():
                    members[m.name] = Item("", m.name, m.size, str(m.offset_data))
                    links.pop(m.name, None)
                elif m.islnk() or m.issym():
                    folder = "" if m.islnk() else posixpath.dirname(m.name)
                    links[m.name] = posixpath.normpath(posixpath.join(folder, m.linkname))
                    members.pop(m.name, None)
                elif m.isdir():
                    folders.add(posixpath.normpath(m.name))
    except Exception as error:  # a decoder may raise anything on hostile bytes; what stands before can be read
        why = f"after member {len(members)}: {fault(error).detail}"[:200]
        if not members:
            raise
    return [*members.values(), *_linked(links, members, folders)], why


def _linked(links: dict[str, str], members: dict[str, Item], folders: set[str]) -> list[Item]:
    """The links that lead to files, as items, or to nothing; those to folders are none."""
    if not links:
        return []
    plain = {posixpath.normpath(name): item for name, item in members.items()}
    further = {posixpath.normpath(name): target for name, target in links.items()}
    for name in [*plain, *further]:
        while (name := posixpath.dirname(name)) and name not in folders:
            folders.add(name)
    found = []
    for name, target in links.items():
        for _ in range(MOST_LINKS):
            target = further.get(target, target)
        if item := plain.get(target):
            found.append(Item("", name, item.size, item.version))
        elif target not in folders:
            found.append(Item("", name, 0, f"a link to {target}, which is not there"))
    return found
