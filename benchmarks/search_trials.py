"""What trials of a search cost beside their steps: time lost between them, memory, and what shared features spare.

    OMP_NUM_THREADS=1 python benchmarks/search_trials.py [--minutes 4]

Two pieces, on FER2013 (FER_SCALE_DATA names the folder with its files), in benchmarks/results/search_trials.json:

- ``four at once``: a short `fer-scale tune` of which four trials share the machine's two cores; fits an hour, seconds
  lost between two fits, and peak memory of the driver, the largest trial, the actor that decodes, and of all.
- ``head alone``: forty epochs of a head on a frozen EfficientNet-Lite0, once on features that are computed once, and
  once with the backbone in every step, as an epoch and a multiple of it. One core, without Ray.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pieces import Pieces, store, watched

from fer_scale.bundle import build
from fer_scale.faces.store import Faces, Store
from fer_scale.families.network import Network
from fer_scale.learning.batches import Batches
from fer_scale.learning.configuration import Configuration
from fer_scale.learning.loop import Learner, fit
from fer_scale.search.features import features, head_of
from fer_scale.verbs.tune_trial import HEAD_EPOCHS

CPU = torch.device("cpu")
HEAD = {
    "family": "efficientnet",
    "network": {"weights": "imagenet", "stem": 2, "unfreeze": 0},
    "preprocessing": {"size": 64, "channels": 1},
    "recipe": {"augmentation": 0.0},
}


def role(title: str) -> str | None:
    """What a process is here."""
    return "decoding" if "Pictures" in title else "trial" if title.startswith("ray::") else None


def four(work: Path, minutes: float) -> dict[str, Any]:
    """A search with four trials at once."""
    out = work / "search"
    options = ["--out", out, "--time-budget", f"{minutes}m", "--cpus-per-trial", 0.5]
    found, peaks = watched(["tune", store(work), *options], role)
    board = json.loads((out / "leaderboard.json").read_text())
    fits = sum(sum(score is not None for score in trial["scores"]) for trial in board["trials"])
    return {
        "minutes": minutes,
        "trials": found["trials"],
        "fits_an_hour": round(fits / found["seconds"] * 3600),
        "lost_seconds_a_fit": board["lost_seconds_a_fit"],
        **{f"{name}_mib": size for name, size in peaks.items()},
    }


def head_alone(work: Path) -> dict[str, Any]:
    """The same head, with and without features that are computed once."""
    configuration, faces = Configuration.from_dict(HEAD), Store.open(str(store(work)))
    train, classes = faces.faces("train", configuration.preprocessing), len(faces.classes)
    torch.manual_seed(0)
    network = build(configuration, classes)
    began = time.process_time()
    seen = features(network, train, CPU)
    computed = time.process_time() - began
    head = epochs(head_of(network), configuration, seen, classes, HEAD_EPOCHS)
    whole = epochs(network, configuration, train, classes, 1)
    return {
        "faces": len(train),
        "epochs": HEAD_EPOCHS,
        "features_seconds": round(computed, 1),
        "epoch_on_features_seconds": round(head / HEAD_EPOCHS, 2),
        "epoch_with_backbone_seconds": round(whole, 1),
        "first_trial_seconds": round(computed + head, 1),
        "further_trial_seconds": round(head, 1),
        "without_features_seconds": round(whole * HEAD_EPOCHS),
        "times": round(whole * HEAD_EPOCHS / (computed + head), 1),
    }


def epochs(network: Network, configuration: Configuration, train: Faces, classes: int, count: int) -> float:
    """Seconds of CPU for so many epochs."""
    weights = np.bincount(train.labels, minlength=classes).tolist()
    learner = Learner(network, configuration.recipe, class_counts=weights, seed=0, device=CPU)
    batches = Batches(train, classes, configuration.recipe.batch_size, 0, CPU)
    steps = count * batches.steps_per_epoch
    began = time.process_time()
    fit(learner, batches, steps, lambda step: step / steps)
    return time.process_time() - began


def main() -> None:
    """Measure what is not in the results yet."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=4.0)
    given = parser.parse_args()
    os.environ["RAY_ADDRESS"] = "local"
    torch.set_num_threads(1)
    pieces = Pieces("search_trials")
    with tempfile.TemporaryDirectory(prefix="fer_scale-trials-") as folder:
        pieces.piece("four at once", lambda: four(Path(folder), given.minutes))
        pieces.piece("head alone", lambda: head_alone(Path(folder)))


if __name__ == "__main__":
    main()
