"""The six families' reference configurations side by side on FER2013: curves, test accuracy with intervals.

    python benchmarks/families.py [--minutes 20] [--vgg-minutes 45] [--work DIR] [--only NAME ...]

As the source's report has them: each family in gray and in RGB, a transfer family cut at two layers, EfficientNet-Lite0
from ImageNet and from scratch. Training rows are train, PublicTest is test, which only `evaluate` reads. Each fit
is stored as it ends; the bundles stay in --work, and the last call draws them all with `evaluate B1 B2 ...`.
FER_SCALE_DATA names the folder with FER2013's files.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from pieces import ROOT, Pieces, fer_scale, store

FAMILIES = ("cnn1", "cnn2", "complex_cnn", "vgg16", "resnet", "efficientnet")
LITE0 = {"family": "efficientnet"}
FITS: dict[str, dict[str, Any]] = {
    f"{family} {color}": {"family": family, "preprocessing": {"size": 48, "channels": channels}}
    for family in FAMILIES
    for color, channels in (("gray", 1), ("RGB", 3))
} | {
    "efficientnet RGB, cut 6": {**LITE0, "network": {"cut": 6}, "preprocessing": {"size": 48, "channels": 3}},
    "efficientnet RGB, from scratch": {
        **LITE0,
        "network": {"weights": "none"},
        "preprocessing": {"size": 48, "channels": 3},
    },
}


def measured(name: str, work: Path, minutes: float) -> dict[str, Any]:
    """One fit, and its score."""
    stem = name.replace(",", "").replace(" ", "-")
    bundle, report, config = work / stem, work / f"{stem}-report", work / f"{stem}.json"
    config.write_text(json.dumps(FITS[name]))
    again = ["--resume"] if bundle.exists() else []
    made = store(work)
    fitted = fer_scale("train", made, "--config", config, "--out", bundle, "--time-budget", f"{minutes}m", *again)
    fer_scale("evaluate", bundle, made, "--out", report, "--overwrite")
    metrics = json.loads((report / "metrics.json").read_text())
    figures = {key: metrics[key] for key in ("accuracy", "accuracy_interval", "macro_f1", "n")}
    return {**figures, "epochs": fitted["epochs"], "weights": fitted["weights"], "minutes": minutes}


def main() -> None:
    """Fit what is not in benchmarks/results/families.json yet; the table, and the report of those that are here."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--vgg-minutes", type=float, default=45.0)
    parser.add_argument("--work", type=Path, default=ROOT / ".families", help="Store, bundles and reports.")
    parser.add_argument("--only", nargs="*", choices=list(FITS), default=list(FITS))
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    pieces = Pieces("families")
    for name in given.only:
        minutes = given.vgg_minutes if name.startswith("vgg16") else given.minutes
        pieces.piece(name, lambda name=name, minutes=minutes: measured(name, given.work, minutes))  # type: ignore[misc]
    print("| fit | minutes | epochs | weights | accuracy | 95 % | macro-F1 |\n" + "|---" * 7 + "|")
    for name in filter(pieces.found.get, FITS):
        row = pieces.found[name]
        low, high = row["accuracy_interval"]
        figures = f"{row['accuracy']:.3f} | {low:.3f} to {high:.3f} | {row['macro_f1']:.3f}"
        print(f"| {name} | {row['minutes']:g} | {row['epochs']:g} | {row['weights']} | {figures} |")
    bundles = [given.work / name.replace(",", "").replace(" ", "-") for name in FITS]
    here = [bundle for bundle in bundles if (bundle / "config.json").exists()]
    if len(here) > 1:
        fer_scale("evaluate", *here, store(given.work), "--out", given.work / "report", "--overwrite")


if __name__ == "__main__":
    main()
