"""Labelling without Ray: sources cut into units, units read and published, what is done and what is left."""

import csv
import gzip
import io
import json
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from fer_scale import lease as leases
from fer_scale import storage
from fer_scale.errors import InputError
from fer_scale.faces.images import Preprocessing
from fer_scale.labelling import results
from fer_scale.labelling.ledger import Backlog, Ledger, fix, manifest
from fer_scale.labelling.reading import Payload, Reader
from fer_scale.labelling.sources import Source
from fer_scale.labelling.tables import csv_rows
from fer_scale.labelling.units import Item, Unit, ranges, stretches
from fer_scale.labelling.worker import Worker
from fer_scale.learning.drift import answered
from fer_scale.lease import Lease, LeaseLostError


class Brightness:
    """A tiny model: the brighter the picture, the happier."""

    classes = ["happy", "sad"]  # noqa: RUF012
    model_id = "brightness"
    preprocessing = Preprocessing(size=16)

    def __init__(self) -> None:
        self.seen = 0

    def probabilities(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        self.seen += len(images)
        happy = images.reshape(len(images), -1).mean(axis=1) / 255
        return np.stack([happy, 1 - happy], axis=1).astype(np.float32)


def run_of(detecting: bool = False) -> dict[str, Any]:
    """A run's manifest, as far as its end reads it."""
    settings = {"model_id": "m", "preprocessing_version": 1, "faces": {} if not detecting else {"minimum": 0.8}}
    return {"run_id": "r", "settings": settings}


def png(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (16, 16), shade).save(buffer, "PNG")
    return buffer.getvalue()


def noise() -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


PICTURES = {f"{'ab'[n % 2]}/{n:03d}.png": png(n) for n in range(60)}


def folder_of(root: Path, pictures: dict[str, bytes] = PICTURES) -> Path:
    for name, data in pictures.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def parquet_of(path: Path, group: int = 60) -> Path:
    numbers = range(-5, len(PICTURES) - 5)
    table = pa.table({"image": list(PICTURES.values()), "name": list(PICTURES), "number": list(numbers)})
    pq.write_table(table, path, row_group_size=group)
    return path


def zip_of(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in PICTURES.items():
            archive.writestr(name, data)
    return path


def tar_of(path: Path, mode: str) -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, data in PICTURES.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def csv_of(path: Path) -> Path:
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["emotion", "pixels", "name"])
        rows.writerows([[0, " ".join([str(n)] * 256), name] for n, name in enumerate(PICTURES)])
    return path


def label_all(source: Source, out: Path, target: int = 16, retry: bool = False) -> tuple[Brightness, int]:
    """What the pipeline does, in one process; the model and how many units were worked on."""
    model = Brightness()
    worker = Worker(model, str(out), Reader(source.image_column, source.id_column), batch=7)
    ledger = Ledger(str(out))
    backlog = Backlog(ledger.entries, results.parts(str(out)), retry)
    keys, worked = [], 0
    for unit, to_do in backlog.match(source.units(target)):
        keys.append(unit.key)
        if to_do:
            worked += 1
            ledger.commit([worker.label(Unit.from_bytes(unit.to_bytes()), retry)], 0.1)
    results.settle(str(out), ledger, keys, run_of())
    return model, worked


def answers(out: Path) -> dict[str, tuple[str, float]]:
    rows = pq.read_table(out / "labels").to_pylist()
    assert len({row["id"] for row in rows}) == len(rows)
    return {row["id"]: (row["label"], round(row["prob_happy"], 4)) for row in rows}


def failures(out: Path) -> dict[str, str]:
    return {row["id"]: row["reason"] for row in pq.read_table(out / "errors").to_pylist()}


EXPECTED = {name: ("happy" if n > 127 else "sad", round(n / 255, 4)) for n, name in enumerate(PICTURES)}


@pytest.mark.parametrize(
    ("make", "ids"),
    [
        (lambda d: folder_of(d / "faces"), None),
        (lambda d: zip_of(d / "faces.zip"), None),
        (lambda d: tar_of(d / "faces.tar", "w"), None),
        (lambda d: tar_of(d / "faces.tar.gz", "w:gz"), None),
        (lambda d: tar_of(d / "faces.tbz2", "w:bz2"), None),
        (lambda d: tar_of(d / "faces.txz", "w:xz"), None),
        (lambda d: parquet_of(d / "faces.parquet"), "name"),
        (lambda d: parquet_of(d / "faces.parquet", group=7), "name"),
        (lambda d: csv_of(d / "faces.csv"), "name"),
    ],
    ids=["folder", "zip", "tar", "tar.gz", "tbz2", "txz", "parquet", "parquet groups", "csv"],
)
def test_every_kind_of_source_gives_the_same_answers(tmp_path: Path, make, ids) -> None:  # type: ignore[no-untyped-def]
    source = Source.open(str(make(tmp_path)), id_column=ids)
    source.check_ids()
    units = list(source.units(16))
    assert sum(unit.size for unit in units) == 60
    assert len(units) > 1
    label_all(source, tmp_path / "out")
    assert answers(tmp_path / "out") == EXPECTED
    assert failures(tmp_path / "out") == {}


def test_rows_without_an_id_are_named_by_file_and_row(tmp_path: Path) -> None:
    (tmp_path / "faces").mkdir()
    parquet_of(tmp_path / "faces" / "one.parquet", group=9)
    (tmp_path / "faces" / "_SUCCESS").touch()
    label_all(Source.open(str(tmp_path / "faces")), tmp_path / "out")
    assert set(answers(tmp_path / "out")) == {f"one.parquet#{row}" for row in range(60)}


def test_bad_files_are_answered_by_errors(tmp_path: Path) -> None:
    bad = {
        "cut.png": noise()[:300],
        "empty.png": b"",
        "text.jpg": b"no picture",
        "table.csv": b"a,b\n1,2\n",
        ".hidden": b"\0\1",
        "good.png": png(9),
        "again.png": png(9),
    }
    label_all(Source.open(str(folder_of(tmp_path / "faces", bad))), tmp_path / "out")
    assert set(answers(tmp_path / "out")) == {"good.png", "again.png"}
    assert failures(tmp_path / "out") == {
        "cut.png": "truncated",
        "empty.png": "empty",
        "text.jpg": "undecodable",
        "table.csv": "undecodable",
        ".hidden": "undecodable",
    }
    summary = results.summarise(Ledger(str(tmp_path / "out")), {"settings": {"model_id": "m"}, "run_id": "r"}, 7, None)
    assert (summary["inputs"], summary["labelled"], summary["errors"], summary["duplicates"]) == (7, 2, 5, 1)


def test_a_file_that_vanishes_after_listing_is_an_error(tmp_path: Path) -> None:
    source = Source.open(str(folder_of(tmp_path / "faces")))
    units = list(source.units(1000))
    (tmp_path / "faces" / "a" / "000.png").unlink()
    worker = Worker(Brightness(), str(tmp_path / "out"), Reader("image", None))
    entry = worker.label(units[0].published_as("p"))
    assert entry["errors"] == 1
    assert failures(tmp_path / "out" / "ledger") == {"a/000.png": "missing"}


def test_a_broken_table_among_others_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "faces").mkdir()
    parquet_of(tmp_path / "faces" / "a.parquet")
    (tmp_path / "faces" / "b.parquet").write_bytes(b"PAR1 no table PAR1")
    pq.write_table(pa.table({"other": [1]}), tmp_path / "faces" / "c.parquet")
    label_all(Source.open(str(tmp_path / "faces")), tmp_path / "out")
    assert len(answers(tmp_path / "out")) == 60
    assert failures(tmp_path / "out") == {"b.parquet": "unreadable", "c.parquet": "unreadable"}


def test_damaged_rows_are_errors(tmp_path: Path) -> None:
    path = parquet_of(tmp_path / "faces.parquet", group=20)
    at = pq.ParquetFile(path).metadata.row_group(1).column(0)
    data = bytearray(path.read_bytes())
    start = at.dictionary_page_offset or at.data_page_offset
    data[start : start + at.total_compressed_size] = b"\xff" * at.total_compressed_size
    path.write_bytes(data)
    label_all(Source.open(str(path)), tmp_path / "out", target=20)
    assert len(answers(tmp_path / "out")) == 40
    assert set(failures(tmp_path / "out")) == {f"faces.parquet#{row}" for row in range(20, 40)}


@pytest.mark.parametrize(
    ("make", "options", "says"),
    [
        (lambda d: d / "nowhere", {}, "there is no"),
        (lambda d: d, {}, "holds no files"),
        (lambda d: folder_of(d / "faces"), {"include": "*.jpg"}, "match \\*.jpg"),
        (lambda d: parquet_of(d / "f.parquet"), {"image_column": "face"}, "'face', only image, name"),
        (lambda d: parquet_of(d / "f.parquet"), {"id_column": "key"}, "'key', only image, name"),
        (lambda d: csv_of(d / "f.csv"), {"image_column": "face"}, "only emotion, pixels, name"),
    ],
)
def test_wrong_sources_are_refused_in_a_line(tmp_path: Path, make, options, says: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InputError, match=says):
        Source.open(str(make(tmp_path)), **options)


def test_columns_of_a_csv_are_found_in_another_case(tmp_path: Path) -> None:
    path = csv_of(tmp_path / "f.csv")
    usual = list(csv_rows(str(path), "image", "name"))
    path.write_text(path.read_text().replace("emotion,pixels,name", "Emotion,Pixels,Name", 1))
    assert list(csv_rows(str(path), "image", "name")) == usual


def test_ids_that_stand_twice_are_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [png(1)] * 3, "id": ["a", "b", "a"]}), tmp_path / "f.parquet")
    with pytest.raises(InputError, match="'a' stands more than once"):
        Source.open(str(tmp_path / "f.parquet"), id_column="id").check_ids()


def test_include_narrows(tmp_path: Path) -> None:
    source = Source.open(str(folder_of(tmp_path / "faces")), include="a/*")
    assert sum(unit.size for unit in source.units(16)) == 30


def test_include_chooses_members_of_archives_and_archives_by_their_ending(tmp_path: Path) -> None:
    (tmp_path / "faces").mkdir()
    alone = zip_of(tmp_path / "faces" / "one.zip")
    assert sum(unit.size for unit in Source.open(str(alone), include="a/*").units(16)) == 30
    label_all(Source.open(str(alone), include="*0.png"), tmp_path / "out")
    assert set(answers(tmp_path / "out")) == {name for name in PICTURES if name.endswith("0.png")}
    with pytest.raises(InputError, match=r"no images that match \*\.jpg"):
        Source.open(str(alone), include="*.jpg")
    tar_of(tmp_path / "faces" / "two.tar", "w")
    parquet_of(tmp_path / "faces" / "three.parquet")
    for include, images in (("*.zip", 60), ("a/*", 60), ("two.tar/a/*", 30), ("*.parquet", 60), ("*.png", 120)):
        assert sum(unit.size for unit in Source.open(str(tmp_path / "faces"), include=include).units(16)) == images


def test_a_new_file_changes_only_the_units_around_it() -> None:
    items = [Item(f"{n:05d}.png", f"{n:05d}.png", 1, "v") for n in range(5000)]
    grown = sorted([*items, Item("02500x.png", "02500x.png", 1, "v")], key=lambda item: item.id)
    before = {unit.key for unit in stretches("r", items, 64)}
    after = {unit.key for unit in stretches("r", grown, 64)}
    assert len(before) > 40
    assert len(after - before) <= 8


def test_ranges_cover_everything_once() -> None:
    for total, length in ((0, 5), (1, 5), (17, 5), (100, 33)):
        covered = [n for low, high in ranges(total, length) for n in range(low, high)]
        assert covered == list(range(total))


def test_again_there_is_nothing_to_do_and_a_grown_source_labels_what_is_new(tmp_path: Path) -> None:
    root, out = folder_of(tmp_path / "faces"), tmp_path / "out"
    (root / "bad.png").write_bytes(b"x")
    source = Source.open(str(root))
    assert label_all(source, out)[0].seen == 60
    assert label_all(source, out)[1] == 0
    (root / "a" / "new.png").write_bytes(png(200))
    (root / "a" / "000.png").write_bytes(png(255))
    (root / "b" / "001.png").unlink()
    assert label_all(source, out)[0].seen == 2
    expected = {**EXPECTED, "a/new.png": ("happy", 0.7843), "a/000.png": ("happy", 1.0)}
    del expected["b/001.png"]
    assert answers(out) == expected
    assert failures(out) == {"bad.png": "undecodable"}
    assert label_all(source, out, retry=True)[0].seen == 0
    (root / "bad.png").write_bytes(png(7))
    assert label_all(source, out, retry=True)[0].seen == 1
    assert failures(out) == {}
    assert len(answers(out)) == 61


def test_whatever_is_lost_is_made_again(tmp_path: Path) -> None:
    root, out = folder_of(tmp_path / "faces"), tmp_path / "out"
    source = Source.open(str(root))
    label_all(source, out)
    parts = out / "ledger" / "labels"
    next(parts.iterdir()).unlink()
    for folder in (parts, out / "labels"):
        (folder / "0123.parquet").write_bytes((next(folder.iterdir())).read_bytes())  # never entered
    assert label_all(source, out)[1] == 1
    assert answers(out) == EXPECTED
    next((out / "labels").iterdir()).unlink()
    assert label_all(source, out)[1] == 0
    assert answers(out) == EXPECTED


def test_a_crash_before_the_ledger_leaves_no_trace(tmp_path: Path) -> None:
    root, out = folder_of(tmp_path / "faces"), tmp_path / "out"
    source = Source.open(str(root))
    first = next(source.units(16))
    Worker(Brightness(), str(out), Reader("image", None)).label(first.published_as(first.key))
    (root / first.items[0].id).write_bytes(png(250))  # published for files that have changed since
    label_all(source, out)
    assert answers(out) == {**EXPECTED, first.items[0].id: ("happy", 0.9804)}


def test_the_ledger_survives_and_numbers_are_given_once(tmp_path: Path) -> None:
    def entry(key: str) -> dict[str, object]:
        return {"key": key, "inputs": 3, "carried": 1}

    ours, theirs = Ledger(str(tmp_path)), Ledger(str(tmp_path))
    ours.commit([entry("a")], 1.0)
    ours.commit([entry("b")], 1.0)
    with pytest.raises(LeaseLostError):
        theirs.commit([entry("c")], 1.0)
    ours.keep(["b"])
    again = Ledger(str(tmp_path))
    assert set(again.entries) == {"b"}
    assert (again.seconds, again.labelled_images) == (2.0, 4)
    assert len(list((tmp_path / "ledger" / "segments").iterdir())) == 1


def test_another_setting_is_refused_and_both_are_named(tmp_path: Path) -> None:
    fix(str(tmp_path), {"model_id": "one"}, "r")
    assert fix(str(tmp_path), {"model_id": "one"}, "r")["settings"] == {"model_id": "one"}
    with pytest.raises(InputError, match=r"model_id two.* has model_id one"):
        fix(str(tmp_path), {"model_id": "two"}, "r")


def test_a_later_delivery_of_one_inventory_is_the_same_source(tmp_path: Path) -> None:
    first, later = (f"s3://lists/faces/daily/2026-01-0{day}T01-00Z/manifest.json" for day in (1, 2))
    fix(str(tmp_path), {"source": first}, "r")
    assert fix(str(tmp_path), {"source": later}, "r")["settings"] == {"source": later}
    assert manifest(str(tmp_path))["settings"] == {"source": later}, "which certify reads"  # type: ignore[index]
    for other in (later.replace("daily", "weekly"), "s3://lists/faces/daily", first.replace("manifest", "symlink")):
        with pytest.raises(InputError, match=r"source s3.* has source s3"):
            fix(str(tmp_path), {"source": other}, "r")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(leases, "BEAT_SECONDS", 0.2)
    monkeypatch.setattr(leases, "EXPIRY_SECONDS", 1.5)
    return


def test_a_run_that_lives_is_not_disturbed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "BEAT_SECONDS", 0.2)
    with Lease(str(tmp_path), "one") as lease:
        with (
            pytest.raises(InputError, match=r"run one \(process .* is at work"),
            Lease(str(tmp_path), "two"),
        ):
            pass
        lease.check()
    assert not (tmp_path / "lease.json").exists()


@pytest.mark.usefixtures("quick")
def test_a_lease_without_a_heartbeat_is_taken_over_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = {"run_id": "far", "host": "elsewhere", "pid": 1, "machine": "m", "token": "t", "beats": 3}
    (tmp_path / "lease.json").write_text(json.dumps(other))
    with Lease(str(tmp_path), "two") as lease:
        lease.check()
    said = " ".join(capsys.readouterr().err.split())
    assert "waiting up to" in said
    assert "taking over" in said


@pytest.mark.usefixtures("quick")
def test_the_lease_of_a_killed_process_of_this_machine_is_taken_at_once(tmp_path: Path) -> None:
    code = "import os, sys; from fer_scale.lease import Lease\nLease(sys.argv[1], 'gone').__enter__(); os._exit(9)"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert (tmp_path / "lease.json").exists()
    with Lease(str(tmp_path), "two") as lease:
        lease.check()


@pytest.mark.usefixtures("quick")
def test_a_run_that_lost_its_lease_notices(tmp_path: Path) -> None:
    lease = Lease(str(tmp_path), "one")
    with lease:
        (tmp_path / "lease.json").write_text(json.dumps({"run_id": "two", "token": "another"}))
        lease._thread.join(5)
        with pytest.raises(LeaseLostError):
            lease.check()
    assert (tmp_path / "lease.json").exists(), "it is the other's now"


@pytest.mark.usefixtures("quick")
def test_a_heartbeat_outlives_an_error_of_the_disk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "lease.json"
    with Lease(str(tmp_path), "one") as lease:
        before = path.read_text()
        (tmp_path / "loop").symlink_to(path)
        (tmp_path / "loop").replace(path)  # to read it is an OSError that is nobody's mistake
        until = time.monotonic() + 10
        said = ""
        while "could not be written" not in said and time.monotonic() < until:
            time.sleep(0.1)
            said += " ".join(capsys.readouterr().err.split())
        (tmp_path / "back").write_text(before)
        (tmp_path / "back").replace(path)
        while path.read_text() == before and time.monotonic() < until:
            time.sleep(0.1)
        assert path.read_text() != before
        lease.check()
    assert "could not be written" in said


def test_fetching_ahead_keeps_the_order(tmp_path: Path) -> None:
    unit = next(Source.open(str(folder_of(tmp_path / "faces"))).units(1000))
    near = Worker(Brightness(), str(tmp_path / "near"), Reader("image", None), batch=8)
    far = Worker(Brightness(), str(tmp_path / "far"), Reader("image", None), batch=8, threads=4)
    near.label(unit.published_as("p"))
    far.label(unit.published_as("p"))
    assert pq.read_table(tmp_path / "near" / "ledger" / "labels").equals(
        pq.read_table(tmp_path / "far" / "ledger" / "labels")
    )


def test_a_manifest_names_images_by_uri(tmp_path: Path) -> None:
    root, lists, out = folder_of(tmp_path / "faces"), tmp_path / "lists", tmp_path / "out"
    lists.mkdir()

    def listed(names: list[str], **more: list[object]) -> Source:
        table = pa.table({"uri": [str(root / name) for name in names], "etag": names, **more})
        pq.write_table(table, lists / "one.parquet")
        return Source.open(str(lists))

    source = listed(sorted(PICTURES))
    assert label_all(source, out)[0].seen == 60
    assert answers(out) == {str(root / name): answer for name, answer in EXPECTED.items()}
    grown = listed([*sorted(PICTURES), "gone.png"])
    assert label_all(grown, out)[0].seen == 0
    assert failures(out) == {str(root / "gone.png"): "missing"}
    again = listed(sorted(PICTURES)[:59], size=[1] * 59)
    assert label_all(again, out)[0].seen == 59, "another size, another version"
    with pytest.raises(InputError, match=r"stands more than once in .*lists"):
        listed(["a/000.png", "a/000.png"]).check_ids()
    listed(["a/000.png"]).check_ids()


def test_a_manifest_in_csv_with_any_column_and_relative_paths(tmp_path: Path) -> None:
    folder_of(tmp_path)
    path = tmp_path / "faces.csv"
    path.write_text("where,what\na/000.png,1\n,2\nhttp://elsewhere/x.png,3\n/no/such.png,4\n")
    source = Source.open(str(path), uri_column="where")
    label_all(source, tmp_path / "out")
    assert answers(tmp_path / "out") == {"a/000.png": ("sad", 0.0)}
    assert failures(tmp_path / "out") == {
        "faces.csv#1": "unreadable", "http://elsewhere/x.png": "unreadable", "/no/such.png": "missing",
    }  # fmt: skip
    assert sum(unit.size for unit in Source.open(str(path), uri_column="where", include="*.png").units(9)) == 3
    for options, says in (({"uri_column": "url"}, "no column url, only where, what"), ({}, "no column 'image'")):
        with pytest.raises(InputError, match=says):
            Source.open(str(path), **options)
    with pytest.raises(InputError, match="--uri-column uri for"):
        Source.open(str(tmp_path / "a"), uri_column="uri")


@pytest.mark.parametrize("form", ["CSV", "Parquet"])
def test_an_s3_inventory_is_a_manifest(tmp_path: Path, s3: str, form: str) -> None:
    keys = ["faces/a b.png", "faces/c+d.png", "faces/é.png"]
    for shade, key in enumerate(keys):
        storage.write_bytes(f"{s3}/{key}", png(shade))
    bucket = s3.removeprefix("s3://")
    if form == "CSV":
        rows = [[bucket, quote_plus(key), "true", "false", "70", f"tag{key}"] for key in keys]
        rows.append([bucket, "faces/old.png", "false", "false", "1", "t"])
        text = "".join(",".join(f'"{cell}"' for cell in row) + "\n" for row in rows)
        data, schema, name = (
            gzip.compress(text.encode()),
            "Bucket, Key, IsLatest, IsDeleteMarker, Size, ETag",
            "1.csv.gz",
        )
    else:
        table = pa.table({"bucket": [bucket] * 4, "key": [*keys, "gone"], "size": [70] * 4,
                          "is_delete_marker": [False] * 3 + [True], "e_tag": list("abcd")})  # fmt: skip
        sink = io.BytesIO()
        pq.write_table(table, sink)
        data, schema, name = sink.getvalue(), "message s3.inventory { ... }", "1.parquet"
    storage.write_bytes(f"{s3}/lists/data/{name}", data)
    told = {"sourceBucket": bucket, "destinationBucket": f"arn:aws:s3:::{bucket}", "fileFormat": form,
            "fileSchema": schema, "files": [{"key": f"lists/data/{name}", "size": len(data)}]}  # fmt: skip
    storage.write_bytes(f"{s3}/lists/day/manifest.json", json.dumps(told).encode())
    source = Source.open(f"{s3}/lists/day/manifest.json")
    source.check_ids()
    label_all(source, tmp_path / "out")
    assert answers(tmp_path / "out") == {f"{s3}/{key}": ("sad", round(n / 255, 4)) for n, key in enumerate(keys)}
    assert label_all(source, tmp_path / "out")[1] == 0


class FarReader(Reader):
    """Every get takes 30 ms; counts how many are under way."""

    def __init__(self) -> None:
        super().__init__("image", None)
        self._lock = threading.Lock()
        self.under_way = 0
        self.most = 0

    def read(self, unit: Unit) -> Iterator[tuple[str, Payload]]:
        for ident, payload in super().read(unit):
            yield ident, partial(self._late, payload)

    def _late(self, payload: Payload) -> bytes:
        with self._lock:
            self.under_way += 1
            self.most = max(self.most, self.under_way)
        time.sleep(0.03)
        with self._lock:
            self.under_way -= 1
        return payload()


class Timed(Brightness):
    """Takes 1 ms an image, and notes when it was at work and how many gets were under way then."""

    def __init__(self, reader: FarReader) -> None:
        super().__init__()
        self._reader = reader
        self.meanwhile: list[int] = []
        self.spans: list[tuple[float, float]] = []

    def probabilities(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        began = time.monotonic()
        found = super().probabilities(images)
        self.meanwhile.append(self._reader.under_way)
        time.sleep(len(images) / 1000)
        self.spans.append((began, time.monotonic()))
        return found


def test_gets_go_on_in_parallel_while_the_engine_works(tmp_path: Path) -> None:
    names = {f"{n:04d}.png": png(n) for n in range(256)}
    source = Source.open(str(folder_of(tmp_path / "faces", names)))
    units = [unit for unit in source.units(128) for _ in range(4)]
    reader = FarReader()
    model = Timed(reader)
    worker = Worker(model, str(tmp_path / "out"), reader, batch=32, threads=64)
    with ThreadPoolExecutor(2) as two:
        list(two.map(worker.label, [unit.published_as(f"{n}") for n, unit in enumerate(units)]))
    assert reader.most > 32
    assert any(model.meanwhile), "gets go on while the engine works"
    assert all(end <= began for (_, end), (began, _) in pairwise(model.spans)), "one at a time has the engine"


def test_drift_is_told_in_summary_and_report(tmp_path: Path) -> None:
    confidences = np.array([max(n, 255 - n) / 255 for n in range(60)], np.float32)
    calib = asdict(answered(np.tile(confidences, 10), np.array(["sad"] * 600, object)))
    like, brighter = tmp_path / "like", {name: png(150 + n) for n, name in enumerate(PICTURES)}
    for out, pictures, drifted in ((like, PICTURES, False), (tmp_path / "shifted", brighter, True)):
        label_all(Source.open(str(folder_of(out / "faces", pictures))), out / "run")
        settings = {"model_id": "m", "classes": Brightness.classes, "source": "", "engine": "onnx", "faces": None}
        settings |= {"preprocessing": {"size": 16, "channels": 1}, "preprocessing_version": 1}
        run = fix(str(out / "run"), settings, "r", calib)
        summary = results.publish(str(out / "run"), Ledger(str(out / "run")), run, 60)
        assert summary["drift"]["found"] is drifted
        assert ("are not drawn like" in (out / "run" / "report.html").read_text().replace("\n", " ")) is drifted
