"""fit(): plain PyTorch, the same for a trial of a search, a laptop and every worker of a distributed fit."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from safetensors.torch import load, save
from torch import Tensor, nn

from fer_scale.errors import InputError
from fer_scale.families.network import Network
from fer_scale.learning.augment import DROPOUT, Augment, mix, seed_of
from fer_scale.learning.average import Average
from fer_scale.learning.batches import Feed
from fer_scale.learning.recipe import Recipe
from fer_scale.learning.workers import equalise, everywhere, place, share

CHECKED_EVERY = 20
"""Steps after which their losses are looked at."""
SCORED = 256
"""Faces that are scored together."""
SHOWN_IDS = 64
"""Of a batch that diverged: all of it, by default."""


class DivergedError(InputError):
    """The loss or its gradient is no longer a finite number."""


class Learner:
    """A network with its optimiser, its averaged weights and the number of steps it has taken."""

    def __init__(
        self, network: Network, recipe: Recipe, *, class_counts: list[int], seed: int, device: torch.device
    ) -> None:
        self.network = network.to(device).to(memory_format=torch.channels_last)
        self.recipe = recipe
        self.device = device
        self.step = 0
        self._seed = seed
        self._augment = Augment(recipe.augmentation, seed)
        self._optimizer = _optimizer(self.network, recipe)
        self._base_rates = [group["lr"] for group in self._optimizer.param_groups]
        self._weights = _class_weights(class_counts, recipe.class_weighting).to(device)
        self._average = Average(self.network, recipe.ema) if recipe.ema else None
        self._always_frozen = self.network.frozen
        self._half = bfloat16_pays(device)
        self._parallel = _parallel(self.network)

    def thaw(self, progress: float) -> None:
        """Train as many stages, from the head down, as the recipe wants at a share of the budget, 0 to 1."""
        if not self.recipe.thaw:
            return
        stages = len(self.network.stages) - 1
        frozen = max(self._always_frozen, math.ceil(stages * (1 - progress / self.recipe.thaw)))
        if frozen != self.network.frozen:
            self.network.freeze(frozen)
            self._parallel = _parallel(self.network, begun=True)

    def train_step(self, batches: Feed, factor: float) -> Tensor:
        """One step of the optimiser at ``factor`` times the recipe's rate.

        Returns:
            The loss, still on the device, of which the mean over the workers is that of the global batch; not a number
            where the gradient's norm is none, which spoils the weights.
        """
        self._parallel.train()
        # all that torch draws, such as dropout: a resumed fit draws the same, and each worker for itself
        generator = torch.cuda if self.device.type == "cuda" else torch.default_generator
        generator.manual_seed(seed_of(DROPOUT, self._seed, self.step, place()[0]))
        for group, rate in zip(self._optimizer.param_groups, self._base_rates, strict=True):
            group["lr"] = rate * factor
        images, targets = batches.batch(self.step)
        images = self._augment(images, share(self._augment.draws(self.step, batches.size)))
        images, targets = mix(images, targets, self.recipe, self._seed, self.step)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self._half):
            logits = self._parallel(images.contiguous(memory_format=torch.channels_last))
        # a face's weight, not a class's: label smoothing gives every face a share of each class, the rarest too
        losses = F.cross_entropy(logits.float(), targets, label_smoothing=self.recipe.label_smoothing, reduction="none")
        loss = (losses * (targets @ self._weights)).mean()
        self._optimizer.zero_grad(set_to_none=True)
        # workers' gradients are averaged: one with a row more than another has to count for more
        part = len(images) * place()[1] / batches.size
        loss = loss * part
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.recipe.clip)
        self._optimizer.step()
        if self._average is not None:
            self._average.update(self.step)
        self.step += 1
        return loss.detach() + 0 * norm

    @property
    def best(self) -> Network:
        """The network to keep: the averaged one where the recipe averages."""
        return self.network if self._average is None else self._average.network

    def equalise(self) -> None:
        """Give all workers the same network, to score and to save.

        Their weights are the same; batch norm's statistics are of each worker's own rows, and become the mean of all.
        """
        for network in dict.fromkeys((self.network, self.best)):  # the same order on every worker
            equalise(network.buffers())

    def logits(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """uint8 ``[N, C, S, S]`` to float32 ``[N, K]`` by the network to keep, without augmentation."""
        return logits(self.best, images, self.device)

    def saved(self) -> bytes:
        """Everything that the next step depends on, as safetensors."""
        tensors = {f"network.{name}": value for name, value in self.network.state_dict().items()}
        if self._average is not None:
            tensors |= {f"average.{name}": value for name, value in self.best.state_dict().items()}
        for index, values in self._optimizer.state_dict()["state"].items():
            tensors |= {
                f"optimizer.{index}.{key}": torch.as_tensor(value) for key, value in values.items() if value is not None
            }
        return save({name: value.contiguous() for name, value in tensors.items()})

    def load(self, data: bytes, step: int) -> None:
        """Go on from what :meth:`saved` gave at ``step``."""
        tensors = load(data)
        self.network.load_state_dict(_under(tensors, "network."))
        if self._average is not None:
            self.best.load_state_dict(_under(tensors, "average."))
        state: dict[int, dict[str, Tensor]] = {}
        parameters = [parameter for group in self._optimizer.param_groups for parameter in group["params"]]
        for name, value in _under(tensors, "optimizer.").items():
            index, key = name.split(".", 1)
            like = parameters[int(index)]
            if value.shape == like.shape:
                # fused optimisers walk the memory: a moment must lie there as its parameter does, channels last
                value = torch.empty_like(like).copy_(value)
            state.setdefault(int(index), {})[key] = value
        self._optimizer.load_state_dict({**self._optimizer.state_dict(), "state": state})
        self.step = step


@torch.inference_mode()
def logits(network: Network, images: npt.NDArray[np.uint8], device: torch.device) -> npt.NDArray[np.float32]:
    """uint8 ``[N, C, S, S]`` to float32 ``[N, K]`` by a network on a device, in evaluation mode."""
    network = network.eval()
    out = []
    for at in range(0, len(images), SCORED):
        batch = torch.tensor(images[at : at + SCORED], device=device)
        out.append(network(batch.contiguous(memory_format=torch.channels_last)).float().cpu().numpy())
    return np.concatenate(out)


def fit(learner: Learner, batches: Feed, until: int, progress: Callable[[int], float]) -> float:
    """Train up to step ``until``, or until the budget is spent; gives the mean loss of this worker's steps.

    Args:
        progress: the share of the budget that is spent before a step, which decides its learning rate; 1 ends the
            fit there. It may go by steps, by the clock, or jump to 1 (a deadline, a pruned trial).

    Raises:
        DivergedError: the loss or its gradient is not finite; the line names step, rate and faces.
    """
    total, begun = torch.zeros((), device=learner.device), learner.step
    waiting: list[tuple[Tensor, float]] = []
    while learner.step < until:
        share = progress(learner.step)
        if share >= 1:
            break
        learner.thaw(share)
        factor = anneal(learner.recipe, share)
        waiting.append((learner.train_step(batches, factor), learner.recipe.lr * factor))
        # reading a loss waits for the device, so they are read now and then
        if len(waiting) == CHECKED_EVERY or learner.step == until:
            total += _finite(waiting, learner, batches)
            waiting = []
    if waiting:
        total += _finite(waiting, learner, batches)
    return float(total) / max(learner.step - begun, 1)


def _finite(steps: list[tuple[Tensor, float]], learner: Learner, batches: Feed) -> Tensor:
    """The sum of the last steps' losses; every worker raises at the same step or none does."""
    found = torch.stack([loss for loss, _ in steps])
    fine = torch.isfinite(found)
    if not everywhere(fine):
        bad = int((~fine).nonzero()[0])
        at, rate = learner.step - len(steps) + bad, steps[bad][1]
        ids = batches.ids(at)
        named = ", ".join(ids[:SHOWN_IDS]) + (f" and {len(ids) - SHOWN_IDS} more" if len(ids) > SHOWN_IDS else "")
        raise DivergedError(
            f"the loss or its gradient is not finite at step {at} (rate {rate:.3g}, faces {named})",
            "finite numbers",
            "lower lr or clip, or look at these faces",
        )
    return found.sum()


def bfloat16_pays(device: torch.device) -> bool:
    """Whether a step is faster under autocast to bfloat16: on GPUs (from Ampere on) and CPUs that have it.

    Older GPUs only emulate it, and so does AVX2.
    """
    if device.type != "cpu":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    has = torch.cpu.get_capabilities()
    return any(has.get(unit, False) for unit in ("amx_bf16", "avx512_bf16"))


def anneal(recipe: Recipe, progress: float) -> float:
    """Learning-rate factor at a share of the budget, 0 to 1."""
    if progress < recipe.warmup:
        return 0.04 + 0.96 * progress / recipe.warmup
    fallen = min((progress - recipe.warmup) / (1 - recipe.warmup), 1.0)
    return max(0.5 * (1 + math.cos(math.pi * fallen)), 1e-3)


def _parallel(network: Network, begun: bool = False) -> nn.Module:
    """The network, or what adds its gradients over the workers; made anew when other parameters are trained.

    Args:
        network: of this worker.
        begun: leave it as it is; at the beginning all take the first worker's, also later its batch norm statistics.
    """
    if place()[1] > 1:
        return nn.parallel.DistributedDataParallel(network, forward_sync_buffers=False, init_sync=not begun)
    return network


def _optimizer(network: Network, recipe: Recipe) -> torch.optim.Optimizer:
    groups: list[dict[str, Any]] = []
    for depth, stage in enumerate(reversed(network.stages)):
        rate = recipe.lr * recipe.layer_decay**depth
        for decay, members in _by_decay([p for p in stage if p.requires_grad], recipe.weight_decay):
            groups.append({"params": members, "lr": rate, "weight_decay": decay})
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=recipe.lr, fused=True)
    return torch.optim.SGD(groups, lr=recipe.lr, momentum=0.9, nesterov=True, fused=True)


def _by_decay(parameters: list[nn.Parameter], decay: float) -> Iterator[tuple[float, list[nn.Parameter]]]:
    for value, members in (
        (decay, [p for p in parameters if p.ndim > 1]),
        (0.0, [p for p in parameters if p.ndim <= 1]),
    ):
        if members:
            yield value, members


def _class_weights(counts: list[int], exponent: float) -> Tensor:
    """Inverse class frequency to ``exponent``, with mean 1 over the rows."""
    rows = torch.tensor(counts, dtype=torch.float32)
    weights = (rows.sum() / rows.clamp_min(1)) ** exponent
    return weights * rows.sum() / (weights * rows).sum()


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
