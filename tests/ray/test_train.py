"""train with real Ray Train on drawn faces: the bundle, workers, a kill, and what is refused."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pytest
import ray.train
from scipy.special import log_softmax

import fer_scale
from fer_scale import lease as leases
from fer_scale.bundle import Bundle
from fer_scale.cluster import connected
from fer_scale.errors import FerScaleError, InputError
from fer_scale.faces.images import Preprocessing
from fer_scale.faces.sample import draw
from fer_scale.faces.store import Store
from fer_scale.faces.windows import Windows
from fer_scale.learning import epochs
from fer_scale.learning.calibration import fit_temperature
from fer_scale.learning.loop import DivergedError
from fer_scale.learning.plan import Plan
from fer_scale.lease import Lease, LeaseLostError
from fer_scale.predictor import Predictor
from fer_scale.provenance import versions
from fer_scale.verbs import train_fit, train_stream
from tests.workers import Workers

NETWORK = {"variant": "slim10", "width": 0.25, "weights": "none", "dense": "none", "dropout": 0.0}
CONFIGURATION = {
    "family": "resnet",
    "network": NETWORK,
    "preprocessing": {"size": 48, "channels": 1},
    "recipe": {"batch_size": 16, "lr": 3e-3, "augmentation": 0.3},
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("train")
    draw(folder / "faces", 160, seed=0)
    fer_scale.ingest(folder / "faces", folder / "store", quiet=True)
    return folder / "store"


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "slim.json"
    path.write_text(json.dumps(CONFIGURATION))
    return path


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    with connected(cpus=2):
        yield


@pytest.fixture(scope="module")
def trained(store: Path, config: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("trained") / "bundle"
    return out, fer_scale.train(store, out=out, config=config, epochs=6, quiet=True)


def test_the_bundle_holds_what_the_contract_says(trained: tuple[Path, dict[str, Any]], store: Path) -> None:
    out, result = trained
    assert {path.name for path in out.iterdir()} == {
        "config.json",
        "weights.safetensors",
        "model.onnx",
        "metrics.json",
        "calibration.parquet",
        "curve.parquet",
        "README.md",
        "checksums.json",
    }
    bundle = Bundle.load(out)
    assert bundle.model_id == result["model_id"]
    assert bundle.config["data_fingerprint"] == Store.open(str(store)).fingerprint
    assert bundle.config["weights"] == "none"
    assert bundle.config["configuration"]["recipe"]["batch_size"] == 16
    assert bundle.config["seed"] == 0
    assert bundle.config["versions"] == versions()
    assert list(pd.read_parquet(out / "curve.parquet")["epoch"]) == [1, 2, 3, 4, 5, 6]
    card = (out / "README.md").read_text()
    assert bundle.model_id in card
    assert "Article 5" in card


def test_calib_is_answered_by_the_finished_network(trained: tuple[Path, dict[str, Any]], store: Path) -> None:
    bundle = Bundle.load(trained[0])
    rows, faces = bundle.calibration(), Store.open(str(store))
    for split in ("val", "calib"):
        known = faces.faces(split, bundle.preprocessing)
        answered = rows[rows["split"] == split]
        assert answered["id"].tolist() == known.ids
        expected = Predictor.load(bundle, "onnx").probabilities(known.images)
        found = answered[[f"prob_{name}" for name in bundle.classes]].to_numpy()
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_onnx_and_torch_give_the_same_answer(trained: tuple[Path, dict[str, Any]], store: Path) -> None:
    onnx, torch_ = (Predictor.load(trained[0], engine=engine, threads=1) for engine in ("onnx", "torch"))  # type: ignore[arg-type]
    images = Store.open(str(store)).faces("test", onnx.preprocessing).images
    np.testing.assert_allclose(onnx.probabilities(images), torch_.probabilities(images), atol=1e-5)
    assert onnx.model_id == torch_.model_id


def test_its_val_figures_are_those_of_the_predictor(trained: tuple[Path, dict[str, Any]], store: Path) -> None:
    predictor = Predictor.load(trained[0], threads=1)
    val = Store.open(str(store)).faces("val", predictor.preprocessing)
    logits = predictor.logits(val.images)
    assert trained[1]["val_accuracy"] == pytest.approx((logits.argmax(axis=1) == val.labels).mean())
    assert trained[1]["temperature"] == pytest.approx(fit_temperature(logits, val.labels), rel=1e-3)
    assert trained[1]["temperature"] != 1


def test_what_is_kept_is_the_best_epoch_and_the_later_of_two(trained: tuple[Path, dict[str, Any]]) -> None:
    curve = pd.read_parquet(trained[0] / "curve.parquet")
    best = curve[curve["val_accuracy"] == curve["val_accuracy"].max()]
    assert Bundle.load(trained[0]).config["step"] == best["step"].iloc[-1]
    assert trained[1]["val_accuracy"] == pytest.approx(best["val_accuracy"].iloc[-1])
    equal, lower = {"val_accuracy": 0.5, "step": 2}, {"val_accuracy": 0.4, "step": 3}
    assert epochs._is_best(equal, [{"val_accuracy": 0.5, "step": 1}, equal])
    assert not epochs._is_best(lower, [equal, lower])


def test_a_finished_bundle_has_nothing_left_to_resume(
    trained: tuple[Path, dict[str, Any]], store: Path, config: Path
) -> None:
    written = (trained[0] / "weights.safetensors").stat()
    again = fer_scale.train(store, out=trained[0], config=config, epochs=6, resume=True, quiet=True)
    assert again["model_id"] == trained[1]["model_id"]
    assert (trained[0] / "weights.safetensors").stat() == written
    with pytest.raises(InputError, match="another seed"):
        fer_scale.train(store, out=trained[0], config=config, epochs=6, resume=True, seed=1, quiet=True)
    with pytest.raises(InputError, match="another epochs"):
        fer_scale.train(store, out=trained[0], config=config, epochs=12, resume=True, quiet=True)
    with pytest.raises(InputError, match="another epochs"):
        fer_scale.train(store, out=trained[0], config=config, resume=True, quiet=True)
    with pytest.raises(InputError, match="another init_from"):
        fer_scale.train(store, out=trained[0], config=config, epochs=6, init_from=trained[0].parent, resume=True)
    with pytest.raises(InputError, match=r"--resume|--overwrite"):
        fer_scale.train(store, out=trained[0], config=config, epochs=6, quiet=True)


def test_a_look_that_fails_for_once_is_not_the_last(tmp_path: Path) -> None:
    plan = Plan(
        store="", checkpoints=str(tmp_path), configuration={}, epochs=1, seconds=None, began=0.0, init_from=None,
        seed=0, threads=1, gpu=False, streamed=False,
    )  # fmt: skip
    looked = threading.Semaphore(0)

    def look() -> None:
        looked.release()
        raise OSError("stale file handle")

    with train_fit._shown(plan, look):
        assert looked.acquire(timeout=10)
        assert looked.acquire(timeout=10)


def test_two_workers_take_the_same_steps_with_the_best_of_a_search(store: Path, tmp_path: Path) -> None:
    search = tmp_path / "search"
    search.mkdir()
    (search / "leaderboard.json").write_text(json.dumps({"trials": [{"configuration": CONFIGURATION}]}))
    result = fer_scale.train(store, out=tmp_path / "b", from_search=search, epochs=2, workers=2, quiet=True)
    curve = pd.read_parquet(tmp_path / "b" / "curve.parquet")
    rows = sum(Store.open(str(store)).counts["train"].values())
    assert list(curve["step"]) == [rows // 16, 2 * (rows // 16)]
    assert result["epochs"] == 2
    # what each scored of its share, with the statistics of both, is what the finished network scores of all
    best = curve[curve["val_accuracy"] == curve["val_accuracy"].max()].iloc[-1]
    assert best["val_accuracy"] == pytest.approx(result["val_accuracy"])
    predictor = Predictor.load(tmp_path / "b", threads=1)
    val = Store.open(str(store)).faces("val", predictor.preprocessing)
    likelihoods = log_softmax(predictor.logits(val.images), axis=1)[np.arange(len(val)), val.labels]
    assert best["val_loss"] == pytest.approx(-likelihoods.mean(), rel=1e-3)


@pytest.fixture(scope="module")
def voted(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same faces, with votes on two of three."""
    folder, faces = tmp_path_factory.mktemp("voted"), store.parent / "faces"
    names = [f"{path.parent.name}/{path.name}" for path in sorted(faces.glob("*/*.png"))]
    votes = pd.DataFrame({"id": [name for at, name in enumerate(names) if at % 3]})
    votes.assign(happy=range(len(votes)), sad=1, surprised=0, neutral=2).to_csv(folder / "votes.csv", index=False)
    options: dict[str, Any] = {"votes": folder / "votes.csv", "votes_classes": ["happy", "sad", "surprised", "neutral"]}
    fer_scale.ingest(faces, folder / "store", quiet=True, **options)
    return folder / "store"


@pytest.mark.parametrize("source", ["store", "voted"])
def test_ray_reads_the_windows_of_a_stream_in_their_order_from_epoch_to_epoch(
    source: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_stream, "WINDOWS_A_RUN", 5)
    small = Preprocessing(size=48)
    store = Store.open(str(request.getfixturevalue(source)))
    windows = Windows(store, "train", small, batch_size=16, seed=3, window_bytes=3 * 16 * 48**2)
    assert windows.per_epoch > 2
    for first, rank in ((0, 0), (1, 1)):
        streamed = train_stream.opened(1)(windows, first, rank, 2)
        for window in range(first, first + windows.per_epoch + 4):
            faces, read = next(streamed), windows.read(window, rank, 2)
            np.testing.assert_array_equal(faces.images, read.images)
            np.testing.assert_array_equal(faces.labels, read.labels)
            if source == "store":
                assert faces.votes is None
            else:
                assert read.votes is not None
                np.testing.assert_array_equal(faces.votes, read.votes)


@pytest.mark.slow
def test_a_store_larger_than_the_memory_limit_is_streamed(
    store: Path, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train_fit._worker

    def worker(told: dict[str, Any]) -> Any:
        def whole_split(*_: object) -> None:
            raise AssertionError("a split was read whole")

        Store.faces = whole_split  # type: ignore[assignment,method-assign]
        return whole(told)

    monkeypatch.setattr(train_fit, "_worker", worker)
    result = fer_scale.train(store, out=tmp_path / "b", config=config, epochs=2, workers=2, memory_limit="100KB")
    assert "they are read as the fit goes" in capsys.readouterr().err
    assert result["epochs"] == 2
    assert np.isfinite(pd.read_parquet(tmp_path / "b" / "curve.parquet")["train_loss"]).all()


@pytest.mark.slow
def test_an_elastic_fit_takes_the_workers_that_there_is_room_for(
    store: Path, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workers = Workers(monkeypatch, tmp_path)
    result = fer_scale.train(store, out=tmp_path / "b", config=config, epochs=2, workers="1..4", quiet=True)
    assert result["epochs"] == 2
    assert workers.groups == [2] * 2


def test_a_backbone_is_carried_over_and_replaces_a_bundle(
    trained: tuple[Path, dict[str, Any]], store: Path, tmp_path: Path
) -> None:
    config, blind = trained[0] / "config.json", tmp_path / "store"
    shutil.copytree(store, blind)
    for path in (blind / "data").glob("test-*.parquet"):  # which no fit reads
        path.unlink()
    shutil.copytree(trained[0], tmp_path / "b")
    options: dict[str, Any] = {"config": config, "epochs": 1, "init_from": trained[0], "quiet": True}
    fer_scale.train(blind, out=tmp_path / "b", overwrite=True, test_time_flip=True, **options)
    assert Bundle.load(tmp_path / "b").config["weights"] == f"bundle {trained[1]['model_id']} with its head"
    predictor, images = Predictor.load(tmp_path / "b"), Store.open(str(store)).faces("test", Preprocessing()).images
    np.testing.assert_allclose(predictor.logits(images), predictor.logits(images[..., ::-1].copy()), atol=1e-4)
    other = tmp_path / "other.json"
    other.write_text(json.dumps({**CONFIGURATION, "network": {**NETWORK, "width": 0.5}}))
    with pytest.raises(InputError, match="same backbone"):
        fer_scale.train(store, out=tmp_path / "c", config=other, epochs=1, init_from=trained[0], quiet=True)


def test_a_fit_that_diverges_says_so_and_leaves_the_bundle_that_it_was_to_replace(
    trained: tuple[Path, dict[str, Any]], store: Path, tmp_path: Path
) -> None:
    out, config = tmp_path / "b", tmp_path / "wild.json"
    shutil.copytree(trained[0], out)
    # each step's decay takes ten times the weights from themselves
    wild = {"optimizer": "sgd", "lr": 10.0, "weight_decay": 1.0, "warmup": 0.0, "batch_size": 16}
    config.write_text(json.dumps({"family": "cnn1", "network": {"width": 0.25}, "recipe": wild}))
    with pytest.raises(DivergedError, match=r"not finite at step \d+"):
        fer_scale.train(store, out=out, config=config, epochs=30, overwrite=True, quiet=True)
    assert Bundle.load(out).model_id == trained[1]["model_id"]


@pytest.mark.slow
def test_the_clock_ends_a_fit_with_its_rate_annealed(store: Path, config: Path, tmp_path: Path) -> None:
    result = fer_scale.train(store, out=tmp_path / "b", config=config, time_budget=150, quiet=True)
    curve = pd.read_parquet(tmp_path / "b" / "curve.parquet")
    assert 50 < curve["seconds"].iloc[-1] < result["seconds"] < 150
    assert curve["progress"].is_monotonic_increasing
    assert curve["progress"].iloc[-1] > 0.95  # less than an epoch is left: scoring the last one may take that time


def wait_for(path: Path, seconds: float = 120) -> None:
    limit = time.monotonic() + seconds
    while not path.exists() and time.monotonic() < limit:
        time.sleep(0.05)
    assert path.exists()


def test_what_a_worker_raises_is_what_the_fit_ends_with(
    store: Path, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_fit, "MAX_FAILURES", 0)
    for number, raised in enumerate((FerScaleError("a reason of its own"), ValueError("a fault"))):

        def worker(told: dict[str, Any], raised: Exception = raised) -> Any:
            raise raised

        monkeypatch.setattr(train_fit, "_worker", worker)
        with pytest.raises(type(raised), match=str(raised)):
            fer_scale.train(store, out=tmp_path / f"b{number}", config=config, epochs=2, quiet=True)


@pytest.mark.slow
def test_a_fit_whose_workers_die_again_and_again_says_what_to_do(
    store: Path, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def worker(told: dict[str, Any]) -> Any:
        time.sleep(2)  # one that dies at once is a start that failed
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(train_fit, "MAX_FAILURES", 1)
    monkeypatch.setattr(train_fit, "_worker", worker)
    with pytest.raises(FerScaleError, match=r"died 2 times.*--resume"):
        fer_scale.train(store, out=tmp_path / "b", config=config, epochs=2, quiet=True)


@pytest.mark.slow
def test_a_killed_worker_of_two_is_replaced_and_both_go_on(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, thawing = tmp_path / "b", tmp_path / "thawing.json"
    thawing.write_text(json.dumps({**CONFIGURATION, "recipe": {**CONFIGURATION["recipe"], "thaw": 0.5}}))  # type: ignore[dict-item]
    group = Workers(monkeypatch, tmp_path)
    with ThreadPoolExecutor(1) as pool:
        fit = pool.submit(fer_scale.train, store, out=out, config=thawing, epochs=12, workers=2, quiet=True)
        wait_for(out / "fit" / "state.json")
        workers = [p for p in psutil.Process().children(True) if "RayTrainWorker" in " ".join(p.cmdline())]
        assert workers
        seen = json.loads((out / "fit" / "state.json").read_text())["curve"]
        assert 1 <= len(seen) < 12
        workers[0].kill()
        fit.result()
    assert group.groups == [2] * 4
    curve = pd.read_parquet(out / "curve.parquet")
    assert curve["seconds"].iloc[: len(seen)].tolist() == [row["seconds"] for row in seen]
    assert list(curve["epoch"]) == list(range(1, 13))


def test_what_one_worker_alone_cannot_read_ends_the_fit_at_once_with_its_reason(
    store: Path, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, begun = train_fit._worker, tmp_path / "begun"

    def worker(told: dict[str, Any]) -> Any:
        if ray.train.get_context().get_world_rank() == 1:
            told = {**told, "store": "/no/such/mount"}
            with begun.open("a") as file:
                file.write("once\n")
        return whole(told)

    monkeypatch.setattr(train_fit, "_worker", worker)
    with pytest.raises(InputError, match="/no/such/mount"):
        fer_scale.train(store, out=tmp_path / "b", config=config, epochs=2, workers=2, quiet=True)
    assert begun.read_text() == "once\n", "it is not tried again"


@pytest.mark.slow
def test_a_killed_fit_ends_as_one_that_was_not(
    trained: tuple[Path, dict[str, Any]], store: Path, config: Path, tmp_path: Path
) -> None:
    out = tmp_path / "b"
    command = [sys.executable, "-m", "fer_scale", "train", str(store), "--out", str(out), "--config", str(config)]
    child = subprocess.Popen([*command, "--epochs", "6"], start_new_session=True)
    try:
        wait_for(out / "fit" / "state.json")
    finally:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
    seen = json.loads((out / "fit" / "state.json").read_text())["curve"]
    assert 1 <= len(seen) < 6
    with pytest.raises(InputError, match="another epochs"):
        fer_scale.train(store, out=out, config=config, epochs=9, resume=True, quiet=True)
    fer_scale.train(store, out=out, config=config, epochs=6, resume=True, quiet=True)
    curve, unbroken = (pd.read_parquet(folder / "curve.parquet") for folder in (out, trained[0]))
    # the same seconds as before the kill: what was fitted is not fitted again
    assert curve["seconds"].iloc[: len(seen)].tolist() == [row["seconds"] for row in seen]
    assert list(curve["epoch"]) == list(unbroken["epoch"])
    np.testing.assert_allclose(curve["train_loss"], unbroken["train_loss"], rtol=1e-3)


def test_each_worker_needs_two_faces_of_a_batch_that_is_the_whole_split(store: Path, tmp_path: Path) -> None:
    config = tmp_path / "large.json"
    config.write_text(json.dumps({**CONFIGURATION, "recipe": {"batch_size": 4096}}))
    rows = sum(Store.open(str(store)).counts["train"].values())
    with pytest.raises(InputError, match=f"at most {rows // 2}, for two faces of a batch of {rows} each"):
        fer_scale.train(store, out=tmp_path / "b", config=config, workers=rows // 2 + 1, quiet=True)


def test_a_second_run_on_an_output_is_refused(
    trained: tuple[Path, dict[str, Any]], store: Path, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "BEAT_SECONDS", 0.2)
    shutil.copytree(trained[0], tmp_path / "b")
    with Lease(str(tmp_path / "b"), "another"):
        with pytest.raises(InputError, match="is at work on"):
            fer_scale.train(store, out=tmp_path / "b", config=config, overwrite=True, quiet=True)
        with pytest.raises(InputError, match="is at work on"):
            fer_scale.tune(store, out=tmp_path / "b", overwrite=True, quiet=True)
    assert Bundle.load(tmp_path / "b").model_id == trained[1]["model_id"]


def test_a_fit_whose_output_another_run_takes_over_ends(
    trained: tuple[Path, dict[str, Any]], store: Path, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "BEAT_SECONDS", 0.5)
    out = tmp_path / "b"
    shutil.copytree(trained[0], out)

    def take_over() -> None:
        wait_for(out / "fit" / "state.json")
        (out / "lease.json").write_text(json.dumps({"token": "another"}))

    with ThreadPoolExecutor() as pool:
        taken = pool.submit(take_over)
        with pytest.raises(LeaseLostError, match="has taken over"):
            fer_scale.train(store, out=out, config=config, epochs=1000, overwrite=True, quiet=True)
        taken.result()
    assert json.loads((out / "lease.json").read_text()) == {"token": "another"}
    assert Bundle.load(out).model_id == trained[1]["model_id"]


def test_the_folder_that_one_works_in_is_no_output(
    store: Path, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="a folder that you work in"):
        fer_scale.train(store, out=".", config=config, quiet=True)


def test_another_file_of_a_bundle_is_no_configuration(
    trained: tuple[Path, dict[str, Any]], store: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="family"):
        fer_scale.train(store, out=tmp_path / "b", config=trained[0] / "metrics.json", quiet=True)


def test_an_output_that_holds_an_input_is_refused(trained: tuple[Path, dict[str, Any]], store: Path) -> None:
    with pytest.raises(InputError, match="holds the input"):
        fer_scale.train(store, out=trained[0], family="cnn1", init_from=trained[0], overwrite=True, quiet=True)
    with pytest.raises(InputError, match="holds the input"):
        fer_scale.tune(store, out=store, overwrite=True, quiet=True)
    assert Bundle.load(trained[0]).model_id == trained[1]["model_id"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "exactly one of"),
        ({"family": "cnn1", "config": "c.json"}, "exactly one of"),
        ({"family": "vgg"}, "vgg.*cnn1.*efficientnet"),
        ({"family": "cnn1", "epochs": 1, "time_budget": "1m"}, "one of them"),
        ({"family": "cnn1", "epochs": 0}, "epochs 0"),
        pytest.param(
            {"family": "cnn1", "workers": 32},
            "32 CPUs",
            marks=pytest.mark.skipif((os.cpu_count() or 1) >= 32, reason="this machine has them"),
        ),
        ({"family": "cnn1", "workers": "33"}, "at most 32"),
        ({"family": "cnn1", "workers": "8..2"}, "range as 2..8"),
        ({"from_search": "nowhere"}, "leaderboard.json"),
        ({"family": "cnn1", "memory_limit": "much"}, "memory-limit 'much'"),
        ({"family": "cnn1", "seed": -1}, "seed -1"),
        ({"family": "cnn1", "seed": 1.5}, "seed 1.5"),
        ({"family": "cnn1", "epochs": 1.5}, "epochs 1.5"),
    ],
)
def test_what_cannot_be_is_refused_at_once(options: dict[str, Any], said: str, store: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=said):
        fer_scale.train(store, out=tmp_path / "b", quiet=True, **options)
    assert not (tmp_path / "b").exists()
