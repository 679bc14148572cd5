"""The line through ``ray job submit`` over s3://: a started cluster and a real S3 server.

The jobs run as they would anywhere: the package is not installed for them, it travels with the working directory.
"""

import contextlib
import io
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

from fer_scale import storage
from fer_scale.faces.sample import draw
from tests.bundles import write_bundle

ROOT = Path(__file__).parents[2]
STARTS = 90.0
"""Seconds that the cluster and its dashboard may take to answer."""


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for opened in sockets:
        opened.bind(("127.0.0.1", 0))
    ports = [opened.getsockname()[1] for opened in sockets]
    for opened in sockets:
        opened.close()
    return ports


class Cluster:
    """A Ray cluster of one node, with its own ports, folder and token, and the S3 settings in its environment."""

    def __init__(self, s3_settings: dict[str, str]) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="fs-"))  # short: sockets live below it
        (self.folder / "token").write_text(secrets.token_hex(32))
        gcs, client, self.dashboard, agent, grpc, metrics = free_ports(6)
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
            **s3_settings,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.folder / "token"),
            "RAY_USAGE_STATS_ENABLED": "0",
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }
        ports = {
            "--port": gcs,
            "--ray-client-server-port": client,
            "--dashboard-port": self.dashboard,
            "--dashboard-agent-listen-port": agent,
            "--dashboard-agent-grpc-port": grpc,
            "--metrics-export-port": metrics,
        }
        start = ["ray", "start", "--head", "--block", "--num-cpus=2", "--node-ip-address=127.0.0.1"]
        start += [f"--temp-dir={self.folder}", "--object-store-memory=200000000"]
        start += [f"{name}={port}" for name, port in ports.items()]
        with (self.folder / "log").open("w") as log:
            self.process = subprocess.Popen(start, env=self.environment, stdout=log, stderr=subprocess.STDOUT)
        self.process_info = psutil.Process(self.process.pid)

    def wait(self) -> None:
        until = time.monotonic() + STARTS
        while self._ray("job", "list", timeout=30).returncode:
            if time.monotonic() > until or self.process.poll() is not None:
                raise TimeoutError(f"Ray did not start:\n{(self.folder / 'log').read_text()}")
            time.sleep(1)

    def _ray(self, *arguments: str, timeout: float, after: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["ray", *arguments, "--address", f"http://127.0.0.1:{self.dashboard}", *after],
            env=self.environment, cwd=ROOT, capture_output=True, text=True, timeout=timeout,
        )  # fmt: skip

    def submit(self, *arguments: str, code: int = 0, ray: str = "ray") -> str:
        """Run one job to its end; what it said.

        Args:
            code: 0 where it has to succeed.
            ray: the program that submits.
        """
        submit = ["job", "submit", "--working-dir", ".", "--address", f"http://127.0.0.1:{self.dashboard}"]
        done = subprocess.run(
            [ray, *submit, "--", "python", *arguments],
            env=self.environment, cwd=ROOT, capture_output=True, text=True, timeout=280,
        )  # fmt: skip
        said = done.stdout + done.stderr
        assert (done.returncode == 0) == (code == 0), said
        return said

    def submit_and_stop(self, when: Callable[[], bool], *arguments: str) -> str:
        """Begin a job and stop it as soon as `when` holds; what it said."""
        name = f"job-{secrets.token_hex(4)}"
        submit = ("job", "submit", "--working-dir", ".", "--no-wait", "--submission-id", name)
        begun = self._ray(*submit, after=("--", "python", *arguments), timeout=90)
        assert begun.returncode == 0, begun.stdout + begun.stderr
        until = time.monotonic() + 200
        while not when():
            assert time.monotonic() < until
            time.sleep(0.2)
        stopped = self._ray("job", "stop", name, timeout=60)
        assert "was stopped" in stopped.stdout + stopped.stderr
        return self._ray("job", "logs", name, timeout=60).stdout

    def stop(self) -> None:
        """At once: nobody reads from it any more, and a polite end takes Ray half a minute."""
        family = [self.process_info, *self.process_info.children(recursive=True)]
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(family, timeout=30)
        self.process.wait(30)
        shutil.rmtree(self.folder, ignore_errors=True)


@pytest.fixture(scope="module")
def bucket(s3_endpoint: str) -> Iterator[str]:
    """A bucket with drawn faces, and the settings that lead there."""
    import boto3
    from conftest import S3_SETTINGS

    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**S3_SETTINGS, "AWS_ENDPOINT_URL": s3_endpoint}.items():
            patch.setenv(name, value)
        boto3.client("s3", region_name="us-east-1", endpoint_url=s3_endpoint).create_bucket(Bucket="jobs")
        draw("s3://jobs/faces", count=160, seed=0)
        yield "s3://jobs"


@pytest.fixture(scope="module")
def cluster(bucket: str) -> Iterator[Cluster]:
    settings = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    running = Cluster(settings)
    try:
        running.wait()
        yield running
    finally:
        running.stop()


def result(said: str) -> dict[str, object]:
    """The JSON object that a job's `--json` printed."""
    lines = [line for line in said.splitlines() if line.startswith("{") and line.endswith("}")]
    found: dict[str, object] = json.loads(lines[-1])
    return found


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_verb_is_a_job(cluster: Cluster, bucket: str) -> None:
    names = ("store", "search", "bundle", "report", "labels")
    store, search, bundle, report, labels = (f"{bucket}/{name}" for name in names)

    said = cluster.submit("jobs/doctor.py", "--storage", f"{bucket}/scratch", "--cpus", "2", "--json")
    assert result(said)["healthy"], said

    said = cluster.submit("jobs/ingest.py", f"{bucket}/faces", store, "--json")
    assert result(said)["kept"] == 160
    assert result(said)["store"] == store

    budget = ("--max-trials", "2", "--time-budget", "40s")
    said = cluster.submit("jobs/tune.py", store, "--out", search, "--families", "cnn1", *budget)
    assert f"{search}/report.html" in said
    assert storage.read_json(f"{search}/leaderboard.json")
    assert storage.exists(f"{search}/trials.parquet")

    said = cluster.submit("jobs/train.py", store, "--from", search, "--out", bundle, "--epochs", "1", "--json")
    assert result(said)["bundle"] == bundle
    assert storage.read_json(f"{bundle}/config.json")["family"] == "cnn1"

    said = cluster.submit("jobs/evaluate.py", bundle, store, "--out", report, "--json")
    assert result(said)["model_id"] == storage.read_json(f"{report}/metrics.json")["model_id"]

    said = cluster.submit("jobs/label.py", bundle, f"{bucket}/faces", labels, "--include", "*.png", "--json")
    summary = result(said)
    assert summary["inputs"] == summary["labelled"] == 160
    assert storage.read_json(f"{labels}/summary.json")["model_id"] == summary["model_id"]
    assert f"report: {labels}/report.html" in said

    said = cluster.submit("jobs/certify.py", labels, "--sample", "10", "--json")
    assert storage.exists(str(result(said)["sheet"]))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_serve_job_answers_until_it_is_stopped(cluster: Cluster, bucket: str, tmp_path: Path) -> None:
    bundle = upload(write_bundle(tmp_path / "bundle"), f"{bucket}/served")
    (port,) = free_ports(1)
    said = cluster.submit_and_stop(lambda: ready(port), "jobs/serve.py", bundle, "--port", str(port))
    assert f"http://127.0.0.1:{port}" in said
    assert "closing the endpoint" in said
    until = time.monotonic() + 30
    while ready(port):
        assert time.monotonic() < until, "the endpoint outlives its job"
        time.sleep(1)


def upload(folder: Path, to: str) -> str:
    """Copy a folder's files into a bucket; where they are."""
    for path in folder.iterdir():
        storage.write_bytes(f"{to}/{path.name}", path.read_bytes())
    return to


def ready(port: int) -> bool:
    """Whether an endpoint answers there."""
    with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5) as answer:
        return answer.status == 200
    return False


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_machine_with_ray_alone_submits(cluster: Cluster, bucket: str, tmp_path: Path) -> None:
    """Neither fer_scale nor PyTorch is where the job comes from."""
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "thin"], check=True)
    program = tmp_path / "thin/bin"
    install = [
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "-c",
        "constraints.txt",
        "ray[default]",
    ]
    subprocess.run([program / "python", *install], cwd=ROOT, check=True)
    there = subprocess.run([program / "pip", "list"], capture_output=True, text=True, check=True).stdout
    assert "torch" not in there
    assert "pyarrow" not in there
    said = cluster.submit("jobs/ingest.py", f"{bucket}/faces", f"{bucket}/thin", "--json", ray=str(program / "ray"))
    assert result(said)["kept"] == 160
    assert storage.read_json(f"{bucket}/thin/manifest.json")["counts"]


@pytest.mark.slow
def test_a_stopped_label_job_says_how_to_go_on_and_does(cluster: Cluster, bucket: str, tmp_path: Path) -> None:
    bundle, out = upload(write_bundle(tmp_path / "bundle"), f"{bucket}/untrained"), f"{bucket}/stopped"
    command = ("jobs/label.py", bundle, f"{bucket}/faces", out, "--include", "*.png", "--workers", "1", "--json")
    slowly = ("--requests-per-second", "20")
    said = cluster.submit_and_stop(lambda: storage.exists(f"{out}/run.json"), *command, *slowly)
    assert "stopped; the same command goes on" in said
    assert not storage.exists(f"{out}/summary.json")
    summary = result(cluster.submit(*command))
    assert summary["inputs"] == summary["labelled"] == 160


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_stopped_fit_and_a_stopped_search_go_on(cluster: Cluster, bucket: str) -> None:
    store, fit, search = (f"{bucket}/{name}" for name in ("store-to-fit", "fit", "stopped-search"))
    cluster.submit("jobs/ingest.py", f"{bucket}/faces", store)
    command = ("jobs/train.py", store, "--out", fit, "--family", "cnn1", "--epochs", "12", "--json")
    said = cluster.submit_and_stop(lambda: storage.exists(f"{fit}/fit/state.json"), *command)
    assert "stopped; the same command with --resume goes on" in said
    begun = [row["seconds"] for row in storage.read_json(f"{fit}/fit/state.json")["curve"]]
    assert 1 <= len(begun) < 12
    assert result(cluster.submit(*command, "--resume"))["epochs"] == 12
    curve = pq.read_table(io.BytesIO(storage.read_bytes(f"{fit}/curve.parquet")))
    assert curve["seconds"].to_pylist()[: len(begun)] == begun

    command = ("jobs/tune.py", store, "--out", search, "--families", "cnn1", "--time-budget", "60s", "--json")
    said = cluster.submit_and_stop(lambda: bool(trials(search)), *command)
    assert "stopped; the same command with --resume goes on" in said
    begun = trials(search)
    assert result(cluster.submit(*command, "--resume"))["search"] == search
    ended = trials(search)
    assert ended == list(range(len(ended)))
    assert len(begun) <= len(ended)


def trials(search: str) -> list[int]:
    """Numbers of the trials in a search's table."""
    if not storage.exists(f"{search}/trials.parquet"):
        return []
    return pq.read_table(io.BytesIO(storage.read_bytes(f"{search}/trials.parquet")))["trial_id"].to_pylist()


def test_a_job_with_wrong_input_fails_with_one_clear_line(cluster: Cluster, bucket: str) -> None:
    said = cluster.submit("jobs/ingest.py", f"{bucket}/nothing-here", f"{bucket}/never", code=2)
    assert f"there is no {bucket}/nothing-here" in said
    assert "Traceback" not in said
    assert storage.is_empty(f"{bucket}/never")
