"""The best accuracy on PublicTest in 30, 60 and 120 minutes of this machine, and with votes against FER+'s majority.

    python benchmarks/accuracy.py [--budgets 30m 60m 120m] [--labels fer2013 ferplus]

Each fit is one `fer-scale train` with the ablation's recipe; Training rows are train, PublicTest is test, which only
`evaluate` reads. What has ended is in benchmarks/results/accuracy.json and is not repeated; a fit that was
killed goes on from its checkpoint in --work. FER_SCALE_DATA names the folder with FER2013's files.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from pieces import RENAMED, ROOT, Pieces, fer2013, fer_scale, store

CONFIGURATION = {
    "family": "efficientnet",
    "network": {"weights": "imagenet", "stem": 2, "dropout": 0.5},
    "preprocessing": {"size": 96, "channels": 1},
    "recipe": {"lr": 2e-3, "mixup": 0.2},
    "test_time_flip": True,
}
WORKERS = 2
"""Of one thread each."""
VOTED = "neutral,happiness,surprise,sadness,anger,disgust,fear,contempt,unknown,not-a-face"
LABELS = {
    "fer2013": RENAMED,
    "ferplus": [
        *("--rename", "surprise=surprised,happiness=happy,sadness=sad", "--votes-classes", VOTED),
        "--label-from-votes",
    ],
}


def measured(labels: str, budget: str, work: Path) -> dict[str, Any]:
    """One fit, and what it answers on the test split."""
    bundle, report, config = work / f"{labels}-{budget}", work / f"report-{labels}-{budget}", work / "config.json"
    more: list[Any] = LABELS[labels]
    if labels == "ferplus":
        (work / "votes").mkdir(exist_ok=True)
        for name in ("training", "publictest"):
            link = work / "votes" / f"{name}.parquet"
            link.unlink(missing_ok=True)
            link.symlink_to((fer2013() / f"{name}_ferplus_votes.parquet").resolve())
        more = [*more, "--votes", work / "votes"]
    made = store(work, *more, name=f"store-{labels}")
    config.write_text(json.dumps(CONFIGURATION, indent=2))
    again = ["--resume"] if bundle.exists() else []
    fitted = fer_scale(
        *("train", made, "--config", config, "--out", bundle, "--time-budget", budget, "--workers", WORKERS), *again
    )
    fer_scale("evaluate", bundle, made, "--out", report, "--overwrite")
    metrics = json.loads((report / "metrics.json").read_text())
    figures = {key: metrics[key] for key in ("accuracy", "accuracy_interval", "macro_f1", "ece", "n", "per_class")}
    return {"configuration": CONFIGURATION, "fitted": fitted, "test": figures}


def main() -> None:
    """Measure what is not in the results yet."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--budgets", nargs="*", default=["30m", "60m", "120m"])
    parser.add_argument("--labels", nargs="*", default=list(LABELS), choices=list(LABELS))
    parser.add_argument("--work", type=Path, default=ROOT / ".accuracy", help="Stores, bundles and reports.")
    given = parser.parse_args()
    given.work.mkdir(exist_ok=True)
    pieces = Pieces("accuracy")
    for labels in given.labels:
        for budget in given.budgets:
            key = f"{labels} {budget}"
            pieces.piece(key, lambda labels=labels, budget=budget: measured(labels, budget, given.work.resolve()))  # type: ignore[misc]


if __name__ == "__main__":
    main()
