"""Whether an engine waits for pictures: 30 ms a get, an engine that sleeps for as long as a real one computes.

    python benchmarks/labelling_ahead.py

An actor of `label` as it is for S3: its worker, two units in hand, its pool that gets and decodes ahead. A get is a
read of a file and 30 ms of sleep. ``cpu``: 32 threads and batches of 128, at the rate of a core. ``gpu``: 128 threads
and batches of 1,024, at several rates. Wanted: the engine idles under 10 % of the time from its first batch to its
last. ``alone``: the same without the pool, for comparison. Into benchmarks/results/labelling_ahead.json.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import numpy.typing as npt
from pieces import Pieces

from fer_scale.faces.images import Preprocessing, encode_png
from fer_scale.labelling.reading import Payload, Reader
from fer_scale.labelling.sources import UNIT, Source
from fer_scale.labelling.units import Unit
from fer_scale.labelling.worker import Worker
from fer_scale.storage import CONNECTIONS
from fer_scale.verbs.label_actor import THREADS, UNITS_AT_ONCE

LATENCY = 0.03
"""Seconds of a get."""
CASES = {
    "alone": (0, 128, 683.0, 600),
    "cpu": (THREADS, 128, 683.0, 8192),
    "gpu-1000": (CONNECTIONS, 1024, 1000.0, 12_288),
    "gpu-2000": (CONNECTIONS, 1024, 2000.0, 24_576),
    "gpu-3000": (CONNECTIONS, 1024, 3000.0, 24_576),
}
"""Threads, batch, images a second of the engine, images."""


class Slow(Reader):
    """Files from far away."""

    def read(self, unit: Unit) -> Iterator[tuple[str, Payload]]:
        for ident, payload in super().read(unit):
            yield ident, lambda payload=payload: (time.sleep(LATENCY), payload())[1]  # type: ignore[misc]


class Engine:
    """Sleeps as long as a network of that rate computes, and notes when it was busy."""

    def __init__(self, rate: float) -> None:
        self.classes = ["happy", "sad", "surprised", "neutral"]
        self.model_id = "sleeping"
        self.preprocessing = Preprocessing()
        self.rate = rate
        self.busy: list[tuple[float, float]] = []

    def probabilities(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        began = time.monotonic()
        time.sleep(len(images) / self.rate)
        self.busy.append((began, time.monotonic()))
        return np.full((len(images), 4), 0.25, dtype=np.float32)


def noise(folder: Path, count: int) -> None:
    """So many pictures of 48x48, each with pixels of its own."""
    folder.mkdir()
    draw = np.random.default_rng(0)
    for number in range(count):
        pixels = draw.integers(0, 256, (48, 48), dtype=np.uint8)
        (folder / f"{number:06d}.png").write_bytes(encode_png(pixels))


def measure(faces: Path, out: Path, threads: int, batch: int, rate: float, images: int) -> dict[str, Any]:
    engine = Engine(rate)
    source = Source.open(str(faces), include="*.png")
    worker = Worker(engine, str(out), Slow("image", None), batch=batch, threads=threads)
    units, held = [], 0
    for unit in source.units(UNIT if images > UNIT else 256):
        units.append(unit.published_as(unit.key))
        held += unit.size
        if held >= images:
            break
    with ThreadPoolExecutor(UNITS_AT_ONCE if threads else 1) as pool:
        done = sum(entry["inputs"] for entry in pool.map(worker.label, units))
    whole = engine.busy[-1][1] - engine.busy[0][0]
    busy = sum(end - start for start, end in engine.busy)
    return {"images": done, "images_per_second": round(done / whole, 1), "idle": round(1 - busy / whole, 4)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    given = parser.parse_args()
    pieces = Pieces("labelling_ahead")
    with tempfile.TemporaryDirectory(prefix="fs-ahead-") as work:
        faces = Path(work, "faces")
        if set(given.only) - set(pieces.found):
            noise(faces, max(CASES[name][-1] for name in given.only) + 2 * UNIT)
        for name in given.only:
            pieces.piece(name, lambda name=name: measure(faces, Path(work, name), *CASES[name]))


if __name__ == "__main__":
    main()
