"""Configurations: what is refused, and that they come back from JSON as they were."""

import json

import pytest

from fer_scale.durations import duration, parse_seconds
from fer_scale.errors import InputError
from fer_scale.families import FAMILIES
from fer_scale.learning.configuration import Configuration
from fer_scale.search.starts import STARTS


@pytest.mark.parametrize("family", FAMILIES)
def test_reference_and_start_come_back_from_json(family: str) -> None:
    for configuration in (
        Configuration.reference(family),
        *(Configuration.from_dict({"family": family, **start}) for start in STARTS[family]),
    ):
        again = Configuration.from_dict(json.loads(json.dumps(configuration.to_dict())))
        assert again == configuration


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"family": "alexnet"}, r"family 'alexnet'.*cnn1, cnn2, complex_cnn, vgg16, resnet, efficientnet"),
        ({"family": "cnn1", "recipes": {}}, "recipes.*family, network, preprocessing, recipe"),
        ({"family": "cnn1", "recipe": {"learning_rate": 1}}, "learning_rate.*weight_decay"),
        ({"family": "cnn1", "recipe": {"lr": "fast"}}, "lr='fast'.*float"),
        ({"family": "cnn1", "recipe": {"lr": -1}}, "lr=-1"),
        ({"family": "cnn1", "recipe": {"optimizer": "lion"}}, "sgd, adamw"),
        ({"family": "cnn1", "preprocessing": {"channels": 2}}, "1 .gray. or 3"),
        ({"family": "cnn1", "network": []}, "list.*JSON object"),
        ({"family": "resnet", "network": {"width": True}}, "width=True"),
    ],
)
def test_what_is_wrong_is_named_with_what_is_valid(values: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        Configuration.from_dict(values)


def test_a_whole_number_serves_as_a_float() -> None:
    assert Configuration.from_dict({"family": "cnn1", "recipe": {"lr": 1}}).recipe.lr == 1.0


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("40m", 2400), ("1h30m", 5400), ("0.5h", 1800), (12, 12)])
def test_durations(text: str | float, seconds: float) -> None:
    assert parse_seconds(text, "time-budget") == seconds


@pytest.mark.parametrize("text", ["", "soon", "10 minutes", "-5", "0", "m", 0, -1.0])
def test_what_is_no_duration_is_refused(text: str | float) -> None:
    with pytest.raises(InputError, match="time-budget"):
        parse_seconds(text, "time-budget")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(7.21, "7.2 s"), (59.6, "1 min 0 s"), (95, "1 min 35 s"), (3600, "1 h 0 min"), (9000, "2 h 30 min")],
)
def test_a_duration_as_people_write_it(seconds: float, text: str) -> None:
    assert duration(seconds) == text
