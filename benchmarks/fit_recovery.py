"""A fit that is killed: seconds until it learns again, and what the kill changes in the result.

    python benchmarks/fit_recovery.py [--kills 3]

Three fits of the same plan on two workers: unbroken; a worker killed in the middle of an epoch (Ray Train starts it
anew); and the whole command killed in the middle of an epoch, and given again with `--resume`. An epoch takes some
ten seconds. Recovery ends when the first step after the kill ends: the wall time to the next checkpoint, less
what those steps take unbroken. The rest of the loss is work done twice: the steps since the last checkpoint.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
from pieces import ROOT, Pieces

import fer_scale as api
from fer_scale.faces.sample import draw

EPOCHS = 6
CONFIGURATION = {
    "family": "resnet",
    "network": {"variant": "slim10", "width": 0.5, "weights": "none", "dense": "none"},
    "preprocessing": {"size": 48, "channels": 1},
    "recipe": {"batch_size": 64, "lr": 3e-3},
}


class Fit:
    """`fer-scale train` as a process group of its own."""

    def __init__(self, work: Path, out: Path) -> None:
        self.state = out / "fit" / "state.json"
        self.out = out
        command = [sys.executable, "-m", "fer_scale", "train", str(work / "store"), "--out", str(out), "--workers", "2"]
        self._command = [*command, "--config", str(work / "config.json"), "--epochs", str(EPOCHS), "--quiet"]
        self.process = self._started()

    def _started(self, *more: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen([*self._command, *more], cwd=ROOT, start_new_session=True, stdout=subprocess.DEVNULL)

    def rows(self) -> int:
        """Checkpoints so far."""
        if (self.out / "curve.parquet").exists():
            return EPOCHS
        try:
            return len(json.loads(self.state.read_text())["curve"])
        except (OSError, ValueError):
            return 0

    def wait(self, rows: int) -> float:
        """Until there are so many checkpoints; when that was."""
        while self.rows() < rows:
            if self.process.poll() not in (None, 0):
                raise SystemExit(f"the fit ended with {self.process.returncode}")
            time.sleep(0.02)
        return time.monotonic()

    def kill_worker(self) -> None:
        """SIGKILL to one of Ray Train's workers."""
        family = psutil.Process(self.process.pid).children(recursive=True)
        next(child for child in family if "RayTrainWorker" in " ".join(child.cmdline())).kill()

    def kill_all(self) -> None:
        """SIGKILL to the command and all that it started; then the same command with --resume."""
        family = psutil.Process(self.process.pid).children(recursive=True)
        os.killpg(self.process.pid, signal.SIGKILL)
        for child in family:
            child.kill() if child.is_running() else None
        self.process.wait()
        self.process = self._started("--resume")


def measured(work: Path, kind: str, turn: int) -> dict[str, Any]:
    """One fit, killed half way through its third epoch."""
    fit = Fit(work, work / f"{kind}-{turn}")
    fit.wait(1)
    first = time.monotonic()
    second = fit.wait(2)
    epoch = second - first
    result: dict[str, Any] = {"epoch_seconds": round(epoch, 2)}
    if kind != "unbroken":
        time.sleep(epoch / 2)
        killed = time.monotonic()
        fit.kill_worker() if kind == "worker" else fit.kill_all()
        result["recovery_seconds"] = round(fit.wait(3) - killed - epoch, 2)
        result["done_twice_seconds"] = round(killed - second, 2)
    fit.process.wait()
    curve = pd.read_parquet(fit.out / "curve.parquet")
    return result | {"train_loss": curve["train_loss"].tolist(), "val_accuracy": curve["val_accuracy"].tolist()}


def main() -> None:
    """Measure what is not in benchmarks/results/fit_recovery.json yet."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=3)
    given = parser.parse_args()
    os.environ["RAY_ADDRESS"] = "local"
    pieces = Pieces("fit_recovery")
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        (work / "config.json").write_text(json.dumps(CONFIGURATION))
        draw(work / "faces", 8000, seed=0)
        api.ingest(work / "faces", work / "store", quiet=True)
        pieces.piece("unbroken", lambda: measured(work, "unbroken", 0))
        for kind in ("worker", "command"):
            seconds = [
                pieces.piece(f"{kind} {turn}", lambda kind=kind, turn=turn: measured(work, kind, turn))  # type: ignore[misc]
                for turn in range(given.kills)
            ]
            print(kind, "median recovery", statistics.median(each["recovery_seconds"] for each in seconds), "s")


if __name__ == "__main__":
    main()
