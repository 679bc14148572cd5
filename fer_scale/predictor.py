"""Bundle to probabilities: the one inference path of evaluate, label and serve."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from fer_scale.bundle import Bundle
from fer_scale.errors import InputError
from fer_scale.learning.calibration import probabilities

Images = npt.NDArray[np.uint8]
Logits = npt.NDArray[np.float32]
EngineName = Literal["auto", "onnx", "torch"]
QUOTA = Path("/sys/fs/cgroup/cpu.max")
"""Of a container (cgroup v2): microseconds of CPU, and in how many."""


class Engine(Protocol):
    """Images to logits on one device."""

    name: str

    def logits(self, images: Images) -> Logits:
        """uint8 ``[N, C, S, S]`` to float32 ``[N, K]``."""


class OnnxEngine:
    """ONNX Runtime on the CPU: about twice as fast there as eager PyTorch."""

    name = "onnx"

    def __init__(self, model: Path, threads: int) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        self._session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])

    def logits(self, images: Images) -> Logits:
        """uint8 ``[N, C, S, S]`` to float32 ``[N, K]``."""
        (out,) = self._session.run(["logits"], {"images": images})
        return np.asarray(out, dtype=np.float32)


class Predictor:
    """A bundle ready to answer.

    Attributes:
        classes, preprocessing, model_id: as in the bundle.
        engine: ``onnx`` or ``torch``.
    """

    def __init__(self, bundle: Bundle, engine: Engine, batch_size: int = 128) -> None:
        self.bundle = bundle
        self.classes = bundle.classes
        self.preprocessing = bundle.preprocessing
        self.model_id = bundle.model_id
        self.engine = engine.name
        self._engine = engine
        self._batch_size = batch_size

    @classmethod
    def load(cls, bundle: Bundle | str | Path, engine: EngineName = "auto", threads: int | None = None) -> "Predictor":
        """Load a bundle into an engine: ``auto`` takes torch where there is a GPU, ONNX Runtime otherwise.

        Args:
            threads: of ONNX Runtime; None takes every core that this process may run on.

        Raises:
            InputError: the bundle is not to be trusted or read, or the engine is unknown.
        """
        if not isinstance(bundle, Bundle):
            bundle = Bundle.load(bundle)
        if engine == "auto":
            import torch

            engine = "torch" if torch.cuda.is_available() else "onnx"
        if engine == "torch":
            from fer_scale.torch_engine import TorchEngine  # where there is none to be used, PyTorch is not loaded

            return cls(bundle, TorchEngine(bundle), batch_size=1024)
        if engine == "onnx":
            return cls(bundle, OnnxEngine(bundle.onnx, threads or _cores()))
        raise InputError(f"engine {engine!r}", "auto, onnx or torch", "name one of them")

    def logits(self, images: Images) -> Logits:
        """uint8 ``[N, C, S, S]`` to float32 ``[N, K]``, any N, in batches."""
        if not len(images):
            return np.zeros((0, len(self.classes)), dtype=np.float32)
        step = self._batch_size
        return np.concatenate([self._engine.logits(images[i : i + step]) for i in range(0, len(images), step)])

    def probabilities(self, images: Images) -> npt.NDArray[np.float32]:
        """uint8 ``[N, C, S, S]`` to calibrated probabilities float32 ``[N, K]``; rows sum to 1."""
        return probabilities(self.logits(images), self.bundle.temperature)


def _cores() -> int:
    """CPUs that this process may use: by its affinity, and by its container's quota."""
    found = len(os.sched_getaffinity(0))
    with suppress(OSError, ValueError):  # no such group, or "max"
        quota, period = QUOTA.read_text().split()
        found = min(found, max(1, int(quota) // int(period)))
    return found
