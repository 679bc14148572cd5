"""A search without Ray: the space, the study's memory, a trial's rungs, the record and its resume."""

import contextlib
import copy
import dataclasses
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pyarrow.parquet as pq
import pytest
import torch
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

import fer_scale
from fer_scale import lease as leases
from fer_scale import storage
from fer_scale.bundle import build
from fer_scale.cluster import Cluster
from fer_scale.errors import FerScaleError, InputError
from fer_scale.faces.images import Preprocessing
from fer_scale.faces.sample import draw
from fer_scale.faces.store import Faces, Store
from fer_scale.faces.windows import Windows
from fer_scale.families import FAMILIES
from fer_scale.learning.batches import Batches, Feed
from fer_scale.learning.configuration import Configuration
from fer_scale.learning.loop import Learner, fit
from fer_scale.learning.stream import StreamedBatches
from fer_scale.lease import LeaseLostError
from fer_scale.machines import Machine, Machines
from fer_scale.search import price, rows
from fer_scale.search.features import backbone, features, head_alone, head_of
from fer_scale.search.fixed import check_fixed
from fer_scale.search.fixed import read as read_space
from fer_scale.search.journal import Journal, read
from fer_scale.search.search import Search
from fer_scale.search.space import suggest
from fer_scale.search.starts import STARTS
from fer_scale.search.study import Fit, Study
from fer_scale.search.trial import Trial, clock
from fer_scale.verbs.ingest import ingest

FAR = 4e9
QUALITY: dict[int, float | str] = {0: 0.25, 1: 0.5, 2: "DivergedError: no", 3: 0.3}
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("search")
    draw(folder / "faces", 80, seed=0)
    ingest(folder / "faces", folder / "store", quiet=True)
    return Store.open(str(folder / "store"))


def study(path: Path, families: list[str], seed: int = 0, **fixed: Any) -> Study:
    path.mkdir(exist_ok=True)
    return Study(Journal(str(path)), families, fixed, seed, "a study")


def result(accuracy: float, top: bool = False) -> dict[str, Any]:
    measured = {"parameters": 7, "weights": "none", "images_seen": 64, "compute_seconds": 1.5, "share": 1.0}
    interval = {"accuracy_low": accuracy - 0.1, "accuracy_high": accuracy + 0.1}
    return {"accuracy": accuracy, "top": top, "started": 1.0, "ended": 2.0, **measured, **interval}


def test_every_family_is_drawn_and_every_draw_is_a_configuration() -> None:
    sampler = optuna.samplers.RandomSampler(seed=0)
    space = optuna.create_study(sampler=sampler)
    drawn = [suggest(space.ask(), list(FAMILIES), {}) for _ in range(60)]
    assert {c.family for c in drawn} == set(FAMILIES)
    for configuration in drawn:
        assert Configuration.from_dict(json.loads(json.dumps(configuration.to_dict()))) == configuration


def test_what_is_fixed_is_not_drawn() -> None:
    fixed = check_fixed({"optimizer": "sgd", "lr": "0.05", "size": 48, "cnn1.width": "2"}, ["cnn1", "cnn2"])
    space = optuna.create_study()
    for _ in range(20):
        configuration = suggest(space.ask(), ["cnn1", "cnn2"], fixed)
        assert (configuration.recipe.optimizer, configuration.recipe.lr) == ("sgd", 0.05)
        assert configuration.preprocessing.size == 48
        assert configuration.family != "cnn1" or configuration.network.width == 2.0


@pytest.mark.parametrize(
    ("fixed", "said"),
    [
        ({"momentum": "1"}, "momentum=1.*optimizer"),
        ({"lr": "x"}, "lr=.x."),
        ({"optimizer": "x"}, "sgd, adamw"),
        ({"optimizer": "sgd,x"}, "sgd, adamw"),
        ({"lr": "0.1..x"}, "range"),
        ({"lr": "0.1..20"}, "lr=20"),
        ({"lr": {"from": 1}}, "range"),
        ({"lr": {"low": 0.1, "high": 0.01}}, r"low.: 0\.1.*range"),
        ({"lr": {"low": "0.01", "high": 0.1}}, "range"),
        ({"cnn1.dense": 256}, "dense=256.*str"),
        ({"cnn1.dense": "64..256"}, "range"),
        ({"weight_decay": "0..0.01"}, r"weight_decay=0\.\.0\.01.*above 0"),
        ({"size": "50..60"}, r"size=50\.\.60 for cnn1.*48, 64"),
        ({"test_time_flip": "maybe"}, "test_time_flip"),
    ],
)
def test_a_wrong_fix_names_the_valid_ones(fixed: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        check_fixed(fixed, ["cnn1"])


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ("256", "256"),
        ('"256"', "256"),
        ("512-256", "512-256"),
        ("none, 256", ["none", "256"]),
        ('["none", "256"]', ["none", "256"]),
        (["256", "64"], ["256", "64"]),
    ],
)
def test_what_holds_text_is_not_read_as_a_number(given: Any, read: Any, tmp_path: Path) -> None:
    fixed = check_fixed({"cnn1.dense": given}, ["cnn1"])
    assert fixed == {"cnn1.dense": read}
    space = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    drawn = {suggest(space.ask(), ["cnn1"], fixed).network.dense for _ in range(12)}
    assert drawn == ({read} if isinstance(read, str) else set(read))
    (tmp_path / "space.toml").write_text(f"[cnn1]\ndense = {json.dumps(given)}\n")
    assert check_fixed(read_space(str(tmp_path / "space.toml")), ["cnn1"]) == fixed


def test_weights_are_names_or_a_file_that_is_there(tmp_path: Path) -> None:
    both = check_fixed({"resnet.weights": "imagenet, none"}, ["resnet"])
    assert both == {"resnet.weights": ["imagenet", "none"]}
    (tmp_path / "a,b.pth").write_bytes(b"")
    path = str(tmp_path / "a,b.pth")
    assert check_fixed({"resnet.weights": path}, ["resnet"]) == {"resnet.weights": path}
    for wrong in (str(tmp_path / "gone.pth"), ["none", str(tmp_path / "gone.pth")], "imagenet,nine"):
        with pytest.raises(InputError, match=r"weights=.*(gone|nine).*auto, imagenet, none, or a file"):
            check_fixed({"resnet.weights": wrong}, ["resnet"])


def test_a_range_of_what_may_be_null_takes_its_numbers() -> None:
    fixed = check_fixed({"efficientnet.unfreeze": "4..6"}, ["efficientnet"])
    space = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    networks = [suggest(space.ask(), ["efficientnet"], fixed).network for _ in range(40)]
    assert {one.unfreeze for one in networks if one.weights == "auto"} == {4, 6}
    assert {one.weights for one in networks} == {"auto", "none"}
    with pytest.raises(InputError, match=r"unfreeze=1\.\.3 for efficientnet.*0, 4, 6, null"):
        check_fixed({"efficientnet.unfreeze": "1..3"}, ["efficientnet"])


def test_what_is_narrowed_is_drawn_from_that_alone() -> None:
    given = {"batch_size": "32,64", "lr": "0.01..0.02", "ema": [0.9, 0.99], "clip": "1..2", "cnn1.width": "0.5,1"}
    fixed = check_fixed({**given, "size": "48..50", "label_smoothing": [0.1]}, ["cnn1", "cnn2"])
    space = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    drawn = [suggest(space.ask(), ["cnn1", "cnn2"], fixed) for _ in range(40)]
    assert {one.recipe.batch_size for one in drawn} == {32, 64}
    assert {one.recipe.ema for one in drawn} == {0.9, 0.99}
    assert {one.network.width for one in drawn if one.family == "cnn1"} == {0.5, 1.0}
    assert len({one.network.width for one in drawn if one.family == "cnn2"}) > 2
    assert {one.preprocessing.size for one in drawn} == {48}
    assert {one.recipe.label_smoothing for one in drawn} == {0.1}
    assert all(0.01 <= one.recipe.lr <= 0.02 and 1 <= one.recipe.clip <= 2 for one in drawn)
    assert len({one.recipe.lr for one in drawn}) == len({one.recipe.clip for one in drawn}) == 40


def test_references_and_starts_come_with_the_nearest_that_is_allowed(tmp_path: Path) -> None:
    fixed = check_fixed({"lr": "0.002..0.02", "batch_size": "32,64", "resnet.cut": "1,2"}, ["resnet"])
    asked = study(tmp_path, ["resnet"], **fixed)
    start, reference = (asked.new()[1].configuration for _ in range(2))
    assert (start["recipe"]["lr"], start["recipe"]["batch_size"], start["network"]["cut"]) == (0.02, 64, 1)
    assert (reference["recipe"]["lr"], reference["recipe"]["batch_size"], reference["network"]["cut"]) == (0.002, 64, 1)


@pytest.mark.parametrize(
    ("name", "text"), [("space.toml", 'optimizer = "sgd"\n[cnn1]\nwidth = [0.5, 1]\n'), ("space.json", "")]
)
def test_a_file_fixes_and_narrows_as_well(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.write_text(text or json.dumps({"optimizer": "sgd", "cnn1": {"width": [0.5, 1]}}))
    assert check_fixed(read_space(str(path)), ["cnn1"]) == {"optimizer": "sgd", "cnn1.width": [0.5, 1]}
    for wrong in ("=", *(["[1]", '{"cnn1": 5}'] if name.endswith(".json") else ["cnn1 = 5"])):
        path.write_text(wrong)
        with pytest.raises(InputError, match=name):
            read_space(str(path))


def test_null_and_what_is_not_drawn_can_be_fixed() -> None:
    fixed = check_fixed({"ema": "0", "resnet.stem": "null", "resnet.variant": "slim10"}, ["resnet"])
    space = optuna.create_study()
    for _ in range(10):
        configuration = suggest(space.ask(), ["resnet"], fixed)
        assert configuration.recipe.ema == 0
        assert configuration.network.stem is None


def test_a_start_that_does_not_go_with_what_is_fixed_is_left_out(tmp_path: Path) -> None:
    asked = study(tmp_path, ["resnet"], **check_fixed({"resnet.variant": "resnet18"}, ["resnet"]))
    fits = [asked.new()[1] for _ in range(3)]
    assert [fit.start for fit in fits] == ["reference", "proposed", "proposed"]
    assert {fit.configuration["network"]["variant"] for fit in fits} == {"resnet18"}


def test_starts_that_are_the_same_once_something_is_fixed_are_one(tmp_path: Path) -> None:
    asked = study(tmp_path, ["efficientnet"], **check_fixed({"size": "64"}, ["efficientnet"]))
    assert [asked.new()[1].start for _ in range(3)] == ["start", "reference", "proposed"]


def test_values_that_go_together_may_be_fixed_together() -> None:
    assert check_fixed({"resnet.variant": "slim10", "resnet.width": "2"}, ["resnet"])["resnet.width"] == 2
    with pytest.raises(InputError, match="width=2"):
        check_fixed({"resnet.variant": "resnet18", "resnet.width": "2"}, ["resnet"])


def test_a_family_without_a_start_begins_with_its_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(STARTS, "cnn1")
    asked = study(tmp_path, ["cnn1", "resnet"], **check_fixed({}, ["cnn1", "resnet"]))
    kinds = [(fit.start, fit.configuration["family"]) for _, fit in (asked.new() for _ in range(4))]
    assert kinds[:3] == [("start", "resnet"), ("reference", "cnn1"), ("reference", "resnet")]
    assert kinds[3][0] == "proposed"


def test_a_start_of_each_family_comes_first_then_the_other_starts_references_and_proposals(tmp_path: Path) -> None:
    asked = study(tmp_path / "s", ["cnn1", "efficientnet"])
    fits = [asked.new()[1] for _ in range(6)]
    assert [(fit.start, fit.configuration["family"]) for fit in fits[:5]] == [
        ("start", "efficientnet"),
        ("start", "cnn1"),
        ("start", "efficientnet"),
        ("reference", "efficientnet"),
        ("reference", "cnn1"),
    ]
    assert [fits[at].configuration["preprocessing"]["size"] for at in (0, 2)] == [64, 96]
    assert Configuration.from_dict(fits[3].configuration) == Configuration.reference("efficientnet")
    assert fits[5].start == "proposed"


def test_the_same_seed_proposes_the_same(tmp_path: Path) -> None:
    def proposals(folder: str) -> list[Fit]:
        asked, seen = study(tmp_path / folder, ["cnn1"], seed=5), []
        for i in range(6):
            number, fit = asked.new()
            asked.end(number, fit, result(i / 10))
            seen.append(fit)
        return seen

    assert proposals("a") == proposals("b")


def test_a_promotion_is_told_to_the_sampler_with_the_parameters_of_the_trial(tmp_path: Path) -> None:
    asked = study(tmp_path, ["cnn1"])
    fits = [asked.new() for _ in range(4)]
    number, fit = fits[3]
    asked.end(number, fit, result(0.5))
    number, higher = asked.again(fit, 2, confirm=False)
    assert (higher.configuration, higher.seed, higher.trial, higher.rung) == (fit.configuration, fit.seed, fit.trial, 2)
    asked.end(number, higher, result(0.6))
    assert asked.again(fit, 2, confirm=True)[1].seed != fit.seed
    kept = asked._study
    told = kept.get_trials(states=(optuna.trial.TrialState.PRUNED,))
    assert len(told) == 2
    assert told[0].params == told[1].params
    assert "augmentation" in told[0].params


def trial(store: Store, compute: float, streamed: bool = False) -> Trial:
    configuration = Configuration.from_dict({"family": "cnn1", "network": {"width": 0.25}, "recipe": {"batch_size": 8}})
    inputs = configuration.preprocessing
    feed: Feed = Batches(store.faces("train", inputs), 4, 8, 0, CPU)
    if streamed:
        feed = StreamedBatches(Windows(store, "train", inputs, batch_size=8, seed=0), 4, CPU)
    counts = [store.counts["train"][name] for name in store.classes]
    network, recipe = build(configuration, len(counts)), configuration.recipe
    made = Trial(network, recipe, feed, counts, lambda: store.parts("val", inputs), compute=compute, seed=0, device=CPU)
    made.measure()
    return made


def test_a_fit_takes_the_compute_that_it_was_given(store: Store) -> None:
    low, high = trial(store, 0.2), trial(store, 1.0)
    assert (low.run(FAR), high.run(FAR)) == (1.0, 1.0)
    assert high.score()["images_seen"] > 2 * low.score()["images_seen"]
    assert high.score()["accuracy_low"] <= high.score()["accuracy"] <= high.score()["accuracy_high"]


def test_a_store_larger_than_memory_is_read_as_the_fit_goes(store: Store) -> None:
    streamed, whole = trial(store, 0.2, streamed=True), trial(store, 0.2)
    assert streamed.run(FAR) == 1.0
    score = streamed.score()
    assert score["images_seen"] > 0
    assert 0 <= score["accuracy_low"] <= score["accuracy"] <= score["accuracy_high"] <= 1
    assert streamed._batches.steps_per_epoch == whole._batches.steps_per_epoch


class Slow(Windows):
    """Each window takes so much of the CPU to read."""

    seconds = 0.2

    def read(self, window: int, rank: int = 0, workers: int = 1) -> Faces:
        until = time.process_time() + self.seconds
        while time.process_time() < until:
            pass
        return super().read(window, rank, workers)


@pytest.mark.parametrize("steps", [1, 4])
def test_a_step_of_a_stream_costs_its_share_of_reading_a_window(steps: int, store: Store) -> None:
    configuration = Configuration.from_dict({"family": "cnn1", "network": {"width": 0.25}})
    inputs, compute = configuration.preprocessing, 2.0
    face = inputs.channels * inputs.size**2
    face = max(face, Windows(store, "train", inputs, batch_size=8, seed=0)._groups[0].bytes // store.rows("train"))
    windows = Slow(store, "train", inputs, batch_size=8, seed=0, window_bytes=8 * face * steps)
    assert windows.steps_per_window == steps
    feed = StreamedBatches(windows, 4, CPU)
    fitted = Trial(
        build(configuration, 4), configuration.recipe, feed, [1] * 4, list, compute=compute, seed=0, device=CPU
    )
    fitted.measure()
    assert 4 <= fitted.steps <= compute / (Slow.seconds / steps)


def test_where_trials_share_a_core_a_second_of_compute_is_one_of_the_clock_on_the_wall(store: Store) -> None:
    configuration = Configuration.from_dict({"family": "cnn1", "network": {"width": 0.25}})
    feed = Batches(store.faces("train", configuration.preprocessing), 4, 8, 0, CPU)
    network, recipe = build(configuration, 4), configuration.recipe
    fitted = Trial(network, recipe, feed, [1] * 4, list, compute=1e6, seed=0, device=CPU, cpus=0.25)
    began = clock(CPU)()
    fitted.measure()
    assert fitted.compute_seconds == pytest.approx(4 * (clock(CPU)() - began), rel=0.1)
    assert clock(CPU, 2.0)() == pytest.approx(clock(CPU)(), rel=0.1), "more of them are its threads"


def test_a_head_fitted_on_features_is_the_head_of_the_whole_network(store: Store) -> None:
    shape = {"variant": "slim10", "width": 0.25, "dense": "8", "dropout": 0.0, "weights": "none"}
    recipe = {"augmentation": 0.0, "batch_size": 8, "optimizer": "sgd", "lr": 0.3, "ema": 0.0}
    configuration = Configuration.from_dict({"family": "resnet", "network": shape, "recipe": recipe})
    inputs, counts = configuration.preprocessing, [1, 1, 1, 1]
    train, val = store.faces("train", inputs), store.faces("val", inputs)
    torch.manual_seed(0)
    network = build(configuration, 4)
    assert not head_alone(network, configuration.recipe)
    network.freeze(len(network.stages) - 1)
    assert head_alone(network, configuration.recipe)
    assert not head_alone(network, dataclasses.replace(configuration.recipe, augmentation=1.0))
    other, before = copy.deepcopy(network), copy.deepcopy(network)
    for fitted, faces in ((head_of(network), features(network, train, CPU)), (other, train)):
        learner = Learner(fitted, configuration.recipe, class_counts=counts, seed=0, device=CPU)
        fit(learner, Batches(faces, 4, 8, 0, CPU), 12, lambda step: step / 12)
    with torch.inference_mode():
        pictures = torch.from_numpy(val.images)
        mine, whole, first = (one.eval()(pictures) for one in (network, other, before))
    torch.testing.assert_close(mine, whole, rtol=0, atol=5e-2)  # steps may run in bfloat16
    assert float((mine - first).abs().max()) > 0.1
    for one in (network, alone := head_of(network)):
        one.mirrored = True
    both = torch.from_numpy(features(network, val, CPU, mirrored=True).images)
    with torch.inference_mode():
        torch.testing.assert_close(alone.eval()(both), network.eval()(pictures), rtol=1e-3, atol=1e-3)
        assert not torch.allclose(alone(both), alone(both[..., :1]), atol=1e-3)


def test_a_head_on_features_takes_no_more_epochs_than_it_needs(store: Store) -> None:
    configuration = Configuration.from_dict({"family": "cnn1", "network": {"width": 0.25}})
    batches = Batches(store.faces("train", configuration.preprocessing), 4, 8, 0, CPU)
    network, recipe = build(configuration, 4), configuration.recipe
    fitted = Trial(network, recipe, batches, [1] * 4, list, compute=1e6, seed=0, device=CPU, most_epochs=3)
    fitted.measure()
    assert fitted.steps == 3 * batches.steps_per_epoch
    assert fitted.capped


def test_a_step_is_measured_as_dear_as_it_gets(store: Store) -> None:
    configuration = Configuration.from_dict(
        {"family": "cnn1", "network": {"width": 0.25}, "recipe": {"batch_size": 16, "thaw": 0.5}}
    )
    batches = Batches(store.faces("train", configuration.preprocessing), 4, 16, 0, CPU)
    network = build(configuration, 4)
    fitted = Trial(network, configuration.recipe, batches, [1] * 4, list, compute=1.0, seed=0, device=CPU)
    fitted.measure()
    assert network.frozen == 0
    fitted.learner.thaw(0.0)
    assert network.frozen == len(network.stages) - 1


def test_features_are_shared_by_heads_and_by_nothing_else() -> None:
    def named(**changed: Any) -> str:
        configuration = Configuration.from_dict({"family": "resnet", "network": {"weights": "none", **changed}})
        return backbone(configuration, build(configuration, 4))

    assert named() == named(dense="none") == named(dropout=0.5) == named(unfreeze=0)
    assert len({named(), named(cut=3), named(stem=1), named(variant="resnet10t")}) == 4


def test_what_trains_the_head_alone_draws_nothing_that_changes_pictures() -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    drawn = [suggest(study.ask(), ["efficientnet"], {}) for _ in range(60)]
    heads = [one for one in drawn if one.network.unfreeze == 0]
    assert heads
    assert len(heads) < len(drawn)
    for one in drawn:
        still = not (one.recipe.augmentation or one.recipe.mixup or one.recipe.cutmix)
        assert still == (one.network.unfreeze == 0)


def test_a_deadline_shortens_a_fit_and_its_schedule(store: Store) -> None:
    cut = trial(store, 3600.0)
    assert 0 < cut.run(deadline=time.time() + 2.0) < 1
    assert cut.score()["accuracy"] >= 0
    assert all(group["lr"] < 0.2 * 1e-3 for group in cut.learner._optimizer.param_groups)


class TestSearch:
    def open(self, out: Path | str, store: Store, **changed: Any) -> Search:
        options: dict[str, Any] = {"budget": 600.0, "slots": 1, "deadline": FAR, "seed": 0, **changed}
        return Search(str(out), store, ["cnn1", "cnn2"], {}, **options)

    def play(self, search: Search, limit: int = 100) -> list[Fit]:
        """Fits come to what QUALITY says of their trial, until none is worth it or ``limit`` ended."""
        fits: list[Fit] = []
        while len(fits) < limit and (found := search.next()) is not None:
            number, fit = found
            quality = QUALITY[fit.trial]
            got = (
                {"reason": quality} if isinstance(quality, str) else result(quality + fit.rung / 20 - fit.confirm / 50)
            )
            search.end(number, got)
            fits.append(fit)
        return fits

    def test_rows_say_how_trials_ended(self, tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(price, "LEADERS", 1)  # an export takes seconds
        with self.open(tmp_path / "s", store, max_trials=4, price_per_hour=2.0) as search:
            fits = self.play(search)
            done = search.finish()
        assert {(fit.trial, fit.rung, fit.confirm) for fit in fits if fit.trial == 1} == {
            (1, 1, False),
            (1, 2, False),
            (1, 3, False),
            (1, 3, True),
        }
        table = pq.read_table(tmp_path / "s" / "trials.parquet").to_pylist()
        assert [r["status"] for r in table] == ["pruned", "completed", "failed", "pruned"]
        assert table[2]["reason"] == "DivergedError: no"
        assert table[1]["scores"] == pytest.approx([0.55, 0.6, 0.65])
        assert table[1]["started"] < table[1]["scored"][0] < table[1]["scored"][1] < table[1]["scored"][2]
        assert (table[1]["confirmed"], table[1]["compute_seconds"]) == (pytest.approx(0.63), 6.0)
        assert done["best"]["trial_id"] == 1
        speed = table[1]["images_per_second"]
        assert speed > 1
        assert table[1]["price_per_million"] == pytest.approx(1e6 / speed / 3600 * 2)
        with self.open(tmp_path / "s", store, max_trials=4) as again:  # read back, not measured anew
            assert again.record.table()["images_per_second"].to_pylist()[1] == speed
        board = json.loads((tmp_path / "s" / "leaderboard.json").read_text())
        assert (board["trials"][0]["rank"], board["trials"][0]["trial_id"]) == (1, 1)
        assert len(board["trials"]) == 3
        assert (tmp_path / "s" / "report.html").stat().st_size > 1000

    def test_trials_that_val_cannot_tell_from_the_best_are_ties(self, tmp_path: Path, store: Store) -> None:
        with self.open(tmp_path / "s", store) as search:
            self.play(search, limit=2)
            assert [row["tie"] for row in search.record.leaderboard()] == [False, False]
        with self.open(tmp_path / "t", store) as search, pytest.MonkeyPatch.context() as patch:
            patch.setitem(QUALITY, 0, 0.45)
            self.play(search, limit=2)
            assert [(row["trial_id"], row["tie"]) for row in search.record.leaderboard()] == [(1, False), (0, True)]
            assert sum(search.record.table()["tie"].to_pylist()) == 1

    def test_a_search_killed_at_any_line_of_its_journal_goes_on_as_if_it_had_not_been(
        self, tmp_path: Path, store: Store
    ) -> None:
        def known(search: Search) -> list[Any]:
            columns = ("trial_id", "configuration", "scores", "confirmed", "status", "reason", "compute_seconds")
            return [[row[name] for name in columns] for row in search.record.table().to_pylist()]

        with self.open(tmp_path / "whole", store, max_trials=4) as search:
            self.play(search)
            expected = known(search)
        journal = (tmp_path / "whole" / "journal.log").read_bytes()
        ends = [at + 1 for at, byte in enumerate(journal) if byte == ord("\n")]
        for at in [*ends[::5], ends[-3] + 4]:
            out = tmp_path / f"killed-{at}"
            out.mkdir()
            (out / "search.json").write_bytes((tmp_path / "whole" / "search.json").read_bytes())
            (out / "journal.log").write_bytes(journal[:at])
            with self.open(out, store, max_trials=4) as again:
                self.play(again)
                assert [row[2:] for row in known(again)] == [row[2:] for row in expected]
                assert [row[0] for row in known(again)] == [0, 1, 2, 3]

    def test_a_fit_whose_process_dies_is_begun_once_more(self, tmp_path: Path, store: Store) -> None:
        with self.open(tmp_path / "s", store) as search:
            number, fit = search.next() or pytest.fail("nothing to fit")
            assert not search.end(number, {"died": True, "reason": "its process died"})
            assert search.next() == (number, fit)
            assert search.record.table().num_rows == 0
            assert search.end(number, {"died": True, "reason": "its process died"})
            assert search.record.table().to_pylist()[0]["reason"] == "its process died"
            assert (search.next() or pytest.fail("nothing to fit"))[1].trial == 1

    def test_the_last_table_has_a_row_for_every_trial_that_began(
        self, tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(price, "measured", lambda *_: [])
        with self.open(tmp_path / "s", store, max_trials=3) as search:
            self.play(search, limit=2)
            begun = [found for _ in range(3) if (found := search.next())]
            assert {fit.rung for _, fit in begun} == {1, 2}
            assert search.record.table().to_pylist()[begun[0][1].trial]["status"] == "running"
            search.end(begun[-1][0], {"died": True, "reason": "its process died"})
            assert search.finish()["trials"] == 3
        table = pq.read_table(tmp_path / "s" / "trials.parquet").to_pylist()
        for _, one in begun:
            row = table[one.trial]
            assert row["status"] == ("failed" if one.rung == 1 else "time budget")
            assert (row["accuracy"] is None) == (one.rung == 1)
            assert row["reason"] == f"fitted for rung {one.rung}, and that did not end in time"

    def test_a_confirmation_that_fails_is_said(self, tmp_path: Path, store: Store) -> None:
        with self.open(tmp_path / "s", store, max_trials=4) as search:
            while (found := search.next()) is not None and not found[1].confirm:
                search.end(found[0], result(0.5 + found[1].trial / 20 + found[1].rung / 20))
            number, fit = found or pytest.fail("nothing to confirm")
            search.end(number, {"reason": "DivergedError: no"})
            row = search.record.table().to_pylist()[fit.trial]
        assert (row["status"], row["confirmed"]) == ("completed", None)
        assert row["reason"] == "reached the highest rung; on a fresh seed: DivergedError: no"

    def test_a_fit_is_on_record_as_it_begins(self, tmp_path: Path, store: Store) -> None:
        with self.open(tmp_path / "s", store) as search:
            begun = [search.next() for _ in range(2)]
            (tmp_path / "killed").mkdir()
            for name in ("journal.log", "search.json"):
                (tmp_path / "killed" / name).write_bytes((tmp_path / "s" / name).read_bytes())
        with self.open(tmp_path / "killed", store) as again:
            assert [again.next() for _ in range(2)] == begun
            _, third = again.next() or pytest.fail("nothing to fit")
            assert (third.trial, third.start) == (2, "reference")

    def test_a_fit_for_which_there_is_no_time_any_more_waits_for_a_resume_with_more(
        self, tmp_path: Path, store: Store
    ) -> None:
        with self.open(tmp_path / "s", store, max_trials=4) as search:
            self.play(search, limit=6)
            number, fit = search.next() or pytest.fail("nothing to fit")
            assert fit.rung > 1
        with self.open(tmp_path / "s", store, max_trials=4, deadline=time.time() + 20) as search:
            assert search.next() is None
        with self.open(tmp_path / "s", store, max_trials=4) as search:
            assert search.next() == (number, fit)

    def test_a_fit_that_the_deadline_left_too_little_leaves_the_better_score(
        self, tmp_path: Path, store: Store
    ) -> None:
        with self.open(tmp_path / "s", store, max_trials=4) as search:
            self.play(search, limit=6)
            number, fit = search.next() or pytest.fail("nothing to fit")
            search.end(number, {**result(0.1), "share": 0.2})
            row = search.record.table().to_pylist()[fit.trial]
            assert (row["accuracy"], row["status"]) == (row["scores"][-1], "time budget")
            assert row["accuracy"] > 0.1
            assert "given 20 % of rung" in row["reason"]
            self.play(search)  # and it may be begun again
            assert search.record.leaderboard()[0]["confirmed"] is not None

    def test_what_a_fit_is_given_decides_the_pace_and_its_share(self, tmp_path: Path, store: Store) -> None:
        with self.open(tmp_path / "s", store, slots=2, deadline=time.time() + 118) as search:  # of 600
            for _ in range(2):
                number, fit = search.next() or pytest.fail("nothing to fit")
                assert search.compute(number) == search.rungs.compute(1)
                search.end(number, {**result(0.5), "seconds": 1.2 * search.compute(number)})
            number, fit = search.next() or pytest.fail("nothing to fit")
            given, rung = search.compute(number), search.rungs.compute(fit.rung)
            assert given > rung
            assert given == pytest.approx((search.deadline - time.time()) * 0.95, rel=0.2)
            search.end(number, {**result(0.6), "share": 0.9 * rung / given})
            row = search.record.table().to_pylist()[fit.trial]
            assert "given 90 % of rung" in row["reason"]

    def test_a_head_that_its_epochs_ended_says_nothing_of_the_pace(self, tmp_path: Path, store: Store) -> None:
        def choice(folder: str, second: dict[str, Any]) -> tuple[int, float]:
            with self.open(tmp_path / folder, store, deadline=time.time() + 150) as search:  # of 600
                for got in ({"seconds": 2.0 * search.rungs.compute(1)}, second):
                    number, _ = search.next() or pytest.fail("nothing to fit")
                    search.end(number, {**result(0.5), **got})
                number, fit = search.next() or pytest.fail("nothing to fit")
                return fit.rung, search.compute(number)

        rung, given = choice("slow", {})
        assert choice("head", {"seconds": 0.1, "capped": True}) == (rung, pytest.approx(given, rel=0.1))
        assert choice("whole", {"seconds": 0.1}) != (rung, pytest.approx(given, rel=0.1))

    def test_a_write_that_fails_is_made_up_for(self, tmp_path: Path, store: Store) -> None:
        out = tmp_path / "s"
        with self.open(out, store) as search:
            self.play(search, limit=1)
            kept = (out / "journal.log").read_bytes()
            (out / "journal.log").unlink()
            (out / "journal.log").mkdir()  # a disk that takes nothing
            fits = self.play(search, limit=2)
            (out / "journal.log").rmdir()
            (out / "journal.log").write_bytes(kept + b"half a li")
            self.play(search, limit=1)
        with self.open(out, store) as again:
            trials = again.record.table()["trial_id"].to_pylist()
            assert len(trials) >= len({fit.trial for fit in fits})
            assert trials == list(range(len(trials)))

    def test_a_search_that_another_run_has_taken_over_writes_no_more(
        self, tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(leases, "BEAT_SECONDS", 0.2)
        with pytest.raises(LeaseLostError), self.open(tmp_path / "s", store) as search:
            number, _ = search.next() or pytest.fail("nothing to fit")
            (tmp_path / "s" / "lease.json").write_text(json.dumps({"token": "another"}))
            until = time.monotonic() + 30
            while not search._lease._lost and time.monotonic() < until:
                time.sleep(0.1)
            before = read(str(tmp_path / "s"))
            with pytest.raises(LeaseLostError):
                search.end(number, result(0.5))
            with pytest.raises(LeaseLostError):
                search.write()
            assert read(str(tmp_path / "s")) == before
            search.next()

    def test_what_was_confirmed_comes_before_a_lucky_score(self) -> None:
        def row(rung: int, accuracy: float, confirmed: float | None = None) -> dict[str, Any]:
            interval = {"accuracy_low": accuracy - 0.02, "accuracy_high": accuracy + 0.02}
            again: dict[str, Any] = {"confirmed_low": None, "confirmed_high": None}
            if confirmed is not None:
                again = {"confirmed_low": confirmed - 0.02, "confirmed_high": confirmed + 0.02}
            return {"rung": rung, "accuracy": accuracy, "confirmed": confirmed, "parameters": 1, **interval, **again}

        board = [row(3, 0.78, 0.76), row(3, 0.73, 0.75), row(3, 0.79), row(2, 0.80), row(1, 0.5)]
        assert rows.ranked(board[::-1]) == board
        rows.mark_ties(board)
        assert [one["tie"] for one in board] == [False, False, True, True, False]
        assert rows.interval(board[0]) == pytest.approx((0.75, 0.79))
        board.insert(0, row(3, 0.80))  # val can tell this one from the best that was confirmed
        assert rows.ranked(board[::-1]) == board

    def test_another_seed_or_store_is_another_search(self, tmp_path: Path, store: Store) -> None:
        with self.open(tmp_path / "s", store):
            pass
        with pytest.raises(InputError, match="seed 1"):
            self.open(tmp_path / "s", store, seed=1)

    def test_a_search_whose_trials_have_other_cpus_or_gpus_is_another_search(
        self, tmp_path: Path, store: Store
    ) -> None:
        with self.open(tmp_path / "s", store):
            pass
        for name, number in (("cpus_per_trial", 2), ("cpus_per_trial", 0.5), ("gpus_per_trial", 0.25)):
            with pytest.raises(InputError, match=f"{name} {number}.*as the search began with"):
                self.open(tmp_path / "s", store, **{name: number})
        path = tmp_path / "s" / "search.json"
        earlier = json.loads(path.read_text())
        path.write_text(json.dumps({name: earlier[name] for name in earlier if not name.endswith("_per_trial")}))
        with self.open(tmp_path / "s", store, cpus_per_trial=2):  # an earlier version's
            pass
        with pytest.raises(InputError, match="cpus_per_trial 1"):
            self.open(tmp_path / "s", store)

    def test_the_same_families_in_another_order_are_the_same_search(self, tmp_path: Path, store: Store) -> None:
        options: dict[str, Any] = {"budget": 600.0, "slots": 1, "deadline": FAR, "seed": 0}
        for families in (["cnn1", "cnn2"], ["cnn2", "cnn1"]):
            with Search(str(tmp_path / "s"), store, families, {}, **options) as search:
                self.play(search, limit=1)
        assert search.record.table()["trial_id"].to_pylist() == [0, 1]
        with pytest.raises(InputError, match="families"):
            Search(str(tmp_path / "s"), store, ["cnn1"], {}, **options)

    def test_what_is_no_search_is_not_made_one_by_going_on_with_it(self, tmp_path: Path, store: Store) -> None:
        (tmp_path / "s" / "data").mkdir(parents=True)
        (tmp_path / "s" / "lease.json").write_text("{}")
        self.open(tmp_path / "s", store)  # of a run that was killed before it wrote anything
        (tmp_path / "s" / "data" / "report.html").write_text("of evaluate")
        with pytest.raises(InputError, match=r"report\.html and no search\.json"):
            self.open(tmp_path / "s", store)

    def test_the_time_begins_when_the_machines_are_there(
        self, tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        there: list[float] = []

        @contextlib.contextmanager
        def late(**asked: Any) -> Iterator[Cluster]:  # as where an autoscaler brings them
            time.sleep(0.01)
            there.append(time.time())
            yield Cluster(Machines([Machine(2.0)]), ours=False, memory=2**30)

        class Begun(Search):
            def __enter__(self) -> Any:
                raise FerScaleError(str(self._end))

        monkeypatch.setattr("fer_scale.verbs.tune.connected", late)
        monkeypatch.setattr("fer_scale.verbs.tune.Search", Begun)
        with pytest.raises(FerScaleError) as end:
            fer_scale.tune(store.path, out=tmp_path / "s", families=["cnn1"], time_budget=600, quiet=True)
        assert float(str(end.value)) >= there[0] + 600

    def test_two_at_once_are_refused(self, tmp_path: Path, store: Store) -> None:
        with self.open(tmp_path / "s", store), pytest.raises(InputError, match="at work"):  # noqa: SIM117
            with self.open(tmp_path / "s", store):
                pass

    def test_a_search_lives_on_s3_alone(self, s3: str, store: Store) -> None:
        out = f"{s3}/search"
        with self.open(out, store) as search:
            self.play(search, limit=2)
            assert not storage.exists(f"{out}/journal.log")  # killed now, the pieces alone would be there
            pieces = read(out)
        with self.open(out, store, max_trials=4) as again:
            assert read(out) == pieces
            self.play(again)
            assert again.record.table()["accuracy"].to_pylist()[0] == pytest.approx(0.25 + 0.1)
            assert again.record.table()["trial_id"].to_pylist() == [0, 1, 2, 3]


def test_the_journal_opens_in_optuna(tmp_path: Path, store: Store) -> None:
    with TestSearch().open(tmp_path / "s", store, max_trials=2) as search:
        TestSearch().play(search, limit=2)
    journal = JournalStorage(JournalFileBackend(str(tmp_path / "s" / "journal.log")))
    (name,) = optuna.get_all_study_names(journal)
    assert len(optuna.load_study(study_name=name, storage=journal).trials) == 2


def test_faces_of_a_split_come_in_the_size_that_was_asked_for(store: Store) -> None:
    faces = store.faces("val", Preprocessing(size=32, channels=3))
    assert faces.images.shape == (len(faces), 3, 32, 32)
    assert faces.images.dtype == np.uint8
