"""What a search itself costs: 10,000 trials that fit nothing, a thousand at once, through the whole of search/.

    OMP_NUM_THREADS=1 python benchmarks/search_overhead.py [--trials 10000] [--slots 1000]

Every proposal is drawn, every result told, journalled with its fsync and written into the table as in a real search;
only Ray and the fits are left out. So the figures say how many fits a second one driver can propose and record, and
nothing of how many Ray Tune can start and hear of: its loop, an actor's start and the way of a configuration come on
top of each, and whatever of them is slower is where a search on 1,000 GPUs breaks. For each tenth of the trials it
stores the CPU seconds and the latency of a proposal and of a result, the size of the journal and the memory of the
process in benchmarks/results/search_overhead.json.
"""

import argparse
import heapq
import json
import os
import platform
import tempfile
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

import fer_scale
from fer_scale.faces.sample import draw
from fer_scale.faces.store import Store
from fer_scale.families import FAMILIES
from fer_scale.search.search import Search
from fer_scale.search.study import Fit

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "benchmarks/results/search_overhead.json"
BUDGET = 1_000_000.0


def main() -> None:
    """Run it and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--slots", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fer_scale-overhead-") as folder:
        draw(Path(folder) / "faces", 40, seed=0)
        fer_scale.ingest(Path(folder) / "faces", Path(folder) / "store", quiet=True)
        store = Store.open(f"{folder}/store")
        rows = play(store, f"{folder}/search", given.trials, given.slots, max(given.trials // 10, 1))
        began = time.process_time()
        with Search(f"{folder}/search", store, list(FAMILIES), {}, **options(given.slots, given.trials)) as search:
            resumed = {"trials": len(search.record.table()), "cpu_seconds": round(time.process_time() - began, 1)}
    result = {
        "date": date.today().isoformat(),
        "hardware": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": {name: version(name) for name in ("optuna", "pyarrow")},
        "slots": given.slots,
        "by_trials": rows,
        "resume": resumed,
    }
    given.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


def options(slots: int, trials: int) -> dict[str, Any]:
    """Of a search that time does not end."""
    return {
        "budget": BUDGET,
        "slots": slots,
        "deadline": time.time() + BUDGET,
        "seed": 0,
        "max_trials": trials,
    }


def play(store: Store, out: str, trials: int, slots: int, each: int) -> list[dict[str, Any]]:
    """Keep all slots busy until every trial has come to its end; a row for each so many trials begun."""
    rng = np.random.default_rng(0)
    running: list[tuple[float, int, Fit]] = []
    rows, asked, told, cpu, clock = [], [], [], time.process_time(), 0.0
    with Search(out, store, list(FAMILIES), {}, **options(slots, trials)) as search:
        begun, mark = 0, each
        while True:
            while len(running) < slots:
                before = time.perf_counter()
                found = search.next()
                asked.append(time.perf_counter() - before)
                if found is None:
                    break
                number, fit = found
                begun = max(begun, fit.trial + 1)
                heapq.heappush(running, (clock + search.compute(number) * rng.uniform(0.9, 1.1), number, fit))
            if not running:
                break
            clock, number, fit = heapq.heappop(running)
            result = stub(fit, search.compute(number))
            before = time.perf_counter()
            search.end(number, result)
            told.append(time.perf_counter() - before)
            if begun >= mark and told[1:]:
                mark = (begun // each + 1) * each
                rows.append(row(begun, asked, told, time.process_time() - cpu, Path(out)))
                asked, told, cpu = [], [], time.process_time()
                print(rows[-1], flush=True)
    return rows


def stub(fit: Fit, compute: float) -> dict[str, Any]:
    """A result that depends on the configuration, so that the sampler has something to learn."""
    recipe = fit.configuration["recipe"]
    accuracy = 0.6 + 0.05 * fit.rung - 0.05 * abs(np.log10(recipe["lr"]) + 2) + 0.02 * recipe["augmentation"]
    accuracy = float(np.clip(accuracy + np.random.default_rng(fit.seed).normal(0, 0.02), 0, 1))
    interval = {"accuracy_low": accuracy - 0.02, "accuracy_high": accuracy + 0.02}
    facts = {"parameters": 10**6, "weights": "none", "images_seen": 10**5, "compute_seconds": compute, "share": 1.0}
    return {"accuracy": accuracy, **interval, **facts}


def row(begun: int, asked: list[float], told: list[float], cpu: float, out: Path) -> dict[str, Any]:
    """What the last trials cost."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "trials": begun,
        "fits": len(told),
        "cpu_ms_a_fit": round(1000 * cpu / max(len(told), 1), 2),
        "proposal_ms": [round(1000 * float(np.percentile(asked, q)), 1) for q in (50, 99)],
        "result_ms": [round(1000 * float(np.percentile(told, q)), 1) for q in (50, 99)],
        "memory_mib": round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20),
        "journal_mib": round((out / "journal.log").stat().st_size / 2**20, 1),
    }


if __name__ == "__main__":
    main()
