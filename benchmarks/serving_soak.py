"""`fer-scale serve` for a long time, with replicas killed, and while another bundle rolls in and back.

    python benchmarks/serving_soak.py BUNDLE [--minutes 10] [--other BUNDLE] [--phases steady killed rollout]

Four phases, each stored when it has ended, so that a run goes on where it was: `most` finds the requests a second that
32 clients get; the others ask at 0.8 of that rate, whatever comes back. `steady` samples the memory of the replicas and
of the proxy, `killed` ends a replica by SIGKILL every 20 s, `rollout` puts another bundle in its place, and back.
Requests are one 48x48 PNG; a dropped connection counts as a failed one.
"""

import argparse
import asyncio
import json
import os
import platform
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["RAY_ADDRESS"] = "local"

import numpy as np
import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))

from serving import HERE, picture

from fer_scale.verbs.serve import APPLICATION, LOGGING, Running, endpoint

CLIENTS = 32
LOAD = 0.8
KILL_SECONDS = 20.0
SAMPLE_SECONDS = 5.0
REPLICAS = 2


@dataclass
class Answers:
    """What came back."""

    by_status: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    """From when a request was due to its answer."""
    unclear: int = 0
    """Failed ones that were no 503 with Retry-After."""
    models: Counter[str] = field(default_factory=Counter)

    def row(self, spent: float) -> dict[str, Any]:
        """As it is stored."""
        total = sum(self.by_status.values())
        p50, p99, most = np.percentile(self.seconds, [50, 99, 100]) * 1000
        return {
            "requests": total,
            "seconds": round(spent, 1),
            "per_second": round(total / spent, 1),
            "by_status": dict(self.by_status),
            "failed_share": (total - self.by_status["200"]) / total,
            "failed_without_a_clear_503": self.unclear,
            "p50_ms": round(p50, 2),
            "p99_ms": round(p99, 2),
            "longest_ms": round(most, 1),
            "models": dict(self.models),
        }


async def client(port: int, request: bytes, next_due: Callable[[], float | None], answers: Answers) -> None:
    """One connection, opened again where it was dropped; ends when nothing more is due."""
    stream: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
    while (due := next_due()) is not None:
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        try:
            stream = stream or await asyncio.open_connection("127.0.0.1", port)
            reader, writer = stream
            writer.write(request)
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            size = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0])
            body = await reader.readexactly(size)
            status = head.split()[1].decode()
            if status == "200":
                answers.models[body.partition(b'"model_id": "')[2].partition(b'"')[0].decode()] += 1
            elif status != "503" or b"retry-after" not in head:
                answers.unclear += 1
            closed = b"connection: close" in head
        except (OSError, EOFError, ValueError):  # reset, closed before an answer, or none that can be read
            status, closed = "dropped", True
            answers.unclear += 1
        answers.by_status[status] += 1
        answers.seconds.append(time.monotonic() - due)
        if closed and stream is not None:
            stream[1].close()
            stream = None
    if stream is not None:
        stream[1].close()


async def ask(port: int, rate: float | None, going: Callable[[], bool]) -> dict[str, Any]:
    """Ask at a rate, or as fast as answers come where it is None, for as long as `going`."""
    data = picture()
    head = f"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\nContent-Length: {len(data)}"
    began = time.monotonic()
    asked = 0

    def next_due() -> float | None:
        nonlocal asked
        if not going():
            return None
        asked += 1
        return time.monotonic() if rate is None else began + asked / rate

    answers = Answers()
    request = f"{head}\r\n\r\n".encode() + data
    await asyncio.gather(*(client(port, request, next_due, answers) for _ in range(CLIENTS)))
    return answers.row(time.monotonic() - began)


def servers(kind: str) -> list[psutil.Process]:
    """Processes below this one whose title has that word."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if kind in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def megabytes() -> float:
    """Memory that the replicas and the proxy have for themselves."""
    total = 0.0
    for process in [*servers(f"ServeReplica:{APPLICATION}:Endpoint"), *servers("haproxy.cfg")]:
        try:
            total += process.memory_full_info().uss / 1e6
        except psutil.Error:
            continue
    return total


async def for_a_while(port: int, rate: float | None, seconds: float) -> dict[str, Any]:
    """Ask for so long."""
    until = time.monotonic() + seconds
    return await ask(port, rate, lambda: time.monotonic() < until)


async def steady(port: int, rate: float, seconds: float) -> dict[str, Any]:
    """Memory over time: the mean of the second fifth, when caches are warm, against that of the last."""
    memory: list[float] = []

    async def sample() -> None:
        while True:
            memory.append(await asyncio.to_thread(megabytes))
            await asyncio.sleep(min(SAMPLE_SECONDS, seconds / 20))

    sampling = asyncio.create_task(sample())
    row = await for_a_while(port, rate, seconds)
    sampling.cancel()
    fifth = max(1, len(memory) // 5)
    early, late = float(np.mean(memory[fifth : 2 * fifth])), float(np.mean(memory[-fifth:]))
    return {**row, "megabytes_early": round(early, 1), "megabytes_late": round(late, 1)}


async def killed(port: int, rate: float, seconds: float) -> dict[str, Any]:
    """One replica after the other, each by SIGKILL."""
    kills = 0

    async def kill() -> None:
        nonlocal kills
        while True:
            await asyncio.sleep(min(KILL_SECONDS, seconds / 2))
            random.choice(await asyncio.to_thread(servers, f"ServeReplica:{APPLICATION}:Endpoint")).kill()
            kills += 1

    killing = asyncio.create_task(kill())
    row = await for_a_while(port, rate, seconds)
    killing.cancel()
    return {**row, "kills": kills}


async def rollout(port: int, rate: float, bundles: list[str]) -> dict[str, Any]:
    """Each bundle in place of the one before."""
    from ray import serve

    from fer_scale.verbs.serve.app import build

    done = False

    def roll() -> list[float]:
        nonlocal done
        spent = []
        try:
            for bundle in bundles:
                began = time.monotonic()
                application = build({"bundle": bundle, "replicas": REPLICAS})
                serve.run(application, name=APPLICATION, route_prefix="/", logging_config=LOGGING)
                spent.append(round(time.monotonic() - began, 1))
                time.sleep(5)
        finally:
            done = True
        return spent

    rolling = asyncio.create_task(asyncio.to_thread(roll))
    row = await ask(port, rate, lambda: not done)
    return {**row, "seconds_of_each": await rolling}


async def measure(running: Running, given: argparse.Namespace, stored: dict[str, Any]) -> None:
    """Every phase that is not there yet."""
    port, phases = int(running.url.rpartition(":")[2]), stored["phases"]
    seconds = 60 * given.minutes
    for phase in ("most", *given.phases):
        if phase in phases:
            continue
        rate = LOAD * phases["most"]["per_second"] if phase != "most" else 0.0
        if phase == "most":
            phases[phase] = await for_a_while(port, None, min(15.0, seconds))
        elif phase == "steady":
            phases[phase] = await steady(port, rate, seconds)
        elif phase == "killed":
            phases[phase] = await killed(port, rate, seconds / 3)
        else:
            phases[phase] = await rollout(port, rate, [given.other, given.bundle])
        given.out.write_text(json.dumps(stored, indent=2) + "\n")
        print(phase, json.dumps(phases[phase]), flush=True)


def main() -> None:
    """Run what is missing and keep it in benchmarks/results/."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("bundle")
    parser.add_argument("--other", help="the bundle that rolls in; the same one if not given")
    parser.add_argument(
        "--minutes", type=float, default=10, help="of the steady phase; replicas are killed for a third"
    )
    parser.add_argument("--phases", nargs="+", choices=["steady", "killed", "rollout"])
    parser.add_argument("--out", type=Path, default=HERE / "results" / f"serving_soak_{date.today()}.json")
    given = parser.parse_args()
    given.phases = given.phases or ["steady", "killed", "rollout"]
    given.other = given.other or given.bundle
    stored: dict[str, Any] = {
        "date": str(date.today()),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "minutes": given.minutes,
        "phases": {},
    }
    if given.out.exists():
        stored = json.loads(given.out.read_text())
    with endpoint(given.bundle, port=0, replicas=REPLICAS) as running:
        stored["haproxy"] = running.haproxy
        asyncio.run(measure(running, given, stored))


if __name__ == "__main__":
    main()
