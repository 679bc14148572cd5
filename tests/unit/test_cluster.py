"""Asking for more than there is; the rest of `cluster` is tested with Ray in tests/ray."""

import os
import socket
import time

import pytest

from fer_scale.cluster import Cluster, connect, variables
from fer_scale.errors import InputError


def test_more_than_the_cluster_has_is_refused() -> None:
    cluster = Cluster(cpus=2, gpus=0, machines=(2,), ours=True)
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
    began = time.monotonic()
    with pytest.raises(InputError, match=f"no Ray cluster answers at {address}"):
        connect()
    assert time.monotonic() - began < 5


def test_threads_of_workers_never_cross_machines() -> None:
    cluster = Cluster(cpus=9, gpus=0, machines=(1, 8), ours=True)
    assert [cluster.threads(workers) for workers in (1, 2, 3, 9)] == [8, 4, 2, 1]


def test_a_process_larger_than_any_machine_is_refused() -> None:
    with pytest.raises(InputError, match="6 CPUs were asked for in one process"):
        Cluster(cpus=8, gpus=0, machines=(4, 4), ours=True).require(cpus=6, one=6)


def test_variables_are_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FER_SCALE_ONE", "1")
    with pytest.raises(KeyError), variables({"FER_SCALE_ONE": "2", "FER_SCALE_TWO": "3"}):
        assert (os.environ["FER_SCALE_ONE"], os.environ["FER_SCALE_TWO"]) == ("2", "3")
        raise KeyError
    assert os.environ["FER_SCALE_ONE"] == "1"
    assert "FER_SCALE_TWO" not in os.environ
