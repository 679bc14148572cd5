"""What a certificate's sample reads of the source: the pictures that were labelled, and few others."""

from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fer_scale.labelling.certification import _only, pictures
from fer_scale.labelling.ledger import Ledger
from fer_scale.labelling.sources import Source
from tests.unit.test_labelling import PICTURES, csv_of, label_all, parquet_of, png, tar_of, zip_of


@pytest.mark.parametrize("ids", ["name", "number", None])
def test_of_parquet_the_rows_of_the_sample_are_read(tmp_path: Path, ids: str | None) -> None:
    path = parquet_of(tmp_path / "faces.parquet", group=10)
    source, out = Source.open(str(path), id_column=ids), tmp_path / "out"
    label_all(source, out, target=20)
    by_row = [f"faces.parquet#{row}" for row in range(60)]
    names = {"name": list(PICTURES), "number": [str(row - 5) for row in range(60)]}.get(ids or "", by_row)
    wanted = {names[row] for row in (3, 7, 41)}
    spans = [
        (unit.start, unit.stop) for unit in (_only(unit, source, wanted) for unit in source.units(20)) if unit.size
    ]
    assert spans == [(3, 8), (41, 42)]
    rows = pd.DataFrame({"id": sorted(wanted), "face": 0})
    found = pictures(str(out), Ledger(str(out)), source, 20, rows)
    whole = pictures(str(out), Ledger(str(out)), source, 20, pd.DataFrame({"id": names, "face": 0}))
    assert len(whole) == 60
    assert found == {(ident, 0): whole[ident, 0] for ident in wanted}


@pytest.mark.parametrize(
    "make",
    [
        lambda d: zip_of(d / "faces.zip"),
        lambda d: tar_of(d / "faces.tar", "w"),
        lambda d: tar_of(d / "faces.tar.gz", "w:gz"),
        lambda d: csv_of(d / "faces.csv"),
    ],
    ids=["zip", "tar", "tar.gz", "csv"],
)
def test_of_archives_and_csv_too(tmp_path: Path, make) -> None:  # type: ignore[no-untyped-def]
    path, out = make(tmp_path), tmp_path / "out"
    source = Source.open(str(path), id_column="name" if path.suffix == ".csv" else None)
    label_all(source, out)
    wanted = sorted(PICTURES)[::17]
    rows = pd.DataFrame({"id": wanted, "face": 0})
    assert set(pictures(str(out), Ledger(str(out)), source, 16, rows)) == {(ident, 0) for ident in wanted}


def test_another_table_under_the_same_name_is_not_what_was_labelled(tmp_path: Path) -> None:
    path, out = parquet_of(tmp_path / "faces.parquet"), tmp_path / "out"
    source = Source.open(str(path), id_column="name")
    label_all(source, out)
    pq.write_table(pa.table({"image": [png(n + 100) for n in range(60)], "name": list(PICTURES)}), path)
    rows = pd.DataFrame({"id": list(PICTURES)[:3], "face": 0})
    assert pictures(str(out), Ledger(str(out)), source, 16, rows) == {}
