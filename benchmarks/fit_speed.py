"""fit() against a bare PyTorch loop on tensors in memory, and two workers of one thread against one of two threads.

    python benchmarks/fit_speed.py [--rounds 12] [--seconds 8]

The bare loop has the same network, optimiser and batches, channels last and bfloat16 where it pays, and nothing else:
no augmentation, no averaged weights, no clipping, no look at the losses. Both sides take turns in one process; what
counts is the median of the rounds' ratios. The workers are those of `fer-scale train`, which reports its own images a
second.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from pieces import Pieces

import fer_scale as api
from fer_scale import bundle
from fer_scale.faces.sample import draw
from fer_scale.faces.store import Faces
from fer_scale.learning.batches import Batches
from fer_scale.learning.configuration import Configuration
from fer_scale.learning.loop import Learner, bfloat16_pays, fit

BATCH = 64
NETWORKS: dict[str, dict[str, Any]] = {
    "slim18 48x48": {
        "family": "resnet",
        "network": {"variant": "slim18", "weights": "none", "dense": "none"},
        "preprocessing": {"size": 48, "channels": 1},
    },
    "efficientnet-lite0 64x64": {
        "family": "efficientnet",
        "network": {"stem": 2, "weights": "none"},
        "preprocessing": {"size": 64, "channels": 1},
    },
}


def faces(configuration: Configuration, count: int = 4096) -> Faces:
    """Noise: what is in a picture costs nothing."""
    rng, size = np.random.default_rng(0), configuration.preprocessing.size
    images = rng.integers(0, 256, (count, configuration.preprocessing.channels, size, size), dtype=np.uint8)
    return Faces(images, rng.integers(0, 4, count), [str(at) for at in range(count)])


class Bare:
    """A loop as one writes it first."""

    def __init__(self, configuration: Configuration, known: Faces) -> None:
        self._network = bundle.build(configuration, 4).to(memory_format=torch.channels_last).train()
        self._optimizer = torch.optim.AdamW(self._network.parameters(), lr=1e-3, fused=True)
        self._images, self._labels = torch.from_numpy(known.images), torch.from_numpy(known.labels)

    def run(self, seconds: float) -> float:
        """Images a second."""
        began, steps = time.monotonic(), 0
        while time.monotonic() - began < seconds:
            at = torch.randint(len(self._labels), (BATCH,))
            images = self._images[at].float().contiguous(memory_format=torch.channels_last)
            with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16_pays(images.device)):
                logits = self._network(images)
            loss = F.cross_entropy(logits.float(), self._labels[at])
            self._optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            self._optimizer.step()
            steps += 1
        return steps * BATCH / (time.monotonic() - began)


class Ours:
    """fit() with the recipe as it is but for the augmentation's strength."""

    def __init__(self, configuration: Configuration, known: Faces) -> None:
        device = torch.device("cpu")
        network = bundle.build(configuration, 4)
        self._learner = Learner(network, configuration.recipe, class_counts=[1] * 4, seed=0, device=device)
        self._batches = Batches(known, 4, BATCH, 0, device)

    def run(self, seconds: float) -> float:
        """Images a second."""
        began, first = time.monotonic(), self._learner.step
        # the rate is half way down throughout
        fit(self._learner, self._batches, 10**9, lambda _: 0.6 if time.monotonic() - began < seconds else 1.0)
        return (self._learner.step - first) * BATCH / (time.monotonic() - began)


def loops(name: str, rounds: int, seconds: float) -> dict[str, Any]:
    """Rates of the bare loop and of fit() without and with augmentation, in turns."""
    torch.set_num_threads(2)
    rates: dict[str, list[float]] = {"bare": [], "without": [], "with": []}
    for at in range(rounds):
        for side in list(rates)[:: 1 if at % 2 else -1]:
            recipe = {"batch_size": BATCH, "augmentation": float(side == "with")}
            configuration = Configuration.from_dict({**NETWORKS[name], "recipe": recipe})
            # anew in each round: where its tensors come to lie in memory is worth some percent of a network's speed
            made = (Bare if side == "bare" else Ours)(configuration, faces(configuration))
            made.run(2.0)
            rates[side].append(made.run(seconds))
    result: dict[str, Any] = {side: round(statistics.median(found), 1) for side, found in rates.items()}
    for side in ("without", "with"):
        ratios = [mine / bare for mine, bare in zip(rates[side], rates["bare"], strict=True)]
        result[f"{side}_of_bare"] = round(statistics.median(ratios), 3)
        result[f"{side}_of_bare_range"] = [round(min(ratios), 3), round(max(ratios), 3)]
    return result


def workers(name: str, seconds: float) -> dict[str, Any]:
    """Images a second of one worker with two threads and of two with one, by `train`'s own curve."""
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        draw(work / "faces", 2400, seed=0)
        api.ingest(work / "faces", work / "store", quiet=True)
        config = work / "config.json"
        config.write_text(json.dumps(NETWORKS[name]))
        for turn in range(2):
            for count in (1, 2):
                out = work / f"bundle-{turn}-{count}"
                api.train(
                    work / "store", out=out, config=config, time_budget=seconds * 12 + 60, workers=count, quiet=True
                )
                rates = pd.read_parquet(out / "curve.parquet")["images_per_second"]
                result.setdefault(f"workers_{count}", []).append(round(float(rates.iloc[1:].median()), 1))
    result["two_of_one"] = round(statistics.median(result["workers_2"]) / statistics.median(result["workers_1"]), 3)
    return result


def main() -> None:
    """Measure what is not in benchmarks/results/fit_speed.json yet."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=8.0)
    given = parser.parse_args()
    pieces = Pieces("fit_speed")
    for name in NETWORKS:
        pieces.piece(f"loops {name}", lambda name=name: loops(name, given.rounds, given.seconds))  # type: ignore[misc]
        pieces.piece(f"workers {name}", lambda name=name: workers(name, given.seconds))  # type: ignore[misc]


if __name__ == "__main__":
    main()
