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

NETWORKS = {
    "30m": ("tf_efficientnet_lite0", 96),
    "60m": ("tf_efficientnet_lite2", 96),
    "120m": ("tf_efficientnet_lite2", 128),
}
"""By budget: where faces are seen a dozen times anyway, a larger network and a larger input are worth their compute."""
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


def configuration(budget: str, lr: float = 2e-3) -> dict[str, Any]:
    """What the ablation recommends."""
    variant, size = NETWORKS[budget]
    return {
        "family": "efficientnet",
        "network": {"variant": variant, "weights": "imagenet", "stem": 2, "dropout": 0.5},
        "preprocessing": {"size": size, "channels": 1},
        "recipe": {"lr": lr, "mixup": 0.2, "label_smoothing": 0.0},
        "test_time_flip": True,
    }


def measured(labels: str, budget: str, way: str, work: Path) -> dict[str, Any]:
    """One fit, or two, and what the last answers on the test split."""
    stem, minutes, wanted = f"{labels}-{budget}-{way}", float(budget.removesuffix("m")), configuration(budget)
    bundle, first, report = work / stem, work / f"{stem}-first", work / f"{stem}-report"
    made = prepared(work, LABELS[labels], f"store-{labels}")
    if way == "plain":
        fitted = [fit(made, wanted, bundle, minutes)]
    else:
        everything = prepared(work, ALL[labels], f"store-{labels}-all")
        fitted = [
            fit(everything, wanted, first, FIRST * minutes),
            fit(made, configuration(budget, SECOND_LR), bundle, (1 - FIRST) * minutes, "--init-from", first),
        ]
    fer_scale("evaluate", bundle, made, "--out", report, "--overwrite")
    metrics = json.loads((report / "metrics.json").read_text())
    figures = {key: metrics[key] for key in ("accuracy", "accuracy_interval", "macro_f1", "ece", "n", "per_class")}
    return {"configuration": wanted, "fitted": fitted, "test": figures}


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


def fit(made: Path, wanted: dict[str, Any], bundle: Path, minutes: float, *more: Any) -> dict[str, Any]:
    """`fer-scale train`; what was killed goes on, what is there is not fitted again."""
    config = bundle.with_suffix(".json")
    if (bundle / "metrics.json").exists():
        return {"bundle": str(bundle), "seconds": None}
    config.write_text(json.dumps(wanted, indent=2))
    again = ["--resume"] if bundle.exists() else []
    options = ["--config", config, "--out", bundle, "--time-budget", f"{minutes:g}m", "--workers", WORKERS]
    return fer_scale("train", made, *options, *more, *again)


def main() -> None:
    """Measure what is not in the results yet."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--budgets", nargs="*", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--labels", nargs="*", default=list(LABELS), choices=list(LABELS))
    parser.add_argument("--ways", nargs="*", default=["plain"], choices=["plain", "votes-first"])
    parser.add_argument("--work", type=Path, default=ROOT / ".accuracy", help="Stores, bundles and reports.")
    given = parser.parse_args()
    given.work.mkdir(exist_ok=True)
    pieces = Pieces("accuracy")
    for labels, budget, way in product(given.labels, given.budgets, given.ways):
        key = f"{labels} {budget}" if way == "plain" else f"{labels} {budget}, {way}"
        pieces.piece(key, partial(measured, labels, budget, way, given.work.resolve()))


if __name__ == "__main__":
    main()
