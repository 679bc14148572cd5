"""Thirty random kills of `fer-scale label` on a cluster of several nodes, each compared with an unbroken run.

    python benchmarks/labelling_chaos.py BUNDLE

A round is a cluster of four raylets of one CPU (cluster/local.py) and ten runs over the same pictures, some of which
are none. In each run something is killed with SIGKILL as soon as a random number of work units is published: the
driver (four times), an actor (three) or a raylet with all that runs on it (three), in random order. Then the same
command is run again. Wanted: the rows of labels and errors are those of the unbroken run, bit by bit; and a run that
lost an actor or a node ended by itself.

Pieces, one a kill, go into benchmarks/results/labelling_chaos.json; a second call goes on with the next. Counts, not
times: it may run on a machine that does other things.
"""

import argparse
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import psutil
import pyarrow.parquet as pq
from pieces import ROOT, Pieces

from cluster.local import cluster
from fer_scale.faces.images import encode_png

KINDS = ("driver",) * 4 + ("actor",) * 3 + ("node",) * 3
"""Of a round."""
NODES = 4
BAD = {"empty.png": b"", "text.png": b"no picture", "cut.png": b"\x89PNG\r\n\x1a\n"}


def command(bundle: Path, faces: Path, out: Path) -> list[str]:
    return [
        sys.executable,
        "-m",
        "fer_scale",
        "label",
        *map(str, (bundle, faces, out)),
        "--include",
        "*.png",
        "--quiet",
    ]


def run(words: list[str]) -> None:
    subprocess.run(words, cwd=ROOT, check=True, timeout=300)


def rows(out: Path) -> list[list[dict[str, Any]]]:
    """Labels and errors in the order of their ids."""
    tables = [pq.read_table(out / kind).to_pylist() for kind in ("labels", "errors")]
    return [sorted(table, key=lambda row: (row["id"], row.get("face", 0))) for table in tables]


def published(out: Path) -> int:
    return len(list((out / "ledger/labels").glob("[!.]*.parquet")))


def victim(kind: str, driver: int, raylets: list[int], draw: random.Random) -> int:
    """The process to kill."""
    if kind == "driver":
        return driver
    if kind == "node":
        return raylets.pop(draw.randrange(len(raylets)))
    workers = [child for number in raylets for child in psutil.Process(number).children(recursive=True)]
    actors = [child.pid for child in workers if any("Labeller" in word for word in child.cmdline())]
    return draw.choice(actors) if actors else 0


def one(words: list[str], out: Path, kind: str, after: int, raylets: list[int], draw: random.Random) -> dict[str, Any]:
    """Begin a run, kill, run again; what there was at the kill and after it."""
    begun = subprocess.Popen(words, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    while begun.poll() is None and published(out) < after:
        time.sleep(0.01)
    time.sleep(draw.uniform(0, 0.2))
    number = victim(kind, begun.pid, raylets, draw)
    found: dict[str, Any] = {"kind": kind, "units": published(out), "killed": begun.poll() is None and number > 0}
    if found["killed"]:
        os.kill(number, signal.SIGKILL)
    _, said = begun.communicate(timeout=300)
    if kind != "driver" and begun.returncode:
        raise SystemExit(f"a run that lost {kind} {number} ended with {begun.returncode}: {said[-2000:]}")
    found["complete"] = (out / "summary.json").exists()
    run(words)
    return found


def broken(words: list[str], out: Path, key: str, raylets: list[int], whole: Path) -> dict[str, Any]:
    """A piece: a run with a kill in its middle, again with another draw where it came too late."""
    kind = key.rpartition("-")[2]
    units = published(whole)
    for attempt in range(5):
        shutil.rmtree(out, ignore_errors=True)
        draw = random.Random(f"{key} {attempt}")
        found = one(words, out, kind, draw.randrange(units), raylets, draw)
        if found["killed"]:
            break
    same = rows(out) == rows(whole)
    return found | {"of": units, "same": same, "labels": len(rows(out)[0]), "errors": len(rows(out)[1])}


def pictures(folder: Path, count: int) -> None:
    """So many of noise, and some files that are none."""
    folder.mkdir()
    draw = np.random.default_rng(0)
    for number in range(count):
        pixels = draw.integers(0, 256, (48, 48), dtype=np.uint8)
        (folder / f"{number:06d}.png").write_bytes(encode_png(pixels))
    for name, data in BAD.items():
        (folder / name).write_bytes(data)


def play(number: int, bundle: Path, work: Path) -> None:
    """What is left of a round."""
    pieces = Pieces("labelling_chaos")
    faces, whole, out = (work / name for name in ("faces", "whole", "out"))
    kinds = random.Random(number).sample(KINDS, len(KINDS))
    keys = [f"{number}-{at}-{kind}" for at, kind in enumerate(kinds)]
    left = [key for key in keys if key not in pieces.found]
    if not left:
        return
    words = command(bundle, faces, out)
    with cluster(NODES, 1, 0) as raylets:
        if not whole.exists():
            run(command(bundle, faces, whole))
        for key in left:
            pieces.piece(key, lambda key=key: broken(words, out, key, raylets, whole))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fs-chaos-") as work:
        pictures(Path(work, "faces"), given.images)
        for number in range(given.rounds):  # in a process of its own, for Ray reads a cluster's token once a process
            playing = multiprocessing.get_context("spawn").Process(target=play, args=(number, given.bundle, Path(work)))
            playing.start()
            playing.join()
            if playing.exitcode:
                raise SystemExit(playing.exitcode)
    pieces = Pieces("labelling_chaos")
    found = list(pieces.found.values())
    print(f"{sum(one['killed'] for one in found)} kills, {sum(one['same'] for one in found)} ended as the unbroken run")
    for kind in sorted(set(KINDS)):
        mine = [one for one in found if one["kind"] == kind]
        complete = sum(one["complete"] for one in mine)
        print(f"| {kind} | {len(mine)} | {complete} | {sum(one['same'] for one in mine)} |")


if __name__ == "__main__":
    main()
