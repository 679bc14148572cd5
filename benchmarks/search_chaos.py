"""A search that is killed with all its processes at random moments and resumed: no trial twice, none lost.

    OMP_NUM_THREADS=1 python benchmarks/search_chaos.py [--kills 20] [--seed 0]

Drawn faces, two small families, fits of some seconds. After each start it waits until the journal grows, then up to
ten seconds more, and sends SIGKILL to the driver and to every process of its Ray. What stood in the journal at each
kill must stand in it at the next and in the last table: every trial once, every score as it was, every fit that began
with one result, and with the configuration and the seed that it began with. The results go to
benchmarks/results/search_chaos.json.
"""

import argparse
import json
import os
import platform
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

import fer_scale
from fer_scale.faces.sample import draw
from fer_scale.search.journal import read

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "benchmarks/results/search_chaos.json"
TRIALS = 60
FIXED = {"size": 48, "batch_size": 32, "cnn1.width": 0.25, "cnn2.width": 0.25}
PATIENCE = 600.0


def main() -> None:
    """Run it and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args()
    moments = random.Random(given.seed)
    kills: list[dict[str, Any]] = []
    before: list[dict[str, Any]] = []
    lost = 0
    with tempfile.TemporaryDirectory(prefix="fer_scale-chaos-") as folder:
        draw(Path(folder) / "faces", 160, seed=0)
        fer_scale.ingest(Path(folder) / "faces", Path(folder) / "store", quiet=True)
        out = Path(folder) / "search"
        for number in range(given.kills):
            # the ladder is that of the first start: small fits
            began = time.monotonic()
            ended = killed(command(folder, out, "40s" if not number else "6h"), out, moments.uniform(0, 10))
            if ended:
                break
            found = fits(out)
            kills.append({"ended": len(ended_fits(found)), "running": len(found) - len(ended_fits(found))})
            print(number + 1, kills[-1], f"{time.monotonic() - began:.0f} s", flush=True)
            lost += missing(before, found)
            before = found
        subprocess.run(command(folder, out, "6h"), check=True, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        result = {
            "date": date.today().isoformat(),
            "hardware": f"{platform.machine()}, {os.cpu_count()} cores",
            "kills": kills,
            **judged(out, before, lost),
        }
    given.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({key: value for key, value in result.items() if key != "kills"}, indent=1))


def command(folder: str, out: Path, budget: str) -> list[str]:
    """The search, as a person types it."""
    fixes = [word for name, value in FIXED.items() for word in ("--fix", f"{name}={value}")]
    words = ["tune", f"{folder}/store", "--out", str(out), "--families", "cnn1,cnn2", "--max-trials", str(TRIALS)]
    return [sys.executable, "-m", "fer_scale", *words, *fixes, "--time-budget", budget, "--resume", "--quiet"]


def killed(words: list[str], out: Path, moment: float) -> bool:
    """Start it and kill it ``moment`` seconds after the journal first grew; whether it ended before that."""
    before, limit = len(read(str(out))), time.monotonic() + PATIENCE
    child = subprocess.Popen(words, start_new_session=True, stdout=subprocess.DEVNULL)
    try:
        while child.poll() is None and time.monotonic() < limit and len(read(str(out))) == before:
            time.sleep(0.1)
        if len(read(str(out))) == before:
            sys.exit(f"the search did not go on (it ended with {child.poll()})")
        time.sleep(moment)
        return child.poll() is not None
    finally:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def fits(out: Path) -> list[dict[str, Any]]:
    """Every fit of the journal: which trial, rung and seed, and its results."""
    found: list[dict[str, Any]] = []
    for line in read(str(out)).decode().splitlines():
        log = json.loads(line)
        attributes = log.get("user_attrs") or {}
        if log["op_code"] == 4:  # a trial begins
            found.append({**json.loads(attributes["fit"]), "results": []})
        elif "result" in log.get("user_attr", {}):
            found[log["trial_id"]]["results"].append(json.loads(log["user_attr"]["result"]))
    return found


def ended_fits(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those with a result."""
    return [one for one in found if one["results"]]


def missing(before: list[dict[str, Any]], now: list[dict[str, Any]]) -> int:
    """Fits of the journal at one kill that it does not have later as they were, with the result that they had."""

    def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
        return {**other, "results": other["results"][: len(one["results"])]} == one

    return len(before) - sum(map(same, before, now))


def judged(out: Path, before: list[dict[str, Any]], lost: int) -> dict[str, Any]:
    """What there is twice, and what is missing, of what stood in the journal at a kill too."""
    found, rows = fits(out), pq.read_table(out / "trials.parquet").to_pylist()
    which = Counter((one["trial"], one["rung"], one["confirm"]) for one in found)
    scores = {row["trial_id"]: row["scores"] for row in rows}
    changed = [
        one["trial"]
        for one in ended_fits(before)
        if not one["confirm"] and scores[one["trial"]][one["rung"] - 1] != one["results"][0]["accuracy"]
    ]
    return {
        "trials": len(rows),
        "fits": len(found),
        "trials_twice": len(rows) - len(scores),
        "trials_missing": TRIALS - len(scores),
        "fits_twice": sum(count - 1 for count in which.values()),
        "fits_with_two_results": sum(len(one["results"]) > 1 for one in found),
        "fits_without_a_result": sum(not one["results"] for one in found),
        "fits_lost_or_changed": lost + missing(before, found),
        "scores_changed": len(changed),
    }


if __name__ == "__main__":
    main()
