"""PyTorch as an engine of `fer_scale.predictor`."""

import numpy as np
import numpy.typing as npt
import torch

from fer_scale.bundle import Bundle

Images = npt.NDArray[np.uint8]
Logits = npt.NDArray[np.float32]


class TorchEngine:
    """PyTorch on a GPU, under autocast, with pinned copies; on the CPU where it is asked for."""

    name = "torch"

    def __init__(self, bundle: Bundle) -> None:
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._network = bundle.network().to(self._device).to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def logits(self, images: Images) -> Logits:
        """uint8 ``[N, C, S, S]`` to float32 ``[N, K]``."""
        batch = torch.from_numpy(np.ascontiguousarray(images))
        cuda = self._device.type == "cuda"
        if cuda:
            batch = batch.pin_memory().to(self._device, non_blocking=True)
        with torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=cuda and torch.cuda.is_bf16_supported()):
            out = self._network(batch)
        result: Logits = out.float().cpu().numpy()
        return result
