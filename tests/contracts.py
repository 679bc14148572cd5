"""What every model family must keep: one suite, run once a family.

A new family is tested by standing in ``FAMILIES`` and in ``MOST_PARAMETERS``.
"""

import dataclasses
import io
import json
import random
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import onnxruntime
import pytest
import torch

from fer_scale.errors import InputError
from fer_scale.faces.images import CHANNELS, Preprocessing
from fer_scale.families import FAMILIES, Family, Network
from fer_scale.learning.configuration import Configuration

T = TypeVar("T")

CLASSES = 4
MOST_PARAMETERS = {
    "cnn1": 0.8e6,
    "cnn2": 3e6,
    "complex_cnn": 4.5e6,
    "vgg16": 16e6,
    "resnet": 12e6,
    "efficientnet": 4e6,
}
"""Parameters that a family's reference may have; docs/families.md gives the exact numbers."""
GRAY48 = Preprocessing(size=48, channels=1)
RGB64 = Preprocessing(size=64, channels=3)


class RandomPick:
    """Draws from a seeded generator, and remembers what it drew."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.drawn: dict[str, object] = {}

    def _once(self, name: str, value: T) -> T:
        assert name not in self.drawn, f"{name} is drawn twice"
        self.drawn[name] = value
        return value

    def choice(self, name: str, values: Sequence[T]) -> T:
        return self._once(name, self.random.choice(values))

    def float(self, name: str, low: float, high: float, log: bool = False) -> float:
        return self._once(name, self.random.uniform(low, high))


class GivenPick:
    """Answers with a configuration's own values; they must lie in the search space."""

    def __init__(self, values: dict[str, Any]) -> None:
        self.values = values

    def choice(self, name: str, values: Sequence[Any]) -> Any:
        assert self.values[name] in values
        return self.values[name]

    def float(self, name: str, low: float, high: float, log: bool = False) -> float:
        assert low <= self.values[name] <= high
        return float(self.values[name])


@pytest.fixture(params=list(FAMILIES))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def family(name: str) -> Family:
    return FAMILIES[name]


def pictures(preprocessing: Preprocessing, count: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    shape = (count, preprocessing.channels, preprocessing.size, preprocessing.size)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def from_scratch(config: Any) -> Any:
    """The same configuration without pretrained weights."""
    return dataclasses.replace(config, weights="none") if hasattr(config, "weights") else config


def reference_network(family: Family, preprocessing: Preprocessing) -> Network:
    torch.manual_seed(0)
    return family.build(from_scratch(family.reference()[0]), preprocessing, CLASSES)


@pytest.mark.parametrize("preprocessing", [GRAY48, RGB64], ids=["48gray", "64rgb"])
def test_pixels_become_logits(family: Family, preprocessing: Preprocessing) -> None:
    network = reference_network(family, preprocessing).eval()
    images = pictures(preprocessing)
    with torch.no_grad():
        logits = network(images)
        features = network.features(images)
        assert logits.shape == (3, CLASSES)
        assert logits.dtype == torch.float32
        assert torch.isfinite(logits).all()
        assert features.ndim == 2
        torch.testing.assert_close(network.head(features), logits)
        torch.testing.assert_close(network(images.float()), logits)
        last = images.contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(network.to(memory_format=torch.channels_last)(last), logits, atol=1e-4, rtol=1e-4)


def test_small_pictures_keep_a_useful_feature_map(family: Family) -> None:
    network = reference_network(family, GRAY48).eval()
    with torch.no_grad():
        height, width = network.backbone[:-1](pictures(GRAY48).float()).shape[2:]
    assert height == width >= 3


def test_reference_has_the_parameters_that_are_promised(name: str, family: Family) -> None:
    network = reference_network(family, family.reference()[1])
    assert sum(p.numel() for p in network.parameters()) <= MOST_PARAMETERS[name]


def test_reference_stands_in_the_search_space(family: Family) -> None:
    config, preprocessing = family.reference()
    assert family.suggest(GivenPick(dataclasses.asdict(config))) == config
    assert preprocessing.size in family.SIZES


def test_weights_say_what_was_loaded(family: Family) -> None:
    assert reference_network(family, GRAY48).weights == "none"


def test_a_configuration_survives_json(name: str) -> None:
    whole = Configuration.reference(name)
    assert Configuration.from_dict(json.loads(json.dumps(whole.to_dict()))) == whole


def test_an_unknown_key_is_refused_with_the_valid_ones(name: str, family: Family) -> None:
    first = dataclasses.fields(family.Config)[0].name
    with pytest.raises(InputError, match=rf"depht.*{first}"):
        Configuration.from_dict({"family": name, "network": {"depht": 3}})


def test_a_value_out_of_range_is_refused_by_name(family: Family) -> None:
    wrong: dict[str, Any] = {"dense": "512,256", "variant": "resnet81", "weights": ""}
    for field in dataclasses.fields(family.Config):
        with pytest.raises(InputError, match=field.name):
            family.Config(**{field.name: wrong.get(field.name, 77)})


def test_steps_lower_the_loss(family: Family) -> None:
    network = reference_network(family, GRAY48).train()
    labels = torch.arange(8) % CLASSES
    images = pictures(GRAY48, 8) // 2
    images[:, :, :24] += (labels % 2 * 120).to(torch.uint8)[:, None, None, None]
    images[:, :, :, :24] += (labels // 2 * 120).to(torch.uint8)[:, None, None, None] // 2
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    losses = []
    for _ in range(8):
        loss = torch.nn.functional.cross_entropy(network(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-3:]) < np.mean(losses[:3])


def test_stages_hold_every_parameter_once_and_freeze_from_the_input(family: Family) -> None:
    network = reference_network(family, GRAY48)
    stages = network.stages
    held = [id(p) for stage in stages for p in stage]
    assert sorted(held) == sorted(id(p) for p in network.parameters())
    network.freeze(len(stages) - 2)
    trained = [id(p) for p in network.parameters() if p.requires_grad]
    assert trained == [id(p) for stage in stages[-2:] for p in stage]
    network.freeze(len(stages) - 1)
    assert not any(p.requires_grad for p in network.backbone.parameters())
    with pytest.raises(ValueError, match="must hold"):
        network.freeze(len(stages))


def test_a_frozen_backbone_does_not_change_in_training(family: Family) -> None:
    network = reference_network(family, GRAY48)
    network.freeze(len(network.stages) - 1)
    before = {key: value.clone() for key, value in network.backbone.state_dict().items()}
    images = pictures(GRAY48, 4)
    first = network.train().features(images)
    network.head(first).sum().backward()
    torch.testing.assert_close(network.features(images), first, rtol=0, atol=0)
    assert all(torch.equal(before[key], value) for key, value in network.backbone.state_dict().items())


def test_twenty_draws_of_the_search_space_build(family: Family) -> None:
    seen = set()
    for seed in range(20):
        pick = RandomPick(seed)
        config = family.suggest(pick)
        assert {key: getattr(config, key) for key in pick.drawn} == pick.drawn
        size, channels = pick.random.choice(family.SIZES), pick.random.choice(CHANNELS)
        preprocessing = Preprocessing(size=size, channels=channels)
        # On the meta device nothing is computed or filled in: only shapes are checked.
        with torch.device("meta"):
            network = family.build(from_scratch(config), preprocessing, CLASSES).eval()
            logits = network(torch.empty(2, channels, size, size, dtype=torch.uint8))
        assert logits.shape == (2, CLASSES)
        seen.add(config)
    assert len(seen) == 20


def test_onnx_answers_as_torch_does(family: Family) -> None:
    network = reference_network(family, GRAY48).eval()
    images = pictures(GRAY48, 5)
    program = torch.onnx.export(
        network,
        (images[:2],),
        input_names=["images"],
        output_names=["logits"],
        dynamic_shapes={"x": {0: torch.export.Dim("batch")}},
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    file = io.BytesIO()
    program.save(file)
    session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    with torch.no_grad():
        expected = network(images).numpy()
    for count in (5, 1):
        (logits,) = session.run(None, {"images": images[:count].numpy()})
        np.testing.assert_allclose(logits, expected[:count], atol=1e-4, rtol=1e-4)
