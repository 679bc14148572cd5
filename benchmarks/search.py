"""`tune` beside the recipe of Ray Tune's documentation and random search, on FER2013, the same wall time each.

    OMP_NUM_THREADS=1 python benchmarks/search.py [--only 'tune 20m' ...] [--plot]

The recipe is that of Ray Tune's guides for PyTorch and Optuna: a function trainable that reports the accuracy on val
after each of ten epochs, one anneal over the ten, ASHA on epochs (grace period 1, reduction factor 2), OptunaSearch
over the very space that `tune` searches, and no checkpoints, which saves it that time. Random search draws from the
same space and stops nothing. `blind` is `tune` without the configurations of search/starts.py: it begins with the
families' references alone. All have the pictures in memory, through the same actor, and as many trials at once as
there are cores.

Training is train, val is carved from it, and no search reads PublicTest. A winner is what is best on val; it is
fitted once more with as many steps and the seed that it had, outside of the time, and scored on PublicTest: two
winners side by side, a thread each, and a head over a frozen backbone on its features, which are the same in every
epoch. Each piece is stored as it ends, each score too, and a second call goes on with the next. FER_SCALE_DATA names
the folder with training.parquet and publictest.parquet. `--rows 1500 --minutes 1` tries it.
"""

import argparse
import json
import logging
import multiprocessing
import os
import platform
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import optuna
import pandas as pd
import ray
import ray.tune
import torch
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch

import fer_scale
from fer_scale.bundle import build
from fer_scale.cluster import connected
from fer_scale.faces.store import Faces, Store
from fer_scale.families import FAMILIES, Network
from fer_scale.learning import metrics
from fer_scale.learning.batches import Batches
from fer_scale.learning.configuration import Configuration
from fer_scale.learning.loop import Learner, fit
from fer_scale.search.features import features, head_alone, head_of
from fer_scale.search.journal import read
from fer_scale.search.space import suggest
from fer_scale.search.starts import STARTS
from fer_scale.verbs.tune_trial import Pictures

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "benchmarks/results/search.json"
PLOT = ROOT / "docs/images/search.svg"
EPOCHS, GRACE, REDUCTION = 10, 1, 2
SIDES = {"tune": "#0b6fa8", "recipe": "#c8541b", "random": "#5d6470", "blind": "#3a8f5c"}
"""And their colours."""
PIECES = [
    *((side, 20, seed) for seed in range(3) for side in ("tune", "recipe")),
    ("random", 20, 0),
    ("blind", 20, 0),
    ("tune", 40, 0),
    ("recipe", 40, 0),
]
TOGETHER = 2
"""Winners that are scored side by side."""
CPU = torch.device("cpu")


def main() -> None:
    """Run what is not in the results yet; draw the plot."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="*", help="pieces whose name begins so, as 'tune 20m'")
    parser.add_argument("--minutes", type=float, help="instead of 20 and 40, to try it")
    parser.add_argument("--rows", type=int, help="of Training, to try it")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--plot", action="store_true", help="only draw what is there")
    given = parser.parse_args()
    results: dict[str, Any] = json.loads(given.out.read_text()) if given.out.exists() else {}
    if not given.plot:
        with tempfile.TemporaryDirectory(prefix="fer_scale-search-") as folder:
            store = ingested(Path(folder), given.rows)
            for side, minutes, seed in PIECES:
                name = f"{side} {minutes}m #{seed}"
                if name in results or (given.only is not None and not any(name.startswith(one) for one in given.only)):
                    continue
                out = Path(folder) / name.replace(" ", "-").replace("#", "")
                results[name] = piece(side, (given.minutes or minutes) * 60, seed, store, out)
                given.out.write_text(json.dumps(results, indent=1) + "\n")
                print(name, {key: value for key, value in results[name].items() if key != "history"}, flush=True)
                if len(waiting(results)) >= TOGETHER:
                    score(results, store, given.out)
            score(results, store, given.out)
    print(table(results))
    if given.out == OUT and results:
        plot(results)


def ingested(folder: Path, rows: int | None) -> str:
    """The store: Training is train, from which val is carved, PublicTest is test."""
    data = Path(os.environ.get("FER_SCALE_DATA", ROOT.parent / "shared/data/fer2013"))
    source = folder / "source"
    source.mkdir()
    for name in ("training.parquet", "publictest.parquet"):
        pd.read_parquet(data / name).head(rows or 10**9).to_parquet(source / name)
    fer_scale.ingest(
        source,
        folder / "store",
        rename={"surprise": "surprised"},
        split_column="usage",
        split_map={"Training": "train", "PublicTest": "test"},
        id_column="name",
        quiet=True,
    )
    return str(folder / "store")


def piece(side: str, seconds: float, seed: int, store: str, out: Path) -> dict[str, Any]:
    """One search; its winner's score on PublicTest comes later."""
    began = time.time()
    with connected(cpus=2):
        if side in ("tune", "blind"):
            with patch.dict(STARTS, clear=side == "blind"):
                fer_scale.tune(store, out=out, time_budget=seconds, seed=seed)
            told = tuned(out)
        else:
            told = recipe(store, seconds, seed, prune=side == "recipe")
    history = [(round(end - began, 1), round(accuracy, 4)) for end, accuracy in sorted(told["scores"])]
    return {
        "date": date.today().isoformat(),
        "hardware": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": {name: version(name) for name in ("ray", "torch", "optuna")},
        "seconds": round(time.time() - began, 1),
        "search_seconds": round(told["ended"] - began, 1),
        "trials": told["trials"],
        "history": history,
        "winner": told["winner"],
    }


def waiting(results: dict[str, Any]) -> list[str]:
    """Pieces whose winner has no score on PublicTest yet."""
    return [name for name, entry in results.items() if "test_accuracy" not in entry]


def score(results: dict[str, Any], store: str, out: Path) -> None:
    """Fit the winners that have no score once more, `TOGETHER` at a time, and store each score as it comes."""
    with ProcessPoolExecutor(TOGETHER, mp_context=multiprocessing.get_context("spawn")) as pool:
        at_work = {pool.submit(scored, results[name]["winner"], store): name for name in waiting(results)}
        for done in as_completed(at_work):
            correct, count = done.result()
            low, high = metrics.wilson_interval(correct, count)
            facts = {"test_accuracy": round(correct / count, 4), "test_interval": [round(low, 4), round(high, 4)]}
            results[at_work[done]].update(facts)
            out.write_text(json.dumps(results, indent=1) + "\n")
            print(at_work[done], facts, flush=True)


def tuned(out: Path) -> dict[str, Any]:
    """What `tune` left: when each fit ended and with what accuracy, and the winner."""
    fits = []
    for line in read(str(out)).decode().splitlines():
        attributes = json.loads(line).get("user_attr", {})
        fits += [json.loads(value) for key, value in attributes.items() if key == "result"]
    board = json.loads((out / "leaderboard.json").read_text())
    best = board["trials"][0]
    batch = best["configuration"]["recipe"]["batch_size"]
    return {
        "scores": [(one["ended"], one["accuracy"]) for one in fits if one.get("accuracy") is not None],
        "ended": max(one["ended"] for one in fits),
        "trials": len(board["trials"]),
        "winner": {
            "configuration": best["configuration"],
            "seed": best["seed"],
            "val_accuracy": best["accuracy"],
            "steps": round(best["images_seen"] / batch),
            "of_steps": round(best["images_seen"] / batch),
        },
    }


class Watch(ray.tune.Callback):
    """Writes down every report of every trial, as it comes."""

    def __init__(self) -> None:
        self.reports: list[tuple[float, dict[str, Any], dict[str, Any]]] = []

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: Any, **info: Any) -> None:
        """A trial reported."""
        self.reports.append((time.time(), dict(trial.config), dict(result)))


def recipe(store: str, seconds: float, seed: int, *, prune: bool) -> dict[str, Any]:
    """The documentation's recipe, or random search: a flat number of epochs, reported one by one."""
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    sampler = None if prune else optuna.samplers.RandomSampler(seed=seed)
    search = OptunaSearch(space=space, metric="accuracy", mode="max", sampler=sampler, seed=seed if prune else None)
    asha = ASHAScheduler(max_t=EPOCHS, grace_period=GRACE, reduction_factor=REDUCTION) if prune else None
    watch = Watch()
    trainable = ray.tune.with_parameters(
        by_epochs,
        pictures=Pictures.remote(store),  # type: ignore[attr-defined]
        classes=len(Store.open(store).classes),
        seed=seed,
    )
    with tempfile.TemporaryDirectory(prefix="fer_scale-recipe-") as scratch:
        ray.tune.Tuner(
            ray.tune.with_resources(trainable, {"cpu": 1}),
            tune_config=ray.tune.TuneConfig(
                metric="accuracy",
                mode="max",
                search_alg=search,
                scheduler=asha,
                num_samples=-1,
                max_concurrent_trials=int(ray.cluster_resources()["CPU"]),
                time_budget_s=seconds,
            ),
            run_config=ray.tune.RunConfig(storage_path=scratch, verbose=0, callbacks=[watch]),
        ).fit()
    scores = [(at, result["accuracy"]) for at, _, result in watch.reports if "accuracy" in result]
    _, config, best = max(watch.reports, key=lambda report: report[2].get("accuracy", 0.0))
    return {
        "scores": scores,
        "ended": time.time(),
        "trials": len({result["trial_id"] for _, _, result in watch.reports}),
        "winner": {
            "configuration": json.loads(config["configuration"]),
            "seed": seed,
            "val_accuracy": best["accuracy"],
            "steps": best["step"],
            "of_steps": best["step"] // best["training_iteration"] * EPOCHS,
        },
    }


def space(trial: optuna.Trial) -> dict[str, Any]:
    """The space of `tune`, define-by-run; a module's function, for Ray pickles its searcher."""
    return {"configuration": json.dumps(suggest(trial, list(FAMILIES), {}).to_dict())}


def by_epochs(config: dict[str, Any], pictures: Any, classes: int, seed: int) -> None:
    """The function trainable."""
    torch.set_num_threads(1)
    configuration = Configuration.from_dict(json.loads(config["configuration"]))
    train, val = (
        ray.get(ray.get(pictures.faces.remote(split, configuration.preprocessing))[0]) for split in ("train", "val")
    )
    torch.manual_seed(seed)
    learner, batches = learning(build(configuration, classes), configuration, train, classes, seed)
    steps = EPOCHS * batches.steps_per_epoch
    for epoch in range(EPOCHS):
        fit(learner, batches, (epoch + 1) * batches.steps_per_epoch, lambda step: step / steps)
        right = learner.logits(val.images).argmax(axis=1) == val.labels
        ray.tune.report({"accuracy": float(right.mean()), "step": learner.step})


def learning(
    network: Network, configuration: Configuration, train: Faces, classes: int, seed: int
) -> tuple[Learner, Batches]:
    """A fit that has not begun."""
    counts = np.bincount(train.labels, minlength=classes).tolist()
    learner = Learner(network, configuration.recipe, class_counts=counts, seed=seed, device=CPU)
    return learner, Batches(train, classes, configuration.recipe.batch_size, seed, CPU)


def scored(winner: dict[str, Any], store: str) -> tuple[int, int]:
    """The winner's fit once more, and how many faces of PublicTest it answers right, of how many."""
    torch.set_num_threads(1)
    configuration, faces = Configuration.from_dict(winner["configuration"]), Store.open(store)
    train, test = (faces.faces(split, configuration.preprocessing) for split in ("train", "test"))
    classes, seed = len(faces.classes), winner["seed"]
    torch.manual_seed(seed)
    network = build(configuration, classes)
    if head_alone(network, configuration.recipe):
        train, test = features(network, train, CPU), features(network, test, CPU, mirrored=network.mirrored)
        network = head_of(network)
    learner, batches = learning(network, configuration, train, classes, seed)
    fit(learner, batches, winner["steps"], lambda step: step / winner["of_steps"])
    right = learner.logits(test.images).argmax(axis=1) == test.labels
    return int(right.sum()), len(right)


def best_at(entry: dict[str, Any], minutes: float) -> float:
    """The best accuracy on val that was known after so many minutes."""
    return max((accuracy for at, accuracy in entry["history"] if at <= 60 * minutes), default=0.0)


def table(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    lines = ["| piece | trials | best on val at 10 min | at 20 | at 40 | PublicTest |", "|" + "---|" * 6]
    for name, entry in results.items():
        at = " | ".join(f"{best_at(entry, minutes):.4f}" for minutes in (10, 20, 40))
        low, high = entry.get("test_interval", (0, 1))
        test = f"{entry['test_accuracy']:.4f} ({low:.3f} to {high:.3f})" if "test_accuracy" in entry else ""
        lines.append(f"| {name} | {entry['trials']} | {at} | {test} |")
    return "\n".join(lines)


def plot(results: dict[str, Any]) -> None:
    """The best accuracy on val against time: the mean of the seeds, and their spread."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.subplots()
    minutes = np.linspace(0.5, 40, 160)
    draw: Callable[..., Any] = axes.plot
    for side, shade in SIDES.items():
        runs = [entry for name, entry in results.items() if name.startswith(f"{side} 20m")]
        if runs:
            until = minutes[minutes <= 20]
            curves = np.array([[best_at(entry, at) or np.nan for at in until] for entry in runs])
            draw(until, curves.mean(axis=0), color=shade, label=f"{side}, {len(runs)} seed(s)")
            axes.fill_between(until, curves.min(axis=0), curves.max(axis=0), color=shade, alpha=0.2, linewidth=0)
        if long := results.get(f"{side} 40m #0"):
            values = [best_at(long, at) or np.nan for at in minutes]
            draw(minutes, values, color=shade, linestyle="--", label=f"{side}, given 40 minutes")
    axes.set_xlabel("minutes of wall time")
    axes.set_ylabel("best accuracy on val so far")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(PLOT, format="svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
