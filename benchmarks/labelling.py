"""`fer-scale label` against a bare ONNX Runtime loop: the same bundle, the same stored pictures, one run.

    python benchmarks/labelling.py BUNDLE --images 100000 [--layout parquet|files]

The loop is what one would write for this machine alone: two processes, each with a one-thread ONNX Runtime session,
that read their half of the pictures, decode, infer in batches of 128 and write Parquet. It has no ledger, no error
table and no report. Both sides read the same files; the loop runs before and after `label`, and its mean counts.
"""

import argparse
import io
import json
import multiprocessing
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import numpy.typing as npt
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
BATCH = 128
PROCESSES = 2


def pictures(seed: int = 0) -> list[npt.NDArray[np.uint8]]:
    """Gray 48x48 faces to vary: FER2013 where it is, drawn ones elsewhere."""
    folder = Path(os.environ.get("FER_SCALE_DATA", ROOT.parent / "shared/data/fer2013"))
    if folder.is_dir():
        column = pq.read_table(folder / "publictest.parquet", columns=["image"])["image"].to_pylist()
        return [np.asarray(Image.open(io.BytesIO(data)).convert("L")) for data in column]
    from fer_scale.faces.sample import CLASSES, face

    random = np.random.default_rng(seed)
    return [np.asarray(face(CLASSES[n % len(CLASSES)], random, 48)) for n in range(500)]


def make(folder: Path, images: int, layout: str) -> None:
    """Store ``images`` pictures, no two alike: a little noise on each, and its number in the noise's seed."""
    base = pictures()
    folder.mkdir(parents=True)
    rows: list[dict[str, Any]] = []
    for n in range(images):
        noise = np.random.default_rng(n).integers(-6, 7, (48, 48))
        pixels = np.clip(base[n % len(base)].astype(np.int64) + noise, 0, 255).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        if layout == "files":
            (folder / f"{n // 1000:03d}").mkdir(exist_ok=True)
            (folder / f"{n // 1000:03d}" / f"{n:07d}.png").write_bytes(buffer.getvalue())
            continue
        rows.append({"id": f"{n:07d}", "image": buffer.getvalue()})
        if len(rows) == 10_000 or n == images - 1:
            target = folder / f"faces-{n // 10_000:04d}.parquet"
            pq.write_table(pa.Table.from_pylist(rows), target, row_group_size=1000)
            rows = []


def bare(bundle: str, folder: Path, layout: str, share: int, out: Path) -> None:
    """One process of the loop: every second file of the source (or of its row groups)."""
    import onnxruntime as ort

    config = json.loads((Path(bundle) / "config.json").read_text())
    size, channels = config["preprocessing"]["size"], config["preprocessing"]["channels"]
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(str(Path(bundle) / "model.onnx"), options, providers=["CPUExecutionProvider"])

    def answer(ids: list[str], encoded: list[bytes], number: int) -> None:
        images = np.empty((len(ids), channels, size, size), dtype=np.uint8)
        for at, data in enumerate(encoded):
            image = Image.open(io.BytesIO(data)).convert("L" if channels == 1 else "RGB")
            if image.size != (size, size):
                image = image.resize((size, size), Image.Resampling.BILINEAR)
            pixels = np.asarray(image)
            images[at] = pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)
        (logits,) = session.run(["logits"], {"images": images})
        scaled = logits.astype(np.float64) / config["temperature"]
        odds = np.exp(scaled - scaled.max(axis=1, keepdims=True))
        found = (odds / odds.sum(axis=1, keepdims=True)).astype(np.float32)
        table = pa.table({"id": ids, "label": found.argmax(axis=1), "confidence": found.max(axis=1)})
        for index, name in enumerate(config["classes"]):
            table = table.append_column(f"prob_{name}", pa.array(found[:, index]))
        pq.write_table(table, out / f"{share}-{number}.parquet")

    number = 0
    if layout == "files":
        names = sorted(folder.rglob("*.png"))[share::PROCESSES]
        for start in range(0, len(names), BATCH):
            files = names[start : start + BATCH]
            answer([str(f.relative_to(folder)) for f in files], [f.read_bytes() for f in files], number)
            number += 1
        return
    groups = [(f, g) for f in sorted(folder.iterdir()) for g in range(pq.ParquetFile(f).num_row_groups)]
    for file, group in groups[share::PROCESSES]:
        for batch in pq.ParquetFile(file).iter_batches(batch_size=BATCH, row_groups=[group]):
            answer(batch["id"].to_pylist(), batch["image"].to_pylist(), number)
            number += 1


def run_bare(bundle: str, folder: Path, layout: str, out: Path) -> None:
    """The loop, its processes started and ended."""
    out.mkdir()
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=bare, args=(bundle, folder, layout, n, out)) for n in range(PROCESSES)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        if worker.exitcode:
            raise SystemExit(f"the bare loop failed with {worker.exitcode}")
    rows = sum(pq.ParquetFile(file).metadata.num_rows for file in out.iterdir())
    print(f"bare loop: {rows} rows", flush=True)


class Memory:
    """The largest resident memory of each process below this one, MiB, sampled twice a second."""

    def __init__(self) -> None:
        self.peak: dict[str, float] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> "Memory":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _sample(self) -> None:
        me = psutil.Process()
        while not self._stop.wait(0.5):
            for process in [me, *me.children(recursive=True)]:
                try:
                    name = "driver" if process == me else process.name()
                    if name.startswith("python") or name == "driver":
                        command = " ".join(process.cmdline()[:1]) if name != "driver" else "driver"
                        name = f"{command.rpartition('/')[2]} {process.pid}" if name != "driver" else name
                    else:
                        name = f"{name} {process.pid}"
                    size = process.memory_info().rss / 2**20
                except psutil.NoSuchProcess:
                    continue  # it ended between two looks
                self.peak[name] = max(self.peak.get(name, 0.0), round(size, 1))


def timed(work: Callable[[], Any]) -> tuple[float, dict[str, float], Any]:
    """Seconds, peak memory by process, and what the work gave."""
    with Memory() as memory:
        began = time.perf_counter()
        found = work()
        seconds = time.perf_counter() - began
    return seconds, dict(sorted(memory.peak.items(), key=lambda item: -item[1])[:12]), found


def main() -> None:
    """Measure, print, and write benchmarks/results/labelling-<layout>-<images>.json and .md."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("bundle")
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--layout", choices=("parquet", "files"), default="parquet")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    options = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="labelling-"))
    try:
        result = measure(options.bundle, work, options.images, options.layout)
    finally:
        shutil.rmtree(work)
    options.out.mkdir(parents=True, exist_ok=True)
    target = options.out / f"labelling-{options.layout}-{options.images}"
    target.with_suffix(".json").write_text(json.dumps(result, indent=2) + "\n")
    target.with_suffix(".md").write_text(text(result))
    print(text(result))


def measure(bundle: str, work: Path, images: int, layout: str) -> dict[str, Any]:
    """Loop, `label` with the cluster's start counted, `label` on a running cluster, loop again."""
    print(f"making {images:,} pictures", flush=True)
    folder = work / "faces"
    make(folder, images, layout)
    ids = ["--id-column", "id"] if layout == "parquet" else []
    before, loop_memory, _ = timed(lambda: run_bare(bundle, folder, layout, work / "bare-1"))
    command = [sys.executable, "-m", "fer_scale", "label", bundle, str(folder), str(work / "out-1"), *ids]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_ADDRESS": "local"}
    whole, memory, _ = timed(lambda: subprocess.run(command, check=True, env=environment))

    from fer_scale.cluster import connected
    from fer_scale.verbs.label import label

    os.environ["RAY_ADDRESS"] = "local"
    with connected():
        quoted = label(bundle, folder, work / "out-2", id_column="id" if ids else None, dry_run=True)["seconds"]
        warm, _, summary = timed(lambda: label(bundle, folder, work / "out-2", id_column="id" if ids else None))
    after, _, _ = timed(lambda: run_bare(bundle, folder, layout, work / "bare-2"))
    if summary["labelled"] != images or summary["duplicates"]:
        raise SystemExit(f"not all pictures were inferred: {summary}")
    bare_rate = 2 * images / (before + after)
    return {
        "images": images,
        "layout": layout,
        "model_id": summary["model_id"],
        "bare_loop": {"images_per_second": bare_rate, "seconds": [before, after], "peak_mib": loop_memory},
        "label": {"images_per_second": images / warm, "seconds": warm, "of_bare": images / warm / bare_rate},
        "dry_run": {"seconds": quoted, "of_the_run": quoted / summary["seconds"]},
        "label_and_cluster_start": {
            "images_per_second": images / whole,
            "seconds": whole,
            "of_bare": images / whole / bare_rate,
            "peak_mib": memory,
        },
        "machine": f"{os.cpu_count()} CPUs, {platform.machine()}, {platform.system()}",
        "versions": {name: version(name) for name in ("ray", "onnxruntime", "pyarrow", "pillow", "numpy")},
        "load_average": os.getloadavg(),
        "date": time.strftime("%Y-%m-%d"),
        "command": f"python benchmarks/labelling.py BUNDLE --images {images} --layout {layout}",
    }


def text(result: dict[str, Any]) -> str:
    """The result as a Markdown page."""
    loop, ours, cold = result["bare_loop"], result["label"], result["label_and_cluster_start"]
    versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    biggest = ", ".join(f"{name}: {size:,.0f}" for name, size in list(cold["peak_mib"].items())[:8])
    return f"""# Labelling {result["images"]:,} pictures ({result["layout"]})

| | images/s | seconds | of the bare loop |
|---|---|---|---|
| bare loop, {PROCESSES} processes, mean of before and after | {loop["images_per_second"]:,.0f} | {loop["seconds"][0]:.1f}, {loop["seconds"][1]:.1f} | 1 |
| `fer-scale label`, cluster running | {ours["images_per_second"]:,.0f} | {ours["seconds"]:.1f} | {ours["of_bare"]:.2f} |
| `fer-scale label`, start of Python and cluster counted | {cold["images_per_second"]:,.0f} | {cold["seconds"]:.1f} | {cold["of_bare"]:.2f} |

`--dry-run` had quoted {result["dry_run"]["of_the_run"]:.2f} of the seconds that the run then took.

Peak resident memory by process, MiB: {biggest}.

{result["machine"]}; {versions}; load average {", ".join(f"{x:.1f}" for x in result["load_average"])}; {result["date"]}.
Made by `{result["command"]}`.
"""  # noqa: E501


if __name__ == "__main__":
    main()
