"""One SOURCE gives the same ids in ingest and in label, whatever its names are."""

import io
import os
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from fer_scale.faces.records import Columns
from fer_scale.faces.sources import open_source
from fer_scale.labelling.reading import Reader
from fer_scale.labelling.sources import Source

NAMES = ["happy/a.png", "happy/./b.png", "./sad/c.png", "sad/with space .png", "sad/\u00e9\u4e2d.png", "sad\\\\d.png",
         "happy/a#7.png", "happy/UPPER.PNG"]  # fmt: skip


def picture(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (16, 16), shade).save(buffer, "PNG")
    return buffer.getvalue()


def folder(path: Path) -> tuple[Path, str | None]:
    for name in (*NAMES, "happy/\udcff\udcfe.png", "happy/\udcff\udcfd.png"):
        (path / "faces" / name).parent.mkdir(parents=True, exist_ok=True)
        Path(os.fsdecode(os.fsencode(str(path / "faces" / name)))).write_bytes(picture(9))
    return path / "faces", None


def zipped(path: Path) -> tuple[Path, str | None]:
    with zipfile.ZipFile(path / "faces.zip", "w") as archive:
        for name in NAMES:
            archive.writestr(name, picture(9))
    return path / "faces.zip", None


def tarred(path: Path) -> tuple[Path, str | None]:
    with tarfile.open(path / "faces.tar.gz", "w:gz") as archive:
        for name in (*NAMES, "happy/\udcff.png"):
            member = tarfile.TarInfo(name)
            member.size = len(picture(9))
            archive.addfile(member, io.BytesIO(picture(9)))
    return path / "faces.tar.gz", None


def sheet(path: Path) -> tuple[Path, str | None]:
    row = "0," + " ".join(["7"] * 256) + "\n"
    (path / "faces.csv").write_text("emotion,pixels\n" + row + "\n" + row + "\n\n" + row)
    return path / "faces.csv", None


def table(path: Path) -> tuple[Path, str | None]:
    ids = ["a", " b ", "", None, "c"]
    rows = pa.table({"image": [picture(9)] * 5, "label": ["happy"] * 5, "name": ids})
    pq.write_table(rows, path / "faces.parquet", row_group_size=2)
    return path / "faces.parquet", "name"


@pytest.mark.parametrize("make", [folder, zipped, tarred, sheet, table])
def test_ingest_and_label_name_a_picture_alike(make: Callable[[Path], tuple[Path, str | None]], tmp_path: Path) -> None:
    source, ident = make(tmp_path)
    stored = [record.id for record in open_source(source, Columns(id=ident), ["happy", "sad"]).records()]
    opened = Source.open(str(source), id_column=ident)
    reader = Reader(opened.image_column, ident)
    labelled = [name for unit in opened.units(3) for name, _ in reader.read(unit)]
    assert sorted(labelled) == sorted(stored)
    assert len(set(labelled)) == len(labelled) > 2
    for name in labelled:
        name.encode()
