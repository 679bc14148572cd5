"""The engines answer what calib was answered with: the network in float32."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from fer_scale import predictor
from fer_scale.bundle import Bundle
from fer_scale.learning.loop import logits
from fer_scale.predictor import Predictor
from tests.bundles import write_bundle


def test_every_engine_gives_what_thresholds_are_proven_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = Bundle.load(write_bundle(tmp_path / "bundle"))
    images = np.random.default_rng(0).integers(0, 256, (64, 1, 48, 48), dtype=np.uint8)
    proven = logits(bundle.network(), images, torch.device("cpu"))
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    for engine in ("onnx", "torch"):  # the latter on a GPU where there is one
        found = Predictor.load(bundle, engine=engine).logits(images)  # type: ignore[arg-type]
        np.testing.assert_allclose(found, proven, rtol=0, atol=1e-4)
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32


@pytest.mark.parametrize(("said", "cores"), [("max 100000", 4), ("200000 100000", 2), ("50000 100000", 1), (None, 4)])
def test_a_containers_quota_bounds_the_threads(
    said: str | None, cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predictor, "QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4)))
    if said is not None:
        (tmp_path / "cpu.max").write_text(said + "\n")
    assert predictor._cores() == cores
