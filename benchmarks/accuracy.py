"""The best accuracy on PublicTest in 30, 60 and 120 minutes of this machine, and with votes against FER+'s majority.

    python benchmarks/accuracy.py [--budgets 30m 60m 120m] [--labels fer2013 ferplus]

Each fit is one `fer-scale train` with the ablation's recipe; Training rows are train, PublicTest is test, which only
`evaluate` reads. What has ended is in benchmarks/results/accuracy.json and is not repeated; a fit that was
killed goes on from its checkpoint in --work. FER_SCALE_DATA names the folder with FER2013's files.
"""

import argparse
import json
import os
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "benchmarks/results/accuracy.json"
CONFIGURATION = {
    "family": "efficientnet",
    "network": {"weights": "imagenet", "stem": 2, "dropout": 0.5},
    "preprocessing": {"size": 96, "channels": 1},
    "recipe": {"lr": 2e-3},
    "test_time_flip": True,
}
SPLITS = ["--split-column", "usage", "--split-map", "Training=train,PublicTest=test", "--id-column", "name"]
VOTED = "neutral,happiness,surprise,sadness,anger,disgust,fear,contempt,unknown,not-a-face"
LABELS = {
    "fer2013": ["--rename", "surprise=surprised"],
    "ferplus": [
        *("--rename", "surprise=surprised,happiness=happy,sadness=sad", "--votes-classes", VOTED),
        "--label-from-votes",
    ],
}


def command(*arguments: str) -> dict[str, Any]:
    """Run one command of fer-scale; its result."""
    print("fer-scale", " ".join(arguments), flush=True)
    call = [sys.executable, "-m", "fer_scale", *arguments, "--json"]
    done = subprocess.run(call, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def measured(labels: str, budget: str, work: Path, data: Path) -> dict[str, Any]:
    """One fit, and what it answers on the test split."""
    source, store = work / "source", work / f"store-{labels}"
    bundle, report, config = work / f"{labels}-{budget}", work / f"report-{labels}-{budget}", work / "config.json"
    if not store.exists():
        votes: list[str] = []
        source.mkdir(exist_ok=True)
        for name in ("training", "publictest"):
            link = source / f"{name}.parquet"
            link.unlink(missing_ok=True)
            link.symlink_to((data / f"{name}.parquet").resolve())
        if labels == "ferplus":
            (work / "votes").mkdir(exist_ok=True)
            for name in ("training", "publictest"):
                link = work / "votes" / f"{name}.parquet"
                link.unlink(missing_ok=True)
                link.symlink_to((data / f"{name}_ferplus_votes.parquet").resolve())
            votes = ["--votes", str(work / "votes")]
        command("ingest", str(source), str(store), *LABELS[labels], *SPLITS, *votes)
    config.write_text(json.dumps(CONFIGURATION, indent=2))
    again = ["--resume"] if bundle.exists() else []
    fitted = command(
        "train", str(store), "--config", str(config), "--out", str(bundle), "--time-budget", budget, *again
    )
    command("evaluate", str(bundle), str(store), "--out", str(report), "--overwrite")
    metrics = json.loads((report / "metrics.json").read_text())
    figures = {key: metrics[key] for key in ("accuracy", "accuracy_interval", "macro_f1", "ece", "n", "per_class")}
    return {"date": date.today().isoformat(), "cores": os.cpu_count(), "fitted": fitted, "test": figures}


def main() -> None:
    """Measure what is not in the results yet."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--budgets", nargs="*", default=["30m", "60m", "120m"])
    parser.add_argument("--labels", nargs="*", default=list(LABELS), choices=list(LABELS))
    parser.add_argument("--work", type=Path, default=ROOT / ".accuracy", help="Stores, bundles and reports.")
    given = parser.parse_args()
    data = Path(os.environ.get("FER_SCALE_DATA", ROOT.parent / "shared/data/fer2013"))
    given.work.mkdir(exist_ok=True)
    results: dict[str, Any] = json.loads(OUT.read_text()) if OUT.exists() else {"configuration": CONFIGURATION}
    for labels in given.labels:
        for budget in given.budgets:
            key = f"{labels} {budget}"
            if key not in results:
                results[key] = measured(labels, budget, given.work.resolve(), data)
                OUT.write_text(json.dumps(results, indent=2) + "\n")
            print(key, results[key]["test"]["accuracy"], results[key]["test"]["accuracy_interval"], flush=True)


if __name__ == "__main__":
    main()
