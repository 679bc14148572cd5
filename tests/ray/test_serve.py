"""The whole endpoint on Ray Serve, started and ended as a user does it."""

import asyncio
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest

from fer_scale.bundle import Bundle
from fer_scale.faces.images import prepare
from fer_scale.learning.acceptance import promise
from fer_scale.predictor import Predictor
from fer_scale.verbs.serve import detecting, haproxy
from tests import photographs
from tests.bundles import calibration, write_bundle
from tests.serving import picture

COMMAND = [sys.executable, "-m", "fer_scale", "serve"]


@dataclass
class Server:
    process: subprocess.Popen[str]
    url: str
    bundle: Path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def started(bundle: Path, *options: str, **environment: str) -> Iterator[Server]:
    port = free_port()
    process = subprocess.Popen(
        [*COMMAND, str(bundle), "--port", str(port), "--json", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "RAY_ADDRESS": "local", **environment},
    )
    url, said = f"http://127.0.0.1:{port}", []
    for line in process.stderr:
        said.append(line)
        if url in line:
            break
    else:
        pytest.fail(f"it ended with {process.wait()}: {''.join(said)}")
    try:
        yield Server(process, url, bundle)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.communicate(timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()
                raise


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with started(write_bundle(tmp_path_factory.mktemp("serve") / "bundle"), "--replicas", "2") as server:
        yield server


def test_answers_as_the_predictor_does(server: Server) -> None:
    predictor = Predictor.load(server.bundle, threads=1)
    images = [picture(seed, 40 + seed) for seed in range(24)]
    expected = predictor.probabilities(np.stack([prepare(data, predictor.preprocessing) for data in images]))

    async def ask() -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=server.url, timeout=30) as client:
            return await asyncio.gather(*(client.post("/v1/predict", content=data) for data in images))

    answers = [response.raise_for_status().json() for response in asyncio.run(ask())]
    got = np.array([[a["results"][0]["probabilities"][c] for c in predictor.classes] for a in answers])
    assert np.abs(got - expected).max() < 1e-5
    assert {answer["model_id"] for answer in answers} == {predictor.model_id}

    files = [("images", (f"{at}.png", data)) for at, data in enumerate(images)]
    results = httpx.post(f"{server.url}/v1/predict", files=files).json()["results"]
    assert [r["label"] for r in results] == [predictor.classes[i] for i in expected.argmax(1)]


def test_errors_pass_the_proxy_as_they_are(server: Server) -> None:
    with httpx.Client(base_url=server.url) as client:
        for content, status in ((b"junk", 422), (b"x" * (9 * 2**20), 413), (b"", 400)):
            response = client.post("/v1/predict", content=content)
            assert response.status_code == status
            assert response.headers["content-type"] == "application/problem+json"
        assert client.get("/nowhere").status_code == 404
        assert client.post("/v1/predict", content=picture(0)).status_code == 200


def test_the_examples_of_the_docs_work_as_printed(server: Server, tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs/serve.md").read_text().replace("http://127.0.0.1:8000", server.url)
    (tmp_path / "face.png").write_bytes(picture(0))
    (python,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (tmp_path / "group.jpg").write_bytes(photographs.encoded(photographs.group(), "JPEG"))
    curls = [line.strip() for line in text.splitlines() if line.startswith("    curl ")]
    assert ["faces=detect" in curl for curl in curls] == [False, True]
    able = curls[: 1 + detecting.available()] if shutil.which("curl") else []
    commands = [[sys.executable, "-c", python], *map(shlex.split, able)]
    for command in commands:
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "neutral" in done.stdout


def test_page_health_and_metrics(server: Server) -> None:
    with httpx.Client(base_url=server.url) as client:
        assert client.get("/readyz").json()["status"] == "ready"
        assert "<title>fer_scale" in client.get("/").text
        metrics = client.get("/metrics").text
    assert 'fer_scale_requests_total{route="/v1/predict",code="200"}' in metrics
    assert "\nfer_scale_replicas 2\n" in metrics


def listening(server: Server) -> list[tuple[psutil.Process, str]]:
    """Who listens on the endpoint's port, and HAProxy wherever it does; on which interface."""
    port = int(server.url.rpartition(":")[2])
    return [
        (process, connection.laddr.ip)
        for process in psutil.Process(server.process.pid).children(recursive=True)
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN and (process.name() == "haproxy" or connection.laddr.port == port)
    ]


def test_only_loopback_reaches_the_endpoint(server: Server) -> None:
    found = listening(server)
    assert {interface for _, interface in found} == {"127.0.0.1"}
    assert ("haproxy" in {process.name() for process, _ in found}) == haproxy.available()


@pytest.mark.slow
@pytest.mark.skipif(not haproxy.available(), reason="needs fer_scale[haproxy]")
@pytest.mark.parametrize(("sent", "length"), [(3, 100), (40_000, 100_000)], ids=["held by HAProxy", "by the replica"])
def test_a_body_that_never_ends_is_408_after_half_a_minute(server: Server, sent: int, length: int) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=45) as connection:
        head = f"POST /v1/predict HTTP/1.1\r\nHost: here\r\nContent-Length: {length}\r\n\r\n"
        connection.sendall(head.encode() + b"a" * sent)
        answer = b""
        while b"}" not in answer:
            more = connection.recv(4096)
            assert more
            answer += more
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["type"] == "urn:fer-scale:problem:slow-body"


def test_a_port_in_use_is_one_clear_line(server: Server) -> None:
    port = server.url.rpartition(":")[2]
    done = subprocess.run([*COMMAND, str(server.bundle), "--port", port], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert f"127.0.0.1:{port} cannot be listened on" in line


@pytest.mark.skipif(not haproxy.available(), reason="needs fer_scale[haproxy]")
def test_haproxy_turns_from_a_replica_that_dies_and_where_there_is_none_to_the_next_that_comes(server: Server) -> None:
    def replicas() -> list[psutil.Process]:
        processes = psutil.Process(server.process.pid).children(recursive=True)
        return [one for one in processes if "ServeReplica:fer_scale:Endpoint" in " ".join(one.cmdline())]

    with httpx.Client(base_url=server.url, timeout=30) as client:
        replicas()[0].kill()
        for _ in range(20):
            assert client.post("/v1/predict", content=picture(0)).status_code == 200
        for one in replicas():  # the new one too
            one.kill()
            one.wait()
        until = time.monotonic() + 60
        while (response := client.post("/v1/predict", content=picture(0))).status_code != 200:
            assert (response.status_code, response.headers["retry-after"]) == (503, "1")
            assert response.headers["content-type"] == "application/problem+json"
            assert response.json()["type"].endswith(":unavailable")
            assert time.monotonic() < until
            time.sleep(0.1)


def test_sigterm_ends_it_and_all_its_processes(server: Server) -> None:
    children = psutil.Process(server.process.pid).children(recursive=True)
    server.process.send_signal(signal.SIGTERM)
    out, err = server.process.communicate(timeout=60)
    assert server.process.returncode == 0, err
    assert "Traceback" not in err
    assert json.loads(out.splitlines()[-1])["url"] == server.url
    _, alive = psutil.wait_procs(children, timeout=20)
    assert [process.name() for process in alive] == []


def test_a_token_and_a_promise_on_every_interface_without_haproxy(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle", calibration=calibration())
    (tmp_path / "token").write_text("correct-horse-battery\n")
    options = ["--token-file", str(tmp_path / "token"), "--max-error", "0.05", "--host", "0.0.0.0", "--replicas", "2"]
    with started(bundle, *options, RAY_SERVE_ENABLE_HA_PROXY="0") as server:
        (killed, interface), (other, _) = listening(server)
        assert interface == "0.0.0.0"
        assert httpx.post(f"{server.url}/v1/predict", content=picture(0), timeout=30).status_code == 401
        bearer = {"Authorization": "Bearer correct-horse-battery"}

        def ask(seed: int = 0) -> dict[str, Any]:
            """On a connection of its own."""
            response = httpx.post(f"{server.url}/v1/predict", content=picture(seed), headers=bearer, timeout=30)
            found: dict[str, Any] = response.raise_for_status().json()["results"][0]
            return found

        acceptance = promise(Bundle.load(bundle), 0.05)
        for seed in range(8):
            answer = ask(seed)
            confidence, label = np.float32([answer["confidence"]]), np.array([answer["label"]], dtype=object)
            assert [answer["accepted"]] == acceptance.mask(confidence, label).tolist()
        killed.kill()
        killed.wait()
        for _ in range(10):
            ask()
        until = time.monotonic() + 60
        while len(found := listening(server)) < 2:
            assert time.monotonic() < until
            time.sleep(0.2)
        assert other in {process for process, _ in found}
