"""`label` on a real local Ray, on real files, also stopped in the middle and from S3."""

import importlib.util
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from fer_scale.bundle import Bundle
from fer_scale.cluster import connected
from fer_scale.console import progress
from fer_scale.errors import FerScaleError, InputError
from fer_scale.faces.images import Preprocessing, prepare
from fer_scale.labelling.ledger import Backlog
from fer_scale.labelling.sources import Source
from fer_scale.labelling.units import Unit
from fer_scale.labelling.worker import Worker
from fer_scale.predictor import Predictor
from fer_scale.verbs import label_stream
from fer_scale.verbs.certify import certify
from fer_scale.verbs.label import label
from fer_scale.verbs.label_actor import Job, Labeller, Wish
from fer_scale.verbs.label_session import _Counting
from fer_scale.verbs.label_stream import _listing, messages
from tests import photographs
from tests.bundles import calibration, write_bundle

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("bundle") / "b")


@pytest.fixture(scope="module")
def session() -> Iterator[None]:
    with connected(cpus=1):
        yield


def noise(seed: int) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (48, 48), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def faces(root: Path, count: int) -> Path:
    root.mkdir(parents=True)
    for seed in range(count):
        (root / f"{seed:04d}.png").write_bytes(noise(seed))
    return root


def rows(out: Path) -> dict[str, tuple[float, ...]]:
    found = pq.read_table(out / "labels").to_pylist()
    assert len({(row["id"], row["face"]) for row in found}) == len(found)
    return {row["id"]: tuple(value for key, value in row.items() if key.startswith("prob_")) for row in found}


def test_every_image_has_an_answer(session: None, bundle: Path, tmp_path: Path) -> None:
    root, out = faces(tmp_path / "faces", 12), tmp_path / "out"
    (root / "sub").mkdir()
    (root / "sub" / "again.png").write_bytes(noise(3))
    (root / "empty.png").touch()
    (root / "cut.png").write_bytes(noise(1)[:500])
    (root / "notes.txt").write_text("not a picture")
    summary = label(bundle, root, out)
    counts = {name: summary[name] for name in ("inputs", "labelled", "no_face", "errors", "faces", "duplicates")}
    assert counts == {"inputs": 16, "labelled": 13, "no_face": 0, "errors": 3, "faces": 13, "duplicates": 1}
    assert summary == json.loads((out / "summary.json").read_text())
    assert summary["new"] == 16

    table = pq.read_table(out / "labels")
    assert table.schema.names[:4] == ["id", "face", "label", "confidence"]
    assert table.schema.names[4:] == ["prob_happy", "prob_sad", "prob_surprised", "prob_neutral", "model_id"]
    for row in table.to_pylist():
        given = {name: row[f"prob_{name}"] for name in ("happy", "sad", "surprised", "neutral")}
        assert sum(given.values()) == pytest.approx(1, abs=1e-5)
        assert row["confidence"] == given[row["label"]] == max(given.values())
        assert row["model_id"] == summary["model_id"]
    errors = {row["id"]: row["reason"] for row in pq.read_table(out / "errors").to_pylist()}
    assert errors == {"empty.png": "empty", "cut.png": "truncated", "notes.txt": "undecodable"}
    report = (out / "report.html").read_text()
    assert "The least sure" in report
    assert "http://" not in report.replace("http://www.w3.org", "")

    assert label(bundle, root, out)["new"] == 0
    (root / "new.png").write_bytes(noise(77))
    grown = label(bundle, root, out)
    assert (grown["new"], grown["inputs"], grown["labelled"]) == (1, 17, 14)
    assert set(rows(out)) == {p.relative_to(root).as_posix() for p in root.rglob("*.png")} - set(errors)

    cut = root / "cut.png"
    written, whole = cut.stat(), io.BytesIO()
    Image.new("L", (48, 48)).save(whole, "PNG")
    cut.write_bytes(whole.getvalue().ljust(written.st_size, b"\0"))
    os.utime(cut, ns=(written.st_atime_ns, written.st_mtime_ns))
    assert label(bundle, root, out)["new"] == 0, "by size and time it is the file that could not be read"
    assert label(bundle, root, out, retry_errors=True)["errors"] == 2

    other = write_bundle(tmp_path / "other", seed=1)
    with pytest.raises(InputError, match=r"model_id .* where the run in .* has model_id"):
        label(other, root, out)
    with pytest.raises(InputError, match="include"):
        label(bundle, root, out, include="*.png")
    before = sorted(out.rglob("*"))
    for wrong, says in (({"workers": 10_000}, "CPUs were asked for"), ({"engine": "abacus"}, "auto, onnx or torch")):
        with pytest.raises(InputError, match=says):
            label(other, root, out, overwrite=True, **wrong)  # type: ignore[arg-type]
    assert sorted(out.rglob("*")) == before, "a refusal deletes nothing"
    assert label(other, root, out, overwrite=True)["model_id"] != summary["model_id"]


@pytest.mark.skipif(importlib.util.find_spec("mtcnn") is None, reason="needs fer_scale[detect]")
def test_photographs(session: None, bundle: Path, tmp_path: Path) -> None:
    root, out = tmp_path / "photographs", tmp_path / "out"
    root.mkdir()
    for name, image in {
        "group": photographs.group(),
        "one": photographs.hopper(),
        "none": photographs.scenery(),
    }.items():
        (root / f"{name}.jpg").write_bytes(photographs.encoded(image, "JPEG"))
    summary = label(bundle, root, out, faces="detect")
    assert [summary[name] for name in ("inputs", "labelled", "no_face", "errors", "faces")] == [3, 2, 1, 0, 4]
    table = pq.read_table(out / "labels")
    assert table.schema.names[-2:] == ["box", "score"]
    assert sum(summary["labels"].values()) == 4
    assert json.loads((out / "run.json").read_text())["settings"]["faces"]["margin"] == 0.05
    report = (out / "report.html").read_text()
    assert report.count('class="box') == 4
    assert label(bundle, root, out, faces="detect")["new"] == 0
    with pytest.raises(InputError, match="faces None, where the run"):
        label(bundle, root, out)
    confidence = np.random.default_rng(0).uniform(0.25, 0.5, 4000)
    small, large = (
        write_bundle(tmp_path / name, seed=seed, calibration=calibration(confidence, right_from))
        for name, seed, right_from in (("small", 1, 0.3), ("large", 2, 0.0))
    )
    both = label(large, root, tmp_path / "both", faces="detect", first=small)
    assert [both[name] for name in ("inputs", "labelled", "no_face", "faces")] == [3, 2, 1, 4]
    assert both["answered_by_first"] + both["answered_by_second"] == 4, "faces, not photographs"
    drawn = certify(out, sample=4)
    assert drawn["sample"] == 4
    assert Path(drawn["sheet"]).read_text().count("data-face=") == 4


def test_tables_by_their_ids(session: None, bundle: Path, tmp_path: Path) -> None:
    table = pa.table({"key": [f"k{n}" for n in range(30)], "face": [noise(n) for n in range(30)]})
    pq.write_table(table, tmp_path / "faces.parquet", row_group_size=11)
    summary = label(bundle, tmp_path / "faces.parquet", tmp_path / "out", image_column="face", id_column="key")
    assert summary["labelled"] == 30
    assert set(rows(tmp_path / "out")) == {f"k{n}" for n in range(30)}


def test_ids_that_are_checked_beside_the_work_are_unique_before_labels_are_made(
    session: None, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, out, manifest = faces(tmp_path / "faces", 6), tmp_path / "out", tmp_path / "list.csv"
    names = [str(path) for path in sorted(root.iterdir())]
    manifest.write_text("\n".join(["uri", *names, names[2]]))
    with pytest.raises(InputError, match="stands more than once"):
        label(bundle, manifest, out, quiet=True)
    assert not out.exists(), "of a short list it is said before anything is written"
    monkeypatch.setattr("fer_scale.verbs.label.IDS_AHEAD", 0.0)  # as if it were long
    with pytest.raises(InputError, match="stands more than once"):
        label(bundle, manifest, out, quiet=True)
    assert not (out / "labels").exists()
    assert not (out / "summary.json").exists()
    manifest.write_text("\n".join(["uri", *names]))
    assert label(bundle, manifest, out, quiet=True)["labelled"] == 6
    assert set(rows(out)) == set(names)


def test_a_stray_file_among_tables_does_not_turn_them_into_pictures(
    session: None, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, out = tmp_path / "tables", tmp_path / "out"
    root.mkdir()
    pq.write_table(pa.table({"image": [noise(n) for n in range(20)]}), root / "a.parquet")
    label(bundle, root, out, quiet=True)
    assert capsys.readouterr().err == ""
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    (root / "README.md").write_text("about these faces")
    with pytest.raises(InputError, match=r"source_kind files, where the run in .* has source_kind tables; .*take the"):
        label(bundle, root, out, quiet=True)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    (root / "README.md").unlink()
    run = json.loads((out / "run.json").read_text())
    del run["settings"]["source_kind"]
    (out / "run.json").write_text(json.dumps(run))
    assert label(bundle, root, out, quiet=True)["new"] == 0, "a run that was begun before kinds were noted goes on"
    assert json.loads((out / "run.json").read_text())["settings"]["source_kind"] == "tables", "and notes it"


def test_mistakes_are_said_and_nothing_is_written(session: None, bundle: Path, tmp_path: Path) -> None:
    root = faces(tmp_path / "faces", 2)
    for wrong, says in (
        ({"workers": 10_000}, "CPUs were asked for"),
        ({"engine": "abacus"}, "auto, onnx or torch"),
        ({"source": tmp_path / "no"}, "there is no"),
        ({"bundle": tmp_path}, "model bundle"),
        ({"tolerance": 0.01}, "tolerance=0.01 without first"),
        ({"out": root / "labels"}, "within the source"),
        ({"out": tmp_path}, "holds the input"),
    ):
        with pytest.raises(InputError, match=says):
            label(**{"bundle": bundle, "source": root, "out": tmp_path / "out", **wrong})  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()
    assert not (root / "labels").exists()
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "letter.txt").write_text("dear")
    with pytest.raises(InputError, match="not empty"):
        label(bundle, root, tmp_path / "theirs")
    assert [path.name for path in (tmp_path / "theirs").iterdir()] == ["letter.txt"]


COMMITS_EACH_UNIT = """
from fer_scale.cli import main
from fer_scale.verbs import label_session
label_session.COMMIT_SECONDS = 0.0
main()
"""


def test_killed_and_run_again_it_is_as_if_unbroken(session: None, bundle: Path, tmp_path: Path) -> None:
    root = faces(tmp_path / "faces", 900)
    command = [sys.executable, "-m", "fer_scale", "label", str(bundle), str(root)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    broken = tmp_path / "broken"
    alone = [sys.executable, "-c", COMMITS_EACH_UNIT, *command[3:], str(broken), "--workers", "1"]
    run = subprocess.Popen(alone, env=environment, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        until = time.monotonic() + 120
        while not list((broken / "ledger" / "segments").glob("*.jsonl")):
            assert time.monotonic() < until
            assert run.poll() is None
            time.sleep(0.02)
    finally:
        os.killpg(run.pid, signal.SIGKILL)
        run.wait()
    assert not (broken / "summary.json").exists()
    done = subprocess.run(
        [*command, str(broken), "--json"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    summary = json.loads(done.stdout.splitlines()[-1])
    assert "was killed" in " ".join(done.stderr.split())
    assert ".cc:" not in done.stderr, "what Ray's C++ remarks"
    assert (summary["inputs"], summary["labelled"]) == (900, 900)
    assert summary["new"] < 900, "what was done stays done"
    label(bundle, root, tmp_path / "unbroken")
    assert rows(broken) == rows(tmp_path / "unbroken")


def test_a_dry_run_quotes_the_run_that_follows_and_writes_nothing(
    session: None, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, out = faces(tmp_path / "faces", 700), tmp_path / "out"
    (root / "bad.png").write_bytes(b"x")
    with pytest.raises(InputError, match="with --dry-run"):
        label(bundle, root, out, price_per_hour=2.0)
    told = label(bundle, root, out, dry_run=True, price_per_hour=2.0)
    assert not out.exists()
    assert (told["images"], told["to_label"], told["sampled"], told["requests"]) == (701, 701, 701, 0)
    assert told["errors"] == 1
    assert told["price"] == pytest.approx(2 * told["seconds"] / 3600, abs=2e-4)
    assert "701 were, and nothing was written" in " ".join(capsys.readouterr().err.split())
    assert told["seconds"] > 0
    label(bundle, root, out)
    size = sum(
        path.stat().st_size for kind in ("labels", "errors", "units") for path in (out / "ledger" / kind).iterdir()
    )
    assert told["output_mib"] == pytest.approx(size / 2**20, rel=0.3, abs=0.1)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    (root / "new.png").write_bytes(noise(5000))
    grown = label(bundle, root, out, dry_run=True)
    assert grown["images"] == 702
    assert 0 < grown["to_label"] < 702, "of the unit that changed alone"
    with pytest.raises(InputError, match="include"):
        label(bundle, root, out, dry_run=True, include="*.png")
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    (root / "new.png").unlink()
    assert label(bundle, root, out, dry_run=True)["to_label"] == 0


def test_an_actor_that_dies_is_started_again_and_a_unit_that_kills_each_ends_the_run(
    session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Mortal(Labeller):
        deadly = False

        def load(self) -> Worker:
            return None  # type: ignore[return-value]

        def told(self, worker: Worker, unit: Unit) -> dict[str, str]:
            seen = tmp_path / unit.part
            if unit.key == weak and (self.deadly or not seen.exists()):
                seen.touch()
                os._exit(1)
            return {"key": unit.key}

    class Deadly(Mortal):
        deadly = True

    source = Source.open(str(faces(tmp_path / "faces", 12)))
    keys = [unit.key for unit in source.units(3)]
    weak = keys[1]
    job = SimpleNamespace(workers=1, threads=0, gpu=False, source=source)

    def told(actor: type[Labeller]) -> list[dict[str, str]]:
        return list(messages(job, lambda: _listing(source, Backlog({}, set()), 3), actor))  # type: ignore[arg-type]

    found = told(Mortal)
    assert sorted(message["key"] for message in found if "key" in message) == sorted(keys)
    assert len(keys) > 1
    monkeypatch.setattr(label_stream, "RESTARTS", 1)
    with pytest.raises(FerScaleError, match="an actor died 2 times"):
        told(Deadly)


class Crashing(Labeller):
    """Dies where a decoder would that crashes on a picture."""

    def load(self) -> Worker:
        worker = super().load()
        plain = self._reader.read

        def read(unit: Unit) -> Iterator[tuple[str, Any]]:
            for ident, payload in plain(unit):
                yield ident, partial(_deadly, payload)

        self._reader.read = read  # type: ignore[method-assign]
        return worker


def _deadly(payload: Any) -> bytes:
    data: bytes = payload()
    if data == b"deadly":
        os._exit(1)
    return data


@pytest.mark.slow
def test_a_picture_that_kills_its_actor_is_an_error_in_the_end(session: None, bundle: Path, tmp_path: Path) -> None:
    root, out = faces(tmp_path / "faces", 40), tmp_path / "out"
    (root / "0013.png").write_bytes(b"deadly")
    (root / "empty.png").touch()
    source = Source.open(str(root))
    settings = {"model_id": Bundle.load(bundle).model_id, "engine": "onnx", "acceptance": None, "faces": None}
    job = Job.of(settings, str(bundle), source, str(out), Wish(1, None, False), 1, False)
    told = list(messages(job, lambda: _listing(source, Backlog({}, set()), 20), Crashing))
    entries = [message["entry"] for message in told if "entry" in message]
    assert sum(entry["labelled"] for entry in entries) == 39
    bad = {row["id"]: row["reason"] for row in pq.read_table(out / "ledger" / "errors").to_pylist()}
    assert bad == {"0013.png": "fatal", "empty.png": "empty"}
    assert not list((out / "ledger" / "trying").iterdir())


def test_a_listing_that_fails_is_said_by_whoever_labels_and_not_by_a_traceback(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def listing() -> Iterator[tuple[Unit, bool]]:
        raise InputError("a bucket that is gone", "the bucket", "make it again")
        yield

    with progress("labelling") as meter, _Counting(meter, [], listing()) as counting:
        counting._thread.join()  # what a thread does not catch, pytest takes for an error
    assert "Traceback" not in capsys.readouterr().err


def test_the_second_model_is_asked_where_the_first_is_not_sure(session: None, tmp_path: Path) -> None:
    root, out = faces(tmp_path / "faces", 40), tmp_path / "out"
    models = [Predictor.load(write_bundle(tmp_path / f"{seed}", seed=seed), engine="onnx") for seed in (1, 2)]
    images = np.stack([prepare((root / f"{n:04d}.png").read_bytes(), Preprocessing()) for n in range(40)])
    small, large = (model.probabilities(images) for model in models)
    middle = float(np.median(small.max(axis=1)))
    confidence = np.random.default_rng(0).uniform(middle - 0.01, middle + 0.01, 4000)
    known = calibration(confidence, middle)
    first = write_bundle(tmp_path / "first", seed=1, calibration=known)
    second = write_bundle(tmp_path / "second", seed=2, calibration=calibration(confidence, 0.0))
    found = label(second, root, out, first=first)
    settings = json.loads((out / "run.json").read_text())["settings"]
    threshold = settings["cascade"]["threshold"]
    assert abs(threshold - middle) < 0.001
    sure = small.max(axis=1) >= np.float32(threshold)
    assert 0 < sure.sum() < 40
    assert (found["answered_by_first"], found["answered_by_second"]) == (sure.sum(), 40 - sure.sum())
    expected = np.where(sure[:, None], small, large)
    got = np.array([rows(out)[f"{n:04d}.png"] for n in range(40)])
    assert np.abs(got - expected).max() < 1e-5
    assert "The cascade" in (out / "report.html").read_text()
    both = f"{settings['cascade']['first_model_id']}+{settings['model_id']}"
    assert found["model_id"] == both
    table = pq.read_table(out / "labels")
    assert set(table["model_id"].to_pylist()) == {both}
    assert table.schema.metadata[b"model_id"].decode() == both
    assert label(second, root, out, first=first)["new"] == 0
    with pytest.raises(InputError, match="first None, where the run in"):
        label(second, root, out)


def test_what_is_accepted_follows_the_promise(session: None, bundle: Path, tmp_path: Path) -> None:
    root = faces(tmp_path / "faces", 24)
    with pytest.raises(InputError, match=r"a bundle without calibration\.parquet"):
        label(bundle, root, tmp_path / "none", max_error=0.05, quiet=True)
    proven, out = write_bundle(tmp_path / "proven", calibration=calibration()), tmp_path / "out"
    found = label(proven, root, out, max_error=0.05, quiet=True)
    settings = json.loads((out / "run.json").read_text())["settings"]
    threshold = settings["acceptance"]["threshold"]
    assert 0.25 < threshold < 0.31
    table = pq.read_table(out / "labels").to_pylist()
    assert [row["accepted"] for row in table] == [row["confidence"] >= threshold for row in table]
    assert found["accepted"] == sum(row["accepted"] for row in table)
    assert found["accepted"] + found["review"] == found["labelled"] == 24
    assert "At most 5.0" in (out / "report.html").read_text()
    (root / "new.png").write_bytes(noise(100))
    grown = label(proven, root, out, max_error=0.05, quiet=True)
    assert (grown["new"], grown["accepted"] + grown["review"]) == (1, 25)
    with pytest.raises(InputError, match=r"max_error 0\.1, where the run in .* has max_error 0\.05"):
        label(proven, root, out, max_error=0.1, quiet=True)
