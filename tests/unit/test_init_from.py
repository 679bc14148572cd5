"""A fit that begins with an earlier bundle: what is carried over, what is frozen, and what is said of it."""

from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest
import torch
from torch import nn

from fer_scale import bundle
from fer_scale.bundle import Bundle
from fer_scale.errors import InputError
from fer_scale.families.network import Network
from fer_scale.learning.begin import begin
from fer_scale.learning.configuration import Configuration
from fer_scale.learning.plan import Plan

CLASSES = ["happy", "sad", "neutral"]
NETWORK = {"variant": "slim10", "width": 0.25, "weights": "none", "dense": "16"}

Begun = Callable[..., Network]


def configured(size: int = 32, **network: Any) -> dict[str, Any]:
    shape = {"size": size, "channels": 1}
    return {"family": "resnet", "network": {**NETWORK, **network}, "preprocessing": shape}


@pytest.fixture(scope="module")
def donor(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    directory = tmp_path_factory.mktemp("donor")
    torch.manual_seed(7)
    configuration = Configuration.from_dict(configured())
    network = bundle.build(configuration, len(CLASSES))
    network.mean.fill_(100.0)
    given: dict[str, Any] = {"facts": {}, "metrics": {}, "card": "", "temperature": 1.0, "classes": CLASSES}
    bundle.write(directory, network, configuration, curve=pd.DataFrame({"epoch": [1]}), **given)
    return Bundle.load(directory)


@pytest.fixture
def begun(donor: Bundle) -> Begun:
    """What a fit begins with that takes the donor's weights."""

    def network(classes: list[str], found: str | None = None, **configuration: Any) -> Network:
        told = Configuration.from_dict(configured(**configuration)).to_dict()
        where: dict[str, Any] = {"store": "", "checkpoints": "", "init_from": str(donor.directory)}
        how: dict[str, Any] = {"epochs": 1, "seconds": None, "began": 0.0, "seed": 0, "threads": 1, "gpu": False}
        return begin(Plan(configuration=told, streamed=False, weights=found, **where, **how), classes)

    return network


def same(one: nn.Module, other: nn.Module) -> bool:
    theirs = other.state_dict()
    return all(torch.equal(value, theirs[name]) for name, value in one.state_dict().items())


def test_with_the_same_classes_the_head_comes_too_at_any_input_size(donor: Bundle, begun: Begun) -> None:
    for size in (32, 48):
        network = begun(CLASSES, size=size)
        assert same(network, donor.network())
        assert network.weights == f"bundle {donor.model_id} with its head"


def test_with_other_classes_or_another_head_the_head_is_new(donor: Bundle, begun: Begun) -> None:
    for classes, dense in ((["happy", "sad", "fear"], "16"), (["sad", "happy", "neutral"], "16"), (CLASSES, "none")):
        network = begun(classes, dense=dense)
        assert same(network.backbone, donor.network().backbone)
        assert torch.equal(network.mean, donor.network().mean)
        assert network.weights == f"bundle {donor.model_id}"
        if dense == "16":
            assert not same(network.head, donor.network().head)


def test_a_machine_with_other_weights_than_the_command_found_is_named(begun: Begun) -> None:
    with pytest.raises(InputError, match=r"weights bundle .* on .*; expected imagenet \(hub\), as where the command"):
        begun(CLASSES, found="imagenet (hub)")


@pytest.mark.parametrize("unfreeze", [None, 0, 2])
def test_stages_are_frozen_as_with_any_weights(begun: Begun, unfreeze: int | None) -> None:
    network = begun(CLASSES, unfreeze=unfreeze)
    assert network.frozen == {None: 0, 0: 5, 2: 3}[unfreeze]
    trained = [stage[0].requires_grad for stage in network.stages]
    assert trained == [False] * network.frozen + [True] * (6 - network.frozen)
    network.train()
    assert [stage.training for stage in network.backbone][: network.frozen] == [False] * network.frozen


def test_another_backbone_is_refused(begun: Begun) -> None:
    with pytest.raises(InputError, match="same backbone"):
        begun(CLASSES, width=0.5)
