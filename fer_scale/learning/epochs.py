"""A whole fit, epoch by epoch: train, score on val, write a checkpoint. Runs on every worker of it; no Ray in here."""

import math
import platform
import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from scipy.special import log_softmax
from torch import nn

from fer_scale import storage
from fer_scale.bundle import Bundle, build
from fer_scale.errors import FerScaleError, InputError
from fer_scale.faces.store import Faces, Store
from fer_scale.faces.windows import Windows
from fer_scale.families.network import Network
from fer_scale.learning.batches import Batches, Feed
from fer_scale.learning.budget import Budget
from fer_scale.learning.checkpoints import Checkpoints
from fer_scale.learning.configuration import Configuration
from fer_scale.learning.loop import DivergedError, Learner, fit
from fer_scale.learning.plan import Plan
from fer_scale.learning.stream import Opened, StreamedBatches, here
from fer_scale.learning.workers import everywhere, from_first, place, summed

CHECKPOINT_FACES = 200_000
"""Most faces between two checkpoints, where an epoch has more."""
CHECKPOINT_SECONDS = 180.0
"""Most seconds between two, or more where scoring val would take more than `SCORING_SHARE` of the time."""
SCORING_SHARE = 0.1
LEAST_SECONDS = 60.0
"""Of fitting by the clock that a slow start does not take away."""
LONGEST_START = 120.0
"""Seconds of it that count: what is longer is waiting for others to end, or another machine's clock."""


def run(plan: Plan, report: Callable[[dict[str, Any]], None], opened: Opened = here) -> FerScaleError | None:
    """Fit, from the last checkpoint where there is one; ``report`` gets the curve's row after every epoch.

    Each worker scores its share of val; only the first one writes, and the others wait for it.

    Args:
        plan: what is fitted, and on what.
        report: told after every checkpoint.
        opened: how a streamed fit reads its faces.

    Returns:
        The error that all workers end by at the same step, and that no restart mends.

    Raises:
        FerScaleError: this worker alone may have met it.
    """
    torch.set_num_threads(plan.threads)
    torch.manual_seed(plan.seed)
    configuration = Configuration.from_dict(plan.configuration)
    store = Store.open(plan.store)
    device = torch.device("cuda" if plan.gpu else "cpu")
    checkpoints = Checkpoints(plan.checkpoints)
    learner, state = _taken_up(plan, configuration, store, device, checkpoints)
    batches, val = _data(plan, configuration, store, device, opened)
    per_epoch = batches.steps_per_epoch
    per_round = _round(per_epoch, batches.size)
    steps = None if plan.epochs is None else plan.epochs * per_epoch
    # the schedule runs over what the start has left of the time, and the start is counted once
    seconds = plan.seconds and max(plan.seconds - state["start"], min(plan.seconds, LEAST_SECONDS))
    budget = Budget(steps=steps, seconds=seconds, used=state["used"])
    while budget.progress(learner.step) < 1:
        began, at = time.monotonic(), learner.step
        epoch, within = divmod(at, per_epoch)
        until = epoch * per_epoch + min((within // per_round + 1) * per_round, per_epoch)
        try:
            loss = fit(learner, batches, until, _until_checkpoint(budget, at, state["curve"]))
        except DivergedError as error:
            return error
        took = max(time.monotonic() - began, 1e-9)
        if learner.step == at:  # the time ended just now
            break
        learner.equalise()
        (loss,) = summed(loss)
        row = {
            "epoch": learner.step / per_epoch,
            "progress": min(budget.progress(learner.step), 1.0),
            "step": learner.step,
            "train_loss": loss / place()[1],
            **_score(learner, val()),
            "images_per_second": (learner.step - at) * batches.size / took,
            "seconds": round(budget.used, 3),
        }
        state["curve"].append(row)
        # what a fit by epochs publishes is repeatable: where the clock asked for a checkpoint it is only to go on from
        rivals = [one for one in state["curve"] if plan.epochs is None or one["step"] % per_epoch % per_round == 0]
        is_best = row in rivals and row["val_accuracy"] >= max(one["val_accuracy"] for one in rivals)
        state["used"] = budget.used
        failed = _save(checkpoints, learner, state, is_best) if place()[0] == 0 else None
        if not everywhere(torch.tensor(failed is None, device=device)):
            return failed or FerScaleError("the first worker could not write a checkpoint")
        report(row)
    return None


def _taken_up(
    plan: Plan, configuration: Configuration, store: Store, device: torch.device, checkpoints: Checkpoints
) -> tuple[Learner, dict[str, Any]]:
    """The learner and what the last checkpoint says, or a new one of both; the same on all workers.

    Raises:
        FerScaleError: this worker finds another checkpoint than the first one. A restart looks again.
    """
    state = checkpoints.state()
    network = begin(plan, store.classes) if state is None else _empty(configuration, store.classes, state["frozen"])
    network.mirrored = False  # here, where it would double what scoring costs; finish() builds the network anew
    counts = store.class_counts("train")
    learner = Learner(network, configuration.recipe, class_counts=counts, seed=plan.seed, device=device)
    if state is not None:
        checkpoints.load(learner, state)
    # asked by all, whether they found a checkpoint or not: what some alone wait for would never come
    start, first = from_first(min(max(time.time() - plan.began, 0.0), LONGEST_START), learner.step)
    if learner.step != first:
        raise FerScaleError(f"a worker finds the checkpoint of step {learner.step}, the first one that of {first:.0f}")
    if state is None:
        state = {"files": [], "best_file": None, "start": start, "used": 0.0, "curve": []}
        state |= {"weights": network.weights, "frozen": network.frozen}
    return learner, state


def _data(
    plan: Plan, configuration: Configuration, store: Store, device: torch.device, opened: Opened
) -> tuple[Feed, Callable[[], Iterable[Faces]]]:
    """Batches of train, and what gives this worker's share of val's faces, part by part."""
    classes, size, inputs = len(store.classes), configuration.recipe.batch_size, configuration.preprocessing
    if plan.streamed:
        windows = Windows(store, "train", inputs, batch_size=size, seed=plan.seed)
        return StreamedBatches(windows, classes, device, opened), lambda: store.parts("val", inputs, share=place())
    train, val = (store.faces(split, inputs) for split in ("train", "val"))
    rank, workers = place()
    return Batches(train, classes, size, plan.seed, device), lambda: [val.rows(slice(rank, None, workers))]


def _round(per_epoch: int, batch_size: int) -> int:
    """Steps to a checkpoint: an epoch, or an even part of one that is long."""
    return math.ceil(per_epoch / math.ceil(per_epoch * batch_size / CHECKPOINT_FACES))


def _until_checkpoint(budget: Budget, at: int, curve: list[dict[str, Any]]) -> Callable[[int], float]:
    """The budget's progress from step ``at`` on, which ends early where it is time for a checkpoint."""
    began = budget.clock(at)
    allowed = max(CHECKPOINT_SECONDS, curve[-1].get("val_seconds", 0.0) / SCORING_SHARE if curve else 0.0)

    def progress(step: int) -> float:
        return 1.0 if step > at and budget.clock(step) - began > allowed else budget.progress(step)

    return progress


def _save(checkpoints: Checkpoints, learner: Learner, state: dict[str, Any], is_best: bool) -> InputError | None:
    """Write a checkpoint; gives the error that trying again does not mend, which all workers have to end by."""
    try:
        checkpoints.save(learner, state, is_best)
    except InputError as error:
        if storage.is_outage(error):
            raise
        return error
    return None


def begin(plan: Plan, classes: list[str]) -> Network:
    """The network that a fit begins with.

    Raises:
        InputError: weights that were asked for by name cannot be had, or are not those of the plan, or ``init_from``
            has another backbone.
    """
    # no download for weights that would be thrown away
    configuration = Configuration.from_dict(plan.configuration)
    network = build(configuration, len(classes), weights="none" if plan.init_from else None)
    if plan.init_from:
        take_over(network, Bundle.load(plan.init_from), classes)
        if (unfreeze := getattr(configuration.network, "unfreeze", None)) is not None:
            network.freeze(max(0, len(network.stages) - 1 - unfreeze))  # as with weights of ImageNet
    if plan.weights not in (None, network.weights):
        raise InputError(
            f"weights {network.weights} on {platform.node()}",
            f"{plan.weights}, as where the command runs",
            "install fer_scale[imagenet] on every machine, or name a file on s3:// as weights",
        )
    return network


def _empty(configuration: Configuration, classes: list[str], frozen: int) -> Network:
    """A network for a checkpoint's state; which stages are frozen is no part of that."""
    network = build(configuration, len(classes), weights="none")
    network.freeze(frozen)
    return network


def take_over(network: Network, bundle: Bundle, classes: list[str]) -> None:
    """Carry the backbone of an earlier fit over, and its head where that has the same shape and classes.

    Raises:
        InputError: the bundle has another backbone.
    """
    donor = bundle.network()
    if not _alike(network.backbone, donor.backbone):
        raise InputError(
            f"--init-from a bundle of {bundle.config['family']} {bundle.config['configuration']['network']}",
            "the same backbone as is fitted",
            "fit it with that bundle's configuration (its config.json), or leave --init-from out",
        )
    network.backbone.load_state_dict(donor.backbone.state_dict())
    network.mean.copy_(donor.mean)
    network.scale.copy_(donor.scale)
    network.weights = f"bundle {bundle.model_id}"
    if bundle.classes == classes and _alike(network.head, donor.head):
        network.head.load_state_dict(donor.head.state_dict())
        network.weights += " with its head"


def _alike(one: nn.Module, other: nn.Module) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    return {name: value.shape for name, value in mine.items()} == {name: value.shape for name, value in theirs.items()}


def _score(learner: Learner, val: Iterable[Faces]) -> dict[str, float]:
    """Of all workers' shares of val; ``val_seconds`` is what a worker took for its own."""
    began = time.monotonic()
    correct, likelihood, faces = 0, 0.0, 0
    for part in val:
        if len(part):
            logits = learner.logits(part.images)
            likelihood += float(log_softmax(logits.astype(np.float64), axis=1)[np.arange(len(part)), part.labels].sum())
            correct += int((logits.argmax(axis=1) == part.labels).sum())
            faces += len(part)
    right, likelihood, rows, seconds = summed(correct, likelihood, faces, time.monotonic() - began)
    return {
        "val_accuracy": right / rows,
        "val_loss": -likelihood / rows,
        "val_seconds": round(seconds / place()[1], 3),
    }
