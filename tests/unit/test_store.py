"""Reading a face store, and what a wrong one says; FER2013 itself where it is at hand."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from fer_scale import storage
from fer_scale.errors import InputError
from fer_scale.faces.images import Preprocessing, encode_png
from fer_scale.faces.store import Store
from fer_scale.verbs.ingest import ingest

TWO = ("happy", "sad")


@pytest.fixture
def faces(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    for label in TWO:
        (tmp_path / "faces" / label).mkdir(parents=True)
        for number in range(9):
            data = encode_png(random.integers(0, 256, (48, 48), dtype=np.uint8))
            (tmp_path / "faces" / label / f"{number}.png").write_bytes(data)
    return tmp_path / "faces"


def test_a_split_comes_as_arrays_in_the_order_of_its_ids(tmp_path, faces):
    ingest(faces, tmp_path / "store", classes=TWO, quiet=True)
    store = Store.open(str(tmp_path / "store"))
    assert store.classes == list(TWO)
    split = store.faces("train", Preprocessing(size=24, channels=3))
    assert split.images.shape == (len(split), 3, 24, 24)
    assert [TWO[label] for label in split.labels] == [ident.split("/")[0] for ident in split.ids]
    stored = store.dataset().to_table(["id", "split"]).to_pylist()
    assert [row["id"] for row in stored if row["split"] == "train"] == split.ids


def test_what_is_no_store_or_has_no_such_split_is_said(tmp_path, faces):
    with pytest.raises(InputError, match="ingest SOURCE STORE"):
        Store.open(str(tmp_path))
    (faces / "test").mkdir()
    for label in TWO:
        (faces / label).rename(faces / "test" / label)
    ingest(faces, tmp_path / "store", classes=TWO, quiet=True)
    with pytest.raises(InputError, match="one of test"):
        Store.open(str(tmp_path / "store")).check("val")
    manifest = tmp_path / "store/manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "version": 99}))
    with pytest.raises(InputError, match="of version 99"):
        Store.open(str(tmp_path / "store"))


def upload(folder: Path, s3: str, prefix: str) -> str:
    for path in folder.rglob("*"):
        if path.is_file():
            storage.write_bytes(f"{s3}/{prefix}/{path.relative_to(folder)}", path.read_bytes())
    return f"{s3}/{prefix}"


def test_s3_gives_the_store_that_the_same_files_give_here(tmp_path, faces, s3):
    wanted = ingest(faces, tmp_path / "store", classes=TWO, quiet=True)
    source = upload(faces, s3, "labelled/faces")
    with zipfile.ZipFile(tmp_path / "faces.zip", "w") as archive:
        for path in faces.rglob("*.png"):
            archive.write(path, path.relative_to(faces))
    storage.write_bytes(f"{s3}/faces.zip", (tmp_path / "faces.zip").read_bytes())
    for name, place in (
        ("of-folder", source),
        ("of-zip", f"{s3}/faces.zip"),
        ("of-store", f"{s3}/of-zip/data"),
    ):
        options = {"split_column": "split", "id_column": "id"} if name == "of-store" else {}
        result = ingest(place, f"{s3}/{name}", classes=TWO, quiet=True, **options)
        assert result["fingerprint"] == wanted["fingerprint"]
    here, there = Store.open(str(tmp_path / "store")), Store.open(f"{s3}/of-folder")
    assert there.manifest["counts"] == here.manifest["counts"]
    columns = ["id", "split", "image"]
    assert there.dataset().to_table(columns) == here.dataset().to_table(columns)


def test_wrong_s3_sources_and_stores_are_said(tmp_path, faces, s3, monkeypatch):
    with pytest.raises(InputError, match="there is no"):
        ingest(f"{s3}/nothing", tmp_path / "store", classes=TWO, quiet=True)
    with pytest.raises(InputError):
        ingest("s3://no-such-bucket-here/faces", tmp_path / "store", classes=TWO, quiet=True)
    source = upload(faces, s3, "faces")
    with pytest.raises(InputError, match="inside SOURCE"):
        ingest(source, f"{source}/store", classes=TWO, quiet=True)
    storage.write_bytes(f"{s3}/full/mine.txt", b"mine")
    with pytest.raises(InputError, match="--overwrite"):
        ingest(source, f"{s3}/full", classes=TWO, quiet=True)
    assert not (tmp_path / "store").exists()


def test_fer2013_gives_the_counts_that_are_known_of_it(fer2013, tmp_path, capsys):
    result = ingest(
        fer2013,
        tmp_path / "store",
        rename={"surprise": "surprised"},
        id_column="name",
        split_column="usage",
        split_map={"Training": "train", "PublicTest": "test"},
    )
    assert result["read"] == 28558 + 3579
    assert result["dropped"] == result["read"] - 20035 - 2556
    assert (result["conflicts"], result["rejected"]) == (0, 0)
    assert result["kept"] + result["duplicates"] == 20035 + 2556
    tables = [pq.read_table(tmp_path / "store" / part).to_pandas() for part in ("data", "set_aside")]
    data, aside = tables
    assert data["sha256"].is_unique
    assert data["id"].is_unique
    test = set(data.loc[data["split"] == "test", "sha256"])
    of_training = aside[(aside["split"] == "train") & aside["sha256"].isin(test)]
    assert len(of_training) == 210
    assert "training_ferplus_votes.parquet has no column image, label" in capsys.readouterr().err


def test_a_store_with_files_that_are_not_its_own_is_refused(tmp_path, faces):
    ingest(faces, tmp_path / "store", classes=TWO, quiet=True)
    (there,) = (tmp_path / "store/data").glob("train-*.parquet")
    (tmp_path / "store/data/train-00009.parquet").write_bytes(there.read_bytes())
    with pytest.raises(InputError, match=r"24 rows of train, not the 12 of its manifest"):
        Store.open(str(tmp_path / "store")).check("train")


def test_pictures_in_s3_are_rejected_one_by_one_and_no_access_at_all_is_said(tmp_path, faces, s3, monkeypatch):
    rows = [f"{path},{path.parent.name}" for path in sorted(faces.rglob("*.png"))]
    rows += [f"{place},happy" for place in (f"{s3}/gone.png", "s3://no-such-bucket-here/a.png", "s3://Wrong!/a.png")]
    (tmp_path / "list.csv").write_text("\n".join(["image,label", *rows]))
    result = ingest(tmp_path / "list.csv", tmp_path / "store", classes=TWO, quiet=True)
    assert (result["kept"], result["rejected"]) == (18, 3)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(InputError, match="no complete AWS credentials"):
        ingest(tmp_path / "list.csv", tmp_path / "other", classes=TWO, quiet=True)
