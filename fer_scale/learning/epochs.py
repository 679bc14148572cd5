"""A whole fit, epoch by epoch: train, score on val, write a checkpoint. Runs on every worker of it; no Ray in here."""

import math
import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from scipy.special import log_softmax

from fer_scale import storage
from fer_scale.errors import FerScaleError, InputError
from fer_scale.faces.store import Faces, Store
from fer_scale.faces.windows import Windows
from fer_scale.learning.batches import Batches, Feed
from fer_scale.learning.begin import begin, empty
from fer_scale.learning.budget import Budget
from fer_scale.learning.checkpoints import Checkpoints
from fer_scale.learning.configuration import Configuration
from fer_scale.learning.loop import DivergedError, Learner, fit
from fer_scale.learning.memory import keep_freed
from fer_scale.learning.plan import Plan
from fer_scale.learning.stream import Opened, StreamedBatches, here
from fer_scale.learning.workers import first_error, from_first, place, summed
from fer_scale.lease import LeaseLostError, held

CHECKPOINT_FACES = 200_000
"""Most faces between two checkpoints, where an epoch has more."""
CHECKPOINT_SECONDS = 180.0
"""Most seconds between two, or more where scoring val would take more than `SCORING_SHARE` of the time."""
SCORING_SHARE = 0.1
LEAST_SECONDS = 60.0
"""Of fitting by the clock that a slow start does not take away."""
LONGEST_START = 120.0
"""Seconds of it that count, beside reading: what is longer is waiting for others, or another machine's clock."""
LONGEST_RESTART = CHECKPOINT_SECONDS + LONGEST_START
"""Seconds that count from a checkpoint until a fit whose worker died has gone on from it."""


def run(plan: Plan, opened: Opened = here) -> FerScaleError | None:
    """Fit, from the last checkpoint where there is one; the curve in it gets a row after every epoch.

    Each worker scores its share of val; only the first one writes, and the others wait for it.

    Args:
        plan: what is fitted, and on what.
        opened: how a streamed fit reads its faces.

    Returns:
        The error that all workers end by at the same step, and that no restart mends.

    Raises:
        FerScaleError: this worker alone may have met it.
    """
    torch.set_num_threads(plan.threads)
    torch.manual_seed(plan.seed)
    checkpoints = Checkpoints(plan.checkpoints)
    ready = _ready(plan, checkpoints, opened)
    if isinstance(ready, FerScaleError):
        return ready
    learner, state, batches, val = ready
    if not plan.gpu:
        keep_freed()
    per_epoch = batches.steps_per_epoch
    per_round = _round(per_epoch, batches.size)
    budget = _budget(plan, state, per_epoch)
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
        state |= {"used": budget.used, "began": plan.began, "saved": time.time()}
        saved = _save(plan, checkpoints, learner, state, is_best=_is_best(row, rivals)) if place()[0] == 0 else None
        if failed := first_error(saved):
            return failed
        budget.hear_anew()  # scoring and saving took their time
    return None


def _ready(
    plan: Plan, checkpoints: Checkpoints, opened: Opened
) -> tuple[Learner, dict[str, Any], Feed, Callable[[], Iterable[Faces]]] | FerScaleError:
    """The learner, what the last checkpoint says, and the data; or why a worker cannot begin, by which all end."""
    configuration = Configuration.from_dict(plan.configuration)
    device = torch.device("cuda" if plan.gpu else "cpu")
    failed: FerScaleError | None = None
    began = time.monotonic()
    try:
        store = Store.open(plan.store)
        batches, val = _data(plan, configuration, store, device, opened)
        state = checkpoints.state()
        network = begin(plan, store.classes) if state is None else empty(configuration, store.classes, state["frozen"])
    except InputError as error:
        if storage.is_outage(error):
            raise
        failed = error
    if failed := first_error(failed):
        return failed
    reading = time.monotonic() - began
    start = min(max(time.time() - plan.began - reading, 0.0), LONGEST_START) + reading
    network.mirrored = False  # here, where it would double what scoring costs; finish() builds the network anew
    counts = store.class_counts("train")
    learner = Learner(network, configuration.recipe, class_counts=counts, seed=plan.seed, device=device)
    return learner, _taken_up(learner, checkpoints, state, start), batches, val


def _taken_up(learner: Learner, checkpoints: Checkpoints, state: dict[str, Any] | None, start: float) -> dict[str, Any]:
    """Put the learner where the last checkpoint was written; gives what that says, the same on all workers.

    Raises:
        FerScaleError: this worker finds another checkpoint than the first one. A restart looks again.
    """
    if state is not None:
        checkpoints.load(learner, state)
    # asked by all, whether they found a checkpoint or not: what some alone wait for would never come
    start, first = from_first(start, learner.step)
    if learner.step != first:
        raise FerScaleError(f"a worker finds the checkpoint of step {learner.step}, the first one that of {first:.0f}")
    if state is None:
        state = {"files": [], "best_file": None, "start": start, "used": 0.0, "curve": []}
        state |= {"weights": learner.network.weights, "frozen": learner.network.frozen}
    return state


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


def _budget(plan: Plan, state: dict[str, Any], per_epoch: int) -> Budget:
    """Of the whole fit; the schedule runs over what the start has left of the time, and the start is counted once."""
    steps = None if plan.epochs is None else plan.epochs * per_epoch
    seconds = plan.seconds and max(plan.seconds - state["start"], min(plan.seconds, LEAST_SECONDS))
    used = state["used"]
    if state.get("began") == plan.began:  # a worker died within this command, whose time went on
        used += min(max(time.time() - state["saved"], 0.0), LONGEST_RESTART)
    return Budget(steps=steps, seconds=seconds, used=used)


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


def _is_best(row: dict[str, Any], rivals: list[dict[str, Any]]) -> bool:
    """Whether none of the rows, of which it is one, has a higher accuracy on val."""
    return row in rivals and row["val_accuracy"] >= max(one["val_accuracy"] for one in rivals)


def _save(
    plan: Plan, checkpoints: Checkpoints, learner: Learner, state: dict[str, Any], *, is_best: bool
) -> FerScaleError | None:
    """Write a checkpoint; gives the error that trying again does not mend, which all workers have to end by."""
    try:
        if plan.lease and not held(*plan.lease):  # the command may be suspended while its workers are not
            return LeaseLostError(f"another run has taken over {plan.checkpoints}; this one has stopped")
        checkpoints.save(learner, state, is_best)
    except InputError as error:
        if storage.is_outage(error):
            raise
        return error
    return None


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
