"""What does not fit one machine, simulated on one: nodes that sleep, blocks without work, rows without pictures.

    python benchmarks/scale.py              # all parts that benchmarks/results/scale.json does not have yet
    python benchmarks/scale.py blocks-1000 --again

nodes-1, -2, -4   a cluster of so many raylets of two actors each. The pipeline, the reader and the worker are `label`'s
                  own; a read, a write and the network sleep for as long as they take elsewhere, so that two cores can
                  play eight. Wanted: throughput a node at least 0.9 of that of one node.
blocks-N          N work units that cost nothing: what Ray's scheduling of a unit takes.
driver-N          a manifest of N rows, some fifty bytes each on disk: listing, ledger and summary, without Ray.
keys-N            the driver's memory for N objects of a bucket: each unit of them entered, read back by a restart, and
                  found finished. What a listing holds at a time is left out: it does not grow.

Each part is a process of its own, whose peak memory is its own. About 1.5 minutes a part, driver-10000000 about six.
What is found goes into benchmarks/results/scale.json and into the table of docs/scale.md.
"""

import argparse
import json
import multiprocessing
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["RAY_AUTH_MODE"] = "token"  # read when Ray is imported

import numpy as np
import numpy.typing as npt
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import scale_table

from cluster.local import cluster
from fer_scale.cluster import connected
from fer_scale.faces.images import Preprocessing
from fer_scale.labelling import results
from fer_scale.labelling.ledger import Backlog, Ledger
from fer_scale.labelling.merging import settle_view
from fer_scale.labelling.parts import part_path
from fer_scale.labelling.reading import Reader
from fer_scale.labelling.sources import UNIT, Source
from fer_scale.labelling.units import Item, Unit
from fer_scale.labelling.worker import Worker
from fer_scale.storage import write_bytes
from fer_scale.verbs.label_actor import Job, Labeller, worker_of
from fer_scale.verbs.label_stream import _listing, messages, row

RESULTS = Path(__file__).parent / "results/scale.json"
PARTS = (
    "nodes-1",
    "nodes-2",
    "nodes-4",
    "blocks-1000",
    "blocks-10000",
    "driver-10000000",
    "keys-200000000",
)
ACTORS = 2
"""A node."""
UNITS = 30
"""An actor."""
ROWS = 16
"""Images that a simulated unit really holds; it takes as long as one of `UNIT`."""
LISTED = 1099
"""Images a unit on average where a folder is listed."""
RATE = 683.0
"""Images a second and core, as measured (docs/costs.md)."""
LATENCY = 0.03
"""Seconds of a request to S3 from the same region."""


class Sleeping:
    """A model that takes as long as a real one for a whole unit, and no CPU."""

    def __init__(self) -> None:
        self.classes = ["happy", "sad", "surprised", "neutral"]
        self.model_id = "sleeping"
        self.preprocessing = Preprocessing(size=48, channels=1)

    def probabilities(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        time.sleep(UNIT / RATE)
        return np.random.default_rng(0).dirichlet(np.ones(len(self.classes)), len(images)).astype(np.float32)


class SleepingLabeller(Labeller):
    """The actor of `label` with a model that sleeps, and storage that is as far away as S3."""

    def load(self) -> Worker:
        def slowly(path: str, data: bytes) -> None:
            time.sleep(LATENCY)
            write_bytes(path, data)

        return worker_of(self.job, Sleeping(), self._reader, slowly)

    def told(self, worker: Worker, unit: Unit) -> dict[str, Any]:
        time.sleep(LATENCY)
        return {"entry": {**worker.label(unit), "actor": os.getpid()}}


class IdleLabeller(Labeller):
    """An actor whose work costs nothing."""

    def load(self) -> Worker:
        return worker_of(self.job, Sleeping(), self._reader)

    def told(self, worker: Worker, unit: Unit) -> dict[str, Any]:
        return {"entry": {"key": unit.key}}


def job(source: Source, out: str, workers: int) -> Job:
    """A labelling job without a bundle."""
    return Job(
        bundle="", model_id="sleeping", source=source, out=out, engine="onnx", gpu=False, retry_errors=False,
        acceptance=None, detection=None, workers=workers, cascade=None, first=None, requests_per_second=None,
    )  # fmt: skip


def pictures(folder: Path, units: int, rows: int = ROWS) -> Source:
    """A table of small pictures, `rows` in each unit, of which those of a unit are no two alike."""
    from fer_scale.faces.sample import draw

    draw(folder / "drawn", count=rows, seed=0)
    drawn = [path.read_bytes() for path in sorted((folder / "drawn").rglob("*.png"))]
    table = pa.table({"id": [f"{n:07d}" for n in range(units * rows)], "image": drawn * units})
    pq.write_table(table, folder / "faces.parquet", row_group_size=rows)
    return Source.open(str(folder / "faces.parquet"), id_column="id")


def nodes(count: int, folder: Path) -> dict[str, Any]:
    """Throughput of a cluster while every actor is at work."""
    actors = count * ACTORS
    source = pictures(folder, actors * UNITS)
    backlog, out = Backlog({}, set()), str(folder / "out")
    with cluster(count, ACTORS, 0), connected(processes=actors):
        began, came = time.monotonic(), []
        for message in messages(job(source, out, actors), lambda: _listing(source, backlog, ROWS), SleepingLabeller):
            if "entry" in message:
                came.append((time.monotonic(), message["entry"]["actor"]))
    if len(came) != actors * UNITS:
        raise SystemExit(f"{len(came)} units came back of {actors * UNITS}")
    of_each = {actor: [at for at, by in came if by == actor] for _, actor in came}
    first, last = max(times[0] for times in of_each.values()), min(times[-1] for times in of_each.values())
    within = sum(first < at <= last for at, _ in came)
    return {
        "actors": len(of_each),
        "units": len(came),
        "seconds_of_a_unit_asleep": round(UNIT / RATE + 3 * LATENCY, 3),
        "seconds_until_all_actors_work": round(first - began, 1),
        "seconds_measured": round(last - first, 1),
        "units_per_second": round(within / (last - first), 4),
        "images_per_second_and_node": round(within * UNIT / (last - first) / count, 1),
    }


def blocks(count: int, folder: Path) -> dict[str, Any]:
    """Seconds from the first answer to the last, of units that cost nothing."""
    source = pictures(folder, 1)
    (unit,) = source.units(ROWS)

    def rows() -> Iterator[pa.Table]:
        for _ in range(count):
            yield row(unit=unit.to_bytes())

    with cluster(1, ACTORS, 0), connected(processes=ACTORS):
        began = time.monotonic()
        came, busy = [], []
        for _ in messages(job(source, str(folder / "out"), ACTORS), rows, IdleLabeller):
            came.append(time.monotonic())
            busy.append(time.process_time())
    seconds = came[-1] - came[0]
    return {
        "blocks": len(came),
        "seconds_until_the_first": round(came[0] - began, 1),
        "seconds": round(seconds, 2),
        "milliseconds_a_block": round(1000 * seconds / (len(came) - 1), 2),
        "driver_cpu_milliseconds_a_block": round(1000 * (busy[-1] - busy[0]) / (len(came) - 1), 2),
        "driver_peak_mib": peak(),
    }


def driver(count: int, folder: Path) -> dict[str, Any]:
    """The driver's part of a run over a manifest: list, enter in the ledger, load it, list again, sum up."""
    writing = multiprocessing.get_context("spawn").Process(target=manifest, args=(folder / "manifest", count))
    writing.start()
    writing.join()  # not in this process, whose memory is measured
    source, out = Source.open(str(folder / "manifest"), uri_column="uri"), str(folder / "out")
    template = one_entry(folder / "one")
    found: dict[str, Any] = {"rows": count, "manifest_mib": size(folder / "manifest"), "peak_mib_before": peak()}
    for name, what in (("labels", "labels"), ("notes", "units")):
        found[f"kib_of_{name}_a_unit"] = round(1024 * size(folder / "one/out/ledger" / what, 6), 1)
    found["rows_merged_a_second"] = merging(str(folder / "one/out"), template)
    found["seconds_to_open"], unit_images = timed(source.unit_images)

    ledger, held, sent, units = Ledger(out), [], 0, 0
    entering, began, busy = 0.0, time.monotonic(), time.process_time()
    for unit, _ in Backlog({}, set()).match(source.units(unit_images)):
        units, sent = units + 1, sent + len(unit.to_bytes())
        held.append({**template, "key": unit.key, "part": unit.part, "span": unit.span, "inputs": unit.size})
        held[-1].update(labelled=unit.size, faces=unit.size)
        if len(held) == 100:
            entering += timed(partial(ledger.commit, held, 2.0))[0]
            held = []
    entering += timed(partial(ledger.commit, held, 2.0))[0]
    found |= {"units": units, "kib_sent_a_unit": round(sent / units / 1024, 1)}
    found |= {"seconds_listing": round(time.monotonic() - began - entering, 1), "seconds_entering": round(entering, 1)}
    found["cpu_seconds_listing_and_entering"] = round(time.process_time() - busy, 1)
    found |= {"ledger_mib": size(folder / "out"), "peak_mib_listed": peak()}

    found["seconds_loading_the_ledger"], loaded = timed(lambda: Ledger(out))
    backlog = Backlog(loaded.entries, {entry["part"] for entry in loaded.entries.values()})
    busy = time.process_time()
    seconds, left = timed(lambda: sum(todo for _, todo in backlog.match(source.units(unit_images))))
    found["cpu_seconds_finding_nothing_to_do"] = round(time.process_time() - busy, 1)
    if left:
        raise SystemExit(f"{left} units are to be done again")
    found["seconds_finding_nothing_to_do"] = seconds
    found["seconds_gathering"], _ = timed(lambda: loaded.keep(list(loaded.entries)))
    run = {"settings": {"model_id": "sleeping"}, "run_id": "scale"}
    found["seconds_summing_up"], summary = timed(lambda: results.summarise(loaded, run, 0, None))
    if summary["inputs"] != count:
        raise SystemExit(f"{summary['inputs']} inputs of {count}")
    return found | {"peak_mib": peak()}


def keys(count: int, folder: Path) -> dict[str, Any]:
    """The driver's memory, whose units are as many as a listing of so many objects is cut into."""
    units, out, template = round(count / LISTED), str(folder / "out"), one_entry(folder / "one")
    before, ledger, seen = peak(), Ledger(out), set()

    def listed() -> Iterator[Unit]:
        for n in range(units):
            yield Unit("files", "faces/", "", str(n), 0, 1, (Item(f"{n:09d}/face.png", "face.png", 2500, f"{n:032x}"),))

    held = []
    for at, (unit, _) in enumerate(Backlog({}, set()).match(listed())):
        seen.add(unit.key)
        held.append({**template, "key": unit.key, "part": unit.part, "span": unit.span, "inputs": LISTED})
        held[-1].update(labelled=LISTED, faces=LISTED)
        if len(held) == UNITS or at == units - 1:
            ledger.commit(held, 2.0)
            held = []
    found = {"keys": count, "units": units, "peak_mib_before": before, "peak_mib_of_the_run": peak()}
    del ledger, seen  # a restart is another process
    seconds, loaded = timed(lambda: Ledger(out))
    backlog = Backlog(loaded.entries, {entry["part"] for entry in loaded.entries.values()})
    if any(to_do for _, to_do in backlog.match(listed())):
        raise SystemExit("units are to be done again")
    loaded.keep(list(loaded.entries))
    summary = results.summarise(loaded, {"settings": {"model_id": "sleeping"}, "run_id": "scale"}, 0, None)
    if summary["inputs"] != units * LISTED:
        raise SystemExit(f"{summary['inputs']} inputs of {units * LISTED}")
    return found | {"seconds_loading_the_ledger": seconds, "peak_mib_of_the_restart": peak()}


def manifest(folder: Path, rows: int) -> None:
    """A manifest with an ETag and a size for each URI, in files of a million."""
    folder.mkdir()
    for start in range(0, rows, 1_000_000):
        numbers = range(start, min(start + 1_000_000, rows))
        columns = {
            "uri": [f"s3://bucket/faces/{n // 10_000:06d}/{n:010d}.png" for n in numbers],
            "etag": [f"{n * 2654435761 % 2**128:032x}" for n in numbers],
            "size": [2500 + n % 1000 for n in numbers],
        }
        pq.write_table(pa.table(columns), folder / f"{start:012d}.parquet")


def one_entry(folder: Path) -> dict[str, Any]:
    """A whole unit's entry in the ledger, as a worker makes it; what the worker publishes lies in ``out``."""
    folder.mkdir()
    source = pictures(folder, 1, UNIT)
    (unit,) = source.units(UNIT)
    worker = Worker(Sleeping(), str(folder / "out"), Reader(source.image_column, source.id_column), batch=UNIT)
    return worker.label(unit.published_as(unit.key))


def merging(out: str, template: dict[str, Any], units: int = 200) -> int:
    """Rows a second that become one file of OUT/labels, of as many parts as units."""
    part = Path(part_path(out, "labels", template["part"])).read_bytes()
    entries = [{**template, "key": f"{n:032x}", "part": f"{n:032x}"} for n in range(units)]
    for entry in entries:
        write_bytes(part_path(out, "labels", entry["part"]), part)
    seconds, _ = timed(partial(settle_view, out, ["labels"], entries, {}))
    return round(units * UNIT / seconds)


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    began = time.monotonic()
    value = call()
    return round(time.monotonic() - began, 2), value


def peak() -> float:
    """MiB that this process has held at most."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)


def size(folder: Path, digits: int = 1) -> float:
    """MiB of all files in it."""
    return round(sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 2**20, digits)


def measure(part: str) -> dict[str, Any]:
    kind, _, count = part.partition("-")
    with tempfile.TemporaryDirectory(prefix="fs-scale-") as folder:
        return {"nodes": nodes, "blocks": blocks, "driver": driver, "keys": keys}[kind](int(count), Path(folder))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}, or with other numbers")
    parser.add_argument("--again", action="store_true", help="also what there are results of")
    parser.add_argument("--to", type=Path, default=RESULTS)
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.here:
        print(json.dumps(measure(given.parts[0])))
        return
    found = json.loads(given.to.read_text()) if given.to.exists() else {}
    for part in given.parts or PARTS:
        if part in found and not given.again:
            continue
        busy = os.getloadavg()[0]
        command = [sys.executable, __file__, "--here", part]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        found[part] = {**json.loads(done.stdout.splitlines()[-1]), "load_before": round(busy, 1)}
        if "nodes-1" in found and part.startswith("nodes-"):
            one = found["nodes-1"]["images_per_second_and_node"]
            found[part]["of_one_node"] = round(found[part]["images_per_second_and_node"] / one, 3)
        found["hardware"] = f"{platform.processor() or platform.machine()}, {psutil.cpu_count()} cores"
        found["versions"] = {name: version(name) for name in ("ray", "pyarrow", "numpy")}
        found["date"] = time.strftime("%Y-%m-%d")
        given.to.write_text(json.dumps(found, indent=2) + "\n")
        print(part, json.dumps(found[part], indent=2), flush=True)
    if given.to == RESULTS:
        scale_table.write(found)


if __name__ == "__main__":
    main()
