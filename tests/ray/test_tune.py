"""tune with real Ray Tune on drawn faces: a search, its files, its resume, and what is refused."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import ray
import timm
import torch
from ray.util.placement_group import placement_group, remove_placement_group
from safetensors.torch import save_file

import fer_scale
from fer_scale.bundle import build
from fer_scale.cluster import connected
from fer_scale.errors import InputError
from fer_scale.faces.images import Preprocessing
from fer_scale.faces.sample import draw
from fer_scale.faces.store import Faces, Store
from fer_scale.families.network import Network
from fer_scale.learning.configuration import Configuration
from fer_scale.search import price
from fer_scale.search.rows import TRIALS_SCHEMA
from fer_scale.verbs.tune import FAILURES
from fer_scale.verbs.tune_trial import Climber, Pictures

SMALL = {"size": 48, "batch_size": 32, "cnn1.width": 0.25, "cnn2.width": 0.25}
OPTIONS: dict[str, Any] = {"families": ["cnn1", "cnn2"], "fix": SMALL, "quiet": True}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tune")
    draw(folder / "faces", 160, seed=0)
    fer_scale.ingest(folder / "faces", folder / "store", quiet=True)
    for split in ("test", "calib"):  # which no search reads
        for path in (folder / "store" / "data").glob(f"{split}-*.parquet"):
            path.unlink()
    return folder / "store"


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    with connected(cpus=2), pytest.MonkeyPatch.context() as patch:
        patch.setattr(price, "LEADERS", 1)  # an export takes seconds
        yield


@pytest.fixture(scope="module")
def searched(store: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("searched") / "search"
    return out, fer_scale.tune(store, out=out, time_budget=30, max_trials=4, **OPTIONS)


def trials(out: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(out / "trials.parquet").to_pylist()
    return rows


def test_a_search_leaves_a_row_a_trial_and_a_leaderboard(searched: tuple[Path, dict[str, Any]]) -> None:
    out, result = searched
    rows = trials(out)
    assert pq.read_schema(out / "trials.parquet").names == TRIALS_SCHEMA.names
    assert 2 <= len(rows) <= 4
    assert result["trials"] == len(rows)
    assert {row["family"] for row in rows if row["start"] == "start"} == {"cnn1", "cnn2"}
    for row in rows:
        assert row["status"] in ("completed", "pruned", "time budget")
        assert row["reason"]
        assert row["images_seen"] > 0
        assert row["compute_seconds"] > 0
        assert row["accuracy_low"] <= row["accuracy"] <= row["accuracy_high"]
        assert Configuration.from_dict(json.loads(row["configuration"])).recipe.batch_size == 32
    told = json.loads((out / "leaderboard.json").read_text())
    assert told["lost_seconds_a_fit"] >= 0
    board = told["trials"]
    assert board[0]["images_per_second"] > 0
    assert {row["trial_id"] for row in board} == {row["trial_id"] for row in rows}
    assert result["best"]["trial_id"] == board[0]["trial_id"]
    assert "<svg" in (out / "report.html").read_text()


def test_resume_keeps_the_rows_and_goes_on(searched: tuple[Path, dict[str, Any]], store: Path) -> None:
    out, _ = searched
    before = trials(out)
    fer_scale.tune(store, out=out, time_budget=900, max_trials=len(before) + 1, resume=True, **OPTIONS)
    after = trials(out)
    assert len(after) == len(before) + 1
    for then, now in zip(before, after, strict=False):
        assert now["configuration"] == then["configuration"]
        assert now["scores"][: len(then["scores"])] == then["scores"]


def test_an_output_that_is_not_empty_is_refused(searched: tuple[Path, dict[str, Any]], store: Path) -> None:
    with pytest.raises(InputError, match=r"--resume|--overwrite"):
        fer_scale.tune(store, out=searched[0], **OPTIONS)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"families": ["vgg"]}, "vgg.*cnn1.*efficientnet"),
        ({"families": "cnn1,vgg"}, "family 'vgg'"),
        ({"fix": {"rate": "1"}}, "rate=1"),
        ({"cpus_per_trial": 4096}, "4096 CPUs.*cluster has"),
        ({"gpus_per_trial": 8}, "8 GPUs.*cluster has"),
        ({"max_trials": 0}, "max-trials 0"),
        ({"time_budget": "long"}, "time-budget"),
    ],
)
def test_what_cannot_be_is_refused_at_once(options: dict[str, Any], said: str, store: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=said):
        fer_scale.tune(store, out=tmp_path / "s", **{**OPTIONS, **options})
    assert not (tmp_path / "s").exists()


def test_a_trial_that_fails_is_a_row_with_a_reason_in_place_of_an_older_search(
    searched: tuple[Path, dict[str, Any]], store: Path, tmp_path: Path
) -> None:
    shutil.copytree(searched[0], tmp_path / "s")
    (tmp_path / "no.safetensors").write_bytes(b"no weights")
    broken = str(tmp_path / "no.safetensors")
    fix = {"resnet.weights": broken, "resnet.variant": "resnet18", "cnn1.width": 0.25}
    fer_scale.tune(
        store,
        out=tmp_path / "s",
        overwrite=True,
        families=["resnet", "cnn1"],
        fix=fix,
        time_budget=20,
        max_trials=2,
        memory_limit="1KB",  # cnn1's faces are read as the fit goes
        quiet=True,
    )
    assert {row["family"] for row in trials(tmp_path / "s")} == {"resnet", "cnn1"}
    failed = next(row for row in trials(tmp_path / "s") if row["family"] == "resnet")
    assert failed["status"] == "failed"
    assert broken in failed["reason"]
    assert failed["accuracy"] is None


def test_a_search_that_gets_no_cpu_ends_all_the_same(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fer_scale.verbs.tune.OVERTIME", 1.0)
    everything = placement_group([{"CPU": ray.cluster_resources()["CPU"]}])
    ray.get(everything.ready())
    try:
        with pytest.raises(InputError, match="without one scored trial"):
            fer_scale.tune(store, out=tmp_path / "s", time_budget=3, **OPTIONS)
    finally:
        remove_placement_group(everything)


def test_trials_of_a_head_share_the_features_of_their_backbone(store: Path, tmp_path: Path) -> None:
    weights = tmp_path / "resnet10t.safetensors"
    save_file(timm.create_model("resnet10t", in_chans=1).state_dict(), weights)
    shape = {"variant": "resnet10t", "weights": str(weights), "unfreeze": 0}
    values = {"family": "resnet", "network": shape, "preprocessing": {"size": 24, "channels": 1}}
    configuration = Configuration.from_dict({**values, "recipe": {"augmentation": 0.0, "batch_size": 8}})
    climber, pictures = Climber.__new__(Climber), Pictures.remote(str(store))  # type: ignore[attr-defined]
    scored = []

    def fitted_on(network: Network, left: float) -> tuple[Network, torch.Tensor]:
        climber.setup({"compute": left, "deadline": time.time() + 3600}, pictures, str(store), memory_limit=1e9)
        fitted, feed, val = climber._data(configuration, network, seed=0)
        scored.append(next(iter(val())).images)
        return fitted, feed.batch(0)[0]

    network = build(configuration, 4)
    fitted, whole = fitted_on(network, left=0)  # no compute for features: pictures, and all of the network
    assert fitted is network
    assert climber._spent == 0
    head, seen = fitted_on(network, left=3600)
    assert climber._spent > 0
    assert head.head is network.head
    with torch.inference_mode():
        torch.testing.assert_close(seen[:, :, 0, 0], network.eval().features(whole), rtol=1e-3, atol=1e-3)
    torch.nn.init.zeros_(next(network.backbone.parameters()))
    assert fitted_on(network, left=3600)[1].equal(seen), "computed once"
    assert climber._spent == 0
    assert (scored[2] == scored[1]).all()
    assert scored[1].shape != scored[0].shape


def test_features_that_are_more_than_the_limit_are_not_kept(store: Path) -> None:
    faces = Store.open(str(store)).faces("val", Preprocessing(size=24, channels=1))
    pictures = Pictures.remote(str(store), 1.5 * faces.images.nbytes)  # type: ignore[attr-defined]
    for name in ("first", "second"):
        ray.get(pictures.keep.remote(name, faces))
    assert [bool(ray.get(pictures.features.remote(name))) for name in ("first", "second")] == [False, True]


@pytest.mark.parametrize(
    ("error", "said", "again", "usable"),
    [
        (KeyError("no such class"), "KeyError: 'no such class'", False, True),
        (OSError("no space left"), "OSError: no space left", True, True),
        (torch.AcceleratorError("device-side assert"), "AcceleratorError: device-side assert", False, False),
    ],
)
def test_whatever_a_fit_raises_is_its_reason(
    error: Exception, said: str, again: bool, usable: bool, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def raising(*given: object) -> None:
        raise error

    climber = Climber.__new__(Climber)
    configuration = Configuration.from_dict({"family": "cnn1", "network": {"width": 0.25}}).to_dict()
    climber.setup({"configuration": configuration, "compute": 1.0, "seed": 0}, None, str(store))
    monkeypatch.setattr(climber, "_data", raising)
    result = climber.step()
    assert (result["reason"], result["died"]) == (said, again)
    assert climber._broken is not usable


def test_pictures_whose_actor_is_killed_are_decoded_anew(store: Path) -> None:
    pictures, inputs = Pictures.remote(str(store)), Preprocessing(size=48)  # type: ignore[attr-defined]
    before: Faces = ray.get(ray.get(pictures.faces.remote("val", inputs))[0])
    ids = list(before.ids)
    ray.kill(pictures, no_restart=False)
    assert ray.get(ray.get(pictures.faces.remote("val", inputs))[0]).ids == ids


@pytest.mark.slow
def test_an_actor_that_cannot_go_on_is_replaced_and_its_next_fit_begun_again(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Breaking(Climber):
        def step(self) -> dict[str, Any]:
            if self._broken:
                return {"reason": "AcceleratorError: of an earlier fit", "done": True}
            done = super().step()
            self._broken = True
            return done

    monkeypatch.setattr("fer_scale.verbs.tune.Climber", Breaking)
    one_at_a_time = {**OPTIONS, "cpus_per_trial": 2}
    fer_scale.tune(store, out=tmp_path / "s", time_budget=60, max_trials=2, **one_at_a_time)
    assert len(trials(tmp_path / "s")) == 2
    assert all(row["accuracy"] is not None for row in trials(tmp_path / "s"))


def test_a_search_in_which_everything_fails_ends_with_the_reason(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Failing(Climber):
        def step(self) -> dict[str, Any]:
            return {"reason": "RuntimeError: no kernel image", "done": True}

    monkeypatch.setattr("fer_scale.verbs.tune.Climber", Failing)
    with pytest.raises(InputError, match="no kernel image"):
        fer_scale.tune(store, out=tmp_path / "s", time_budget=600, **{**OPTIONS, "quiet": False})
    assert FAILURES <= len(trials(tmp_path / "s")) <= FAILURES + 2
    assert "in a row failed" in capsys.readouterr().err


@pytest.mark.slow
def test_killed_and_resumed_it_loses_and_repeats_nothing(store: Path, tmp_path: Path) -> None:
    out = tmp_path / "s"
    small = {key: str(value) for key, value in SMALL.items() if not key.startswith("cnn2")}
    fixes = [word for key, value in small.items() for word in ("--fix", f"{key}={value}")]
    command = [sys.executable, "-m", "fer_scale", "tune", str(store), "--out", str(out), "--families", "cnn1", *fixes]
    child = subprocess.Popen([*command, "--time-budget", "60s", "--max-trials", "30"], start_new_session=True)
    try:
        limit = time.monotonic() + 120
        while not (out / "trials.parquet").exists() and time.monotonic() < limit:
            time.sleep(0.5)
    finally:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
    before = trials(out)
    assert before
    options = {**OPTIONS, "families": ["cnn1"], "fix": small}
    fer_scale.tune(store, out=out, time_budget=900, max_trials=len(before) + 3, resume=True, **options)
    after = trials(out)
    assert [row["trial_id"] for row in after] == list(range(len(after)))
    assert len(after) > len(before)
    for then, now in zip(before, after, strict=False):
        assert now["scores"][: len(then["scores"])] == then["scores"]


def test_ray_is_left_as_it_was_found() -> None:
    assert ray.is_initialized()
