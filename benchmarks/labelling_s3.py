"""`fer-scale label` from S3 against a bare loop with a thread pool, both from one local server.

    python benchmarks/labelling_s3.py BUNDLE --objects 20000

The server is moto's threaded one, in a process of its own on this machine. The loop (labelling_loop.py) is two
processes, each with 32 threads that get and decode ahead of a one-thread ONNX Runtime session; `label` has two actors
that do the same. Pieces: ``server`` (the same gets, and nothing done with the bytes: what the server itself allows),
``loop-1``, ``label``, ``loop-2``. A piece that benchmarks/results/labelling_s3.json has of as many objects is not
measured again without --again.
"""

import argparse
import json
import multiprocessing
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import psutil
from labelling_loop import PROCESSES, ROOT, THREADS, Use, encoded, run_bare, timed

BUCKET = "faces"
PIECES = ("server", "loop-1", "label", "loop-2")


def settings() -> None:
    """Of the local server alone; in this process, whose children take them over."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        del os.environ[name]
    os.environ.update(
        RAY_ADDRESS="local", AWS_ACCESS_KEY_ID="local", AWS_SECRET_ACCESS_KEY="local", AWS_REGION="us-east-1",
        AWS_DEFAULT_REGION="us-east-1", AWS_EC2_METADATA_DISABLED="true",
    )  # fmt: skip


def serve(address: Connection) -> None:
    """moto's server, until it is killed."""
    import logging

    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    address.send(server.get_host_and_port())
    time.sleep(86400)


@contextmanager
def served(objects: int) -> Iterator[int]:
    """A server with so many pictures; its process id."""
    import boto3

    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(there,), daemon=True)
    process.start()
    try:
        host, port = here.recv()
        os.environ["AWS_ENDPOINT_URL"] = f"http://{host}:{port}"
        client = boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"])
        client.create_bucket(Bucket=BUCKET)
        print(f"storing {objects:,} objects", flush=True)
        with ThreadPoolExecutor(8) as pool:
            put = lambda item: client.put_object(Bucket=BUCKET, Key=f"faces/{item[0]}.png", Body=item[1])  # noqa: E731
            for _ in pool.map(put, encoded(objects)):
                pass
        yield process.pid or 0
    finally:
        process.terminate()
        process.join()


def get_share(share: int, counted: Any) -> None:
    """The gets of one process of the loop, and nothing else."""
    from labelling_loop import _s3

    for ids, _ in _s3(f"s3://{BUCKET}/faces", share, lambda data: data):  # type: ignore[arg-type,return-value]
        with counted.get_lock():
            counted.value += len(ids)


def gets(objects: int) -> None:
    """What the server gives two processes of 32 threads each."""
    context = multiprocessing.get_context("spawn")
    counted = context.Value("i", 0)
    processes = [context.Process(target=get_share, args=(share, counted)) for share in range(PROCESSES)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if counted.value != objects:
        raise SystemExit(f"the server gave {counted.value} objects of {objects}")


def measure(piece: str, bundle: str, objects: int, server: int, work: Path) -> dict[str, Any]:
    """One piece."""
    source = f"s3://{BUCKET}/faces"
    process = psutil.Process(server)
    before = sum(process.cpu_times()[:2])
    if piece == "server":
        seconds, use, _ = timed(lambda: gets(objects))
    elif piece == "label":
        seconds, use = label(bundle, source, objects, work / "out")
    else:
        seconds, use, _ = timed(lambda: run_bare(bundle, source, "s3", work / piece, objects))
    serving = sum(process.cpu_times()[:2]) - before
    return {
        "seconds": seconds,
        "objects_per_second": objects / seconds,
        "cpu_seconds": round(use.cpu_seconds() - serving, 2),
        "cpu_seconds_of_the_server": round(serving, 2),
        "load_average": os.getloadavg()[0],
        "date": time.strftime("%Y-%m-%d %H:%M"),
    }


def label(bundle: str, source: str, objects: int, out: Path) -> tuple[float, Use]:
    """On a running cluster."""
    from fer_scale.cluster import connected
    from fer_scale.verbs.label import label as run

    with connected():
        seconds, use, summary = timed(lambda: run(bundle, source, out, workers=PROCESSES))
    if summary["labelled"] != objects or summary["duplicates"]:
        raise SystemExit(f"not all pictures were inferred: {summary}")
    return seconds, use


def main() -> None:
    """Measure what is missing, and say how the two compare."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("bundle")
    parser.add_argument("--objects", type=int, default=20_000)
    parser.add_argument("--again", action="store_true", help="also what was measured before")
    parser.add_argument("--to", type=Path, default=ROOT / "benchmarks" / "results" / "labelling_s3.json")
    options = parser.parse_args()
    settings()
    every = json.loads(options.to.read_text()) if options.to.exists() else {}
    found = {} if options.again else every.get(str(options.objects), {})
    every[str(options.objects)] = found
    left = [piece for piece in PIECES if piece not in found]
    work = Path(tempfile.mkdtemp(prefix="labelling-s3-"))
    try:
        with served(options.objects) as server:
            for piece in left:
                found[piece] = measure(piece, options.bundle, options.objects, server, work)
                print(piece, json.dumps(found[piece]), flush=True)
                found["machine"] = f"{os.cpu_count()} CPUs, {platform.machine()}, {platform.system()}"
                found["versions"] = {name: version(name) for name in ("ray", "onnxruntime", "boto3", "moto")}
                found["threads"] = THREADS
                options.to.write_text(json.dumps(every, indent=2) + "\n")
    finally:
        shutil.rmtree(work)
    loop = 2 / (1 / found["loop-1"]["objects_per_second"] + 1 / found["loop-2"]["objects_per_second"])
    ours, server_alone = (found[piece]["objects_per_second"] for piece in ("label", "server"))
    found["label_of_loop"], found["loop_of_server"] = round(ours / loop, 3), round(loop / server_alone, 3)
    options.to.write_text(json.dumps(every, indent=2) + "\n")
    print(f"server alone {server_alone:,.0f}, loop {loop:,.0f}, label {ours:,.0f} objects/s: {ours / loop:.2f} of it")


if __name__ == "__main__":
    main()
