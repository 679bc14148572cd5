"""What our depthwise convolutions, bfloat16 with them, and huge pages are worth to a step of EfficientNet on one core.

    python benchmarks/depthwise.py [--rounds 6] [--seconds 6]

PyTorch's convolutions in float32, ours in float32, and ours with all other layers in bfloat16 (on a CPU that has it)
take turns in one process, with and without huge pages in two that take turns; what counts is the median of the rounds'
images a second.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from contextlib import nullcontext
from functools import partial
from typing import Any
from unittest.mock import patch

import numpy as np
from pieces import ROOT, Pieces

INPUTS = {
    "Lite0 48x48, stem 1": ("tf_efficientnet_lite0", 48, 1),
    "Lite0 64x64, stem 2": ("tf_efficientnet_lite0", 64, 2),
    "Lite0 96x96, stem 2": ("tf_efficientnet_lite0", 96, 2),
    "Lite2 128x128, stem 2": ("tf_efficientnet_lite2", 128, 2),
}
BATCH = 32


def rates(variant: str, size: int, stem: int, seconds: float) -> dict[str, float]:
    """Images a second of this process's steps."""
    import torch

    from fer_scale import bundle
    from fer_scale.faces.store import Faces
    from fer_scale.families import efficientnet
    from fer_scale.learning import loop
    from fer_scale.learning.batches import Batches
    from fer_scale.learning.configuration import Configuration

    torch.set_num_threads(1)
    wanted = {
        "network": {"variant": variant, "weights": "none", "stem": stem},
        "preprocessing": {"size": size, "channels": 1},
    }
    configuration = Configuration.from_dict({"family": "efficientnet", **wanted})
    images = np.random.default_rng(0).integers(0, 256, (256, 1, size, size), dtype=np.uint8)
    faces = Faces(images, np.arange(256) % 4, [str(at) for at in range(256)])
    found, device = {}, torch.device("cpu")
    has_bfloat16 = loop.bfloat16_pays(device)
    for name in ("torch", "ours", "ours bfloat16")[: 3 if has_bfloat16 else 2]:
        with patch.object(efficientnet, "quicken_depthwise") if name == "torch" else nullcontext():
            network = bundle.build(configuration, 4)
        with patch.object(loop, "bfloat16_pays", return_value=name == "ours bfloat16"):
            learner = loop.Learner(network, configuration.recipe, class_counts=[64] * 4, seed=0, device=device)
        batches = Batches(faces, 4, BATCH, 0, device)
        learner.train_step(batches, 1.0)
        began, steps = time.monotonic(), 0
        while time.monotonic() - began < seconds:
            learner.train_step(batches, 1.0)
            steps += 1
        found[name] = steps * BATCH / (time.monotonic() - began)
    return found


def measured(name: str, rounds: int, seconds: float) -> dict[str, Any]:
    """Both by both, in turn."""
    found: dict[str, list[float]] = {}
    for _ in range(rounds):
        for huge in (0, 1):
            environment = {**os.environ, "THP_MEM_ALLOC_ENABLE": str(huge), "PYTHONPATH": f"{ROOT}"}
            call = [sys.executable, __file__, "--one", name, "--seconds", str(seconds)]
            done = subprocess.run(call, env=environment, stdout=subprocess.PIPE, text=True, check=True)
            for side, rate in json.loads(done.stdout.splitlines()[-1]).items():
                found.setdefault(side + " huge" * huge, []).append(round(rate, 1))
    return {side: {"median": round(statistics.median(rates), 1), "rounds": rates} for side, rates in found.items()}


def main() -> None:
    """Measure what is not in the results yet."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=6)
    parser.add_argument("--one", choices=list(INPUTS), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(rates(*INPUTS[given.one], given.seconds)))
        return
    pieces = Pieces("depthwise")
    for name in INPUTS:
        pieces.piece(name, partial(measured, name, given.rounds, given.seconds))


if __name__ == "__main__":
    main()
