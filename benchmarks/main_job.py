"""The main job on FER2013: ingest, search six families, fit the winner, evaluate; time and accuracy.

    python benchmarks/main_job.py [--search 15m] [--fit 25m] [--seed 0]

The Training rows are train (val and calib are carved from them), PublicTest is test, which only `evaluate` reads.
FER_SCALE_DATA names the folder with training.parquet and publictest.parquet.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SPLITS = ["--split-column", "usage", "--split-map", "Training=train,PublicTest=test"]


def step(*arguments: str, steps: dict[str, Any]) -> dict[str, Any]:
    """Run one command; its result, and its wall time in ``steps``."""
    began = time.monotonic()
    command = [sys.executable, "-m", "fer_scale", *arguments, "--json"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    steps[arguments[0]] = {"command": " ".join(arguments), "seconds": round(time.monotonic() - began, 1)}
    return result


def main() -> None:
    """Run the line and write benchmarks/results/main_job_<cores>_<date>.json."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--search", default="15m")
    parser.add_argument("--fit", default="25m")
    parser.add_argument("--seed", default="0")
    given = parser.parse_args()
    data = Path(os.environ.get("FER_SCALE_DATA", ROOT.parent / "shared/data/fer2013"))
    steps: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "source"
        source.mkdir()
        for name in ("training.parquet", "publictest.parquet"):
            (source / name).symlink_to((data / name).resolve())
        store, search, bundle, report = (f"{folder}/{name}" for name in ("store", "search", "bundle", "report"))
        seed = ["--seed", given.seed]
        rename = ["--rename", "surprise=surprised", "--id-column", "name"]
        kept = step("ingest", str(source), store, *rename, *SPLITS, *seed, steps=steps)
        found = step("tune", store, "--out", search, "--time-budget", given.search, *seed, steps=steps)
        fitted = step("train", store, "--from", search, "--out", bundle, "--time-budget", given.fit, *seed, steps=steps)
        step("evaluate", bundle, store, "--out", report, *seed, steps=steps)
        metrics = json.loads((Path(report) / "metrics.json").read_text())
        board = json.loads((Path(search) / "leaderboard.json").read_text())["trials"]
    families = {row["family"]: row for row in reversed(board)}
    columns = ("accuracy", "accuracy_low", "accuracy_high", "rung", "parameters", "input", "weights", "images_seen")
    result = {
        "date": date.today().isoformat(),
        "hardware": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": {name: version(name) for name in ("ray", "torch", "timm", "optuna")},
        "store": {key: kept[key] for key in ("read", "kept", "duplicates", "splits", "fingerprint")},
        "steps": steps,
        "trials": found["trials"],
        "leaderboard": {name: {key: row[key] for key in columns} for name, row in families.items()},
        "fitted": fitted,
        "test": {key: metrics[key] for key in ("accuracy", "accuracy_interval", "macro_f1", "ece", "n", "per_class")},
    }
    out = ROOT / "benchmarks/results" / f"main_job_{os.cpu_count()}cores_{date.today():%Y%m%d}.json"
    out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
