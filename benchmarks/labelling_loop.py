"""What `labelling.py` and `labelling_s3.py` measure `label` against: the loop that one would write for one machine.

Two processes, each with a one-thread ONNX Runtime session, that read their half of the pictures, decode, infer in
batches of 128 and write Parquet; from S3, 32 threads of each get and decode ahead. It has no ledger, no error table
and no report.
"""

import io
import json
import multiprocessing
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
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
BATCH = 128
PROCESSES = 2
THREADS = 32
Decode = Callable[[bytes], npt.NDArray[np.uint8]]


def pictures(seed: int = 0) -> list[npt.NDArray[np.uint8]]:
    """Gray 48x48 faces to vary: FER2013 where it is, drawn ones elsewhere."""
    folder = Path(os.environ.get("FER_SCALE_DATA", ROOT.parent / "shared/data/fer2013"))
    if folder.is_dir():
        column = pq.read_table(folder / "publictest.parquet", columns=["image"])["image"].to_pylist()
        return [np.asarray(Image.open(io.BytesIO(data)).convert("L")) for data in column]
    from fer_scale.faces.sample import CLASSES, face

    random = np.random.default_rng(seed)
    return [np.asarray(face(CLASSES[n % len(CLASSES)], random, 48)) for n in range(500)]


def encoded(images: int) -> Iterator[tuple[str, bytes]]:
    """Name and PNG of so many pictures, no two alike: a little noise on each, and its number in the noise's seed."""
    base = pictures()
    for n in range(images):
        noise = np.random.default_rng(n).integers(-6, 7, (48, 48))
        pixels = np.clip(base[n % len(base)].astype(np.int64) + noise, 0, 255).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        yield f"{n // 1000:03d}/{n:07d}", buffer.getvalue()


def make(folder: Path, images: int, layout: str) -> None:
    """Store pictures as ``files``, or as rows of ``parquet``, 10,000 a file."""
    folder.mkdir(parents=True)
    rows: list[dict[str, Any]] = []
    for n, (name, data) in enumerate(encoded(images)):
        if layout == "files":
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / f"{name}.png").write_bytes(data)
            continue
        rows.append({"id": name.rpartition("/")[2], "image": data})
        if len(rows) == 10_000 or n == images - 1:
            target = folder / f"faces-{n // 10_000:04d}.parquet"
            pq.write_table(pa.Table.from_pylist(rows), target, row_group_size=1000)
            rows = []


class Model:
    """A bundle's network in a session of its own, and what surrounds it."""

    def __init__(self, bundle: str) -> None:
        import onnxruntime as ort

        self.config = json.loads((Path(bundle) / "config.json").read_text())
        self.size, self.channels = (self.config["preprocessing"][name] for name in ("size", "channels"))
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        path = str(Path(bundle) / "model.onnx")
        self.session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def decode(self, data: bytes) -> npt.NDArray[np.uint8]:
        """PNG to uint8 ``[C, S, S]``."""
        image = Image.open(io.BytesIO(data)).convert("L" if self.channels == 1 else "RGB")
        if image.size != (self.size, self.size):
            image = image.resize((self.size, self.size), Image.Resampling.BILINEAR)
        pixels = np.asarray(image)
        return pixels[None] if self.channels == 1 else pixels.transpose(2, 0, 1)

    def write(self, ids: list[str], pictures: Iterable[npt.NDArray[np.uint8]], target: Path) -> None:
        """Infer a batch, and write its labels."""
        images = np.empty((len(ids), self.channels, self.size, self.size), dtype=np.uint8)
        for at, pixels in enumerate(pictures):
            images[at] = pixels
        (logits,) = self.session.run(["logits"], {"images": images})
        scaled = logits.astype(np.float64) / self.config["temperature"]
        odds = np.exp(scaled - scaled.max(axis=1, keepdims=True))
        found = (odds / odds.sum(axis=1, keepdims=True)).astype(np.float32)
        table = pa.table({"id": ids, "label": found.argmax(axis=1), "confidence": found.max(axis=1)})
        for index, name in enumerate(self.config["classes"]):
            table = table.append_column(f"prob_{name}", pa.array(found[:, index]))
        pq.write_table(table, target)


def _parquet(folder: str, share: int) -> Iterator[tuple[list[str], list[bytes]]]:
    groups = [(f, g) for f in sorted(Path(folder).iterdir()) for g in range(pq.ParquetFile(f).num_row_groups)]
    for file, group in groups[share::PROCESSES]:
        for batch in pq.ParquetFile(file).iter_batches(batch_size=BATCH, row_groups=[group]):
            yield batch["id"].to_pylist(), batch["image"].to_pylist()


def _files(folder: str, share: int) -> Iterator[tuple[list[str], list[bytes]]]:
    names = sorted(Path(folder).rglob("*.png"))[share::PROCESSES]
    for start in range(0, len(names), BATCH):
        files = names[start : start + BATCH]
        yield [str(file.relative_to(folder)) for file in files], [file.read_bytes() for file in files]


def _s3(url: str, share: int, decode: Decode) -> Iterator[tuple[list[str], list[npt.NDArray[np.uint8]]]]:
    """Batches that are decoded by the threads that fetch them, two batches ahead."""
    import boto3
    from botocore.config import Config

    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    client = boto3.client(
        "s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"], config=Config(max_pool_connections=THREADS)
    )
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{prefix}/")
    keys = [entry["Key"] for page in pages for entry in page["Contents"]][share::PROCESSES]

    def one(key: str) -> npt.NDArray[np.uint8]:
        return decode(client.get_object(Bucket=bucket, Key=key)["Body"].read())

    with ThreadPoolExecutor(THREADS) as pool:
        left = iter(keys)
        ahead: deque[tuple[str, Future[npt.NDArray[np.uint8]]]] = deque()
        while True:
            ahead.extend((key, pool.submit(one, key)) for key in islice(left, 3 * BATCH - len(ahead)))
            if not ahead:
                return
            batch = [ahead.popleft() for _ in range(min(BATCH, len(ahead)))]
            yield [key for key, _ in batch], [future.result() for _, future in batch]


def bare(bundle: str, source: str, layout: str, share: int, out: Path) -> None:
    """One process of the loop."""
    model = Model(bundle)
    if layout == "s3":
        for number, (ids, images) in enumerate(_s3(source, share, model.decode)):
            model.write(ids, images, out / f"{share}-{number}.parquet")
        return
    read = _parquet if layout == "parquet" else _files
    for number, (ids, data) in enumerate(read(source, share)):
        model.write(ids, map(model.decode, data), out / f"{share}-{number}.parquet")


def run_bare(bundle: str, source: str, layout: str, out: Path, images: int) -> None:
    """The loop, its processes started and ended."""
    out.mkdir()
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=bare, args=(bundle, source, layout, n, out)) for n in range(PROCESSES)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        if worker.exitcode:
            raise SystemExit(f"the bare loop failed with {worker.exitcode}")
    rows = sum(pq.ParquetFile(file).metadata.num_rows for file in out.iterdir())
    if rows != images:
        raise SystemExit(f"the bare loop wrote {rows} rows of {images}")


class Use:
    """CPU seconds and the largest resident memory, MiB, of this process and those below it, looked at four times a
    second: what a process spends after the last look before its end is not seen."""

    def __init__(self) -> None:
        self.peak: dict[str, float] = {}
        self.cpu: dict[str, float] = {}
        self._before: dict[str, float] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> "Use":
        self._look()
        self._before, self.cpu = self.cpu, {}
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._look()

    def cpu_seconds(self) -> float:
        """Of all processes together."""
        return round(sum(seconds - self._before.get(name, 0.0) for name, seconds in self.cpu.items()), 2)

    def largest(self) -> dict[str, float]:
        """The twelve largest processes."""
        return dict(sorted(self.peak.items(), key=lambda item: -item[1])[:12])

    def _sample(self) -> None:
        while not self._stop.wait(0.25):
            self._look()

    def _look(self) -> None:
        me = psutil.Process()
        for process in [me, *me.children(recursive=True)]:
            try:
                name = f"{process.name()} {process.pid}" if process != me else "driver"
                size, times = process.memory_info().rss / 2**20, process.cpu_times()
            except psutil.NoSuchProcess:
                continue  # it ended between two looks
            name = f"ray {process.pid}" if name.startswith("ray::") else name  # its title changes with its task
            self.peak[name] = max(self.peak.get(name, 0.0), round(size, 1))
            self.cpu[name] = times.user + times.system


def timed(work: Callable[[], Any]) -> tuple[float, Use, Any]:
    """Seconds, what was used, and what the work gave."""
    with Use() as use:
        began = time.perf_counter()
        found = work()
        seconds = time.perf_counter() - began
    return seconds, use, found
