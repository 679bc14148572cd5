"""Asking for more than there is; the rest of `cluster` is tested with Ray in tests/ray."""

import os
import socket

import pytest

from fer_scale import cluster as cluster_module
from fer_scale.cluster import Cluster, Machine, connect, variables
from fer_scale.errors import InputError
from fer_scale.verbs.label_session import crew, engine_of


def test_more_than_the_cluster_has_is_refused() -> None:
    cluster = Cluster(machines=(Machine(2),), ours=True)
    cluster.require(cpus=2)
    cluster.require(cpus=3 * (2 / 3))
    with pytest.raises(InputError, match="3 CPUs were asked for; expected at most the 2 that the cluster has"):
        cluster.require(cpus=3)
    with pytest.raises(InputError, match="1 GPUs were asked for"):
        cluster.require(cpus=1, gpus=1)


def test_a_cluster_that_is_gone_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(InputError, match=f"no Ray cluster answers at {address}"):
        connect()


def test_threads_of_workers_never_cross_machines() -> None:
    cluster = Cluster(machines=(Machine(1), Machine(8)), ours=True)
    assert [cluster.threads(workers) for workers in (1, 2, 3, 9)] == [8, 4, 2, 1]


HEAD_AND_GPU = Cluster(machines=(Machine(64), Machine(8, 1)), ours=True)
"""A large machine without a GPU, as many clusters have for a head, and a small one with."""


def test_workers_with_gpus_are_counted_on_machines_that_have_them() -> None:
    assert HEAD_AND_GPU.threads(1) == 64
    assert HEAD_AND_GPU.threads(1, gpus=1) == 8
    assert (HEAD_AND_GPU.room(1, 1), HEAD_AND_GPU.room(9, 1), HEAD_AND_GPU.room(9)) == (1, 0, 7)
    several = Cluster(machines=(Machine(0), Machine(4, 8), Machine(16, 2)), ours=True)
    assert several.room(1, 1) == 6  # four by CPUs on the one, two by GPUs on the other
    assert [several.threads(workers, gpus=1) for workers in (1, 2, 3, 4, 6)] == [16, 8, 4, 2, 1]
    assert several.threads(8, gpus=1) == 1, "of 1..8 workers the six that there is room for"
    assert (several.together(6, 1, gpus=1), several.together(6, 4, gpus=1), several.together(6, 4)) == (4, 2, 4)


def test_shares_of_a_gpu_do_not_cross_machines() -> None:
    cluster = Cluster(machines=(Machine(4, 1), Machine(4, 1)), ours=True)
    assert [cluster.room(1, share) for share in (0.6, 0.5, 0.25, 1 / 3)] == [2, 4, 8, 6]
    assert cluster.room(1, 2) == 0


@pytest.mark.parametrize(
    ("machines", "cpus", "gpus", "room"),
    [
        ([Machine(16, 8)], 1, 0.4, 16),
        ([Machine(3), Machine(3)], 2, 0, 2),
        ([Machine(64, 3), Machine(64, 3)], 1, 2, 2),
        ([Machine(2, 4), Machine(16, 1)], 1, 0.25, 6),
        ([Machine(8, 1)], 0.7, 0.1, 10),
    ],
)
def test_a_trial_lies_on_one_machine_and_one_gpu(machines: list[Machine], cpus: float, gpus: float, room: int) -> None:
    assert Cluster(machines=tuple(machines), ours=True).room(cpus, gpus) == room


def test_a_process_needs_its_cpus_beside_its_gpu() -> None:
    HEAD_AND_GPU.require(one=8, one_gpus=1)
    HEAD_AND_GPU.require(one=64)
    with pytest.raises(
        InputError, match=r"16 CPUs were asked for in one process.* 8 that the largest machine with GPUs"
    ):
        HEAD_AND_GPU.require(one=16, one_gpus=1)
    with pytest.raises(InputError, match="2 GPUs were asked for in one process"):
        Cluster(machines=(Machine(4, 1), Machine(4, 1)), ours=True).require(one=1, one_gpus=2)
    crowded = Cluster(machines=(Machine(64), Machine(2, 4)), ours=True)
    with pytest.raises(InputError, match=r"4 processes were asked for, of 1 CPUs and 1 GPUs each; .*at most the 2"):
        crowded.require(one=1, one_gpus=1, processes=4)


def test_more_workers_than_gpus_are_refused() -> None:
    with pytest.raises(InputError, match=r"4 GPUs were asked for; .* the 1 that the cluster has; .*or workers"):
        HEAD_AND_GPU.require(one=1, one_gpus=1, processes=4)


def test_gpus_that_an_autoscaler_brings_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    without = Cluster(machines=(Machine(8),), ours=False)
    assert not without.offers_gpus
    assert HEAD_AND_GPU.offers_gpus
    monkeypatch.setattr(cluster_module, "AUTOSCALER_GPUS", True)
    assert not without.offers_gpus
    monkeypatch.setattr(Cluster, "grows", True)
    assert without.offers_gpus
    assert engine_of(without, "auto") == "torch"


def test_actors_with_gpus_are_as_many_as_machines_can_hold() -> None:
    assert crew(HEAD_AND_GPU, "torch") == (1, True)
    assert crew(HEAD_AND_GPU, "onnx") == (72, False)
    assert crew(Cluster(machines=(Machine(64), Machine(2, 4)), ours=True), "torch") == (2, True)
    with pytest.raises(InputError, match="the 0 that the largest machine with GPUs has"):
        crew(Cluster(machines=(Machine(64), Machine(0, 4)), ours=True), "torch")


def test_a_process_larger_than_any_machine_is_refused() -> None:
    with pytest.raises(InputError, match="6 CPUs were asked for in one process"):
        Cluster(machines=(Machine(4), Machine(4)), ours=True).require(cpus=6, one=6)


def test_variables_are_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FER_SCALE_ONE", "1")
    with pytest.raises(KeyError), variables({"FER_SCALE_ONE": "2", "FER_SCALE_TWO": "3"}):
        assert (os.environ["FER_SCALE_ONE"], os.environ["FER_SCALE_TWO"]) == ("2", "3")
        raise KeyError
    assert os.environ["FER_SCALE_ONE"] == "1"
    assert "FER_SCALE_TWO" not in os.environ
