"""train: fit one configuration with Ray Train, and publish the model bundle."""

import os
import time
from dataclasses import replace
from functools import partial
from typing import Any

from fer_scale import storage
from fer_scale.arguments import check_seed, is_whole
from fer_scale.bundle import Bundle
from fer_scale.cluster import connected
from fer_scale.console import say, set_quiet, warn
from fer_scale.durations import parse_bytes, parse_seconds
from fer_scale.errors import InputError
from fer_scale.faces.store import Store
from fer_scale.faces.windows import decoded_bytes
from fer_scale.learning.begin import begin
from fer_scale.learning.checkpoints import Checkpoints
from fer_scale.learning.configuration import Configuration
from fer_scale.learning.finish import finish, seconds_needed
from fer_scale.learning.plan import Plan, check_same, source
from fer_scale.lease import Lease
from fer_scale.search.chosen import chosen
from fer_scale.verbs.train_fit import fit, predicted

DEFAULT_EPOCHS = 24


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
        bundle, model_id, family, weights, val_accuracy, val_accuracy_interval, temperature, epochs, seconds.

    Raises:
        InputError: not exactly one of ``from_search``, ``family`` and ``config``; both budgets; ``out`` not empty; or
            more asked for than the cluster has.
    """
    set_quiet(quiet)
    check_seed(seed)
    began = time.time()
    store, out = storage.normal(store), storage.normal(out)
    configuration = _configuration(from_search, family, config, pick, min_accuracy)
    if test_time_flip:
        configuration = replace(configuration, test_time_flip=True)
    seconds = _budget(epochs, time_budget)
    passes = (epochs or DEFAULT_EPOCHS) if seconds is None else None
    init_from = storage.normal(init_from) if init_from else None
    faces = Store.open(store)
    for split in ("train", "val"):
        faces.check(split)
    low, high = _workers(workers, min(configuration.recipe.batch_size, faces.rows("train")))
    limit = None if memory_limit is None else parse_bytes(memory_limit, "memory-limit")
    inputs = [path for path in (store, from_search, config, init_from) if path]
    storage.check_output(out, overwrite=overwrite, resume=resume, inputs=inputs)
    storage.check_output(out, overwrite=True)  # in the end the bundle takes the folder's place
    checkpoints = storage.join(out, "fit")
    successor = storage.exists(storage.join(checkpoints, "plan.json"))
    if resume and storage.exists(storage.join(out, "config.json")) and not successor:
        made = Bundle.load(out)
        known = {**made.config, "fingerprint": made.config["data_fingerprint"], "configuration": made.configuration()}
        asked = {"configuration": configuration, "seed": seed, "init_from": init_from, **source(faces)}
        check_same(known, asked | ({"epochs": passes} if passes else {}))
        say(f"{out} is a finished bundle: nothing left to do")
        return _summary(made, out, time.time() - began)
    with connected(gpus=None, processes=low) as cluster:
        gpus = int(cluster.offers_gpus)
        threads = cluster.machines.threads(high, gpus)
        needed = partial(seconds_needed, configuration, faces, gpus > 0)
        plan = Plan(
            store=store,
            checkpoints=checkpoints,
            configuration=configuration.to_dict(),
            epochs=passes,
            seconds=seconds and max(seconds - needed(None if cluster.ours else threads), seconds / 2),
            began=began,
            init_from=init_from,
            seed=seed,
            threads=threads,
            gpu=gpus > 0,
            streamed=decoded_bytes(faces, configuration.preprocessing)
            > (limit or cluster.memory / 4 / cluster.machines.together(high, threads, gpus)),
        )
        if overwrite or Checkpoints(checkpoints).state() is None:  # what cannot be had is said before anything starts
            plan = replace(plan, weights=begin(plan, faces.classes).weights)
        with Lease(out, "of train") as lease:
            if overwrite:
                storage.delete(plan.checkpoints)  # a bundle that is there stays until the new one takes its place
            began_as = plan.laid_down(faces)
            if plan.streamed and not began_as.streamed:
                warn("the faces are more than the memory limit, but this fit began with them in memory and goes on so")
            if began_as.streamed:
                say("the faces are more than the memory limit: they are read as the fit goes")
            fit(replace(began_as, lease=lease.ours), lease, cluster, low, high)
            with storage.publishing(out, overwrite=True, last="config.json") as staging:
                finish(began_as, predicted(began_as, cluster), staging)
                lease.check(last=not storage.is_s3(out))
    return _summary(Bundle.load(out), out, time.time() - began)


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
        of_bundle = isinstance(values, dict) and "model_id" in values and "configuration" in values
        return Configuration.from_dict(values["configuration"] if of_bundle else values)
    return chosen(storage.normal(from_search or ""), pick, min_accuracy)


def _budget(epochs_: int | None, time_budget: str | float | None) -> float | None:
    if epochs_ is not None and time_budget is not None:
        raise InputError("--epochs and --time-budget", "one of them", "leave one out")
    if epochs_ is not None and not (is_whole(epochs_) and epochs_ >= 1):
        raise InputError(f"epochs {epochs_}", "a whole number from 1 on", "give another")
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
