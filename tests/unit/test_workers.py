"""Workers of one fit, as processes that talk over gloo: the steps of one worker, and no step where they disagree."""

import multiprocessing
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, wait
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

import fer_scale
from fer_scale.errors import FerScaleError
from fer_scale.faces.sample import draw
from fer_scale.learning import epochs, loop
from fer_scale.learning.budget import Budget
from fer_scale.learning.checkpoints import Checkpoints
from fer_scale.learning.plan import Plan

CONFIGURATION = {
    # of a batch of 15 one worker has eight faces, the other seven
    "family": "cnn1",  # without batch norm, and here without dropout: then workers need not differ from one
    "network": {"width": 0.25, "conv_dropout": 0.0, "dense_dropout": 0.0},
    "preprocessing": {"size": 48, "channels": 1},
    "recipe": {"batch_size": 15, "optimizer": "sgd", "lr": 0.02, "thaw": 0.6},
}


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    folder = tmp_path_factory.mktemp("workers")
    draw(folder / "faces", 120, seed=0)
    fer_scale.ingest(folder / "faces", folder / "store", quiet=True)
    how: dict[str, Any] = {"epochs": 2, "seconds": None, "began": 0.0, "seed": 0, "threads": 1, "gpu": False}
    where: dict[str, Any] = {"store": str(folder / "store"), "init_from": None, "streamed": False}
    return Plan(configuration=CONFIGURATION, checkpoints=str(folder / "none"), **where, **how)


@pytest.fixture(autouse=True)
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "bfloat16_pays", never)


def never(*_: object) -> bool:
    """In bfloat16 the halves of a batch are rounded in another way than the whole: steps would agree to two digits."""
    return False


Together = Callable[..., list[Future[FerScaleError | None]]]
PATIENCE = timedelta(seconds=60)
"""With the other worker, where it has ended alone."""


def work(rank: int, plan: Plan, meeting: str, scoring: float) -> FerScaleError | None:
    """One of two workers; scoring val takes so many seconds more."""
    score, used = epochs._score, Budget.used.fget
    assert used is not None

    def slow(*of: Any) -> dict[str, float]:
        time.sleep(scoring)
        return score(*of)

    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2, timeout=PATIENCE)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(loop, "bfloat16_pays", never)
        patched.setattr(epochs, "_score", slow)
        if rank:  # its clock is ahead, and it goes by the first one's all the same
            patched.setattr(Budget, "used", property(lambda budget: used(budget) + 3))
        try:
            return epochs.run(plan)
        finally:
            dist.barrier()  # what one has sent, the other has read
            dist.destroy_process_group()


@pytest.fixture(scope="module")
def together() -> Iterator[Together]:
    """Runs a plan on each of two workers, to the end of both."""
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:

        def run(plans: list[Plan], meeting: Path, scoring: float = 0.0) -> list[Future[FerScaleError | None]]:
            started = [pool.submit(work, rank, one, str(meeting), scoring) for rank, one in enumerate(plans)]
            wait(started)
            return started

        yield run


@pytest.mark.parametrize("streamed", [False, True])
def test_two_workers_take_the_steps_of_one_and_go_on_from_its_checkpoints(
    plan: Plan, together: Together, tmp_path: Path, streamed: bool
) -> None:
    plan = replace(plan, checkpoints=str(tmp_path / "one"), streamed=streamed)
    epochs.run(plan)
    two = replace(plan, checkpoints=str(tmp_path / "two"))
    assert [done.result() for done in together([two, two], tmp_path / "meeting")] == [None, None]
    one, other = (Checkpoints(each.checkpoints).state() or {} for each in (plan, two))
    for name in ("step", "train_loss", "val_accuracy", "val_loss"):
        np.testing.assert_allclose(*([row[name] for row in each["curve"]] for each in (one, other)), rtol=1e-4)
    first, second = (
        load_file(Path(each.checkpoints) / state["best_file"]) for each, state in ((plan, one), (two, other))
    )
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=1e-3, atol=1e-5)

    # what is left of the fit of one is as good to two
    state = Path(plan.checkpoints) / "state.json"
    longer = replace(plan, epochs=3)
    assert [done.result() for done in together([longer, longer], tmp_path / "again")] == [None, None]
    assert len((Checkpoints(str(state.parent)).state() or {})["curve"]) == 3


def test_two_workers_end_by_the_clock_of_the_first(plan: Plan, together: Together, tmp_path: Path) -> None:
    timed = replace(plan, checkpoints=str(tmp_path / "timed"), epochs=None, seconds=4.0, began=time.time())
    assert [done.result() for done in together([timed, timed], tmp_path / "meeting")] == [None, None]
    curve = (Checkpoints(timed.checkpoints).state() or {})["curve"]
    assert curve[-1]["progress"] > 0.7
    assert curve[-1]["seconds"] == pytest.approx(4, abs=1.5)


def test_no_step_is_taken_where_the_time_ended_while_val_was_scored(
    plan: Plan, together: Together, tmp_path: Path
) -> None:
    timed = replace(plan, checkpoints=str(tmp_path / "timed"), epochs=None, seconds=3.8, began=time.time())
    assert [done.result() for done in together([timed, timed], tmp_path / "meeting", scoring=2.0)] == [None, None]
    assert (Checkpoints(timed.checkpoints).state() or {})["curve"][-1]["progress"] < 1


def test_workers_that_find_different_checkpoints_take_no_step(plan: Plan, together: Together, tmp_path: Path) -> None:
    plan, elsewhere = (replace(plan, checkpoints=str(tmp_path / name)) for name in ("here", "elsewhere"))
    epochs.run(plan)
    ended = together([plan, elsewhere], tmp_path / "meeting")
    with pytest.raises(FerScaleError, match="a worker finds the checkpoint of step 0, the first one that of"):
        ended[1].result()


def test_two_workers_that_diverge_end_at_the_same_step(plan: Plan, together: Together, tmp_path: Path) -> None:
    # each step's decay takes ten times the weights from themselves
    recipe = {"optimizer": "sgd", "lr": 10.0, "weight_decay": 1.0, "warmup": 0.0, "batch_size": 16}
    where = str(tmp_path / "wild")
    wild = replace(plan, configuration={**CONFIGURATION, "recipe": recipe}, checkpoints=where, epochs=30)
    said = [str(done.result()).split(" (")[0] for done in together([wild, wild], tmp_path / "meeting")]
    assert said[0].startswith("the loss or its gradient is not finite at step")
    assert said[0] == said[1]
