"""The engines answer what calib was answered with: the network in float32."""

from pathlib import Path

import numpy as np
import torch

from fer_scale.bundle import Bundle
from fer_scale.learning.loop import logits
from fer_scale.predictor import Predictor
from tests.bundles import write_bundle


def test_every_engine_gives_what_thresholds_are_proven_on(tmp_path: Path) -> None:
    bundle = Bundle.load(write_bundle(tmp_path / "bundle"))
    images = np.random.default_rng(0).integers(0, 256, (64, 1, 48, 48), dtype=np.uint8)
    proven = logits(bundle.network(), images, torch.device("cpu"))
    for engine in ("onnx", "torch"):  # the latter on a GPU where there is one
        found = Predictor.load(bundle, engine=engine).logits(images)  # type: ignore[arg-type]
        np.testing.assert_allclose(found, proven, rtol=0, atol=1e-4)
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32
