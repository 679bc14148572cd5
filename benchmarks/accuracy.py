"""The best accuracy on PublicTest in 30, 60 and 120 minutes of this machine, and with votes against FER+'s majority.

    python benchmarks/accuracy.py [--budgets 30m 60m 120m] [--labels fer2013 ferplus] [--ways plain all-classes-first]

A plain fit is one `fer-scale train` with the ablation's recipe. The other way gives the first 45 % of the budget to a
fit on all of the source's classes, and the rest to one that begins with its backbone (`--init-from`). Training rows are
train, PublicTest is test, which only `evaluate` reads. What has ended is in benchmarks/results/accuracy.json and is not
repeated; a fit that was killed goes on from its checkpoint in --work. FER_SCALE_DATA names the folder with FER2013's
files.
"""

import argparse
import json
from functools import partial
from itertools import product
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
FIRST = 0.45
"""Share of the budget for all classes."""
VOTED = "neutral,happiness,surprise,sadness,anger,disgust,fear,contempt,unknown,not-a-face"
LABELS = {
    "fer2013": RENAMED,
    "ferplus": [
        *("--rename", "surprise=surprised,happiness=happy,sadness=sad", "--votes-classes", VOTED),
        "--label-from-votes",
    ],
}
CLASSES = {
    "fer2013": "angry,disgust,fear,happy,neutral,sad,surprised",
    "ferplus": "neutral,happy,surprised,sad,anger,disgust,fear,contempt",
}
"""All that a face can be."""


def measured(labels: str, minutes: float, way: str, work: Path) -> dict[str, Any]:
    """One fit, or two, and what the last answers on the test split."""
    stem = f"{labels}-{minutes:g}m-{way}"
    more: list[Any] = LABELS[labels]
    if labels == "ferplus":
        (work / "votes").mkdir(exist_ok=True)
        for name in ("training", "publictest"):
            link = work / "votes" / f"{name}.parquet"
            link.unlink(missing_ok=True)
            link.symlink_to((fer2013() / f"{name}_ferplus_votes.parquet").resolve())
        more = [*more, "--votes", work / "votes"]
    config = work / f"{stem}.json"
    config.write_text(json.dumps(CONFIGURATION, indent=2))
    fitted, start = [], []
    if way != "plain":
        everything = store(work, *more, "--classes", CLASSES[labels], name=f"store-{labels}-all")
        fitted.append(fit(everything, config, work / f"{stem}-first", FIRST * minutes))
        start = ["--init-from", work / f"{stem}-first"]
    made = store(work, *more, name=f"store-{labels}")
    left = minutes if way == "plain" else (1 - FIRST) * minutes
    bundle, report = work / stem, work / f"{stem}-report"
    fitted.append(fit(made, config, bundle, left, *start))
    fer_scale("evaluate", bundle, made, "--out", report, "--overwrite")
    metrics = json.loads((report / "metrics.json").read_text())
    figures = {key: metrics[key] for key in ("accuracy", "accuracy_interval", "macro_f1", "ece", "n", "per_class")}
    return {"configuration": CONFIGURATION, "fitted": fitted, "test": figures}


def fit(made: Path, config: Path, bundle: Path, minutes: float, *more: Any) -> dict[str, Any]:
    """`fer-scale train`; what was killed goes on, what is there is not fitted again."""
    if (bundle / "metrics.json").exists():
        return {"bundle": str(bundle), "seconds": None}
    again = ["--resume"] if bundle.exists() else []
    options = ["--config", config, "--out", bundle, "--time-budget", f"{minutes:g}m", "--workers", WORKERS]
    return fer_scale("train", made, *options, *more, *again)


def main() -> None:
    """Measure what is not in the results yet."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--budgets", nargs="*", default=["30m", "60m", "120m"])
    parser.add_argument("--labels", nargs="*", default=list(LABELS), choices=list(LABELS))
    parser.add_argument("--ways", nargs="*", default=["plain"], choices=["plain", "all-classes-first"])
    parser.add_argument("--work", type=Path, default=ROOT / ".accuracy", help="Stores, bundles and reports.")
    given = parser.parse_args()
    given.work.mkdir(exist_ok=True)
    pieces = Pieces("accuracy")
    for labels, budget, way in product(given.labels, given.budgets, given.ways):
        key = f"{labels} {budget}" if way == "plain" else f"{labels} {budget}, {way}"
        minutes = float(budget.removesuffix("m"))
        pieces.piece(key, partial(measured, labels, minutes, way, given.work.resolve()))


if __name__ == "__main__":
    main()
