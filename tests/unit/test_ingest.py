"""Ingest: every kind of source, counts that add up, splits that never share a picture, errors in one line."""

import csv
import io
import itertools
import json
import os
import tarfile
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fer_scale.errors import InputError
from fer_scale.faces.images import Preprocessing, encode_png
from fer_scale.faces.shuffle import drawn, in_order
from fer_scale.faces.store import SPLITS, STORE_SCHEMA, Store
from fer_scale.verbs.ingest import ingest

CLASSES = ("happy", "sad", "surprised", "neutral")
TWO = ("happy", "sad")


def picture(number: int, size: int = 8) -> bytes:
    """A PNG that differs from that of every other number."""
    pixels = np.random.default_rng(number).integers(0, 256, (size, size), dtype=np.uint8)
    return encode_png(pixels)


def pixel_text(number: int, size: int = 8) -> str:
    pixels = np.random.default_rng(number).integers(0, 256, (size, size), dtype=np.uint8)
    return " ".join(map(str, pixels.ravel().tolist()))


def class_folders(root: Path, per_class: int = 10, classes: tuple[str, ...] = CLASSES) -> Path:
    for place, name in enumerate(classes):
        for number in range(per_class):
            path = root / name / f"{number:03}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(picture(1000 * place + number))
    return root


def parquet(path: Path, rows: list[dict[str, object]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def rows_of(store: Path, part: str = "data") -> list[dict[str, object]]:
    return pq.read_table(store / part).to_pylist()


def adds_up(result: dict[str, object]) -> bool:
    parts = ("kept", "duplicates", "conflicts", "dropped", "rejected")
    return result["read"] == sum(result[name] for name in parts)


def test_class_folders_become_a_store_with_all_four_splits(tmp_path):
    result = ingest(class_folders(tmp_path / "faces", 20), tmp_path / "store", quiet=True)
    assert (result["read"], result["kept"]) == (80, 80)
    assert list(result["splits"]) == list(SPLITS)
    for split, count in {"train": 16, "val": 1, "calib": 1, "test": 2}.items():
        assert result["splits"][split] == dict.fromkeys(CLASSES, count)
    rows = rows_of(tmp_path / "store")
    assert pq.read_schema(next((tmp_path / "store/data").iterdir())).equals(STORE_SCHEMA)
    assert {row["id"] for row in rows} == {f"{c}/{n:03}.png" for c in CLASSES for n in range(20)}
    assert {(row["width"], row["height"]) for row in rows} == {(8, 8)}
    assert all(row["image"] == (tmp_path / "faces" / row["id"]).read_bytes() for row in rows)
    store = Store.open(str(tmp_path / "store"))
    faces = store.faces("train", Preprocessing(size=16))
    assert faces.images.shape == (64, 1, 16, 16)
    assert Counter(faces.labels.tolist()) == dict.fromkeys(range(4), 16)


def test_every_kind_of_row_is_counted_once_and_can_be_found_again(tmp_path):
    root = class_folders(tmp_path / "faces", 8)
    (root / "happy/again.png").write_bytes(picture(0))
    (root / "sad/liar.png").write_bytes(picture(1))  # is also happy/001.png
    (root / "angry").mkdir()
    (root / "angry/a.png").write_bytes(picture(2))  # its class is not asked for: no conflict with happy/002.png
    (root / "angry/broken.png").write_bytes(b"no picture")
    (root / "sad/broken.png").write_bytes(b"no picture")
    (root / "sad/empty.png").write_bytes(b"")
    (root / "sad/cut.png").write_bytes(picture(7, 64)[:1500])
    (root / "stray.png").write_bytes(picture(77))
    (root / "README.txt").write_text("not an input")
    (root / "sad/.DS_Store").write_text("not an input")
    result = ingest(root, tmp_path / "store", quiet=True)
    counts = {name: result[name] for name in ("read", "kept", "duplicates", "conflicts", "dropped", "rejected")}
    assert counts == {"read": 40, "kept": 31, "duplicates": 1, "conflicts": 2, "dropped": 2, "rejected": 4}
    assert adds_up(result)
    rejects = {row["id"]: row["reason"] for row in rows_of(tmp_path / "store", "rejects")}
    assert rejects == {
        "sad/broken.png": "undecodable",
        "sad/empty.png": "empty",
        "sad/cut.png": "truncated",
        "stray.png": "no_label",
    }
    aside = {row["id"]: row["reason"] for row in rows_of(tmp_path / "store", "set_aside")}
    assert aside == {"happy/again.png": "duplicate", "happy/001.png": "conflict", "sad/liar.png": "conflict"}
    manifest = json.loads((tmp_path / "store/manifest.json").read_text())
    assert {name: manifest["counts"][name] for name in counts} == counts
    assert sorted(path.name for path in (tmp_path / "store").iterdir()) == [
        "data",
        "manifest.json",
        "rejects",
        "set_aside",
    ]


def test_splits_that_are_given_are_kept_and_only_missing_ones_are_carved(tmp_path):
    root = tmp_path / "faces"
    for split, start in (("training", 0), ("validation", 100)):
        for place, name in enumerate(TWO):
            for number in range(10):
                path = root / split / name / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(picture(start + 1000 * place + number))
    result = ingest(root, tmp_path / "store", classes=TWO, quiet=True)
    assert {split: sum(by.values()) for split, by in result["splits"].items()} == {
        "train": 18,
        "val": 10,
        "calib": 10,
        "test": 2,
    }
    for row in rows_of(tmp_path / "store"):
        assert row["split"] in (("train", "test") if row["id"].startswith("training/") else ("val", "calib"))


def test_a_source_of_test_pictures_alone_is_not_carved(tmp_path):
    class_folders(tmp_path / "faces/test", 3)
    result = ingest(tmp_path / "faces", tmp_path / "store", quiet=True)
    assert {split: sum(by.values()) for split, by in result["splits"].items()} == {
        "train": 0,
        "val": 0,
        "calib": 0,
        "test": 12,
    }


@pytest.mark.parametrize(("kept", "gone"), list(itertools.combinations(["test", "calib", "val", "train"], 2)))
def test_of_a_picture_on_two_sides_that_which_proves_most_stays(kept, gone, tmp_path):
    rows = [
        {"id": f"{split}-{number}", "split": split, "label": TWO[number % 2], "image": picture(10 * place + number)}
        for place, split in enumerate(("train", "val", "calib", "test"))
        for number in range(4)
    ]
    rows += [{"id": f"{split}-twice", "split": split, "label": TWO[0], "image": picture(99)} for split in (gone, kept)]
    ingest(
        parquet(tmp_path / "faces.parquet", rows),
        tmp_path / "store",
        classes=TWO,
        id_column="id",
        split_column="split",
        split_map={name: name for name in SPLITS},
        quiet=True,
    )
    assert [row["split"] for row in rows_of(tmp_path / "store") if row["id"].endswith("twice")] == [kept]


@pytest.mark.parametrize("keep_duplicates", [False, True])
def test_the_same_picture_never_stands_on_two_sides(tmp_path, keep_duplicates):
    rows = []
    for number in range(60):
        for copy in range(1 + number % 3):
            usage = ["Training", "PublicTest"][(number + copy) % 4 == 0]
            label = TWO[number % 2]
            rows.append({"name": f"{number}-{copy}", "usage": usage, "label": label, "image": picture(number)})
    result = ingest(
        parquet(tmp_path / "faces.parquet", rows),
        tmp_path / "store",
        classes=TWO,
        id_column="name",
        split_column="usage",
        split_map={"Training": "train", "PublicTest": "test"},
        keep_duplicates=keep_duplicates,
        quiet=True,
    )
    kept = rows_of(tmp_path / "store")
    sides: dict[object, set[object]] = {}
    for row in kept:
        sides.setdefault(row["sha256"], set()).add(row["split"])
    assert len(sides) == 60
    assert all(len(of) == 1 for of in sides.values())
    assert adds_up(result)
    given = {row["name"]: row["usage"] for row in rows}
    test = {name.split("-")[0] for name, usage in given.items() if usage == "PublicTest"}
    assert {row["id"].split("-")[0] for row in kept if row["split"] == "test"} == test
    repeats = sum(
        sum(g == "PublicTest" for g in of) or len(of)
        for of in ([given[r["name"]] for r in rows if r["name"].startswith(f"{n}-")] for n in range(60))
    )
    assert result["kept"] == (repeats if keep_duplicates else 60)


def test_the_same_row_twice_is_a_duplicate_and_another_picture_of_its_id_is_rejected(tmp_path):
    rows = [
        {"name": f"{label}{n}", "label": label, "image": picture(n + 100 * at)}
        for at, label in enumerate(TWO)
        for n in range(5)
    ]
    rows += [rows[0], {**rows[1], "image": picture(999)}, {**rows[2], "name": None}]
    for keep in (False, True):
        result = ingest(
            parquet(tmp_path / "faces.parquet", rows),
            tmp_path / "store",
            classes=TWO,
            id_column="name",
            keep_duplicates=keep,
            overwrite=True,
            quiet=True,
        )
        assert result["duplicates"] == (1 if keep else 2)
        assert [row["reason"] for row in rows_of(tmp_path / "store", "rejects")] == ["duplicate_id"]
        ids = [row["id"] for row in rows_of(tmp_path / "store")]
        assert len(ids) == len(set(ids)) == result["kept"]
        assert "faces.parquet#12" in ids  # a row without an id is named by its place


def test_fer2013_csv_needs_no_options_but_the_rename(tmp_path):
    path = tmp_path / "fer2013.csv"
    with path.open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["emotion", "pixels", "Usage"])
        for number in range(70):
            usage = ("Training", "Training", "Training", "PublicTest", "PrivateTest")[number // 14]
            out.writerow([number % 7, pixel_text(number, 48), usage])
        out.writerow([3, "1 2 3 4 5", "Training"])
        out.writerow([3, "0 " * 63 + "256", "Training"])
        out.writerow(["", pixel_text(4), "Training"])
    result = ingest(path, tmp_path / "store", rename={"surprise": "surprised"}, quiet=True)
    assert (result["read"], result["kept"], result["dropped"], result["rejected"]) == (73, 40, 30, 3)
    splits = {split: sum(by.values()) for split, by in result["splits"].items()}
    assert splits == {"train": 24, "val": 4, "calib": 4, "test": 8}
    row = next(row for row in rows_of(tmp_path / "store") if row["id"] == "fer2013.csv#3")
    assert (row["label"], row["width"], row["image"]) == ("happy", 48, picture(3, 48))


def test_a_csv_of_paths_reads_the_pictures_beside_it(tmp_path):
    class_folders(tmp_path / "faces", 6, TWO)
    lines = ["file,feeling"] + [f"faces/{label}/{n:03}.png,{label}" for label in TWO for n in range(6)]
    (tmp_path / "list.csv").write_text("\n".join([*lines, "faces/happy/gone.png,happy"]))
    result = ingest(
        tmp_path / "list.csv",
        tmp_path / "store",
        classes=TWO,
        image_column="file",
        label_column="feeling",
        quiet=True,
    )
    assert (result["kept"], result["rejected"]) == (12, 1)
    assert rows_of(tmp_path / "store", "rejects")[0]["reason"] == "unreadable"


def test_cells_that_lead_to_no_picture_are_rejected_one_by_one(tmp_path):
    class_folders(tmp_path / "faces", 5, TWO)
    rows = [{"image": f"faces/{label}/{n:03}.png", "label": label} for label in TWO for n in range(5)]
    cells = ("http://host/a.png", "faces", "faces/sad/000.png/a", "n" * 300, "a\0b.png", "s3://", "faces/huge.png")
    rows += [{"image": cell, "label": "happy"} for cell in cells]
    (tmp_path / "faces/huge.png").touch()
    os.truncate(tmp_path / "faces/huge.png", 2**40)  # takes no room on the disk; nobody's memory would hold it
    result = ingest(parquet(tmp_path / "list.parquet", rows), tmp_path / "store", classes=TWO, quiet=True)
    assert (result["kept"], result["rejected"]) == (10, len(cells))
    reasons = Counter(row["reason"] for row in rows_of(tmp_path / "store", "rejects"))
    assert reasons == {"unreadable": len(cells) - 1, "too_large": 1}


def test_a_file_that_is_too_large_is_not_read(tmp_path):
    root = class_folders(tmp_path / "faces", 5)
    (root / "sad/huge.png").touch()
    os.truncate(root / "sad/huge.png", 2**40)
    result = ingest(root, tmp_path / "store", quiet=True)
    assert (result["kept"], result["rejected"]) == (20, 1)
    assert rows_of(tmp_path / "store", "rejects")[0]["reason"] == "too_large"


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_archives_give_the_same_store_as_their_folder(tmp_path, kind):
    root = class_folders(tmp_path / "faces", 6)
    (root / "sad/broken.png").write_bytes(b"no picture")
    wanted = ingest(root, tmp_path / "store", quiet=True)
    path = tmp_path / f"faces.{kind}"
    files = [file for file in sorted(root.rglob("*"), reverse=True) if file.is_file()]
    if kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for file in files:
                archive.write(file, file.relative_to(root))
            archive.writestr("__MACOSX/sad/._x.png", b"junk")
    else:
        with tarfile.open(path, "w:gz" if kind == "tar.gz" else "w") as archive:
            for file in files:
                archive.add(file, f"./{file.relative_to(root)}")
    got = ingest(path, tmp_path / "other", quiet=True)
    same = ("read", "kept", "rejected", "splits", "fingerprint")
    assert {name: got[name] for name in same} == {name: wanted[name] for name in same}


def test_an_archive_may_wrap_all_in_one_folder_and_hold_a_bomb(tmp_path):
    path = tmp_path / "faces.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for place, label in enumerate(TWO):
            for number in range(5):
                archive.writestr(f"set/train/{label}/{number}.png", picture(100 * place + number))
        archive.writestr("set/train/sad/bomb.png", bytes(40 * 2**20))
    assert path.stat().st_size < 2**20
    result = ingest(path, tmp_path / "store", classes=TWO, quiet=True)
    assert (result["kept"], result["rejected"]) == (10, 1)
    assert rows_of(tmp_path / "store", "rejects")[0]["reason"] == "too_large"


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_member_of_a_zip_whose_bytes_are_damaged_is_rejected_alone(method, tmp_path):
    path, noise = tmp_path / "faces.zip", np.random.default_rng(0).bytes(3000)
    with zipfile.ZipFile(path, "w", method) as archive:
        for place, label in enumerate(TWO):
            for number in range(5):
                archive.writestr(f"{label}/{number}.png", picture(100 * place + number))
        archive.writestr("sad/damaged.png", noise)
        at = archive.getinfo("sad/damaged.png").header_offset
    data = bytearray(path.read_bytes())
    data[at + 60 : at + 160] = bytes(100)
    path.write_bytes(data)
    result = ingest(path, tmp_path / "store", classes=TWO, quiet=True)
    assert (result["kept"], result["rejected"]) == (10, 1)
    (rejected,) = rows_of(tmp_path / "store", "rejects")
    assert (rejected["id"], rejected["reason"]) == ("sad/damaged.png", "unreadable")


def test_a_tar_with_fer2013_csv_inside(tmp_path):
    text = "emotion,pixels,Usage\n" + "".join(f"{3 + n % 2},{pixel_text(n)},Training\n" for n in range(12))
    info = tarfile.TarInfo("fer2013/fer2013.csv")
    info.size = len(text)
    with tarfile.open(tmp_path / "fer2013.tar.gz", "w:gz") as archive:
        archive.addfile(info, io.BytesIO(text.encode()))
    result = ingest(tmp_path / "fer2013.tar.gz", tmp_path / "store", classes=TWO, quiet=True)
    assert result["kept"] == 12


FER2013 = "emotion,pixels,Usage\n" + "".join(f"{3 + n % 2},{pixel_text(n)},Training\n" for n in range(12))


@pytest.mark.parametrize("kind", ["tar.gz", "zip", "folder"])
def test_what_lies_beside_a_wrapped_csv_does_not_hide_it(kind, tmp_path):
    files = {"fer2013.csv": FER2013, "README": "x", "fer2013.bib": "x", "CHECKSUM": "x"}
    for name, text in files.items():
        path = tmp_path / "whole/fer2013" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    source = tmp_path / "whole"
    if kind == "tar.gz":
        source = tmp_path / "fer2013.tar.gz"
        with tarfile.open(source, "w:gz") as archive:
            archive.add(tmp_path / "whole/fer2013", "fer2013")
    elif kind == "zip":
        source = tmp_path / "fer2013.zip"
        with zipfile.ZipFile(source, "w") as packed:
            for name in files:
                packed.write(tmp_path / "whole/fer2013" / name, f"fer2013/{name}")
    result = ingest(source, tmp_path / "store", classes=TWO, quiet=True)
    assert (result["kept"], result["rejected"]) == (12, 0)


@pytest.mark.parametrize("ending", [".png", ".dat", ""])
@pytest.mark.parametrize("archived", [False, True])
def test_what_lies_beside_wrapped_class_folders_does_not_hide_them(ending, archived, tmp_path):
    source = tmp_path / ("faces.zip" if archived else "faces")
    files = {f"set/train/{label}/{n}{ending}": picture(100 * at + n) for at, label in enumerate(TWO) for n in range(5)}
    files |= {"set/README.md": b"x", "set/labels.csv": b"name,label\n", "set/train/faces.bib": b"x"}
    if archived:
        with zipfile.ZipFile(source, "w") as archive:
            for name, data in files.items():
                archive.writestr(name, data)
    else:
        for name, data in files.items():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes(data)
    result = ingest(source, tmp_path / "store", classes=TWO, quiet=True)
    assert (result["kept"], result["rejected"]) == (10, 0)
    assert {row["label"] for row in rows_of(tmp_path / "store")} == set(TWO)


def test_a_csv_in_a_damaged_or_encrypted_zip_gets_one_clear_line(tmp_path):
    path = tmp_path / "fer2013.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("fer2013.csv", FER2013)
    whole = path.read_bytes()
    for at, data in ((60, bytes(60)), (6, b"\1")):  # the member's bytes; its flag that it is encrypted
        damaged = bytearray(whole)
        damaged[at : at + len(data)] = data
        if len(data) == 1:
            damaged[whole.index(b"PK\1\2") + 8] |= 1  # and in the directory
        path.write_bytes(damaged)
        line = wrong(tmp_path, path, classes=TWO)
        assert str(path) in line
        assert "expected a whole zip or tar archive" in line


def test_others_become_one_more_class(tmp_path):
    root = class_folders(tmp_path / "faces", 6, ("happy", "sad", "angry", "fear"))
    (root / "fear/same.png").write_bytes((root / "angry/000.png").read_bytes())
    result = ingest(root, tmp_path / "store", classes=TWO, others="other", quiet=True)
    assert result["classes"] == ["happy", "sad", "other"]
    assert (result["kept"], result["duplicates"], result["dropped"]) == (24, 1, 0)


def test_a_store_of_fewer_classes_has_the_splits_of_one_of_all(tmp_path):
    root = class_folders(tmp_path / "faces", 30)
    splits = []
    for name, classes in (("few", TWO), ("all", CLASSES)):
        ingest(root, tmp_path / name, classes=classes, seed=3, quiet=True)
        splits.append({row["id"]: row["split"] for row in rows_of(tmp_path / name)})
    few, whole = splits
    assert set(few.values()) == set(SPLITS)
    assert few == {ident: split for ident, split in whole.items() if ident.split("/")[0] in TWO}


def test_the_order_of_rows_changes_nothing_and_the_seed_does(tmp_path):
    rows = [
        {"name": f"{n}", "label": TWO[n % 2], "image": picture(n - n % 5 if n % 11 == 0 else n)} for n in range(100)
    ]
    stores = []
    for at, (order, seed) in enumerate([(rows, 0), (rows[::-1], 0), (rows, 1)]):
        source = parquet(tmp_path / f"{at}.parquet", order)
        result = ingest(source, tmp_path / f"s{at}", classes=TWO, id_column="name", seed=seed, quiet=True)
        order_of = [row["id"] for row in rows_of(tmp_path / f"s{at}")]
        stores.append((result["fingerprint"], result["splits"], order_of))
    assert stores[0] == stores[1]
    assert stores[0][0] != stores[2][0]
    assert stores[0][1] == stores[2][1]


def test_a_folder_of_parquet_leaves_out_files_without_the_columns(tmp_path, capsys):
    rows = [{"label": TWO[n % 2], "image": {"bytes": picture(n), "path": None}} for n in range(12)]
    parquet(tmp_path / "faces/a.parquet", rows)
    parquet(tmp_path / "faces/votes.parquet", [{"votes": 1}])
    result = ingest(tmp_path / "faces", tmp_path / "store", classes=TWO)
    assert result["read"] == 12
    assert "votes.parquet has no column image, label (it has votes) and is left out" in capsys.readouterr().err


@pytest.mark.parametrize(("count", "expected"), [(1, "1000"), (2, "1100"), (3, "1101"), (4, "1111"), (5, "2111")])
def test_few_pictures_serve_train_then_val_then_test_then_calib(tmp_path, count, expected):
    result = ingest(class_folders(tmp_path / "faces", count), tmp_path / "store", quiet=True)
    assert "".join(str(result["splits"][split]["sad"]) for split in SPLITS) == expected


def test_row_groups_and_files_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr("fer_scale.faces.write.FILE_BYTES", 100_000)
    rows = [{"label": TWO[n % 2], "image": picture(n)} for n in range(4000)]
    ingest(parquet(tmp_path / "faces.parquet", rows), tmp_path / "store", classes=TWO, quiet=True)
    files = sorted((tmp_path / "store/data").glob("train-*.parquet"))
    assert len(files) > 1
    groups = [pq.ParquetFile(file).metadata for file in files]
    assert max(m.row_group(g).num_rows for m in groups for g in range(m.num_row_groups)) == 1000
    assert Store.open(str(tmp_path / "store")).rows("train") == sum(m.num_rows for m in groups)


def data_of(store: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (store / "data").iterdir()}


def test_every_row_group_has_all_classes_in_about_their_shares(tmp_path, monkeypatch):
    monkeypatch.setattr("fer_scale.faces.write.GROUP_ROWS", 200)
    root = class_folders(tmp_path / "faces", 300)  # read class by class
    ingest(root, tmp_path / "store", quiet=True)
    groups = 0
    for path in (tmp_path / "store/data").glob("train-*.parquet"):
        with pq.ParquetFile(path) as file:
            for group in range(file.num_row_groups):
                labels = Counter(file.read_row_group(group, columns=["label"])["label"].to_pylist())
                assert set(labels) == set(CLASSES)
                assert min(labels.values()) > 0.6 * labels.total() / len(CLASSES)
                groups += 1
    assert groups == 5
    ingest(root, tmp_path / "again", quiet=True)
    assert data_of(tmp_path / "again") == data_of(tmp_path / "store")
    ingest(root, tmp_path / "other", seed=1, quiet=True)
    assert data_of(tmp_path / "other") != data_of(tmp_path / "store")


def test_a_store_larger_than_a_block_of_memory_has_the_same_order(tmp_path, monkeypatch):
    rows = [{"label": TWO[n // 600], "image": picture(n)} for n in range(1200)]
    source = parquet(tmp_path / "faces.parquet", rows)
    whole = ingest(source, tmp_path / "store", classes=TWO, quiet=True)
    monkeypatch.setattr("fer_scale.faces.shuffle.BLOCK_BYTES", 20_000)
    parts = ingest(source, tmp_path / "parts", classes=TWO, quiet=True)
    assert data_of(tmp_path / "parts") == data_of(tmp_path / "store")
    assert parts["fingerprint"] == whole["fingerprint"]
    assert sorted(path.name for path in (tmp_path / "parts").iterdir()) == [
        "data",
        "manifest.json",
        "rejects",
        "set_aside",
    ]


def test_rows_dealt_to_files_come_back_once_each_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr("fer_scale.faces.shuffle.BLOCK_BYTES", 10_000)
    tables = []
    for start in range(0, 3000, 100):
        ids = pa.array([f"{n}" for n in range(start, start + 100)])
        tables.append(pa.table({"id": ids, "draw": drawn(ids, 0)}))
    pieces = list(in_order(iter(tables), 50_000, tmp_path / "scratch"))
    assert max(piece.num_rows for piece in pieces) < 1000  # of a file each
    found = pa.concat_tables(pieces)
    assert sorted(found["id"].to_pylist(), key=int) == [f"{n}" for n in range(3000)]
    draws = found["draw"].to_pylist()
    assert draws == sorted(draws)
    assert not any((tmp_path / "scratch").iterdir())


def test_large_pictures_make_small_row_groups_in_any_order(tmp_path, monkeypatch):
    monkeypatch.setattr("fer_scale.faces.write.GROUP_BYTES", 50_000)
    rows = [{"label": TWO[n % 2], "image": picture(n, 8 if n < 200 else 64)} for n in range(400)]
    ingest(parquet(tmp_path / "faces.parquet", rows), tmp_path / "store", classes=TWO, quiet=True)
    with pq.ParquetFile(tmp_path / "store/data/train-00000.parquet") as file:
        sizes = [file.metadata.row_group(at).total_byte_size for at in range(file.num_row_groups)]
    assert len(sizes) > 10
    assert max(sizes) < 75_000


def wrong(tmp_path: Path, source: Path, **options: object) -> str:
    """The one line of an ingest that must fail, having written nothing."""
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError) as caught:
        ingest(source, tmp_path / "store", quiet=True, **options)
    assert sorted(tmp_path.rglob("*")) == before
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_wrong_sources_get_one_clear_line(tmp_path):
    assert "there is no" in wrong(tmp_path, tmp_path / "nowhere")
    (tmp_path / "empty/inner").mkdir(parents=True)
    assert "is empty" in wrong(tmp_path, tmp_path / "empty")
    (tmp_path / "notes.txt").write_text("x")
    assert "is a .txt file" in wrong(tmp_path, tmp_path / "notes.txt")
    for name in ("bad.zip", "bad.tar.gz", "bad.parquet", "bad.csv"):
        (tmp_path / name).write_bytes(b"\x80abc" * 99)
        assert name in wrong(tmp_path, tmp_path / name)
    (tmp_path / "flat").mkdir()
    (tmp_path / "flat/a.png").write_bytes(picture(1))
    assert "no class folders" in wrong(tmp_path, tmp_path / "flat")


@pytest.mark.parametrize("column", ["label", "image"])
def test_a_damaged_page_under_a_sound_footer_gets_one_clear_line(tmp_path, column):
    rows = [{"label": TWO[n % 2], "image": picture(n)} for n in range(40)]
    path = parquet(tmp_path / "faces.parquet", rows)
    names = pq.read_schema(path).names
    at = pq.ParquetFile(path).metadata.row_group(0).column(names.index(column))
    data = bytearray(path.read_bytes())
    start = at.dictionary_page_offset or at.data_page_offset
    data[start : start + at.total_compressed_size] = b"\xff" * at.total_compressed_size
    path.write_bytes(data)
    line = wrong(tmp_path, path, classes=TWO)
    assert "faces.parquet" in line
    assert "expected a sound Parquet file" in line


def test_classes_without_pictures_name_the_labels_seen(tmp_path):
    root = class_folders(tmp_path / "faces", 3, ("happy", "sad", "surprise", "neutral", "fear"))
    line = wrong(tmp_path, root)
    assert "class 'surprised' has no image (labels seen: surprise 3, sad 3, neutral 3, happy 3, fear 3)" in line
    assert "--rename surprise=surprised" in line
    (tmp_path / "broken/happy").mkdir(parents=True)
    (tmp_path / "broken/happy/a.png").write_bytes(picture(1))
    (tmp_path / "broken/sad").mkdir()
    (tmp_path / "broken/sad/a.png").write_bytes(b"no picture")
    assert "class 'sad' has no image" in wrong(tmp_path, tmp_path / "broken", classes=TWO)
    assert "one class only" in wrong(tmp_path, root, classes=("happy",))
    assert "one class only" in wrong(tmp_path, root, classes="happy")
    assert "each class once" in wrong(tmp_path, root, classes=("happy", "happy"))
    assert "drop or other" in wrong(tmp_path, root, others="keep")


def test_wrong_columns_and_splits_name_what_is_there(tmp_path):
    rows = [{"face": picture(n), "label": TWO[n % 2], "usage": "PrivateTest"} for n in range(4)]
    path = parquet(tmp_path / "faces.parquet", rows)
    line = wrong(tmp_path, path, classes=TWO)
    assert "no column image (it has face, label, usage)" in line
    given = {"classes": TWO, "image_column": "face", "split_column": "usage"}
    line = wrong(tmp_path, path, split_map={"PublicTest": "test"}, **given)
    assert "split 'PrivateTest'" in line
    assert "--split-map PrivateTest=test" in line
    assert "one of train, val, calib, test" in wrong(tmp_path, path, split_map={"PrivateTest": "exam"}, **given)
    assert "column 'usage' of faces.parquet is" in wrong(
        tmp_path,
        parquet(tmp_path / "faces.parquet", [{"usage": 1.5, "label": "sad"}]),
        classes=TWO,
        image_column="usage",
    )


def test_a_label_or_split_that_is_no_single_value_is_refused(tmp_path):
    rows = [{"image": picture(n), "label": [TWO[n % 2]], "usage": {"name": "train"}} for n in range(4)]
    path = parquet(tmp_path / "faces.parquet", rows)
    line = wrong(tmp_path, path, classes=TWO)
    assert "column 'label' of faces.parquet is list" in line
    assert "--label-column" in line
    single = [{**row, "label": "sad"} for row in rows]
    line = wrong(tmp_path, parquet(path, single), classes=TWO, split_column="usage")
    assert "column 'usage' of faces.parquet is struct" in line


def test_an_output_that_would_harm_something_is_refused(tmp_path):
    root = class_folders(tmp_path / "faces", 5)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine.txt").write_text("mine")
    for store, words in (
        (root / "store", "inside SOURCE"),
        (tmp_path, "holds the input"),
        (tmp_path / "full", "--ov"),
    ):
        with pytest.raises(InputError, match=words):
            ingest(root, store, overwrite=words != "--ov", quiet=True)
    ingest(root, tmp_path / "full", overwrite=True, quiet=True)
    assert not (tmp_path / "full/mine.txt").exists()


VOTED = ("smile", "sad", "unknown")


@pytest.fixture(params=["parquet", "csv"])
def voted(tmp_path: Path, request: pytest.FixtureRequest) -> dict[str, object]:
    """Options of an ingest; by number modulo 5: votes for one class, for another, a tie, votes elsewhere, none."""
    ballots = {0: [7, 2, 1], 1: [2, 6, 2], 2: [4, 4, 2], 3: [1, 2, 7]}
    rows = [{"name": f"{n:02}", "label": TWO[n % 2], "image": picture(n)} for n in range(50)]
    votes = [{"name": f"{n:02}", "votes": ballots.get(n % 5)} for n in range(50)]
    if request.param == "parquet":
        path = parquet(tmp_path / "votes.parquet", votes)
    else:
        path = tmp_path / "votes.csv"
        given = [vote for vote in votes if vote["votes"]]
        lines = [",".join(("name", *VOTED))] + [",".join(map(str, (v["name"], *v["votes"]))) for v in given]
        path.write_text("\n".join(lines))
    return {
        "source": parquet(tmp_path / "faces.parquet", rows),
        "classes": TWO,
        "id_column": "name",
        "rename": {"smile": "happy"},
        "votes": path,
        "votes_classes": VOTED,
        "quiet": True,
    }


def test_votes_are_joined_by_id_and_learned_in_shares(tmp_path, voted, capsys):
    result = ingest(store=tmp_path / "store", **{**voted, "quiet": False})
    assert result["votes"] == {"joined": 30, "elsewhere": 10, "unmatched": 10}
    assert "votes joined 30  elsewhere 10  unmatched 10\n" in capsys.readouterr().err
    by_id = {row["id"]: row for row in rows_of(tmp_path / "store")}
    assert [by_id[f"{n:02}"]["votes"] for n in range(5)] == [[7, 2], [2, 6], [4, 4], None, None]
    assert by_id["00"]["label"] == "happy"
    faces = Store.open(str(tmp_path / "store")).faces("train", Preprocessing(size=16))
    at = [int(ident) % 5 for ident in faces.ids]
    assert faces.votes is not None
    assert {0: [7, 2], 1: [2, 6], 2: [4, 4], 3: [0, 0], 4: [0, 0]}[at[0]] == faces.votes[0].tolist()
    without = {key: value for key, value in voted.items() if not key.startswith("votes")}
    plain = ingest(store=tmp_path / "plain", **without)
    assert plain["splits"] == result["splits"]
    assert plain["fingerprint"] != result["fingerprint"]
    assert Store.open(str(tmp_path / "plain")).faces("train", Preprocessing(size=16)).votes is None


def test_the_majority_of_all_options_may_be_the_label(tmp_path, voted):
    result = ingest(store=tmp_path / "store", label_from_votes=True, **voted)
    # 20 have a majority among the classes; 10 one elsewhere; a tie and no votes give no label
    assert (result["kept"], result["dropped"], result["rejected"]) == (20, 10, 20)
    labels = {row["id"]: row["label"] for row in rows_of(tmp_path / "store")}
    assert all(label == {"0": "happy", "1": "sad"}[str(int(ident) % 5)] for ident, label in labels.items())


def test_spaces_about_an_id_do_not_part_a_row_from_its_votes(tmp_path, voted):
    table = pq.read_table(voted["source"]).to_pylist()
    parquet(voted["source"], [{**row, "name": f" {row['name']} "} for row in table])
    result = ingest(store=tmp_path / "store", **voted)
    assert result["votes"] == {"joined": 30, "elsewhere": 10, "unmatched": 10}
    labels = ingest(store=tmp_path / "labels", label_from_votes=True, **voted)
    assert labels["kept"] == 20


def test_wrong_votes_get_one_clear_line(tmp_path, voted):
    source = voted.pop("source")
    voted.pop("quiet")
    assert "--rename smile=happy" in wrong(tmp_path, source, **{**voted, "rename": {}})
    assert "lists of 2 votes" in wrong(tmp_path, source, **{**voted, "votes_classes": ("happy", "joy")})
    assert "both or neither" in wrong(tmp_path, source, **{**voted, "votes_classes": None})
    assert "a column id," in wrong(tmp_path, source, **{**voted, "id_column": None})
    words = tmp_path / "words.csv"
    words.write_text(f"name,{','.join(VOTED)}\n00,many,2,1\n")
    assert "numbers as votes" in wrong(tmp_path, source, **{**voted, "votes": words})
