"""A search without Ray: the space, the study's memory, a trial's rungs, the record and its resume."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pyarrow.parquet as pq
import pytest
import torch

from fer_scale import storage
from fer_scale.errors import InputError
from fer_scale.faces.images import Preprocessing
from fer_scale.faces.sample import draw
from fer_scale.faces.store import Store
from fer_scale.families import FAMILIES
from fer_scale.learning.configuration import Configuration
from fer_scale.search.record import Search
from fer_scale.search.space import check_fixed, suggest
from fer_scale.search.starts import STARTS
from fer_scale.search.study import Study
from fer_scale.search.trial import Rungs, Trial
from fer_scale.verbs.ingest import ingest

FAR = 4e9
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("search")
    draw(folder / "faces", 80, seed=0)
    ingest(folder / "faces", folder / "store", quiet=True)
    return Store.open(str(folder / "store"))


def study(path: Path, families: list[str], seed: int = 0, **fixed: Any) -> Study:
    return Study(path / "journal.log", families, fixed, seed, "a study")


def row(status: str = "completed", accuracy: float | None = 0.5) -> dict[str, Any]:
    return {"status": status, "accuracy": accuracy}


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
    [({"momentum": "1"}, "momentum=1.*optimizer"), ({"lr": "x"}, "lr=.x."), ({"optimizer": "x"}, "sgd, adamw")],
)
def test_a_wrong_fix_names_the_valid_ones(fixed: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        check_fixed(fixed, ["cnn1"])


def test_null_and_what_is_not_drawn_can_be_fixed() -> None:
    fixed = check_fixed({"ema": "0", "resnet.stem": "null", "resnet.variant": "slim10"}, ["resnet"])
    space = optuna.create_study()
    for _ in range(10):
        configuration = suggest(space.ask(), ["resnet"], fixed)
        assert configuration.recipe.ema == 0
        assert configuration.network.stem is None


def test_a_start_that_does_not_go_with_what_is_fixed_is_left_out(tmp_path: Path) -> None:
    asked = study(tmp_path, ["resnet"], **check_fixed({"resnet.variant": "resnet18"}, ["resnet"]))
    kinds = [asked.ask()[1:] for _ in range(3)]
    assert [kind for kind, _ in kinds] == ["reference", "proposed", "proposed"]
    assert {configuration.network.variant for _, configuration in kinds} == {"resnet18"}


def test_values_that_go_together_may_be_fixed_together() -> None:
    assert check_fixed({"resnet.variant": "slim10", "resnet.width": "2"}, ["resnet"])["resnet.width"] == 2
    with pytest.raises(InputError, match="width=2"):
        check_fixed({"resnet.variant": "resnet18", "resnet.width": "2"}, ["resnet"])


def test_a_family_without_a_start_begins_with_its_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(STARTS, "cnn1")
    asked = study(tmp_path, ["cnn1", "resnet"], **check_fixed({}, ["cnn1", "resnet"]))
    kinds = [(kind, found.family) for _, kind, found in (asked.ask() for _ in range(4))]
    assert kinds[:3] == [("reference", "resnet"), ("reference", "cnn1"), ("start", "resnet")]
    assert kinds[3][0] == "proposed"


def test_references_start_first_then_the_starts_then_proposals(tmp_path: Path) -> None:
    asked = study(tmp_path, ["cnn1", "resnet"])
    kinds = [asked.ask()[1:] for _ in range(5)]
    assert [(kind, c.family) for kind, c in kinds[:4]] == [
        ("reference", "resnet"),
        ("reference", "cnn1"),
        ("start", "resnet"),
        ("start", "cnn1"),
    ]
    assert kinds[0][1] == Configuration.reference("resnet")
    assert kinds[4][0] == "proposed"


def test_a_study_opened_again_knows_its_rows_and_repeats_only_what_did_not_end(tmp_path: Path) -> None:
    first = study(tmp_path, ["cnn1", "resnet"])
    ended, _, _ = first.ask()
    first.report(ended, 1, 0.4)
    first.tell(ended, row("pruned", 0.4))
    first.ask()  # killed while this one runs

    again = study(tmp_path, ["cnn1", "resnet"])
    assert again.rows == [row("pruned", 0.4)]
    _, kind, configuration = again.ask()
    assert (kind, configuration.family) == ("reference", "cnn1")


def test_the_same_seed_proposes_the_same(tmp_path: Path) -> None:
    def proposals(folder: str) -> list[Configuration]:
        (tmp_path / folder).mkdir()
        asked = study(tmp_path / folder, ["cnn1"], seed=5)
        seen = []
        for i in range(6):
            number, _, configuration = asked.ask()
            asked.tell(number, row("completed", i / 10))
            seen.append(configuration)
        return seen

    assert proposals("a") == proposals("b")


def test_rungs_spend_the_budget_by_the_same_plan_whatever_its_size() -> None:
    for compute in (60.0, 2400.0, 1e5, 1e7):
        rungs = Rungs.within(compute)
        assert rungs.compute(rungs.count - 1) == pytest.approx(compute / 7)
        assert rungs.count >= 3


def test_a_trial_climbs_rungs_of_equal_compute(store: Store) -> None:
    configuration = Configuration.from_dict({"family": "cnn1", "network": {"width": 0.25}, "recipe": {"batch_size": 8}})
    train, val = (store.faces(split, configuration.preprocessing) for split in ("train", "val"))
    trial = Trial(configuration, 4, train, val, Rungs(first=0.3, count=2), 0, CPU)
    trial.measure()
    assert trial.climb(FAR)
    low = trial.score()
    assert trial.climb(FAR)
    high = trial.score()
    assert (low["rung"], high["rung"]) == (1, 2)
    assert high["images_seen"] == pytest.approx(3 * low["images_seen"], rel=0.1)
    assert high["accuracy_low"] <= high["accuracy"] <= high["accuracy_high"]


def test_a_deadline_ends_a_rung_without_a_score_of_it(store: Store) -> None:
    configuration = Configuration.from_dict({"family": "cnn1", "network": {"width": 0.25}, "recipe": {"batch_size": 8}})
    train, val = (store.faces(split, configuration.preprocessing) for split in ("train", "val"))
    trial = Trial(configuration, 4, train, val, Rungs(first=60.0, count=2), 0, CPU)
    trial.measure()
    assert not trial.climb(deadline=0.0)
    assert trial.score()["rung"] == 0


class TestRecord:
    def open(self, out: Path, store: Store, **changed: Any) -> Search:
        options: dict[str, Any] = {"budget": 60.0, "slots": 1, "deadline": FAR, "seed": 0, **changed}
        return Search(str(out), store, ["cnn1", "cnn2"], {}, **options)

    def result(self, rung: int, accuracy: float, status: str = "running") -> dict[str, Any]:
        measured = {"parameters": 7, "weights": "none", "images_seen": 64, "compute_seconds": 1.5}
        interval = {"accuracy_low": accuracy - 0.1, "accuracy_high": accuracy + 0.1}
        return {"rung": rung, "accuracy": accuracy, "status": status, "reason": "", **measured, **interval}

    def test_rows_say_why_trials_ended_and_survive_a_kill(self, tmp_path: Path, store: Store) -> None:
        with self.open(tmp_path / "s", store) as search:
            (a, _), (b, _), (c, _) = (search.ask() for _ in range(3))
            for rung in (1, 2):
                search.score(a, self.result(rung, 0.2 * rung))
            search.end(a, self.result(3, 0.6))  # Ray Tune tells of the last rung with the end alone
            search.end(b, self.result(1, 0.55))
            search.end(c, {"status": "failed", "reason": "DivergedError: no"})
        # no finish(): the driver was killed here
        with self.open(tmp_path / "s", store) as again:
            assert again.begun == 3
            assert again.reached() == [(a, 1, 0.2), (a, 2, 0.4), (a, 3, pytest.approx(0.6)), (b, 1, 0.55)]
            done = again.finish()
        table = pq.read_table(tmp_path / "s" / "trials.parquet").to_pylist()
        assert [r["status"] for r in table] == ["completed", "pruned", "failed"]
        assert table[2]["reason"] == "DivergedError: no"
        assert table[0]["scores"] == pytest.approx([0.2, 0.4, 0.6])
        assert done["best"]["trial_id"] == a
        board = json.loads((tmp_path / "s" / "leaderboard.json").read_text())
        assert [r["tie"] for r in board["trials"]] == [False, True]
        assert (tmp_path / "s" / "report.html").stat().st_size > 1000

    def test_another_seed_or_store_is_another_search(self, tmp_path: Path, store: Store) -> None:
        with self.open(tmp_path / "s", store):
            pass
        with pytest.raises(InputError, match="seed 1"):
            self.open(tmp_path / "s", store, seed=1)

    def test_a_search_lives_on_s3_alone(self, s3: str, store: Store) -> None:
        out = f"{s3}/search"
        options: dict[str, Any] = {"budget": 60.0, "slots": 1, "deadline": FAR, "seed": 0}
        with Search(out, store, ["cnn1"], {}, **options) as search:
            number, _ = search.ask()
            search.end(number, self.result(1, 0.5))
        with Search(out, store, ["cnn1"], {}, **options) as again:
            assert again.begun == 1
        assert storage.exists(f"{out}/journal.log")


def test_faces_of_a_split_come_in_the_size_that_was_asked_for(store: Store) -> None:
    faces = store.faces("val", Preprocessing(size=32, channels=3))
    assert faces.images.shape == (len(faces), 3, 32, 32)
    assert faces.images.dtype == np.uint8
