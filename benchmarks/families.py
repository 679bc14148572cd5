"""The six families' reference configurations side by side on FER2013: curves, test accuracy with intervals.

    OMP_NUM_THREADS=1 python benchmarks/families.py [--minutes 20] [--vgg-minutes 45] [--work DIR] [--only NAME ...]

As the source's report has them: each family in gray and in RGB, a transfer family cut at two layers, EfficientNet-Lite0
from ImageNet and from scratch. Training rows are train, PublicTest is test, which only `evaluate` reads. Each fit
has one core, and two run side by side, each with a Ray of its own. What has ended is stored; the bundles stay in
--work, and the last call draws them all with `evaluate B1 B2 ...`. FER_SCALE_DATA names the folder with FER2013's
files.
"""

import argparse
import json
import logging
import multiprocessing
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import ray
from pieces import ROOT, Pieces, store

import fer_scale

FAMILIES = ("cnn1", "cnn2", "complex_cnn", "vgg16", "resnet", "efficientnet")
TOGETHER = 2
"""Fits side by side, one a core."""
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


def measured(name: str, made: Path, minutes: float) -> dict[str, Any]:
    """One fit on one core, in a process of its own, and its score."""
    bundle, config = place(made.parent, name), place(made.parent, name).with_suffix(".json")
    report = bundle.with_name(f"{bundle.name}-report")
    config.write_text(json.dumps(FITS[name]))
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    budget, again = f"{minutes}m", bundle.exists()
    fitted = fer_scale.train(made, config=config, out=bundle, time_budget=budget, resume=again, quiet=True)
    metrics = fer_scale.evaluate(bundle, made, out=report, overwrite=True, quiet=True)
    figures = {key: metrics[key] for key in ("accuracy", "accuracy_interval", "macro_f1", "n")}
    return {**figures, "epochs": fitted["epochs"], "weights": fitted["weights"], "minutes": minutes}


def place(work: Path, name: str) -> Path:
    """Where the bundle of a fit is."""
    return work / name.replace(",", "").replace(" ", "-")


def main() -> None:
    """Fit what is not in benchmarks/results/families.json yet; the table, and the report of those that are here."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--vgg-minutes", type=float, default=45.0)
    parser.add_argument("--work", type=Path, default=ROOT / ".families", help="Store, bundles and reports.")
    parser.add_argument("--only", nargs="*", choices=list(FITS), default=list(FITS))
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    pieces, made = Pieces("families"), store(given.work.resolve())
    minutes = {name: given.vgg_minutes if name.startswith("vgg16") else given.minutes for name in given.only}
    left = sorted(set(given.only) - set(pieces.found), key=lambda name: -minutes[name])
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(TOGETHER, mp_context=context, max_tasks_per_child=1) as pool:
        at_work = {pool.submit(measured, name, made, minutes[name]): name for name in left}
        for done in as_completed(at_work):
            pieces.piece(at_work[done], done.result)
    print("| fit | minutes | epochs | weights | accuracy | 95 % | macro-F1 |\n" + "|---" * 7 + "|")
    for name in filter(pieces.found.get, FITS):
        row = pieces.found[name]
        low, high = row["accuracy_interval"]
        figures = f"{row['accuracy']:.3f} | {low:.3f} to {high:.3f} | {row['macro_f1']:.3f}"
        print(f"| {name} | {row['minutes']:g} | {row['epochs']:g} | {row['weights']} | {figures} |")
    here = [bundle for name in FITS if ((bundle := place(made.parent, name)) / "config.json").exists()]
    if len(here) > 1:
        fer_scale.evaluate(here, made, out=given.work / "report", overwrite=True)


if __name__ == "__main__":
    main()
