"""Augmentation of whole batches as tensors, on the device where they are: no loop over pictures."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fer_scale.learning.batches import sent
from fer_scale.learning.recipe import Recipe

FLIPPED = 0.5
"""Share of the pictures that are mirrored; the others' strengths are for strength 1."""
ROTATION = math.radians(15)
SCALE = 0.12
SHIFT = 0.1
SHEAR = 0.08
CONTRAST = 0.3
BRIGHTNESS = 25.0
CUTOUT = 0.35
AUGMENTATION, MIXING, DROPOUT = range(1, 4)
"""What a step draws, each from a seed of its own."""


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
        generator = torch.Generator().manual_seed(seed_of(AUGMENTATION, self._seed, step))
        return torch.rand((batch, 12), generator=generator)

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        """uint8 or float ``[B, C, S, S]`` in 0..255 to float32 of the same shape and range."""
        images = images.float()
        if self.strength == 0:
            return images
        u = sent(draws, images.device)
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
        flip = torch.where(u[:, 5] < FLIPPED, -1.0, 1.0)
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


def seed_of(*parts: int) -> int:
    """A seed for torch that has nothing to do with those of other numbers from 0 on."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0])


def mix(images: Tensor, targets: Tensor, recipe: Recipe, seed: int, step: int) -> tuple[Tensor, Tensor]:
    """Pairs of pictures and their targets in one share a batch: mixup (Zhang et al. 2018) or cutmix (Yun et al. 2019).

    Args:
        images: float32 ``[B, C, S, S]``, a worker's rows: each finds its partner among them.
        targets: float32 ``[B, K]``, mixed as the pictures are.
        recipe: says which of the two, and the parameter of the Beta distribution that the share comes from.
        seed, step: all that the draw depends on.
    """
    if not recipe.mixup and not recipe.cutmix:
        return images, targets
    generator = torch.Generator().manual_seed(seed_of(MIXING, seed, step))
    cut = recipe.cutmix > 0 and (recipe.mixup == 0 or bool(torch.rand((), generator=generator) < 0.5))
    gamma = torch._standard_gamma(torch.full((2,), recipe.cutmix if cut else recipe.mixup), generator=generator)
    other = 1 - float(gamma[0] / gamma.sum().clamp_min(1e-12))
    order = sent(torch.randperm(len(images), generator=generator), images.device)
    if not cut:
        return images.lerp(images[order], other), targets.lerp(targets[order], other)
    size = images.shape[-1]
    side = round(size * math.sqrt(other))
    top, left = (torch.rand(2, generator=generator) * (size - side + 1)).int().tolist()
    images = images.clone()
    images[..., top : top + side, left : left + side] = images[order, :, top : top + side, left : left + side]
    return images, targets.lerp(targets[order], (side / size) ** 2)
