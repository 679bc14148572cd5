"""train: fit one configuration with Ray Train, and publish the model bundle."""

import contextlib
import json
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import pandas as pd
import ray.train
import torch
from ray.train.torch import TorchTrainer
from safetensors.torch import load

from fer_scale import bundle, storage
from fer_scale.card import card
from fer_scale.cluster import Cluster, connected
from fer_scale.console import progress, say, set_quiet
from fer_scale.durations import parse_seconds
from fer_scale.errors import FerScaleError, InputError
from fer_scale.faces.store import Store
from fer_scale.learning import epochs, metrics
from fer_scale.learning.calibration import fit_temperature, probabilities
from fer_scale.learning.checkpoints import Checkpoints
from fer_scale.learning.configuration import Configuration
from fer_scale.provenance import provenance

DEFAULT_EPOCHS = 24
FINISHING_SECONDS = 20.0
"""Kept back of a time budget for the temperature, the export and the publication."""


def train(
    store: str | os.PathLike[str],
    *,
    out: str | os.PathLike[str],
    from_search: str | os.PathLike[str] | None = None,
    family: str | None = None,
    config: str | os.PathLike[str] | None = None,
    epochs: int | None = None,
    time_budget: str | float | None = None,
    workers: int = 1,
    init_from: str | os.PathLike[str] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    seed: int = 0,
    quiet: bool = False,
) -> dict[str, Any]:
    """Fit one configuration on the train split and publish a model bundle; test and calib are never read.

    Args:
        store: a face store.
        out: BUNDLE; local or s3://. Checkpoints lie in it until the bundle takes their place.
        from_search: a search; its best configuration is fitted.
        family: fit the reference configuration of this family.
        config: a JSON file with a configuration; what it leaves out is the family's reference.
        epochs: passes over the train split; 24 where no time budget is given either.
        time_budget: wall time in seconds, or text like ``20m``; the learning rate anneals by the clock.
        workers: processes that share each batch; one takes all of a machine's cores as threads.
        init_from: a bundle whose backbone the fit begins with.
        resume: go on from the last checkpoint in ``out``.
        overwrite: replace what is in ``out``.
        seed: of the weights, the order of the batches and the augmentation.
        quiet: no progress.

    Returns:
        bundle, model_id, family, val_accuracy, val_accuracy_interval, temperature, epochs, seconds.

    Raises:
        InputError: not exactly one of ``from_search``, ``family`` and ``config``; both budgets; ``out`` not empty; or
            more asked for than the cluster has.
    """
    set_quiet(quiet)
    began = time.monotonic()
    store, out = storage.normal(store), storage.normal(out)
    configuration = _configuration(from_search, family, config)
    seconds = _budget(epochs, time_budget)
    if workers < 1:
        raise InputError(f"workers {workers}", "1 or more", "give a larger number")
    faces = Store.open(store)
    for split in ("train", "val"):
        faces.read(split, ["id"])
    storage.check_output(out, overwrite=overwrite, resume=resume)
    if resume and storage.exists(storage.join(out, "config.json")):
        say(f"{out} is a finished bundle: nothing left to do")
        return _summary(bundle.Bundle.load(out), out, time.monotonic() - began)
    with connected(cpus=workers) as cluster:
        if overwrite:
            storage.delete(out)
        plan = _Plan(
            store=store,
            checkpoints=storage.join(out, "fit"),
            configuration=configuration.to_dict(),
            epochs=(epochs or DEFAULT_EPOCHS) if seconds is None else None,
            seconds=seconds and max(seconds - (time.monotonic() - began) - FINISHING_SECONDS, seconds / 2),
            init_from=storage.normal(init_from) if init_from else None,
            seed=seed,
            threads=_threads(cluster, workers),
        )
        _check_resumed(plan)
        _fit(plan, workers, cluster)
        made = _publish(plan, configuration, faces, out)
    return _summary(made, out, time.monotonic() - began)


_Plan = epochs.Plan


def _worker(told: dict[str, Any]) -> None:
    """What each worker of Ray Train runs."""
    epochs.run(_Plan(**told), lambda row: ray.train.report({"epoch": row["epoch"]}))


def _fit(plan: epochs.Plan, workers: int, cluster: Cluster) -> None:
    """Run the fit on Ray Train; a worker or node that dies is replaced and the fit goes on from its checkpoint.

    Raises:
        FerScaleError: the fit failed; its own line says why.
    """
    gpu = cluster.gpus >= workers
    with tempfile.TemporaryDirectory(prefix="fer_scale-train-") as scratch, _shown(plan):
        trainer = TorchTrainer(
            _worker,
            train_loop_config=asdict(plan),
            scaling_config=ray.train.ScalingConfig(
                num_workers=workers, use_gpu=gpu, resources_per_worker={"CPU": plan.threads, "GPU": int(gpu)}
            ),
            run_config=ray.train.RunConfig(  # the types describe the deprecated one
                storage_path=scratch,
                name="fit",
                failure_config=ray.train.FailureConfig(max_failures=3),
                logging_config=ray.train.LoggingConfig(log_level="ERROR"),  # type: ignore[call-arg]
            ),
        )
        try:
            trainer.fit()
        except ray.train.TrainingFailedError as error:
            for cause in getattr(error, "worker_failures", {}).values():
                root = getattr(cause, "cause", cause)
                if isinstance(root, FerScaleError):
                    raise root from None
            raise


@contextlib.contextmanager
def _shown(plan: epochs.Plan) -> Iterator[None]:
    """Show each epoch as its checkpoint appears: the curve in it is all that a fit has to say."""
    checkpoints, done = Checkpoints(plan.checkpoints), threading.Event()
    pause = 5.0 if storage.is_s3(plan.checkpoints) else 1.0

    def watch() -> None:
        shown = len((checkpoints.state() or {"curve": []})["curve"])
        with progress("fitting", 100) as meter:
            while not done.wait(pause):
                curve = (checkpoints.state() or {"curve": []})["curve"]
                for row in curve[shown:]:
                    share = row["epoch"] / plan.epochs if plan.epochs else row["seconds"] / (plan.seconds or 1.0)
                    rate = f"{row['images_per_second']:.0f} images/s"
                    note = f"epoch {row['epoch']:.1f}, val {row['val_accuracy']:.4f}, {rate}"
                    meter.advance(min(round(100 * share), 100) - meter.done, note)
                    say(f"epoch {row['epoch']:.1f}: loss {row['train_loss']:.4f}, {note.partition(', ')[2]}")
                shown = len(curve)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        time.sleep(0)
        done.set()
        thread.join()


def _publish(plan: epochs.Plan, configuration: Configuration, faces: Store, out: str) -> bundle.Bundle:
    """Turn the best checkpoint into a bundle: temperature and figures on val, model card, ONNX."""
    checkpoints = Checkpoints(plan.checkpoints)
    state = checkpoints.state()
    if state is None or not state["best_file"]:
        raise FerScaleError(f"the fit of {out} ended without one checkpoint; give it a larger budget")
    network = bundle.build(configuration, len(faces.classes), weights="none")
    network.load_state_dict(load(storage.read_bytes(storage.join(plan.checkpoints, state["best_file"]))))
    val = faces.faces("val", configuration.preprocessing)
    with torch.inference_mode():
        network.eval()
        parts = [network(torch.tensor(val.images[i : i + 256])).numpy() for i in range(0, len(val), 256)]
    logits = pd.concat([pd.DataFrame(part) for part in parts]).to_numpy()
    temperature = fit_temperature(logits, val.labels)
    figures = {
        **metrics.summarise(probabilities(logits, temperature), val.labels, faces.classes),
        "ece_uncalibrated": metrics.expected_calibration_error(probabilities(logits), val.labels),
        "temperature": temperature,
        "split": "val",
    }
    facts = {
        "data_fingerprint": faces.fingerprint,
        "data_counts": faces.counts,
        "weights": state["weights"],
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "epochs": round(state["curve"][-1]["epoch"], 2),
        "fit_seconds": round(state["used"], 1),
        "seed": plan.seed,
        **provenance(),
    }
    text = card(
        configuration=configuration.to_dict(),
        classes=faces.classes,
        counts=faces.counts,
        fingerprint=faces.fingerprint,
        metrics=figures,
        weights=state["weights"],
        versions=facts["versions"],
        seconds=state["used"],
    )
    with storage.publishing(out, overwrite=True, last="config.json") as staging:
        bundle.write(
            staging,
            network,
            configuration,
            classes=faces.classes,
            temperature=temperature,
            facts=facts,
            metrics=figures,
            curve=pd.DataFrame(state["curve"]),
            card=text,
        )
    return bundle.Bundle.load(out)


def _summary(made: bundle.Bundle, out: str, seconds: float) -> dict[str, Any]:
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
    from_search: str | os.PathLike[str] | None, family: str | None, config: str | os.PathLike[str] | None
) -> Configuration:
    given = [name for name, value in (("--from", from_search), ("--family", family), ("--config", config)) if value]
    if len(given) != 1:
        received = " and ".join(given) or "none of --from, --family and --config"
        raise InputError(received, "exactly one of --from, --family and --config", "say what to fit")
    if family:
        return Configuration.reference(family)
    if config:
        return Configuration.from_dict(storage.read_json(storage.normal(config)))
    path = storage.join(storage.normal(from_search or ""), "leaderboard.json")
    if not storage.exists(path):
        raise InputError(
            f"--from {from_search}",
            "a search (a folder with leaderboard.json)",
            "make one with: fer-scale tune",
        )
    board = storage.read_json(path)["trials"]
    if not board:
        raise InputError(f"{path} without a scored trial", "at least one", "search again with a larger --time-budget")
    return Configuration.from_dict(board[0]["configuration"])


def _budget(epochs_: int | None, time_budget: str | float | None) -> float | None:
    if epochs_ is not None and time_budget is not None:
        raise InputError("--epochs and --time-budget", "one of them", "leave one out")
    if epochs_ is not None and epochs_ < 1:
        raise InputError(f"epochs {epochs_}", "1 or more", "give a larger number")
    return None if time_budget is None else parse_seconds(time_budget, "time-budget")


def _threads(cluster: Cluster, workers: int) -> int:
    """Cores of each worker: its share of the cluster, and no more than one machine has."""
    return max(int(min(cluster.cpus / workers, cluster.largest)), 1)


def _check_resumed(plan: epochs.Plan) -> None:
    """The plan of a fit lies beside its checkpoints; going on with another one is refused."""
    path = storage.join(plan.checkpoints, "plan.json")
    mine = {key: asdict(plan)[key] for key in ("configuration", "epochs", "init_from", "seed")}
    if storage.exists(path) and (theirs := storage.read_json(path)) != mine:
        changed = [key for key in mine if theirs.get(key) != mine[key]]
        raise InputError(
            f"--resume with another {', '.join(changed)}",
            "what the fit began with",
            "repeat its command, or --overwrite",
        )
    storage.write_bytes(path, json.dumps(mine).encode())
