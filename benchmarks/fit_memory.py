"""Peak memory of a streamed fit on stores of 100,000 and 2,000,000 rows.

    python benchmarks/fit_memory.py [--rows 100000 2000000] [--minutes 4]

A store of some thousand drawn faces is ingested; the larger ones repeat its files with new ids. The faces together
need far more than `--memory-limit`, so Ray Data reads them as the fit goes. Each fit runs by the clock, in which it
sees some ten thousand faces a minute or more; what is told is the peak memory of the command, of the largest worker, of
the largest process that reads, and of all that it started.
"""

import argparse
import json
import os
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pieces import Pieces, watched

import fer_scale as api
from fer_scale.faces.sample import draw

DRAWN = 6000
CONFIGURATION: dict[str, Any] = {
    "family": "resnet",
    "network": {"variant": "slim10", "width": 0.25, "weights": "none", "dense": "none"},
    "preprocessing": {"size": 48, "channels": 1},
    "recipe": {"batch_size": 256, "lr": 3e-3},
}


def enlarge(store: Path, out: Path, rows: int) -> None:
    """A store of about so many train rows: the train files of another again and again; all else as it is."""
    (out / "data").mkdir(parents=True)
    manifest = json.loads((store / "manifest.json").read_text())
    train = [path for path in sorted((store / "data").iterdir()) if path.name.startswith("train")]
    for path in set((store / "data").iterdir()) - set(train):
        os.link(path, out / "data" / path.name)
    table = pa.concat_tables([pq.read_table(path) for path in train])
    times = -(-rows // table.num_rows)
    for at in range(times):
        ids = pa.array([f"{at}/{one}" for one in table["id"].to_pylist()])
        again = table.set_column(table.schema.get_field_index("id"), "id", ids)
        pq.write_table(again, out / "data" / f"train-{at:05d}.parquet", row_group_size=1000, compression="none")
    splits = manifest["counts"]["splits"]
    splits["train"] = {name: count * times for name, count in splits["train"].items()}
    (out / "manifest.json").write_text(json.dumps(manifest))


def role(title: str) -> str | None:
    """What a process is here."""
    return "worker" if "RayTrainWorker" in title else "reading" if title.startswith("ray::") else None


def measured(work: Path, small: Path, rows: int, minutes: float) -> dict[str, Any]:
    """One fit by the clock, and its peaks."""
    store, out = work / f"store-{rows}", work / f"bundle-{rows}"
    enlarge(small, store, rows)
    options = ["--config", work / "config.json", "--out", out, "--time-budget", f"{minutes}m", "--memory-limit", "64MB"]
    _, peaks = watched(["train", store, *options], role)
    seen = int(pd.read_parquet(out / "curve.parquet")["step"].iloc[-1]) * CONFIGURATION["recipe"]["batch_size"]
    bytes_ = sum(path.stat().st_size for path in (store / "data").iterdir())
    mib = {f"{name}_mib": size for name, size in peaks.items()}
    return {"rows": rows, "store_mib": round(bytes_ / 2**20), "faces_seen": seen, **mib}


def main() -> None:
    """Measure what is not in benchmarks/results/fit_memory.json yet."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, nargs="*", default=[100_000, 2_000_000])
    parser.add_argument("--minutes", type=float, default=4.0)
    given = parser.parse_args()
    os.environ["RAY_ADDRESS"] = "local"
    pieces = Pieces("fit_memory")
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        (work / "config.json").write_text(json.dumps(CONFIGURATION))
        draw(work / "faces", DRAWN, seed=0)
        api.ingest(work / "faces", work / "store", quiet=True)
        for rows in given.rows:
            key = f"{rows} rows, {given.minutes:g} minutes"
            pieces.piece(key, partial(measured, work, work / "store", rows, given.minutes))


if __name__ == "__main__":
    main()
