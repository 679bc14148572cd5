"""The best accuracy on PublicTest in 30, 60 and 120 minutes of this machine, and with votes against FER+'s majority.

    python benchmarks/accuracy.py [--budgets 30m 60m 120m] [--labels fer2013 ferplus] [--ways plain votes-first]

A plain fit is one `fer-scale train` with the ablation's recipe. The other way gives the first three quarters of the
budget to a fit that learns the annotators' votes on the faces of all classes, and the rest to one that begins with its
backbone (`--init-from`). Training rows are train, PublicTest is test, which only `evaluate` reads. What has ended is in
benchmarks/results/accuracy.json and is not repeated; a fit that was killed goes on from its checkpoint in --work.
FER_SCALE_DATA names the folder with FER2013's files.
"""

import argparse
import json
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from pieces import RENAMED, ROOT, Pieces, fer2013, fer_scale, store

CONFIGURATION: dict[str, Any] = {
    "family": "efficientnet",
    "network": {"weights": "imagenet", "stem": 2, "dropout": 0.5},
    "preprocessing": {"size": 96, "channels": 1},
    "recipe": {"lr": 2e-3, "mixup": 0.2, "label_smoothing": 0.0},
    "test_time_flip": True,
}
SECOND_LR = 1e-3
"""Of a fit that begins with the backbone of another."""
WORKERS = 2
"""Of one thread each."""
FIRST = 0.75
"""Share of the budget for the votes on all classes."""
VOTED = "neutral,happiness,surprise,sadness,anger,disgust,fear,contempt,unknown,not-a-face"
VOTES = ["--rename", "surprise=surprised,happiness=happy,sadness=sad,anger=angry", "--votes-classes", VOTED]
SEVEN = "angry,disgust,fear,happy,neutral,sad,surprised"
LABELS = {"fer2013": RENAMED, "ferplus": [*VOTES, "--label-from-votes"]}
ALL = {
    "fer2013": [*VOTES, "--classes", SEVEN],
    "ferplus": [*VOTES, "--label-from-votes", "--classes", f"{SEVEN},contempt"],
}
"""The same labels, so that the same faces are carved into val and calib; all classes, and the votes as targets."""


def measured(labels: str, minutes: float, way: str, work: Path) -> dict[str, Any]:
    """One fit, or two, and what the last answers on the test split."""
    stem = f"{labels}-{minutes:g}m-{way}"
    bundle, first, report = work / stem, work / f"{stem}-first", work / f"{stem}-report"
    made = prepared(work, LABELS[labels], f"store-{labels}")
    if way == "plain":
        fitted = [fit(made, CONFIGURATION, bundle, minutes)]
    else:
        everything = prepared(work, ALL[labels], f"store-{labels}-all")
        second = {**CONFIGURATION, "recipe": {**CONFIGURATION["recipe"], "lr": SECOND_LR}}
        fitted = [
            fit(everything, CONFIGURATION, first, FIRST * minutes),
            fit(made, second, bundle, (1 - FIRST) * minutes, "--init-from", first),
        ]
    fer_scale("evaluate", bundle, made, "--out", report, "--overwrite")
    metrics = json.loads((report / "metrics.json").read_text())
    figures = {key: metrics[key] for key in ("accuracy", "accuracy_interval", "macro_f1", "ece", "n", "per_class")}
    return {"configuration": CONFIGURATION, "fitted": fitted, "test": figures}


def prepared(work: Path, options: list[Any], name: str) -> Path:
    """A store, with the votes where the options want them."""
    if "--votes-classes" in options:
        (work / "votes").mkdir(exist_ok=True)
        for file in ("training", "publictest"):
            link = work / "votes" / f"{file}.parquet"
            link.unlink(missing_ok=True)
            link.symlink_to((fer2013() / f"{file}_ferplus_votes.parquet").resolve())
        options = [*options, "--votes", work / "votes"]
    return store(work, *options, name=name)


def fit(made: Path, configuration: dict[str, Any], bundle: Path, minutes: float, *more: Any) -> dict[str, Any]:
    """`fer-scale train`; what was killed goes on, what is there is not fitted again."""
    config = bundle.with_suffix(".json")
    if (bundle / "metrics.json").exists():
        return {"bundle": str(bundle), "seconds": None}
    config.write_text(json.dumps(configuration, indent=2))
    again = ["--resume"] if bundle.exists() else []
    options = ["--config", config, "--out", bundle, "--time-budget", f"{minutes:g}m", "--workers", WORKERS]
    return fer_scale("train", made, *options, *more, *again)


def main() -> None:
    """Measure what is not in the results yet."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--budgets", nargs="*", default=["30m", "60m", "120m"])
    parser.add_argument("--labels", nargs="*", default=list(LABELS), choices=list(LABELS))
    parser.add_argument("--ways", nargs="*", default=["plain"], choices=["plain", "votes-first"])
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
