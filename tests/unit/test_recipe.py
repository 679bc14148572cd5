"""What each part of a recipe does to one step of SGD on a small network."""

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fer_scale.bundle import build
from fer_scale.faces.store import Faces
from fer_scale.families.network import Network
from fer_scale.learning import loop
from fer_scale.learning.augment import Augment, mix
from fer_scale.learning.batches import Batches
from fer_scale.learning.configuration import Configuration
from fer_scale.learning.loop import Learner
from fer_scale.learning.recipe import Recipe

PLAIN: dict[str, Any] = {
    "optimizer": "sgd",
    "lr": 0.1,
    "batch_size": 16,
    "augmentation": 0.0,
    "label_smoothing": 0.0,
    "weight_decay": 0.0,
    "ema": 0.0,
    "clip": 1000.0,
}
NESTEROV = 1.9
"""Times the gradient, at the first step."""


@pytest.fixture(autouse=True)
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "bfloat16_pays", lambda device: False)


@dataclass
class Step:
    """A learner after its first step."""

    learner: Learner
    loss: float
    before: Network
    """As it was before the step."""
    images: Tensor
    targets: Tensor
    """Of its batch, as they are read."""
    moves: list[list[Tensor]]
    """By stage and parameter."""

    @property
    def logits(self) -> Tensor:
        """Of its batch before the step."""
        return self.of(self.images.float())

    def of(self, images: Tensor) -> Tensor:
        """Logits before the step, float32 ``[B, K]``."""
        with torch.no_grad():
            return self.before(images)  # type: ignore[no-any-return]


def step(counts: tuple[int, int] = (72, 24), steps: int = 1, **recipe: Any) -> Step:
    """Of a batch that is two thirds the one class, one third the other where there is any."""
    random = np.random.default_rng(0)
    labels = ((np.arange(16) % 3 == 2) & (counts[1] > 0)).astype(np.int64)
    faces = Faces(random.integers(0, 256, (16, 1, 48, 48), dtype=np.uint8), labels, [str(at) for at in range(16)])
    network = {"variant": "slim10", "width": 0.25, "weights": "none", "dense": "none", "dropout": 0.0}
    configuration = Configuration.from_dict({"family": "resnet", "network": network, "preprocessing": {"channels": 1}})
    torch.manual_seed(0)
    learner = Learner(
        build(configuration, 2),
        Recipe(**{**PLAIN, **recipe}),
        class_counts=list(counts),
        seed=0,
        device=torch.device("cpu"),
    )
    batches = Batches(faces, 2, 16, 0, torch.device("cpu"))
    images, targets = batches.batch(0)
    before = copy.deepcopy(learner.network).train()
    loss = float(learner.train_step(batches, 1.0))
    moves = [
        [(new - old).detach() for new, old in zip(now, was, strict=True)]
        for now, was in zip(learner.network.stages, before.stages, strict=True)
    ]
    for _ in range(steps - 1):
        learner.train_step(batches, 1.0)
    return Step(learner, loss, before, images, targets, moves)


def test_what_a_step_learns_from_is_augmented_and_then_mixed() -> None:
    augment = Augment(1.0, 0)
    made = step(augmentation=1.0)
    seen = augment(made.images, augment.draws(0, 16))
    assert made.loss == pytest.approx(float(F.cross_entropy(made.of(seen), made.targets)), rel=1e-4)
    for how in ({"mixup": 0.4}, {"cutmix": 1.0}):
        made = step(augmentation=1.0, **how)
        mixed, targets = mix(seen, made.targets, Recipe(**how), 0, 0)  # type: ignore[arg-type]
        assert not torch.equal(targets, made.targets)
        assert made.loss == pytest.approx(float(F.cross_entropy(made.of(mixed), targets)), rel=1e-4)


def test_smoothing_and_class_weights_are_in_the_loss() -> None:
    plain, made = step(), step(label_smoothing=0.2, class_weighting=1.0)
    assert plain.loss == pytest.approx(float(F.cross_entropy(plain.logits, plain.targets)), rel=1e-4)
    smooth = made.targets * 0.8 + 0.2 / 2
    losses = -(smooth * made.logits.log_softmax(1)).sum(1)
    # 72 and 24 rows: each class weighs as much as the other, and a row one on average
    weights = torch.where(made.targets[:, 0] == 1, 2 / 3, 2.0)
    assert made.loss == pytest.approx(float((losses * weights).mean()), rel=1e-4)


def test_a_class_without_a_row_changes_no_weight() -> None:
    plain, made = (step((96, 0), label_smoothing=0.1, class_weighting=exponent) for exponent in (0.0, 1.0))
    assert made.loss == pytest.approx(plain.loss, rel=1e-5)
    assert made.loss == pytest.approx(float(F.cross_entropy(made.logits, made.targets * 0.9 + 0.1 / 2)), rel=1e-4)


def test_a_gradient_is_clipped_to_its_largest_norm() -> None:
    free, clipped = (
        torch.cat([move.flatten() for stage in made.moves for move in stage]) for made in (step(), step(clip=0.01))
    )
    assert float(clipped.norm()) == pytest.approx(0.1 * NESTEROV * 0.01, rel=1e-2)
    assert float(F.cosine_similarity(free, clipped, dim=0)) == pytest.approx(1, abs=1e-3)
    assert float(free.norm()) > 10 * float(clipped.norm())


def test_each_stage_further_from_the_head_learns_at_a_lower_rate() -> None:
    plain, decayed = step().moves, step(layer_decay=0.5).moves
    assert len(plain) > 3
    for depth, (mine, theirs) in enumerate(zip(reversed(decayed), reversed(plain), strict=True)):
        for one, other in zip(mine, theirs, strict=True):
            torch.testing.assert_close(one, other * 0.5**depth, atol=1e-6, rtol=1e-3)


def test_weights_decay_and_biases_and_norms_do_not() -> None:
    plain, decayed = step(), step(weight_decay=0.5)
    shrunk = 0
    for now, mine, theirs in zip(decayed.learner.network.stages, decayed.moves, plain.moves, strict=True):
        for parameter, one, other in zip(now, mine, theirs, strict=True):
            old = parameter.detach() - one
            expected = -0.1 * NESTEROV * 0.5 * old if old.ndim > 1 else torch.zeros_like(old)
            torch.testing.assert_close(one - other, expected, atol=1e-5, rtol=1e-3)
            shrunk += old.ndim > 1
    assert shrunk


def test_what_is_kept_is_the_average_of_the_weights_where_the_recipe_averages() -> None:
    plain, averaged = step(steps=4).learner, step(steps=4, ema=0.998).learner
    assert plain.best is plain.network
    for mine, theirs in zip(averaged.network.parameters(), plain.network.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)
    apart = [
        float((kept - last).detach().abs().max())
        for kept, last in zip(averaged.best.parameters(), averaged.network.parameters(), strict=True)
    ]
    assert min(apart) > 0


def test_weights_and_maps_lie_channels_last() -> None:
    made = step().learner
    wide = [layer for layer in made.network.modules() if isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3)][
        1
    ]
    assert wide.weight.is_contiguous(memory_format=torch.channels_last)
    assert not wide.weight.is_contiguous()
    seen: list[Tensor] = []
    wide.register_forward_hook(lambda *called: seen.append(called[2]))
    random = np.random.default_rng(0)
    faces = Faces(random.integers(0, 256, (16, 1, 48, 48), dtype=np.uint8), np.arange(16) % 2, [""] * 16)
    made.train_step(Batches(faces, 2, 16, 0, torch.device("cpu")), 1.0)
    assert seen[0].is_contiguous(memory_format=torch.channels_last)
    assert not seen[0].is_contiguous()
