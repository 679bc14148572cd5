"""What a search's leaders cost to use: measured, kept, drawn as a front, and picked by."""

import json
from pathlib import Path
from typing import Any

import pytest

from fer_scale.errors import InputError
from fer_scale.learning.configuration import Configuration
from fer_scale.search import price
from fer_scale.search.chosen import chosen


def row(trial: int, family: str, accuracy: float, speed: float | None, **more: Any) -> dict[str, Any]:
    configuration = Configuration.reference(family).to_dict()
    known = {"trial_id": trial, "family": family, "accuracy": accuracy, "confirmed": None, "images_per_second": speed}
    return {**known, "configuration": json.dumps(configuration), "tie": False, **more}


def board(folder: Path, *rows: dict[str, Any]) -> str:
    trials = [{**one, "configuration": json.loads(one["configuration"])} for one in rows]
    (folder / "leaderboard.json").write_text(json.dumps({"trials": trials}))
    return str(folder)


def test_the_leaders_are_the_best_of_each_family_and_then_the_best() -> None:
    rows = [row(at, "resnet" if at < 20 else "cnn1", 0.9 - at / 100, None) for at in range(22)]
    assert [one["trial_id"] for one in price.leaders(rows)] == [0, 20, *range(1, 11)]


def test_a_network_is_measured_once_and_the_best_even_when_the_time_is_up() -> None:
    small = {"family": "cnn1", "network": {"width": 0.25}, "preprocessing": {"size": 48}}
    rows = [row(at, "cnn1", 0.9 - at / 10, None) for at in range(3)]
    for one, more in zip(rows, ({}, {"recipe": {"lr": 0.01}}, {"preprocessing": {"size": 64}}), strict=True):
        one["configuration"] = json.dumps(Configuration.from_dict({**small, **more}).to_dict())
    found = dict(price.measured(rows, {}, 4, deadline=0.0))
    assert set(found) == {0, 1}
    assert found[0] == found[1] > 10
    assert dict(price.measured(rows, {0: 123.0}, 4, deadline=0.0)) == {1: 123.0}


def test_a_network_that_cannot_be_exported_has_no_price(capsys: pytest.CaptureFixture[str]) -> None:
    good, broken = row(0, "cnn1", 0.8, None), row(1, "cnn2", 0.9, None)
    broken["configuration"] = broken["configuration"].replace('"size": 48', '"size": 1')  # its maps vanish
    assert set(dict(price.measured([broken, good], {}, 4, deadline=4e9))) == {0}
    assert "no price of trial 1" in capsys.readouterr().err


def test_the_front_holds_what_nothing_cheaper_matches() -> None:
    rows = [
        row(0, "vgg16", 0.80, 50.0),
        row(1, "resnet", 0.80, 500.0),
        row(2, "cnn1", 0.70, 4000.0),
        row(3, "cnn2", 0.69, 400.0),
        row(4, "cnn2", 0.95, None),
        row(5, "efficientnet", 0.9, 100.0, confirmed=0.7),
    ]
    assert [one["trial_id"] for one in price.front(rows)] == [2, 1]


def test_the_price_of_a_million_images() -> None:
    assert price.per_million(1000.0, 3.6) == pytest.approx(1.0)
    assert price.per_million(None, 3.6) is None
    assert price.per_million(1000.0, None) is None


def test_cheapest_is_the_fastest_that_is_accurate_enough(tmp_path: Path) -> None:
    rows = (row(0, "resnet", 0.82, 500.0), row(1, "cnn1", 0.80, 4000.0, tie=True), row(2, "cnn2", 0.7, 9000.0))
    search = board(tmp_path, *rows, row(3, "vgg16", 0.9, None))
    assert chosen(search).family == "resnet"
    assert chosen(search, "cheapest").family == "cnn1"
    assert chosen(search, "cheapest", 0.8).family == "cnn1"
    assert chosen(search, "cheapest", 0.81).family == "resnet"
    assert chosen(search, "cheapest", 0).family == "cnn2"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("cheapest", 0.83), r"min-accuracy 0.83.*0\.8200.*trial 0, resnet"),
        (("cheapest", 80), "80.*share"),
        (("best", 0.8), "--pick cheapest"),
        (("dearest", None), "best or cheapest"),
    ],
)
def test_what_cannot_be_picked_says_what_can(tmp_path: Path, options: tuple[str, float | None], said: str) -> None:
    search = board(tmp_path, row(0, "resnet", 0.82, 500.0))
    with pytest.raises(InputError, match=said):
        chosen(search, *options)


def test_a_search_without_prices_has_no_cheapest(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--resume"):
        chosen(board(tmp_path, row(0, "resnet", 0.82, None)), "cheapest")
