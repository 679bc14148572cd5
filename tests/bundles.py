"""A real bundle that is made in seconds: an untrained cnn1 over the four classes."""

from pathlib import Path

import numpy as np
import pandas as pd
import torch

from fer_scale import bundle
from fer_scale.faces.sample import CLASSES
from fer_scale.learning.configuration import Configuration


def write_bundle(directory: Path, seed: int = 0, calibration: pd.DataFrame | None = None) -> Path:
    """Write it into `directory`, which is made; another seed gives another model."""
    directory.mkdir(parents=True)
    torch.manual_seed(seed)
    configuration = Configuration.from_dict({"family": "cnn1", "network": {"width": 0.25}})
    bundle.write(
        directory,
        bundle.build(configuration, len(CLASSES)),
        configuration,
        classes=list(CLASSES),
        temperature=1.3,
        facts={},
        metrics={},
        curve=pd.DataFrame({"epoch": [1]}),
        card="# Model {model_id}\n",
        calibration=calibration,
    )
    return directory


def calibration(confidence: np.ndarray | None = None, right_from: float = 0.3) -> pd.DataFrame:
    """Answers on val and calib that are right from a confidence on, and wrong below."""
    if confidence is None:
        confidence = np.random.default_rng(0).uniform(0.25, 0.5, 800)
    half = len(confidence) // 2
    rest = (1 - confidence) / 3
    found = pd.DataFrame({"split": ["val", "calib"] * half, "id": [str(n) for n in range(2 * half)]})
    found["label"] = np.where(confidence >= right_from, "happy", "sad")
    return found.assign(prob_happy=confidence, prob_sad=rest, prob_surprised=rest, prob_neutral=rest)
