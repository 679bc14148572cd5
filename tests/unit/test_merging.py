"""The large files that are made of units' parts: exact, few, stable, and whole again after a kill at any step."""

import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest

from fer_scale.labelling import merging, results
from fer_scale.labelling.ledger import Ledger
from fer_scale.labelling.parts import ERRORS_SCHEMA, labels_schema, parquet, part_path
from tests.unit.test_labelling import run_of

CLASSES = ["happy", "sad"]
FILE_ROWS = 200


def unit(out: Path, name: str, images: int, errors: int = 0, attempt: int = 0) -> dict[str, Any]:
    """What a worker publishes of ``images`` of which the first ``errors`` cannot be read; its entry."""
    ids = [f"{name}/{n:03d}" for n in range(images)]
    key = hashlib.blake2b(f"{name} {images}".encode()).hexdigest()[:32]
    part = f"{key}-{attempt}" if attempt else key
    good = len(ids) - errors
    rows = [ids[errors:], [0] * good, ["sad"] * good, [0.7] * good, [0.3] * good, [0.7] * good, ["m"] * good]
    for kind, table in (
        ("labels", pa.table(rows, schema=labels_schema(CLASSES))),
        ("errors", pa.table([ids[:errors], ["empty"] * errors, [""] * errors], schema=ERRORS_SCHEMA)),
    ):
        if kind == "labels" or errors:
            path = Path(part_path(str(out), kind, part))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(parquet(table))
    return {"key": key, "part": part, "span": [ids[0], ids[-1]], "inputs": images, "carried": 0, "labelled": good,
            "faces": good, "errors": errors, "no_face": 0, "seconds": 0.5}  # fmt: skip


def settled(out: Path, ledger: Ledger) -> None:
    results.settle(str(out), ledger, list(ledger.entries), run_of())
    (out / "summary.json").touch()


def ids(folder: Path) -> list[str]:
    return sorted(pq.read_table(folder)["id"].to_pylist())


def expected(names: dict[str, int], errors: int) -> tuple[list[str], list[str]]:
    found = {name: [f"{name}/{n:03d}" for n in range(images)] for name, images in names.items()}
    return (
        sorted(ident for group in found.values() for ident in group[errors:]),
        sorted(ident for group in found.values() for ident in group[:errors]),
    )


@pytest.fixture(autouse=True)
def small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merging, "FILE_ROWS", FILE_ROWS)
    monkeypatch.setattr(merging, "GROUP_ROWS", 64)


def test_few_files_of_about_the_size_and_a_change_touches_few(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path))
    names = {f"{n:04d}": 10 for n in range(200)}
    ledger.commit([unit(tmp_path, name, size) for name, size in names.items()], 1.0)
    settled(tmp_path, ledger)
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "labels").iterdir()}
    assert 4 < len(before) < 40
    for path in (tmp_path / "labels").iterdir():
        meta = pq.ParquetFile(path).metadata
        assert meta.num_rows <= 2 * FILE_ROWS
        assert all(64 <= meta.row_group(at).num_rows <= 128 for at in range(meta.num_row_groups - 1))
    assert ids(tmp_path / "labels") == expected(names, 0)[0]
    assert [path.name for path in (tmp_path / "errors").iterdir()] == ["none.parquet"]

    ledger.commit([unit(tmp_path, "0100b", 10)], 1.0)
    settled(tmp_path, ledger)
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "labels").iterdir()}
    assert len(before.items() - after.items()) <= 2
    assert len(after.items() - before.items()) <= 2
    assert ids(tmp_path / "labels") == expected({**names, "0100b": 10}, 0)[0]
    settled(tmp_path, ledger)
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "labels").iterdir()} == after


def test_every_file_says_what_made_it(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path))
    ledger.commit([unit(tmp_path, name, 90) for name in "abcdef"], 1.0)
    settled(tmp_path, ledger)
    files = [*(tmp_path / "labels").iterdir(), *(tmp_path / "errors").iterdir()]
    assert len(files) > 2
    for path in files:
        told = pq.read_schema(path).metadata
        assert told == {b"model_id": b"m", b"preprocessing_version": b"1", b"run_id": b"r"}
    assert not pq.read_schema(next((tmp_path / "ledger" / "labels").iterdir())).metadata
    results.settle(str(tmp_path), ledger, list(ledger.entries), run_of() | {"run_id": "another"})
    assert {pq.read_schema(path).metadata[b"run_id"] for path in (tmp_path / "labels").iterdir()} == {b"another"}


def test_a_run_without_labels_or_without_errors_can_be_read(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path))
    ledger.commit([unit(tmp_path, "bad", 3, errors=3)], 1.0)
    settled(tmp_path, ledger)
    assert pq.read_table(tmp_path / "labels").schema.names == labels_schema(CLASSES).names
    assert ids(tmp_path / "labels") == []
    assert ids(tmp_path / "errors") == ["bad/000", "bad/001", "bad/002"]


class Killed(BaseException):
    """As a SIGKILL: nothing that catches exceptions catches it."""


def test_killed_before_any_of_its_steps_it_settles_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader who finds summary.json finds every id once, whatever step was the last before a kill."""
    start = tmp_path / "start"
    ledger = Ledger(str(start))
    old = {f"{n:02d}": 40 for n in range(20)}
    ledger.commit([unit(start, name, size, 2) for name, size in old.items()], 1.0)
    settled(start, ledger)
    grown = {**{name: size for name, size in old.items() if name not in ("03", "04", "17")}, "03": 41, "30": 40}
    ledger.commit([unit(start, name, size, 2) for name, size in grown.items() if old.get(name) != size], 1.0)
    current = [unit(tmp_path / "aside", name, size, 2)["key"] for name, size in grown.items()]

    steps = 0
    real = {name: getattr(os, name) for name in ("replace", "link", "unlink")}
    left = 0

    def counted(name: str) -> Any:
        def call(*args: Any, **options: Any) -> None:
            nonlocal left
            if left == 0:
                raise Killed
            left -= 1
            real[name](*args, **options)

        return call

    while True:
        out = tmp_path / f"killed-{steps}"
        shutil.copytree(start, out)
        ledger, left = Ledger(str(out)), steps
        with monkeypatch.context() as patch:
            for name in real:
                patch.setattr(os, name, counted(name))
            try:
                results.settle(str(out), ledger, current, run_of())
            except Killed:
                ended = False
            else:
                ended = True
        if (out / "summary.json").exists():
            assert (ids(out / "labels"), ids(out / "errors")) == expected(old, 2)
        results.settle(str(out), Ledger(str(out)), current, run_of())
        assert (ids(out / "labels"), ids(out / "errors")) == expected(grown, 2)
        kept = {path.stem for path in (out / "ledger" / "labels").iterdir()}
        assert kept == {entry["part"] for entry in Ledger(str(out)).entries.values()}
        assert not [path for path in out.rglob("*") if "partial" in path.name]
        if ended:
            break
        steps += 1
    assert steps > 10


def test_a_unit_done_again_under_its_name_is_seen(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path))
    ledger.commit([unit(tmp_path, "a", 9, errors=2)], 1.0)
    settled(tmp_path, ledger)
    ledger.commit([{**unit(tmp_path, "a", 9, errors=0), "seconds": 0.6}], 1.0)
    settled(tmp_path, ledger)
    assert (ids(tmp_path / "labels"), ids(tmp_path / "errors")) == expected({"a": 9}, 0)


def test_duckdb_pandas_and_pyarrow_read_the_same(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path))
    ledger.commit([unit(tmp_path, f"{n:03d}", 50, errors=1) for n in range(60)], 1.0)
    settled(tmp_path, ledger)
    labels = tmp_path / "labels"
    assert len(list(labels.iterdir())) > 3
    frame = pd.read_parquet(labels)
    table = pyarrow.dataset.dataset(labels).to_table()
    assert table.schema == labels_schema(CLASSES)
    with duckdb.connect() as engine:
        found = engine.sql(f"SELECT * FROM '{labels}/*.parquet'")
        assert found.columns == table.schema.names == list(frame.columns)
        assert [str(kind) for kind in found.types] == [
            "VARCHAR", "INTEGER", "VARCHAR", "FLOAT", "FLOAT", "FLOAT", "VARCHAR"
        ]  # fmt: skip
        counted = engine.sql(
            f"SELECT count(*), count(DISTINCT id), sum(prob_sad) FROM '{labels}/*.parquet'"
        ).fetchall()[0]
    assert counted[:2] == (len(frame), frame["id"].nunique()) == (table.num_rows, 60 * 49)
    assert counted[2] == pytest.approx(frame["prob_sad"].sum(), rel=1e-4)
