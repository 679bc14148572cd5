"""Augmentation of whole batches: what each part does to a picture, and what the draws depend on."""

import math

import pytest
import torch
from torch import Tensor

from fer_scale.learning.augment import Augment, mix, seed_of
from fer_scale.learning.recipe import Recipe

IMAGES = torch.arange(2 * 48 * 48, dtype=torch.float32).reshape(2, 1, 48, 48) % 256


def test_none_changes_nothing() -> None:
    augment = Augment(0.0, seed=0)
    assert torch.equal(augment(IMAGES, augment.draws(0, 2)), IMAGES)


def test_keeps_shape_and_range_and_depends_on_the_step_alone() -> None:
    augment = Augment(1.0, seed=0)
    first, again, other = (augment(IMAGES, augment.draws(step, 2)) for step in (4, 4, 5))
    assert first.shape == IMAGES.shape
    assert first.min() >= 0 and first.max() <= 255  # noqa: PT018
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_what_a_step_draws_comes_from_seeds_of_their_own() -> None:
    seeds = {seed_of(salt, seed, step) for salt in (1, 2, 3) for seed in range(4) for step in range(50)}
    assert len(seeds) == 3 * 4 * 50


def test_a_worker_gets_its_rows_of_the_global_draw() -> None:
    augment = Augment(1.0, seed=0)
    draws = augment.draws(7, 2)
    whole = augment(IMAGES, draws)
    assert torch.allclose(augment(IMAGES[1:], draws[1:]), whole[1:], atol=1e-3)


@pytest.mark.parametrize("mixing", [{"mixup": 0.4}, {"cutmix": 1.0}, {"mixup": 0.4, "cutmix": 1.0}])
def test_pictures_and_targets_are_mixed_by_the_same_share(mixing: dict[str, float]) -> None:
    images = torch.stack([torch.zeros(1, 4, 4), torch.ones(1, 4, 4)])
    targets = torch.eye(2)
    for step in range(20):
        mixed, mixed_targets = mix(images, targets, Recipe(**mixing), 0, step)
        torch.testing.assert_close(mixed.mean(dim=(1, 2, 3)), mixed_targets[:, 1])


SPOT = torch.zeros(1, 1, 48, 48)
SPOT[..., 10:13, 30:33] = 200.0
"""Centred 12.5 pixels above the middle and 7.5 to the right of it."""
ANGLE, SCALE, ACROSS, DOWN, SHEAR, FLIP, CONTRAST, BRIGHTNESS, HOLE, HOLED, HOLE_DOWN, HOLE_ACROSS = range(12)


def changed(images: Tensor, strength: float = 1.0, **drawn: float) -> Tensor:
    """The pictures where nothing was drawn, by the names above, but what is given."""
    draws = torch.full((1, 12), 0.5)
    draws[0, HOLED] = 1.0
    for name, value in drawn.items():
        draws[0, globals()[name]] = value
    return Augment(strength, seed=0)(images, draws)


def centre(image: Tensor) -> tuple[float, float]:
    """Of what is bright, in pixels to the right of the middle and below it."""
    at = torch.arange(48) - 23.5
    weights = image[0, 0] / image.sum()
    return float((weights.sum(0) * at).sum()), float((weights.sum(1) * at).sum())


def test_where_nothing_is_drawn_nothing_changes() -> None:
    torch.testing.assert_close(changed(SPOT), SPOT, atol=1e-3, rtol=0)


def test_a_flip_is_the_mirror_image() -> None:
    torch.testing.assert_close(changed(SPOT, FLIP=0.0), SPOT.flip(-1), atol=1e-2, rtol=0)
    torch.testing.assert_close(changed(SPOT, FLIP=0.49), SPOT.flip(-1), atol=1e-2, rtol=0)


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_rotation_scale_shift_and_shear_move_what_is_there(strength: float) -> None:
    right, below = centre(SPOT)
    assert (right, below) == pytest.approx((7.5, -12.5))
    x, y = centre(changed(SPOT, strength, ANGLE=1.0))
    assert math.hypot(x, y) == pytest.approx(math.hypot(right, below), abs=0.3)
    turned = math.degrees(math.atan2(y, x) - math.atan2(below, right))
    assert abs(turned) == pytest.approx(15 * strength, abs=1)
    x, y = centre(changed(SPOT, strength, SCALE=1.0))
    assert (x, y) == pytest.approx((right * math.exp(-0.12 * strength), below * math.exp(-0.12 * strength)), abs=0.3)
    assert centre(changed(SPOT, strength, ACROSS=1.0)) == pytest.approx((right - 4.8 * strength, below), abs=0.1)
    assert centre(changed(SPOT, strength, DOWN=0.0)) == pytest.approx((right, below + 4.8 * strength), abs=0.1)
    x, y = centre(changed(SPOT, strength, SHEAR=1.0))
    assert (abs(x - right), y) == pytest.approx((12.5 * 0.08 * strength, below), abs=0.1)


def test_contrast_stretches_about_the_mean_and_brightness_moves_it() -> None:
    gray = 100 + 20 * torch.rand(1, 1, 48, 48, generator=torch.Generator().manual_seed(0))
    stretched, lifted = changed(gray, CONTRAST=1.0), changed(gray, BRIGHTNESS=0.0)
    assert float(stretched.std() / gray.std()) == pytest.approx(math.exp(0.3), rel=1e-3)
    assert float(stretched.mean()) == pytest.approx(float(gray.mean()), abs=0.1)
    torch.testing.assert_close(lifted, gray - 25, atol=1e-2, rtol=0)


def test_cutout_is_a_square_of_the_mean() -> None:
    gray = 100 + 20 * torch.rand(1, 1, 48, 48, generator=torch.Generator().manual_seed(0))
    holed = changed(gray, HOLED=0.0, HOLE=1.0)
    (rows, columns) = (holed - gray).abs().gt(1e-2)[0, 0].nonzero().unbind(1)
    assert 0.32 * 48 <= int(rows.max() - rows.min()) + 1 <= 0.36 * 48
    assert 0.32 * 48 <= int(columns.max() - columns.min()) + 1 <= 0.36 * 48
    torch.testing.assert_close(holed[0, 0, 24, 24], gray.mean(), atol=1e-2, rtol=0)
