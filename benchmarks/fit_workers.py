"""1, 2 and 4 workers: is the accuracy the same within what another seed changes?

    python benchmarks/fit_workers.py [--seeds 3] [--epochs 12]

A small network on FER2013, the same number of epochs for each number of workers, scored on PublicTest by `evaluate`.
Ray is told of as many CPUs as there are workers, two at least: fewer cores run them too, only slower, for the figures
are of accuracy and not of speed. FER_SCALE_DATA names the folder with FER2013's files.
"""

import argparse
import json
import logging
import statistics
import tempfile
from pathlib import Path
from typing import Any

import ray
from pieces import Pieces, store

import fer_scale

CONFIGURATION = {
    "family": "resnet",
    "network": {"variant": "slim10", "width": 0.5, "weights": "none", "dense": "none"},
    "preprocessing": {"size": 48, "channels": 1},
    "recipe": {"optimizer": "sgd", "lr": 0.1, "weight_decay": 5e-4, "batch_size": 128},
}


def measured(made: Path, work: Path, workers: int, seed: int, epochs: int) -> dict[str, Any]:
    """One fit, and its score."""
    bundle, report, config = (work / f"{name}-{workers}-{seed}" for name in ("bundle", "report", "config"))
    config.write_text(json.dumps(CONFIGURATION))
    ray.init(num_cpus=max(workers, 2), include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    fitted = fer_scale.train(made, config=config, out=bundle, epochs=epochs, workers=workers, seed=seed)
    metrics = fer_scale.evaluate(bundle, made, out=report)
    ray.shutdown()
    return {"accuracy": metrics["accuracy"], "val_accuracy": fitted["val_accuracy"], "seconds": fitted["seconds"]}


def main() -> None:
    """Measure what is not in benchmarks/results/fit_workers.json yet; the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=12)
    given = parser.parse_args()
    pieces = Pieces("fit_workers")
    rows: dict[int, list[float]] = {1: [], 2: [], 4: []}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        for seed in range(given.seeds):
            for workers, found in rows.items():
                figures = pieces.piece(
                    f"{workers} workers, seed {seed}",
                    lambda workers=workers, seed=seed: measured(store(work), work, workers, seed, given.epochs),  # type: ignore[misc]
                )
                found.append(figures["accuracy"])
    print("| workers | accuracy, each seed | mean |\n|---|---|---|")
    for workers, found in rows.items():
        print(f"| {workers} | {', '.join(f'{value:.4f}' for value in found)} | {statistics.mean(found):.4f} |")


if __name__ == "__main__":
    main()
