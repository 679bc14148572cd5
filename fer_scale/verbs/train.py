"""train: fit one configuration with Ray Train, and publish the model bundle."""

import contextlib
import os
import platform
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any

import ray
import ray.train
from ray.train.torch import TorchTrainer

from fer_scale import storage
from fer_scale.bundle import Bundle
from fer_scale.cluster import connected
from fer_scale.console import progress, say, set_quiet
from fer_scale.durations import parse_bytes, parse_seconds
from fer_scale.errors import FerScaleError, InputError
from fer_scale.faces.store import Store
from fer_scale.faces.windows import decoded_bytes
from fer_scale.learning.checkpoints import Checkpoints
from fer_scale.learning.configuration import Configuration
from fer_scale.learning.epochs import CHECKPOINT_SECONDS, begin, run
from fer_scale.learning.finish import finish, seconds_needed
from fer_scale.learning.plan import Plan, check_same, source
from fer_scale.lease import Lease
from fer_scale.search.chosen import chosen
from fer_scale.verbs.train_stream import READER_CPUS, opened, readers

DEFAULT_EPOCHS = 24
MAX_FAILURES = 3
"""Workers that may die, for each where their number is elastic: there machines are meant to go."""
RESIZE_SECONDS = 3 * CHECKPOINT_SECONDS
"""Between two looks whether there is room for more workers: they cost what came after the last checkpoint."""


def train(
    store: str | os.PathLike[str],
    *,
    out: str | os.PathLike[str],
    from_search: str | os.PathLike[str] | None = None,
    pick: str = "best",
    min_accuracy: float | None = None,
    family: str | None = None,
    config: str | os.PathLike[str] | None = None,
    epochs: int | None = None,
    time_budget: str | float | None = None,
    workers: int | str = 1,
    init_from: str | os.PathLike[str] | None = None,
    test_time_flip: bool = False,
    memory_limit: str | int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    seed: int = 0,
    quiet: bool = False,
) -> dict[str, Any]:
    """Fit one configuration on the train split and publish a model bundle.

    test is never read, and calib by the finished network alone.

    Args:
        store: a face store.
        out: BUNDLE; local or s3://. Checkpoints lie in it until the bundle takes their place.
        from_search: a search; its best configuration is fitted.
        pick: of the search: ``best``, or ``cheapest`` to use of those that are accurate enough.
        min_accuracy: what is enough for ``cheapest``, on val; None takes those that val cannot tell from the best.
        family: fit the reference configuration of this family.
        config: a JSON file with a configuration, or a bundle's config.json; what is left out is the family's reference.
        epochs: passes over the train split; 24 where no time budget is given either.
        time_budget: wall time in seconds, or text like ``20m``; the learning rate anneals by the clock.
        workers: processes that share each batch; one takes all of a machine's cores as threads. ``2..8`` begins with as
            many as the cluster has room for and changes their number as machines come and go. Where the cluster has
            GPUs each has one.
        init_from: a bundle whose backbone the fit begins with, and whose head where the classes are the same.
        test_time_flip: average over each picture and its mirror image, wherever the bundle is used: twice the compute.
        memory_limit: most bytes of decoded faces that a worker keeps, or text like ``8GB``; what needs more is read by
            Ray Data as the fit goes. If not given, a quarter of what Ray has on a machine, shared by its workers.
        resume: go on from the last checkpoint in ``out``.
        overwrite: replace what is in ``out``, once the new bundle is complete.
        seed: of the weights, the order of the batches and the augmentation.
        quiet: no progress.

    Returns:
        bundle, model_id, family, val_accuracy, val_accuracy_interval, temperature, epochs, seconds.

    Raises:
        InputError: not exactly one of ``from_search``, ``family`` and ``config``; both budgets; ``out`` not empty; or
            more asked for than the cluster has.
    """
    set_quiet(quiet)
    began = time.time()
    store, out = storage.normal(store), storage.normal(out)
    configuration = _configuration(from_search, family, config, pick, min_accuracy)
    if test_time_flip:
        configuration = replace(configuration, test_time_flip=True)
    seconds = _budget(epochs, time_budget)
    faces = Store.open(store)
    for split in ("train", "val"):
        faces.check(split)
    low, high = _workers(workers, min(configuration.recipe.batch_size, faces.rows("train")))
    limit = None if memory_limit is None else parse_bytes(memory_limit, "memory-limit")
    inputs = [path for path in (store, from_search, config, init_from) if path]
    storage.check_output(out, overwrite=overwrite, resume=resume, inputs=inputs)
    checkpoints = storage.join(out, "fit")
    successor = storage.exists(storage.join(checkpoints, "plan.json"))
    if resume and storage.exists(storage.join(out, "config.json")) and not successor:
        made = Bundle.load(out)
        known = {**made.config, "fingerprint": made.config["data_fingerprint"], "configuration": made.configuration()}
        check_same(known, {"configuration": configuration, "seed": seed, **source(faces)})
        say(f"{out} is a finished bundle: nothing left to do")
        return _summary(made, out, time.time() - began)
    with connected(cpus=low) as cluster:
        gpus = int(cluster.gpus >= 1)
        cluster = cluster.require(one=1, one_gpus=gpus, processes=low)
        threads = cluster.threads(high, gpus)
        plan = Plan(
            store=store,
            checkpoints=checkpoints,
            configuration=configuration.to_dict(),
            epochs=(epochs or DEFAULT_EPOCHS) if seconds is None else None,
            seconds=seconds and max(seconds - seconds_needed(configuration, faces), seconds / 2),
            began=began,
            init_from=storage.normal(init_from) if init_from else None,
            seed=seed,
            threads=threads,
            gpu=gpus > 0,
            streamed=decoded_bytes(faces, configuration.preprocessing)
            > (limit or cluster.memory / 4 / cluster.together(high, threads, gpus)),
        )
        if not resume:
            begin(plan, faces.classes)  # what cannot be had is said before anything starts
        with Lease(out, "of train"):
            if overwrite:
                storage.delete(plan.checkpoints)  # a bundle that is there stays until the new one takes its place
            plan = plan.laid_down(faces)
            if plan.streamed:
                say("the faces are more than the memory limit: they are read as the fit goes")
            _fit(plan, low, high)
            with storage.publishing(out, overwrite=True, last="config.json") as staging:
                finish(plan, staging)
    return _summary(Bundle.load(out), out, time.time() - began)


def _worker(told: dict[str, Any]) -> FerScaleError | None:
    """What each worker of Ray Train runs; gives the error that ends all of them alike and that no restart mends."""
    plan = Plan(**told)
    try:
        if not storage.exists(plan.path):
            expected = "a folder that all machines share, or s3://"
            raise InputError(f"{plan.checkpoints} is not there on {platform.node()}", expected, "give another --out")
        return run(plan, lambda row: ray.train.report({"epoch": row["epoch"]}), opened(plan.threads))
    except FerScaleError as error:
        # it may be the only one of several that failed, and the others wait for it: Ray begins anew with all
        if ray.train.get_context().get_world_size() > 1 or (isinstance(error, InputError) and storage.is_outage(error)):
            raise
        return error


def _cpus(plan: Plan) -> float:
    """Reserved by a worker, which leaves what the tasks that read for it need: without a share they wait for ever."""
    return plan.threads - (READER_CPUS * readers(plan.threads) if plan.streamed else 0)


class _Trainer(TorchTrainer):
    """Ray Train, but Ctrl-C reaches the command line: Ray's own handler would end the process with code 0."""

    controller: Any = None

    def _register_sigint_handler(self, controller: Any) -> None:
        self.controller = controller


def _fit(plan: Plan, low: int, high: int) -> None:
    """Run the fit on Ray Train; a worker or node that dies is replaced and the fit goes on from its checkpoint.

    Raises:
        FerScaleError: the fit failed; its own line says why.
    """
    with tempfile.TemporaryDirectory(prefix="fer_scale-train-") as scratch, _shown(plan):
        trainer = _Trainer(
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
                failure_config=ray.train.FailureConfig(
                    max_failures=MAX_FAILURES if low == high else MAX_FAILURES * high
                ),
                logging_config=ray.train.LoggingConfig(log_level="ERROR"),  # type: ignore[call-arg]
            ),
        )
        try:
            failed: FerScaleError | None = trainer.fit().return_value  # type: ignore[attr-defined]
        except ray.train.TrainingFailedError as error:
            for cause in getattr(error, "worker_failures", {}).values():
                if isinstance(root := getattr(cause, "cause", cause), FerScaleError):
                    raise root from None
            raise
        except BaseException:
            if trainer.controller is not None:
                ray.kill(trainer.controller)  # on a cluster that is not ours it would fit on
            raise
    if failed is not None:
        raise failed


@contextlib.contextmanager
def _shown(plan: Plan) -> Iterator[None]:
    """Show each epoch as its checkpoint appears: the curve in it is all that a fit has to say."""
    checkpoints, done = Checkpoints(plan.checkpoints), threading.Event()
    pause = 5.0 if storage.is_s3(plan.checkpoints) else 1.0

    def curve() -> list[dict[str, Any]]:
        with contextlib.suppress(FerScaleError):  # of an outage that lasts the fit itself tells
            if state := checkpoints.state():
                return list(state["curve"])
        return []

    def watch() -> None:
        shown = len(curve())
        with progress("fitting", 100) as meter:
            while not done.wait(pause):
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


def _summary(made: Bundle, out: str, seconds: float) -> dict[str, Any]:
    return {
        "bundle": out,
        "model_id": made.model_id,
        "family": made.config["family"],
        "weights": made.config["weights"],
        "val_accuracy": made.metrics["accuracy"],
        "val_accuracy_interval": made.metrics["accuracy_interval"],
        "temperature": made.temperature,
        "epochs": made.config["epochs"],
        "seconds": round(seconds, 1),
    }


def _configuration(
    from_search: str | os.PathLike[str] | None,
    family: str | None,
    config: str | os.PathLike[str] | None,
    pick: str,
    min_accuracy: float | None,
) -> Configuration:
    given = [name for name, value in (("--from", from_search), ("--family", family), ("--config", config)) if value]
    if len(given) != 1:
        received = " and ".join(given) or "none of --from, --family and --config"
        raise InputError(received, "exactly one of --from, --family and --config", "say what to fit")
    if not from_search and (pick != "best" or min_accuracy is not None):
        raise InputError(f"--pick or --min-accuracy with {given[0]}", "--from SEARCH", "say which search to pick from")
    if family:
        return Configuration.reference(family)
    if config:
        values = storage.read_json(storage.normal(config))
        of_bundle = isinstance(values, dict) and "model_id" in values
        return Configuration.from_dict(values["configuration"] if of_bundle else values)
    return chosen(storage.normal(from_search or ""), pick, min_accuracy)


def _budget(epochs_: int | None, time_budget: str | float | None) -> float | None:
    if epochs_ is not None and time_budget is not None:
        raise InputError("--epochs and --time-budget", "one of them", "leave one out")
    if epochs_ is not None and epochs_ < 1:
        raise InputError(f"epochs {epochs_}", "1 or more", "give a larger number")
    return None if time_budget is None else parse_seconds(time_budget, "time-budget")


def _workers(workers: int | str, batch_size: int) -> tuple[int, int]:
    """Fewest and most workers of ``4`` or ``2..8``."""
    low, dots, high = str(workers).partition("..")
    ends = (low, high if dots else low)
    if not all(end.isdecimal() for end in ends) or not 1 <= int(ends[0]) <= int(ends[1]):
        raise InputError(f"workers {workers}", "a number from 1 on, or a range as 2..8", "correct it")
    if 2 * int(ends[1]) > batch_size:  # batch norm takes no batch of one
        expected = f"at most {batch_size // 2}, for two faces of a batch of {batch_size} each"
        raise InputError(f"workers {workers}", expected, "ask for fewer, or a larger batch_size if train has the faces")
    return int(ends[0]), int(ends[1])
