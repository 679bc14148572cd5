"""A real local Ray: started, measured, ended."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from fer_scale.cluster import connect, connected
from fer_scale.errors import InputError


@pytest.fixture(scope="module")
def session() -> Iterator[object]:
    before = signal.getsignal(signal.SIGTERM)
    with connected(cpus=1) as cluster:
        assert signal.getsignal(signal.SIGTERM) is before, "a stopped job has to be able to say how to go on"
        yield cluster


def test_started_here(session: object) -> None:
    cluster = connect(cpus=1)
    assert cluster.machines == (cluster.cpus,)
    assert cluster.cpus >= 1
    assert not cluster.ours, "it was there already"


def test_more_than_there_is_is_refused_and_the_session_stays(session: object) -> None:
    with pytest.raises(InputError, match="CPUs were asked for"):
        connect(cpus=10_000)
    assert ray.is_initialized()


def test_no_token_is_written_into_the_home_folder(session: object) -> None:
    import os

    if os.environ.get("RAY_AUTH_TOKEN"):
        assert not Path("~/.ray/auth_token").expanduser().exists()
