"""How tables are cut into work units, and what archives hold."""

import csv
import zipfile

from fer_scale import storage
from fer_scale.labelling.reading import fault, open_tar
from fer_scale.labelling.tables import csv_rows, open_parquet, picture_column
from fer_scale.labelling.units import SLICES, Item, Unit, broken, ranges


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
    total = 0
    rest: list[Unit] = []
    try:
        for _ in csv_rows(file.path, image_column, id_column):
            total += 1
    except csv.Error as error:
        if not total:
            raise
        rest.append(broken(file.path, file, name, f"after row {total}: {error}"[:200]))
    length = max(target, total // SLICES)
    return [Unit("csv", file.path, name, file.version, *span) for span in ranges(total, length)] + rest


def zip_members(path: str) -> list[Item]:
    """The files of a zip; of two of one name the later."""
    with storage.open_input(path) as data, zipfile.ZipFile(data) as archive:
        return list(
            {m.filename: Item("", m.filename, m.file_size) for m in archive.infolist() if not m.is_dir()}.values()
        )


def tar_members(path: str) -> tuple[list[Item], str]:
    """The files of a tar, of two of one name the later, which unpacking leaves; and what is wrong with what follows."""
    members: dict[str, Item] = {}
    try:
        with open_tar(path) as archive:
            for m in archive:
                if m.isreg():
                    members[m.name] = Item("", m.name, m.size, str(m.offset_data))
    except Exception as error:  # a decoder may raise anything on hostile bytes; what stands before can be read
        why = fault(error).detail
        if not members:
            raise
        return list(members.values()), f"after member {len(members)}: {why}"[:200]
    return list(members.values()), ""
