"""Peak memory of `fer-scale label` by role, at 100,000 and at 1,000,000 rows: it must not grow with the source.

    python benchmarks/labelling_memory.py [--rows 100000 1000000] [--ids 20000000 50000000]

The rows are small pictures, no two alike (noise, as PGM, which is made and decoded at once), in Parquet files of
100,000; the network is a cnn1 of a quarter of the width, untrained. Memory is the sum of the proportional set sizes
(PSS: what processes share is counted once) of each role, looked at twice a second: the driver; the task that lists;
the actors; Ray's own processes. What does grow is the check that ids are unique (--id-column, manifests), measured with
so many ids in a process of its own; listing and ledger are measured by scale.py (driver-N). A size that
benchmarks/results/labelling_memory.json has is not measured again without --again.
"""

import argparse
import json
import multiprocessing
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ["OMP_NUM_THREADS"] = "1"

SIDE = 24
FILE_ROWS = 100_000
ROLES = ("driver", "listing", "actors", "ray")


def store(folder: Path, rows: int) -> None:
    """Rows of ``id`` and ``image``."""
    folder.mkdir()
    random = np.random.default_rng(0)
    head = f"P5 {SIDE} {SIDE} 255\n".encode()
    for start in range(0, rows, FILE_ROWS):
        count = min(FILE_ROWS, rows - start)
        noise = random.integers(0, 256, (count, SIDE * SIDE), dtype=np.uint8)
        table = pa.table(
            {"id": [f"{n:09d}" for n in range(start, start + count)], "image": [head + row.tobytes() for row in noise]}
        )
        pq.write_table(table, folder / f"{start:09d}.parquet", row_group_size=1000)


def bundle(folder: Path) -> None:
    """The smallest network there is."""
    import pandas as pd

    from fer_scale import bundle as bundles
    from fer_scale.faces.sample import CLASSES
    from fer_scale.learning.configuration import Configuration

    folder.mkdir()
    configuration = Configuration.from_dict({"family": "cnn1", "network": {"width": 0.25}})
    bundles.write(
        folder, bundles.build(configuration, len(CLASSES)), configuration, classes=list(CLASSES), temperature=1.0,
        facts={}, metrics={}, curve=pd.DataFrame({"epoch": [1]}), card="# Model {model_id}\n",
    )  # fmt: skip


def role(process: psutil.Process, command: psutil.Process) -> str:
    """Whose memory it is."""
    if process == command:
        return "driver"
    title = " ".join(process.cmdline())  # what Ray says that it is doing
    return "listing" if "Listing" in title else "actors" if "MapWorker" in title or "Labeller" in title else "ray"


def look(command: psutil.Process) -> dict[str, float]:
    """MiB of each role now."""
    found = dict.fromkeys(ROLES, 0.0)
    for process in [command, *command.children(recursive=True)]:
        try:
            found[role(process, command)] += process.memory_full_info().pss / 2**20
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue  # it ended between two looks
    return found


def measure(rows: int, work: Path) -> dict[str, Any]:
    """One run, as a command."""
    store(work / "store", rows)
    bundle(work / "bundle")
    command = [sys.executable, "-m", "fer_scale", "label", str(work / "bundle"), str(work / "store"), str(work / "out")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_ADDRESS": "local"}
    began = time.monotonic()
    running = subprocess.Popen([*command, "--id-column", "id", "--quiet"], env=environment)
    watched, looks = psutil.Process(running.pid), []
    while running.poll() is None:
        looks.append(look(watched))
        time.sleep(0.5)
    if running.returncode:
        raise SystemExit(f"label ended with {running.returncode}")
    summary = json.loads((work / "out" / "summary.json").read_text())
    if (summary["labelled"], summary["duplicates"]) != (rows, 0):
        raise SystemExit(f"not all rows were inferred: {summary}")
    each = {name: round(max(one[name] for one in looks), 1) for name in ROLES}
    own = round(max(sum(one[name] for name in ROLES[:-1]) for one in looks), 1)
    return {
        "rows": rows,
        "peak_mib": {**each, "without_ray": own, "all": round(max(sum(one.values()) for one in looks), 1)},
        "seconds": round(time.monotonic() - began, 1),
        "looks": len(looks),
        "load_average": os.getloadavg()[0],
        "machine": f"{os.cpu_count()} CPUs, {platform.machine()}, {platform.system()}",
        "versions": {name: version(name) for name in ("ray", "onnxruntime", "pyarrow")},
        "date": time.strftime("%Y-%m-%d"),
    }


def check(count: int, told: Connection) -> None:
    """The check that so many URIs are unique: MiB before it and at most, seconds."""
    import pandas as pd

    from fer_scale.labelling.tables import check_unique

    def batches() -> Iterator["pd.Series[str]"]:
        for start in range(0, count, 65536):
            numbers = range(start, min(start + 65536, count))
            yield pd.Series([f"s3://bucket/faces/{n // 10_000:06d}/{n:010d}.png" for n in numbers], dtype="object")

    before, began = peak(), time.monotonic()
    check_unique(batches, "the benchmark")
    told.send({"ids": count, "mib_before": before, "peak_mib": peak(), "seconds": round(time.monotonic() - began, 1)})


def peak() -> float:
    """MiB that this process has held at most; getrusage would count its parent's, from which it was forked."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return round(int(line.split()[1]) / 1024, 1)


def apart(count: int) -> dict[str, Any]:
    """`check` in a process of its own."""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=check, args=(count, there))
    process.start()
    found: dict[str, Any] = here.recv()
    process.join()
    return found


def main() -> None:
    """Measure what is missing, and compare the largest with the smallest."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--ids", type=int, nargs="*", default=[20_000_000, 50_000_000])
    parser.add_argument("--again", action="store_true", help="also what was measured before")
    parser.add_argument("--to", type=Path, default=ROOT / "benchmarks" / "results" / "labelling_memory.json")
    options = parser.parse_args()
    found = json.loads(options.to.read_text()) if options.to.exists() else {}
    for rows in options.rows:
        if str(rows) in found and not options.again:
            continue
        work = Path(tempfile.mkdtemp(prefix="labelling-memory-"))
        try:
            found[str(rows)] = measure(rows, work)
        finally:
            shutil.rmtree(work)
        options.to.write_text(json.dumps(found, indent=2) + "\n")
    for count in options.ids:
        if f"ids-{count}" not in found or options.again:
            found[f"ids-{count}"] = apart(count)
            options.to.write_text(json.dumps(found, indent=2) + "\n")
            print(json.dumps(found[f"ids-{count}"]))
    small, large = (found[str(rows)]["peak_mib"] for rows in (min(options.rows), max(options.rows)))
    for name in small:
        print(f"{name}: {small[name]:,.0f} MiB, {large[name]:,.0f} MiB, {large[name] / max(small[name], 0.1) - 1:+.1%}")


if __name__ == "__main__":
    main()
