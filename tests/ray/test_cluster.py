"""A real local Ray: started, measured, ended."""

import json
import os
import secrets
import signal
import subprocess
import sys
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
    assert [machine.cpus for machine in cluster.machines] == [cluster.machines.cpus]
    assert cluster.machines.cpus >= 1
    assert not cluster.ours, "it was there already"


def test_more_than_there_is_is_refused_and_the_session_stays(session: object) -> None:
    with pytest.raises(InputError, match="CPUs were asked for"):
        connect(processes=10_000)
    assert ray.is_initialized()


@pytest.mark.parametrize(("mode", "token"), [("token", secrets.token_hex(32)), ("disabled", "")])
def test_another_token_is_said_at_once(session: object, mode: str, token: str, tmp_path: Path) -> None:
    address = ray.get_runtime_context().gcs_address
    there = {"RAY_ADDRESS": address, "RAY_AUTH_MODE": mode, "RAY_AUTH_TOKEN": token, "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "fer_scale", "doctor", "--json"],
        env={**os.environ, **there}, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    (finding,) = json.loads(done.stdout.splitlines()[-1])["findings"]
    assert finding["found"] == f"the Ray cluster at {address} refused the token"
    assert "RAY_AUTH_TOKEN_PATH" in finding["fix"]
    assert "gcs_client" not in done.stderr


def test_no_token_is_written_into_the_home_folder(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH_")}
    code = "import os; from fer_scale.cluster import connect; connect(); print(len(os.environ['RAY_AUTH_TOKEN']))"
    started = subprocess.run(
        [sys.executable, "-c", code], env={**environment, "HOME": str(tmp_path)}, capture_output=True, text=True
    )
    assert started.stdout.split() == ["64"], started.stderr
    assert not started.stderr, "nor does Ray say anything of its own"
    assert not (tmp_path / ".ray").exists()
