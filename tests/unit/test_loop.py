"""fit(): the same batches for any number of workers, the same weights after a resume, and what stops it."""

import os
import re
import resource
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from onnxruntime import InferenceSession
from safetensors.torch import load_file

import fer_scale
from fer_scale import storage
from fer_scale.bundle import build, export_onnx, write
from fer_scale.errors import InputError
from fer_scale.faces.images import Preprocessing, encode_png
from fer_scale.faces.sample import draw
from fer_scale.faces.store import Faces, Store
from fer_scale.faces.windows import Windows
from fer_scale.families.network import Network
from fer_scale.learning import epochs
from fer_scale.learning.augment import Augment
from fer_scale.learning.average import Average
from fer_scale.learning.batches import Batches
from fer_scale.learning.budget import Budget
from fer_scale.learning.checkpoints import Checkpoints
from fer_scale.learning.configuration import Configuration
from fer_scale.learning.loop import DivergedError, Learner, anneal, bfloat16_pays, fit
from fer_scale.learning.plan import Plan
from fer_scale.learning.recipe import Recipe
from fer_scale.learning.stream import StreamedBatches, here
from fer_scale.lease import LeaseLostError

CPU = torch.device("cpu")
SMALL = Preprocessing(size=16, channels=1)
NETWORK = {"variant": "slim10", "width": 0.25, "weights": "none", "dense": "none", "dropout": 0.0}


@pytest.fixture(scope="module")
def faces() -> Faces:
    """Two classes that a network can tell: bright above, or bright below."""
    rng = np.random.default_rng(0)
    labels = np.arange(96, dtype=np.int64) % 2
    images = rng.integers(0, 80, (96, 1, 48, 48), dtype=np.uint8)
    images[labels == 0, :, :24] += 120
    images[labels == 1, :, 24:] += 120
    return Faces(images, labels, [str(i) for i in range(96)])


def make(recipe: Recipe, faces: Faces, **network: Any) -> tuple[Learner, Batches]:
    torch.manual_seed(0)
    configuration = Configuration.from_dict(
        {"family": "resnet", "network": {**NETWORK, **network}, "preprocessing": {"channels": 1}}
    )
    learner = Learner(build(configuration, 2), recipe, class_counts=[48, 48], seed=3, device=CPU)
    return learner, Batches(faces, 2, recipe.batch_size, 3, CPU)


RECIPE = Recipe(batch_size=16, lr=3e-3, mixup=0.2)


def test_learns_to_tell_two_classes(faces: Faces) -> None:
    learner, batches = make(replace(RECIPE, augmentation=0.3), faces)
    fit(learner, batches, 30, lambda step: step / 30)
    assert (learner.logits(faces.images).argmax(axis=1) == faces.labels).mean() > 0.9


@pytest.mark.parametrize("changed", [{"optimizer": "sgd"}, {"optimizer": "adamw"}, {"thaw": 0.9}])
def test_resumed_fit_ends_with_the_very_weights_of_an_unbroken_one(faces: Faces, changed: dict[str, Any]) -> None:
    recipe = replace(RECIPE, **changed)
    unbroken, batches = make(recipe, faces, dropout=0.3)
    fit(unbroken, batches, 8, lambda step: step / 8)

    first, batches = make(recipe, faces, dropout=0.3)
    fit(first, batches, 5, lambda step: step / 8)
    saved = first.saved()
    second, batches = make(recipe, faces, dropout=0.3)
    second.load(saved, 5)
    fit(second, batches, 8, lambda step: step / 8)

    np.testing.assert_allclose(second.logits(faces.images), unbroken.logits(faces.images), atol=1e-5)
    for mine, theirs in zip(second.network.parameters(), unbroken.network.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_every_epoch_takes_each_face_once_in_another_order(faces: Faces) -> None:
    batches = Batches(faces, 2, 16, 0, CPU)
    epochs = [np.concatenate([batches.indices(e * 6 + at) for at in range(6)]) for e in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(96))
    assert list(epochs[0]) != list(epochs[1])


def test_another_seed_is_another_order_another_draw_and_another_network(
    faces: Faces, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    orders = [Batches(faces, 2, 16, seed, CPU).indices(0).tolist() for seed in (0, 0, 1)]
    draws = [Augment(1.0, seed).draws(0, 4).tolist() for seed in (0, 0, 1)]
    plan = planned(tmp_path)
    store = Store.open(plan.store)
    windows = [Windows(store, "train", SMALL, batch_size=16, seed=seed).ids(0) for seed in (0, 0, 1)]
    losses, networks, whole = [], list[float](), epochs.begin

    def begin(*of: Any) -> Network:
        network = whole(*of)
        networks.append(next(network.parameters()).flatten()[0].item())
        return network

    monkeypatch.setattr(epochs, "begin", begin)
    for at, seed in enumerate((0, 0, 1)):
        fitted = replace(plan, seed=seed, checkpoints=str(tmp_path / f"fit-{at}"))
        epochs.run(fitted)
        losses.append(Checkpoints(fitted.checkpoints).state()["curve"][0]["train_loss"])  # type: ignore[index]
    for found in (orders, draws, windows, networks, losses):
        assert found[0] == found[1] != found[2]


@pytest.mark.parametrize(
    ("units", "pays"), [({"amx_bf16"}, True), ({"avx512_bf16"}, True), ({"avx2", "avx512_f"}, False)]
)
def test_a_cpu_that_has_bfloat16_trains_in_it(
    units: set[str], pays: bool, faces: Faces, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict.fromkeys(units, True))
    learner, batches = make(RECIPE, faces)
    assert bfloat16_pays(CPU) is pays
    convolved: list[torch.dtype] = []
    first = next(layer for layer in learner.network.modules() if isinstance(layer, torch.nn.Conv2d))
    first.register_forward_hook(lambda *called: convolved.append(called[2].dtype))
    learner.train_step(batches, 1.0)
    assert convolved == [torch.bfloat16 if pays else torch.float32]
    assert {parameter.dtype for parameter in learner.network.parameters()} == {torch.float32}


def test_a_batch_larger_than_the_split_is_the_split(faces: Faces) -> None:
    assert Batches(faces, 2, 1000, 0, CPU).size == 96


def test_divergence_names_step_rate_and_faces(faces: Faces) -> None:
    votes = np.zeros((96, 2), dtype=np.float32)
    votes[7] = np.inf  # shares of this are no numbers
    learner, batches = make(Recipe(batch_size=16, lr=3e-3, warmup=0.05), replace(faces, votes=votes))
    at = next(step for step in range(6) if 7 in batches.indices(step))
    rate, ids = learner.recipe.lr * anneal(learner.recipe, at / 6), ", ".join(batches.ids(at))
    with pytest.raises(DivergedError, match=re.escape(f"step {at} (rate {rate:.3g}, faces {ids})")):
        fit(learner, batches, 6, lambda step: step / 6)
    learner, batches = make(Recipe(batch_size=96), replace(faces, votes=votes))
    with pytest.raises(DivergedError, match=r"faces \d+(, \d+){63} and 32 more\)"):
        fit(learner, batches, 1, lambda step: 0.5)


def test_a_gradient_that_is_not_finite_is_divergence_at_that_very_step(faces: Faces) -> None:
    learner, batches = make(RECIPE, faces)
    weight = next(learner.network.head.parameters())
    weight.register_hook(lambda gradient: gradient * (torch.inf if learner.step == 3 else 1.0))  # type: ignore[no-untyped-call]
    with pytest.raises(DivergedError, match=r"gradient is not finite at step 3 "):
        fit(learner, batches, 6, lambda step: step / 6)


def saved_twice(faces: Faces, folder: Path | str) -> tuple[Checkpoints, dict[str, Any]]:
    """Checkpoints of steps 2 and 4, each the best so far."""
    learner, batches = make(RECIPE, faces)
    checkpoints = Checkpoints(str(folder))
    state: dict[str, Any] = {"files": [], "best_file": None, "used": 0.0, "curve": []}
    for step in (2, 4):
        fit(learner, batches, step, lambda step: step / 8)
        state |= {"curve": [*state["curve"], {"step": step, "seconds": step / 10}], "used": step / 10}
        checkpoints.save(learner, state, is_best=True)
    return checkpoints, state


@pytest.mark.parametrize("kept", [0, 1000, None])
def test_a_checkpoint_that_cannot_be_read_leaves_the_one_before(faces: Faces, tmp_path: Path, kept: int | None) -> None:
    checkpoints, state = saved_twice(faces, tmp_path)
    older, newest = (tmp_path / name for name in state["files"])
    whole = newest.read_bytes()
    newest.unlink() if kept is None else newest.write_bytes(whole[:kept])
    learner, batches = make(RECIPE, faces)
    checkpoints.load(learner, state)
    assert (learner.step, state["step"], state["used"]) == (2, 2, 0.2)
    assert state["curve"] == [{"step": 2, "seconds": 0.2}]
    fit(learner, batches, 4, lambda step: step / 8)
    checkpoints.save(learner, state, is_best=True)
    assert newest.read_bytes() == whole
    assert state["files"] == [older.name, newest.name]
    for name in state["files"]:
        (tmp_path / name).unlink()
    with pytest.raises(InputError, match="no checkpoint that can be read"):
        checkpoints.load(learner, state)


@pytest.mark.parametrize("remote", [False, True])
def test_the_last_two_checkpoints_and_the_best_weights_are_kept(
    faces: Faces, tmp_path: Path, s3: str, remote: bool
) -> None:
    folder = f"{s3}/fit" if remote else str(tmp_path)
    checkpoints, state = saved_twice(faces, folder)
    learner, batches = make(RECIPE, faces)
    checkpoints.load(learner, state)
    fit(learner, batches, 6, lambda step: step / 8)
    checkpoints.save(learner, state, is_best=False)
    assert {storage.name(file.path) for file in storage.list_files(folder)} == {
        "state.json",
        "step-000000004.safetensors",
        "step-000000006.safetensors",
        "best-000000004.safetensors",
    }
    again, _ = make(RECIPE, faces)
    checkpoints.load(again, checkpoints.state() or {})
    assert again.step == 6
    assert again.saved() == learner.saved()


def test_what_a_kill_left_half_written_goes_with_the_next_checkpoint(faces: Faces, tmp_path: Path) -> None:
    (tmp_path / ".step-000000001.safetensors.partial-0a1b2c").touch()
    _, state = saved_twice(faces, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"state.json", state["best_file"], *state["files"]}


def test_an_old_checkpoint_that_cannot_be_deleted_ends_no_fit(
    faces: Faces, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(paths: Iterable[str]) -> None:
        if list(paths):
            raise InputError("a deletion", "the right to delete", "ask for it")

    with monkeypatch.context() as patched:
        patched.setattr(storage, "delete_files", refused)
        _, state = saved_twice(faces, tmp_path)
    assert state["step"] == 4
    assert len(list(tmp_path.glob("best-*"))) == 2
    saved_twice(faces, tmp_path)
    assert len(list(tmp_path.glob("best-*"))) == 1


def test_a_full_disk_is_said_and_leaves_the_checkpoint_before(faces: Faces, tmp_path: Path) -> None:
    learner, batches = make(RECIPE, faces)
    checkpoints = Checkpoints(str(tmp_path))
    fit(learner, batches, 2, lambda step: step / 8)
    checkpoints.save(learner, {"files": [], "best_file": None}, is_best=True)
    before, saved = checkpoints.state(), learner.saved()
    fit(learner, batches, 4, lambda step: step / 8)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))  # a disk that takes no more than this
    try:
        with pytest.raises(InputError, match="no space is left"):
            checkpoints.save(learner, dict(before or {}), is_best=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert checkpoints.state() == before
    checkpoints.load(learner, before or {})
    assert learner.step == 2
    assert learner.saved() == saved
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("refused", ["best-", "state.json"])
def test_a_checkpoint_that_is_written_in_part_is_none(
    faces: Faces, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: str
) -> None:
    checkpoints, state = saved_twice(faces, tmp_path)
    write = storage.write_bytes

    def full(path: str, data: bytes) -> None:
        if storage.name(path).startswith(refused):
            raise InputError("no space", "a disk with room", "free some")
        write(path, data)

    learner, batches = make(RECIPE, faces)
    checkpoints.load(learner, state)
    fit(learner, batches, 6, lambda step: step / 8)
    before = checkpoints.state() or {}
    monkeypatch.setattr(storage, "write_bytes", full)
    with pytest.raises(InputError, match="no space"):
        checkpoints.save(learner, state, is_best=True)
    assert checkpoints.state() == before
    assert all((tmp_path / name).exists() for name in (before["best_file"], *before["files"]))
    checkpoints.load(learner, before)
    assert learner.step == 4


def planned(tmp_path: Path, **more: Any) -> Plan:
    """Of one epoch on drawn faces."""
    draw(tmp_path / "faces", 80, seed=0)
    fer_scale.ingest(tmp_path / "faces", tmp_path / "store", quiet=True)
    shape = {"preprocessing": {"size": 48, "channels": 1}, "recipe": {"batch_size": 16}}
    how: dict[str, Any] = {"epochs": 1, "seconds": None, "began": 7.0, "seed": 0, "threads": 1, "gpu": False}
    where: dict[str, Any] = {"store": str(tmp_path / "store"), "init_from": None, "streamed": False}
    configuration = {"family": "resnet", "network": NETWORK, **shape}
    return Plan(configuration=configuration, checkpoints=str(tmp_path / "fit"), **{**where, **how, **more})


def test_a_fit_that_a_full_disk_stops_goes_on_when_there_is_room(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    assert epochs.run(plan) is None
    plan, before = replace(plan, epochs=2), Checkpoints(plan.checkpoints).state()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        said = str(epochs.run(plan))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "no space is left" in said
    assert Checkpoints(plan.checkpoints).state() == before
    assert epochs.run(plan) is None
    assert [row["epoch"] for row in (Checkpoints(plan.checkpoints).state() or {})["curve"]] == [1, 2]


def test_a_fit_whose_output_is_anothers_writes_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "lease.json").write_text('{"token": "mine"}')
    plan = planned(tmp_path, lease=(str(tmp_path / "lease.json"), "mine"))
    assert epochs.run(plan) is None
    before = Checkpoints(plan.checkpoints).state()
    (tmp_path / "lease.json").write_text('{"token": "anothers"}')
    assert isinstance(epochs.run(replace(plan, epochs=2)), LeaseLostError)
    assert Checkpoints(plan.checkpoints).state() == before


def test_a_restart_within_a_command_counts_and_the_pause_between_two_does_not(tmp_path: Path) -> None:
    plan = planned(tmp_path, epochs=None, seconds=3600.0)
    saved = {"used": 100.0, "start": 0.0, "began": plan.began, "saved": time.time() - 50}
    assert epochs._budget(plan, saved, 1).used == pytest.approx(150, abs=1)
    assert epochs._budget(replace(plan, began=8.0), saved, 1).used == pytest.approx(100, abs=1)
    waited = {**saved, "saved": time.time() - 86400}
    assert epochs._budget(plan, waited, 1).used == pytest.approx(100 + epochs.LONGEST_RESTART, abs=1)


def test_a_spent_budget_ends_the_fit_within_an_epoch(faces: Faces) -> None:
    learner, batches = make(RECIPE, faces)
    fit(learner, batches, 6, lambda step: 1.0 if step == 2 else 0.5)
    assert learner.step == 2


def test_rate_warms_up_and_anneals_to_nothing() -> None:
    factors = [anneal(Recipe(warmup=0.3), p / 100) for p in range(101)]
    assert factors[0] < 0.05
    assert max(factors) == pytest.approx(1.0, abs=0.01)
    assert np.argmax(factors) == 30
    assert factors[-1] <= 1e-3
    assert anneal(Recipe(warmup=0.3), 0.475) == pytest.approx((1 + 0.5**0.5) / 2), "of a cosine, an eighth of its turn"
    assert anneal(Recipe(warmup=0.3), 0.15) == pytest.approx(0.52)


def test_the_average_forgets_the_more_slowly_the_longer_it_is() -> None:
    network = build(Configuration.from_dict({"family": "resnet", "network": NETWORK}), 2)
    average, weight = Average(network, 0.5), next(network.parameters())
    expected: list[float] = []
    for step, value in enumerate((3.0, 5.0, 9.0, 1.0, 4.0, 8.0, 2.0, 7.0, 6.0, 0.0, 1.5)):
        weight.data.fill_(value)
        memory = min(0.5, (1 + step) / (10 + step)) if step else 0.0
        expected.append(memory * (expected[-1] if expected else 0.0) + (1 - memory) * value)
        average.update(step)
        torch.testing.assert_close(next(average.network.parameters()), torch.full_like(weight, expected[-1]))


def test_budget_by_steps_and_by_the_clock() -> None:
    assert Budget(steps=10, seconds=None).progress(5) == 0.5
    by_clock = Budget(steps=None, seconds=100.0, used=50.0)
    assert 0.5 <= by_clock.progress(0) < 0.6


def test_votes_take_the_place_of_the_label(faces: Faces) -> None:
    votes = np.zeros((96, 2), dtype=np.float32)
    votes[0] = [3, 1]
    batches = Batches(replace(faces, votes=votes), 2, 96, 0, CPU)
    _, targets = batches.batch(0)
    order = batches.indices(0).tolist()
    assert targets[order.index(0)].tolist() == [0.75, 0.25]
    assert targets[order.index(1)].tolist() == [0.0, 1.0]


def test_votes_come_through_a_stream(tmp_path: Path) -> None:
    draw(tmp_path / "faces", 80, seed=0)
    votes = pd.DataFrame({"id": [f"{path.parent.name}/{path.name}" for path in (tmp_path / "faces").glob("*/*.png")]})
    votes = votes.assign(happy=3, sad=1, surprised=0, neutral=0)
    votes.to_csv(tmp_path / "votes.csv", index=False)
    options: dict[str, Any] = {"votes": tmp_path / "votes.csv", "votes_classes": list(votes)[1:], "quiet": True}
    fer_scale.ingest(tmp_path / "faces", tmp_path / "store", **options)
    store = Store.open(str(tmp_path / "store"))
    batches = StreamedBatches(Windows(store, "train", SMALL, batch_size=16, seed=0), len(store.classes), CPU)
    wanted = [{"happy": 0.75, "sad": 0.25}.get(name, 0.0) for name in store.classes]
    assert batches.batch(1)[1].tolist() == [wanted] * 16


def test_stages_thaw_from_the_head_down(faces: Faces) -> None:
    learner, batches = make(replace(RECIPE, thaw=0.5), faces)
    before = [parameter.clone() for stage in learner.network.stages for parameter in stage]
    stages = len(learner.network.stages) - 1
    fit(learner, batches, 1, lambda step: 0.0)
    moved = [
        not torch.equal(a, b)
        for a, b in zip(before, (p for stage in learner.network.stages for p in stage), strict=True)
    ]
    head = len(learner.network.stages[-1])
    assert not any(moved[:-head])
    assert any(moved[-head:])
    frozen = []
    for progress in (0.0, 0.25, 0.5, 1.0):
        learner.thaw(progress)
        frozen.append(learner.network.frozen)
    assert frozen == [stages, (stages + 1) // 2, 0, 0]
    before = [stage[0].clone() for stage in learner.network.stages]
    fit(learner, batches, 2, lambda step: 0.6)
    for stage, was in zip(learner.network.stages, before, strict=True):
        assert not torch.equal(stage[0], was)


def test_a_mirrored_network_answers_a_picture_and_its_mirror_alike(faces: Faces, tmp_path: Path) -> None:
    configuration = Configuration.from_dict(
        {"family": "resnet", "network": NETWORK, "preprocessing": {"channels": 1}, "test_time_flip": True}
    )
    network = build(configuration, 2).eval()
    pictures = torch.from_numpy(faces.images[:3])
    with torch.inference_mode():
        logits = network(pictures)
        torch.testing.assert_close(network(pictures.flip(-1)), logits)
        network.mirrored = False
        torch.testing.assert_close((network(pictures) + network(pictures.flip(-1))) / 2, logits)
        network.mirrored = True
    export_onnx(network, configuration.preprocessing, tmp_path / "model.onnx")
    (answer,) = InferenceSession(tmp_path / "model.onnx").run(None, {"images": faces.images[:3]})
    np.testing.assert_allclose(answer, logits.numpy(), atol=1e-4)


def test_a_stream_takes_each_face_once_an_epoch_and_the_same_ones_for_any_number_of_workers(tmp_path: Path) -> None:
    draw(tmp_path / "faces", 160, seed=0)
    fer_scale.ingest(tmp_path / "faces", tmp_path / "store", quiet=True)
    store = Store.open(str(tmp_path / "store"))
    whole = store.faces("train", SMALL)
    windows = Windows(store, "train", SMALL, batch_size=16, seed=3, window_bytes=3 * 16 * SMALL.size**2)
    batches = StreamedBatches(windows, len(store.classes), CPU)
    assert windows.per_epoch > 1
    known = {ident: whole.images[at] for at, ident in enumerate(whole.ids)}
    epochs = []
    for epoch in range(2):
        ids = []
        for step in range(epoch * windows.steps_per_epoch, (epoch + 1) * windows.steps_per_epoch):
            images, targets = batches.batch(step)
            named = batches.ids(step)
            assert targets.shape == (16, len(store.classes))
            np.testing.assert_array_equal(images.numpy(), np.stack([known[ident] for ident in named]))
            ids += named
        assert len(set(ids)) == len(ids) > len(whole) - 16
        epochs.append(ids)
    assert epochs[0] != epochs[1]
    halves = [windows.read(windows.per_epoch, rank, 2) for rank in range(2)]
    mine = windows.read(windows.per_epoch)
    assert [half.ids[0] for half in halves] == mine.ids[:2]
    np.testing.assert_array_equal(halves[1].images, mine.images[1::2])
    resumed = StreamedBatches(windows, len(store.classes), CPU)
    for step in (windows.steps_per_epoch + 1, 2):
        torch.testing.assert_close(resumed.batch(step), batches.batch(step))


def test_what_is_large_as_it_is_stored_comes_in_smaller_windows(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for folder, side in (("small", 48), ("large", 150)):
        for number in range(40):
            path = tmp_path / folder / f"train/{'happy' if number % 2 else 'sad'}/{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode_png(random.integers(0, 256, (side, side), dtype=np.uint8)))
        fer_scale.ingest(tmp_path / folder, tmp_path / f"{folder}-store", classes=["happy", "sad"], quiet=True)
    small, large = (
        Windows(
            Store.open(str(tmp_path / f"{folder}-store")), "train", SMALL, batch_size=4, seed=0, window_bytes=100_000
        )
        for folder in ("small", "large")
    )
    assert large.steps_per_epoch == small.steps_per_epoch
    assert large.per_epoch > 4 * small.per_epoch
    assert sum(len(large.read(window)) for window in range(large.per_epoch)) == 4 * large.steps_per_epoch


class Killed(Exception):
    """In place of a kill."""


@pytest.mark.parametrize("streamed", [False, True])
def test_checkpoints_within_an_epoch_and_a_kill_between_them_change_no_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, streamed: bool
) -> None:
    plan = planned(tmp_path, epochs=2, began=0.0, streamed=streamed)
    network, recipe = {**NETWORK, "dropout": 0.3}, {"batch_size": 16, "lr": 3e-3, "mixup": 0.2}
    configuration = {**plan.configuration, "network": network, "recipe": recipe, "test_time_flip": True}
    plan = replace(plan, configuration=configuration)
    epochs.run(plan)
    whole = Checkpoints(plan.checkpoints).state() or {}
    assert [row["epoch"] for row in whole["curve"]] == [1, 2]
    assert 0 < whole["start"] - epochs.LONGEST_START < 30  # for decades it has waited for others; and read the faces

    monkeypatch.setattr(epochs, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(epochs, "SCORING_SHARE", 1e9)
    plan = replace(plan, checkpoints=str(tmp_path / "often"))

    steps: list[int] = []

    class Mortal(Checkpoints):
        def save(self, learner: Learner, state: dict[str, Any], is_best: bool) -> None:
            super().save(learner, state, is_best)
            steps.append(learner.step)
            if steps == [1, 2]:
                raise Killed

    monkeypatch.setattr(epochs, "Checkpoints", Mortal)
    with pytest.raises(Killed):
        epochs.run(plan)
    epochs.run(plan)
    assert steps[:4] == [1, 2, 3, 4]
    often = Checkpoints(plan.checkpoints).state() or {}
    assert [row["step"] for row in often["curve"]] == list(range(1, whole["step"] + 1))
    assert often["best_file"] == whole["best_file"]
    mean = np.mean([row["train_loss"] for row in often["curve"]])
    assert mean == pytest.approx(np.mean([row["train_loss"] for row in whole["curve"]]))
    one, other = (
        load_file(tmp_path / folder / state["files"][-1]) for folder, state in (("fit", whole), ("often", often))
    )
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(other[name], value)


@pytest.mark.parametrize("streamed", [False, True])
def test_a_streamed_fit_opens_its_windows_and_no_other_does(tmp_path: Path, streamed: bool) -> None:
    asked: list[int] = []

    def opened(windows: Windows, first: int, rank: int, workers: int) -> Iterator[Faces]:
        asked.append(first)
        return here(windows, first, rank, workers)

    epochs.run(planned(tmp_path, streamed=streamed), opened)
    assert asked == ([0] if streamed else [])


def test_an_epoch_of_many_faces_is_scored_in_even_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = planned(tmp_path, epochs=2)
    epochs.run(plan)
    whole = Checkpoints(plan.checkpoints).state() or {}
    (tmp_path / "parts").mkdir()
    per_epoch = whole["step"] // 2
    assert per_epoch == 4
    monkeypatch.setattr(epochs, "CHECKPOINT_FACES", 40)  # of 64 that an epoch has
    plan = replace(plan, checkpoints=str(tmp_path / "parts"))
    epochs.run(plan)
    parts = Checkpoints(plan.checkpoints).state() or {}
    assert [row["step"] for row in parts["curve"]] == [2, 4, 6, 8]
    one, other = (
        load_file(tmp_path / folder / state["files"][-1]) for folder, state in (("fit", whole), ("parts", parts))
    )
    for name, value in one.items():
        torch.testing.assert_close(other[name], value)


def test_what_is_frozen_is_so_after_a_kill_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = planned(tmp_path, epochs=3)
    configuration = Configuration.from_dict(plan.configuration)
    store = Store.open(plan.store)
    donor = tmp_path / "donor"
    donor.mkdir()
    given = build(configuration, len(store.classes))
    told: dict[str, Any] = {"classes": store.classes, "temperature": 1.0, "facts": {}, "metrics": {}, "card": ""}
    write(donor, given, configuration, curve=pd.DataFrame({"epoch": [1]}), **told)
    frozen = {**plan.configuration, "network": {**NETWORK, "unfreeze": 0}}
    plan = replace(plan, configuration=frozen, init_from=str(donor))

    class Mortal(Checkpoints):
        def save(self, learner: Learner, state: dict[str, Any], is_best: bool) -> None:
            super().save(learner, state, is_best)
            if len(state["curve"]) == 1:
                raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(epochs, "Checkpoints", Mortal)
        with pytest.raises(Killed):
            epochs.run(plan)
    epochs.run(plan)
    state = Checkpoints(plan.checkpoints).state() or {}
    assert len(state["curve"]) == 3
    fitted = load_file(tmp_path / "fit" / state["files"][-1])
    moved = [
        name for name, value in given.named_parameters() if not torch.equal(fitted[f"network.{name}"], value.detach())
    ]
    assert moved
    assert all(name.startswith("head.") for name in moved)


HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@pytest.mark.skipif(
    not HUGE_PAGES.exists() or "[madvise]" not in HUGE_PAGES.read_text(),
    reason="the kernel gives no huge pages on demand",
)
def test_tensors_lie_in_huge_pages() -> None:
    """Nothing that a worker imports may allocate a tensor before PyTorch has been told."""
    code = """
import fer_scale.verbs.train_fit, torch
tensor = torch.ones(16 << 20)
(line,) = [line for line in open("/proc/self/smaps_rollup") if line.startswith("AnonHugePages")]
print(line.split()[1])
"""
    fresh = {name: value for name, value in os.environ.items() if name != "THP_MEM_ALLOC_ENABLE"}
    found = subprocess.run([sys.executable, "-c", code], env=fresh, capture_output=True, text=True, check=True)
    assert int(found.stdout) * 1024 > 32 << 20, "of 64 MiB"


def test_a_step_in_a_thread_takes_the_memory_of_the_one_before() -> None:
    code = """
import resource, sys, threading, torch
from fer_scale.learning.memory import keep_freed

def steps(count):
    for _ in range(count):
        maps = [torch.ones(12_000_000) for _ in range(8)]

def taken():
    steps(5)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    steps(5)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

if sys.argv[1] == "keep":
    keep_freed()
thread = threading.Thread(target=taken)
thread.start()
thread.join()
"""
    whole = {**os.environ, "OMP_NUM_THREADS": "1", "THP_MEM_ALLOC_ENABLE": "0"}
    plain, kept = (
        int(subprocess.check_output([sys.executable, "-c", code, how], env=whole, text=True))
        for how in ("plain", "keep")
    )
    assert kept < 1000 < plain, (kept, plain)
