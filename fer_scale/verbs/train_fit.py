"""The fit of `train` on Ray Train: its workers, what becomes of those that die, and what is shown meanwhile."""

import contextlib
import platform
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import ray
import ray.train
import torch
from ray.exceptions import RayActorError
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

from fer_scale import storage
from fer_scale.cluster import Cluster
from fer_scale.console import progress, warn
from fer_scale.errors import FerScaleError, InputError
from fer_scale.learning.checkpoints import Checkpoints
from fer_scale.learning.epochs import CHECKPOINT_SECONDS, run
from fer_scale.learning.finish import Predictions, predict
from fer_scale.learning.plan import Plan
from fer_scale.learning.workers import first_error
from fer_scale.lease import Lease, LeaseLostError
from fer_scale.verbs.train_stream import READERS_CPUS, opened

MAX_FAILURES = 3
"""Workers that may die, for each where their number is elastic: there machines are meant to go."""
ANSWER_SECONDS = 5.0
"""Between two looks whether there is still a machine to answer."""
RESIZE_SECONDS = 3 * CHECKPOINT_SECONDS
"""Between two looks whether there is room for more workers: they cost what came after the last checkpoint."""


def fit(plan: Plan, lease: Lease, cluster: Cluster, low: int, high: int) -> None:
    """Run the fit on Ray Train; a worker or node that dies is replaced and the fit goes on from its checkpoint.

    Raises:
        FerScaleError: the fit failed; its own line says why.
    """
    with tempfile.TemporaryDirectory(prefix="fer_scale-train-") as scratch:
        trainer = _trainer(plan, low, high, scratch)
        wait_for = _waiting(plan, cluster, low)

        def look() -> None:
            try:
                lease.check()
            except LeaseLostError:
                trainer.end()
            wait_for()

        try:
            with _shown(plan, look):
                failed: FerScaleError | None = trainer.fit().return_value  # type: ignore[attr-defined]
        except ray.train.TrainingFailedError as error:
            roots = [getattr(one, "cause", one) for one in getattr(error, "worker_failures", {}).values()]
            # where one worker fails or dies, others may fail because it is gone
            if root := next((one for one in roots if isinstance(one, FerScaleError)), None):
                raise root from None
            if not any(isinstance(one, WorkerHealthCheckFailedError) for one in roots):
                raise (roots[0] if roots else error) from error
            raise FerScaleError(
                f"workers of the fit died {_failures(low, high) + 1} times; the last checkpoint is whole: find out "
                "what ends them (mostly memory: fewer workers, a smaller batch_size or --memory-limit), and --resume"
            ) from error
        except RayActorError:
            lease.check()  # was it ended because another run has taken over?
            raise
        except BaseException:
            trainer.end()  # on a cluster that is not ours it would fit on
            raise
    if failed is not None:
        raise failed


def predicted(plan: Plan, cluster: Cluster) -> list[Predictions]:
    """What the fitted network says of val and calib; told by a machine like a worker's, unless this is one.

    The command may run on a small head, or on one without a GPU.
    """
    if cluster.ours and not plan.gpu:
        return predict(plan)
    told = ray.remote(num_cpus=plan.threads, num_gpus=int(plan.gpu))(predict).remote(plan)
    wait_for = _waiting(plan, cluster, 1)
    while not ray.wait([told], timeout=ANSWER_SECONDS)[0]:
        with contextlib.suppress(Exception):  # as in `_shown`
            wait_for()
    found: list[Predictions] = ray.get(told)
    return found


def _waiting(plan: Plan, cluster: Cluster, workers: int) -> Callable[[], None]:
    """What says, once, that so many workers wait for machines: those of a cluster that is not ours may go."""
    said: list[str] = []

    def look() -> None:
        if not (cluster.ours or said) and (lacking := cluster.now().machines.lacks(plan.threads, plan.gpu, workers)):
            said.append(f"the fit waits for machines: {lacking[0]}; there are {lacking[1]}")
            warn(said[0])

    return look


def _worker(told: dict[str, Any]) -> FerScaleError | None:
    """What each worker of Ray Train runs; gives the error that ends all of them alike and that no restart mends."""
    plan, failed = Plan(**told), None
    try:
        if not storage.exists(plan.path):
            expected = "a folder that all machines share, or s3://"
            failed = InputError(f"{plan.checkpoints} is not there on {platform.node()}", expected, "give another --out")
        return first_error(failed) or run(plan, opened(plan.threads))
    except torch.OutOfMemoryError as error:
        expected = "a batch that fits into the GPUs' memory"
        ended: FerScaleError = InputError(str(error), expected, "lower batch_size, or ask for more workers")
    except FerScaleError as error:
        ended = error
    # it may be the only one of several that failed, and the others wait for it: Ray begins anew with all
    if ray.train.get_context().get_world_size() > 1 or (isinstance(ended, InputError) and storage.is_outage(ended)):
        raise ended
    return ended


class _Trainer(TorchTrainer):
    """Ray Train, but Ctrl-C reaches the command line: Ray's own handler would end the process with code 0."""

    _controller: Any = None

    def _register_sigint_handler(self, controller: Any) -> None:
        self._controller = controller

    def end(self) -> None:
        """Whether or not the fit is done."""
        if self._controller is not None:
            ray.kill(self._controller)


def _trainer(plan: Plan, low: int, high: int, scratch: str) -> _Trainer:
    """Of a fit on ``low`` to ``high`` workers; Ray Train's own files go into ``scratch``."""
    return _Trainer(
        _worker,  # type: ignore[arg-type]  # annotated without the value that it may return
        train_loop_config=asdict(plan),
        scaling_config=ray.train.ScalingConfig(
            num_workers=low if low == high else (low, high),  # type: ignore[arg-type]  # the types are of the deprecated one
            use_gpu=plan.gpu,
            resources_per_worker={"CPU": _cpus(plan), "GPU": int(plan.gpu)},
            elastic_resize_monitor_interval_s=RESIZE_SECONDS,  # type: ignore[call-arg]
        ),
        run_config=ray.train.RunConfig(  # the types describe the deprecated one
            storage_path=scratch,
            name="fit",
            failure_config=ray.train.FailureConfig(max_failures=_failures(low, high)),
            logging_config=ray.train.LoggingConfig(log_level="ERROR"),  # type: ignore[call-arg]
        ),
    )


def _failures(low: int, high: int) -> int:
    """That the fit survives."""
    return MAX_FAILURES if low == high else MAX_FAILURES * high


def _cpus(plan: Plan) -> float:
    """Reserved by a worker, which leaves what the tasks that read for it need: without a share they wait for ever."""
    return plan.threads - (READERS_CPUS if plan.streamed else 0)


@contextlib.contextmanager
def _shown(plan: Plan, look: Callable[[], None]) -> Iterator[None]:
    """Show each epoch as its checkpoint appears: the curve in it is all that a fit has to say.

    Args:
        plan: the fit.
        look: called in between.
    """
    checkpoints, done = Checkpoints(plan.checkpoints), threading.Event()
    pause = 5.0 if storage.is_s3(plan.checkpoints) else 1.0

    def curve() -> list[dict[str, Any]]:
        with contextlib.suppress(FerScaleError):  # of an outage that lasts the fit itself tells
            if state := checkpoints.state():
                return list(state["curve"])
        return []

    def watch() -> None:
        shown, rows = len(curve()), []
        with progress("fitting", 100) as meter:
            while not done.wait(pause):
                with contextlib.suppress(Exception):  # a disk or a cluster that errs for once; the next look tells
                    look()
                    rows = curve()
                for row in rows[shown:]:
                    rate = f"{row['images_per_second']:.0f} images/s"
                    scores = f"loss {row['train_loss']:.4f}, val {row['val_accuracy']:.4f}"
                    note = f"epoch {row['epoch']:.1f}: {scores}, {rate}"
                    meter.advance(round(100 * row["progress"]) - meter.done, note)
                shown = max(shown, len(rows))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
