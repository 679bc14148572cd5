"""PyTorch as an engine of `fer_scale.predictor`."""

import numpy as np
import numpy.typing as npt
import torch

from fer_scale.bundle import Bundle

Images = npt.NDArray[np.uint8]
Logits = npt.NDArray[np.float32]


class TorchEngine:
    """PyTorch on a GPU, with pinned copies; on the CPU where it is asked for.

    In float32, without TF32: thresholds are proven on what the finished network answers in float32, and in fewer digits
    it would be another function that labels. At these sizes decoding is what a GPU waits for.
    """

    name = "torch"

    def __init__(self, bundle: Bundle) -> None:
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._network = bundle.network().to(self._device).to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def logits(self, images: Images) -> Logits:
        """uint8 ``[N, C, S, S]`` to float32 ``[N, K]``."""
        batch = torch.from_numpy(np.ascontiguousarray(images))
        if self._device.type == "cuda":
            batch = batch.pin_memory().to(self._device, non_blocking=True)
        result: Logits = self._network(batch).cpu().numpy()
        return result
