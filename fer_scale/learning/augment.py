"""Augmentation of whole batches as tensors, on the device where they are: no loop over pictures."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

ROTATION = math.radians(15)
SCALE = 0.12
SHIFT = 0.1
SHEAR = 0.08
CONTRAST = 0.3
BRIGHTNESS = 25.0
CUTOUT = 0.35


class Augment:
    """Flip, rotation, scale, shift, shear, contrast, brightness and cutout (DeVries & Taylor 2017).

    What is drawn depends on the seed, the step and the place in the global batch alone, so that a run is the
    same for any number of workers and after a resume.
    """

    def __init__(self, strength: float, seed: int) -> None:
        self.strength = strength
        self._seed = seed

    def draws(self, step: int, batch: int) -> Tensor:
        """Uniform numbers of one global batch: float32 ``[batch, 12]`` in [0, 1)."""
        generator = torch.Generator().manual_seed((self._seed * 1_000_003 + step) % 2**63)
        return torch.rand((batch, 12), generator=generator)

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        """uint8 or float ``[B, C, S, S]`` in 0..255 to float32 of the same shape and range."""
        images = images.float()
        if self.strength == 0:
            return images
        u = draws.to(images.device, non_blocking=True)
        images = F.grid_sample(
            images,
            F.affine_grid(self._affine(u), list(images.shape), align_corners=False),
            padding_mode="border",
            align_corners=False,
        )
        return self._cutout(self._tone(images, u), u)

    def _affine(self, u: Tensor) -> Tensor:
        s = self.strength
        signed = (u[:, :5] * 2 - 1) * s
        angle = signed[:, 0] * ROTATION
        scale = torch.exp(signed[:, 1] * SCALE)
        flip = torch.where(u[:, 5] < 0.5, -1.0, 1.0)
        cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
        theta = torch.empty((len(u), 2, 3), device=u.device)
        theta[:, 0, 0], theta[:, 0, 1] = cos * flip, -sin + signed[:, 4] * SHEAR
        theta[:, 1, 0], theta[:, 1, 1] = sin * flip, cos
        # grid coordinates span 2: a shift of 0.1 is a tenth of the side
        theta[:, 0, 2], theta[:, 1, 2] = signed[:, 2] * 2 * SHIFT, signed[:, 3] * 2 * SHIFT
        return theta

    def _tone(self, images: Tensor, u: Tensor) -> Tensor:
        s = self.strength
        shape = (-1, 1, 1, 1)
        gain = torch.exp((u[:, 6] * 2 - 1) * s * CONTRAST).view(shape)
        lift = ((u[:, 7] * 2 - 1) * s * BRIGHTNESS).view(shape)
        mean = images.mean(dim=(1, 2, 3), keepdim=True)
        return ((images - mean) * gain + mean + lift).clamp_(0, 255)

    def _cutout(self, images: Tensor, u: Tensor) -> Tensor:
        """A square of up to ``CUTOUT`` of the side, in half of the pictures, filled with the picture's mean."""
        size = images.shape[-1]
        side = u[:, 8] * CUTOUT * min(self.strength, 1.5) * (u[:, 9] < 0.5)
        at = (torch.arange(size, device=images.device) + 0.5) / size
        rows = (at[None] - u[:, 10:11]).abs() * 2 < side[:, None]
        columns = (at[None] - u[:, 11:12]).abs() * 2 < side[:, None]
        hole = (rows[:, None, :, None]) & (columns[:, None, None, :])
        return torch.where(hole, images.mean(dim=(1, 2, 3), keepdim=True), images)


def mixup(images: Tensor, targets: Tensor, alpha: float, seed: int, step: int) -> tuple[Tensor, Tensor]:
    """Convex pairs of pictures and targets (Zhang et al. 2018), one share a batch drawn from Beta(alpha, alpha)."""
    if alpha == 0:
        return images, targets
    generator = torch.Generator().manual_seed((seed * 7_368_787 + step) % 2**63)
    gamma = torch._standard_gamma(torch.full((2,), alpha), generator=generator)
    share = float(gamma[0] / gamma.sum().clamp_min(1e-12))
    order = torch.randperm(len(images), generator=generator).to(images.device)
    return images.lerp(images[order], 1 - share), targets.lerp(targets[order], 1 - share)
