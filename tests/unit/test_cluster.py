"""What is asked of a cluster; joining one is tested with Ray in tests/ray."""

import os
import socket

import pytest

from fer_scale import cluster as cluster_module
from fer_scale.cluster import Cluster, connect, variables
from fer_scale.errors import InputError
from fer_scale.machines import Machine, Machines
from fer_scale.verbs.label_session import crew, engine_of


def cluster(*machines: Machine) -> Cluster:
    return Cluster(Machines(machines), ours=True)


HEAD_AND_GPU = cluster(Machine(64), Machine(8, 1))
"""A large machine without a GPU, as many clusters have for a head, and a small one with."""


def test_more_than_the_cluster_has_is_refused() -> None:
    assert HEAD_AND_GPU.require(8, gpus=1) is HEAD_AND_GPU
    with pytest.raises(InputError, match="73 CPUs were asked for; expected at most the 72 that the cluster has"):
        HEAD_AND_GPU.require(1, processes=73)


def test_a_cluster_that_is_gone_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(InputError, match=f"no Ray cluster answers at {address}"):
        connect()


def test_gpus_that_an_autoscaler_brings_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    without = cluster(Machine(8))
    assert [one.offers_gpus for one in (without, HEAD_AND_GPU)] == [False, True]
    monkeypatch.setattr(cluster_module, "AUTOSCALER_GPUS", True)
    assert [one.offers_gpus for one in (without, HEAD_AND_GPU)] == [False, True], "none that could bring them"
    monkeypatch.setattr(Cluster, "grows", True)
    assert [one.offers_gpus for one in (without, HEAD_AND_GPU)] == [True, True]
    assert engine_of(without, "auto") == "torch"


def test_actors_with_gpus_are_as_many_as_machines_can_hold() -> None:
    assert crew(HEAD_AND_GPU, "torch") == (1, True)
    assert crew(HEAD_AND_GPU, "onnx") == (72, False)
    assert crew(cluster(Machine(64), Machine(2, 4)), "torch") == (2, True)
    few = cluster(Machine(4, 8))
    assert (crew(few, "onnx"), crew(few, "torch")) == ((4, False), (4, True)), "each has its share of a CPU too"
    with pytest.raises(InputError, match="8 CPUs were asked for"):
        crew(few, "torch", 8)
    with pytest.raises(InputError, match="16 GPUs were asked for"):
        crew(cluster(Machine(64, 8)), "torch", 16)
    with pytest.raises(InputError, match="the 0 that the largest machine with GPUs has"):
        crew(cluster(Machine(64), Machine(0, 4)), "torch")


def test_variables_are_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FER_SCALE_ONE", "1")
    with pytest.raises(KeyError), variables({"FER_SCALE_ONE": "2", "FER_SCALE_TWO": "3"}):
        assert (os.environ["FER_SCALE_ONE"], os.environ["FER_SCALE_TWO"]) == ("2", "3")
        raise KeyError
    assert os.environ["FER_SCALE_ONE"] == "1"
    assert "FER_SCALE_TWO" not in os.environ
