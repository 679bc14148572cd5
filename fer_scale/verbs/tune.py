"""tune: search configurations with Ray Tune and Optuna, on a budget of compute."""

import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

import ray
import ray.tune
from ray.tune.search import Searcher
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from fer_scale import storage
from fer_scale.arguments import check_seed, words
from fer_scale.cluster import connected, variables
from fer_scale.console import set_quiet, warn
from fer_scale.durations import parse_bytes, parse_seconds
from fer_scale.errors import InputError
from fer_scale.faces.store import Store
from fer_scale.families import FAMILIES
from fer_scale.lease import Lease
from fer_scale.search.fixed import check_fixed
from fer_scale.search.fixed import read as read_space
from fer_scale.search.search import Search
from fer_scale.verbs.tune_trial import Climber, Pictures

UNLIMITED = 10**9
OVERTIME = 60.0
"""Seconds after the deadline at which a search ends whose fits have not: they found no CPU, or hang."""
FAILURES = 12
"""Fits in a row that failed, after which a search ends: with such a machine or store all others would."""
MEMORY_PARTS = 8
"""Without a memory limit, decoded faces of one input size have one part of so many: several sizes are shared."""
LEAST = 0.0001
"""The least share of a CPU or a GPU that Ray counts."""
SETTINGS = {
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a failed trial has no score
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",  # its snapshots are never read
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # the working directory stays ours
    "RAY_AIR_NEW_OUTPUT": "0",  # the new reporter prints boxes even at verbose=0
}
"""What Ray Tune reads from the environment."""


class Proposer(Searcher):
    """Between Ray Tune and the search: what to fit next, and what came of it."""

    def __init__(self, search: Search) -> None:
        super().__init__(metric="accuracy", mode="max")
        self._search = search
        self._numbers: dict[str, int] = {}
        self._failures = 0

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """The next fit; none while nothing is worth it, and no more when nothing runs that could change that."""
        found = self._search.next() if self._failures < FAILURES else None
        if found is None:
            return None if self._search.running else Searcher.FINISHED  # type: ignore[return-value]  # so it is documented
        number, fit = found
        self._numbers[trial_id] = number
        return {
            "configuration": fit.configuration,
            "compute": self._search.compute(number),
            "deadline": self._search.deadline,
            "seed": fit.seed,
        }

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """A fit ended, or its process did."""
        number = self._numbers.pop(trial_id, None)
        if number is None:  # Ray Tune tells of the same fit again where it was told of an error meanwhile
            return
        if error or result is None:
            result = {"died": True, "reason": "its process died (killed, or out of memory)"}
        if not self._search.end(number, result):
            return
        self._failures = self._failures + 1 if "reason" in result else 0
        if self._failures == FAILURES:
            warn(f"{FAILURES} fits in a row failed, the last with: {result['reason']}. The search ends")

    def __getstate__(self) -> dict[str, Any]:
        """Ray Tune pickles its searcher into files that nothing reads."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: the journal is the memory."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore: the journal is the memory."""


def tune(
    store: storage.PathLike,
    *,
    out: storage.PathLike,
    families: Sequence[str] | str | None = None,
    time_budget: str | float = "40m",
    max_trials: int | None = None,
    fix: Mapping[str, Any] | None = None,
    space: storage.PathLike | None = None,
    cpus_per_trial: float = 1,
    gpus_per_trial: float | None = None,
    price_per_hour: float | None = None,
    memory_limit: str | int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    seed: int = 0,
    quiet: bool = False,
) -> dict[str, Any]:
    """Search the families for the most accurate configuration on val; test is never read.

    Args:
        store: a face store.
        out: SEARCH; local or s3://.
        families: names; None takes all six.
        time_budget: wall time in seconds, or text like ``40m``.
        max_trials: at most this many trials.
        fix: what is fixed or narrowed: ``{"optimizer": "sgd", "size": [48, 64], "lr": "0.01..0.1"}``.
        space: a TOML or JSON file with the same; ``fix`` goes before it.
        cpus_per_trial: CPUs, and so threads, of each trial.
        gpus_per_trial: share of a GPU of each trial; None gives each a whole one where the cluster has any.
        price_per_hour: of one core, in any currency: the table then says what a million images cost.
        memory_limit: most bytes of decoded faces at one input size that trials share, or text like ``8GB``; what needs
            more is read by each trial as its fit goes. As much again is for the features of frozen backbones. An
            eighth of the machine's memory if not given.
        resume: go on with the search in ``out``.
        overwrite: replace what is in ``out``.
        seed: of the proposals and of each fit.
        quiet: no progress.

    Returns:
        search, best (its row), its family, val_accuracy and val_accuracy_interval, trials, report, compute_seconds,
        seconds.

    Raises:
        InputError: no store, an unknown family or name, ``out`` not empty, or more asked for than the cluster has.
    """
    set_quiet(quiet)
    check_seed(seed)
    store, out = storage.normal(store), storage.normal(out)
    chosen = _check_families(families)
    fixed = check_fixed({**(read_space(storage.normal(space)) if space else {}), **(fix or {})}, chosen)
    budget = parse_seconds(time_budget, "time-budget")
    _check_numbers(max_trials, cpus_per_trial, gpus_per_trial, price_per_hour)
    limit = None if memory_limit is None else parse_bytes(memory_limit, "memory-limit")
    faces = Store.open(store)
    for split in ("train", "val"):
        faces.check(split)
    storage.check_output(out, overwrite=overwrite, resume=resume, inputs=[store])
    with connected(cpus=cpus_per_trial, gpus=gpus_per_trial) as cluster:
        deadline = time.time() + budget  # what an autoscaler took to bring machines is not the search's
        gpus = gpus_per_trial if gpus_per_trial is not None else float(cluster.offers_gpus)
        slots = cluster.machines.room(cpus_per_trial, gpus)
        if overwrite:
            with Lease(out, "of tune"):
                storage.delete(out)
        search = Search(
            out,
            faces,
            chosen,
            fixed,
            budget=budget,
            slots=slots,
            deadline=deadline,
            seed=seed,
            max_trials=max_trials,
            price_per_hour=price_per_hour,
            cpus_per_trial=cpus_per_trial,
            gpus_per_trial=gpus,
        )
        memory = limit or cluster.memory / MEMORY_PARTS
        with search:
            trial = ray.tune.with_parameters(
                Climber,
                pictures=Pictures.options(scheduling_strategy=_here()).remote(store, memory),  # type: ignore[attr-defined]
                store=store,
                memory_limit=memory,
                cpus=cpus_per_trial,
                gpu=gpus > 0,
            )
            resources = {"cpu": cpus_per_trial, "gpu": gpus}
            _run(ray.tune.with_resources(trial, resources), Proposer(search), slots, search.deadline + OVERTIME)
            return search.finish()


def _here() -> NodeAffinitySchedulingStrategy:
    """The driver's node, whose loss ends the search in any case; with any other all trials would lose the pictures."""
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def _run(trial: Any, proposer: Proposer, slots: int, end: float) -> None:
    """Run Ray Tune until the proposer has no more. Its own files are scratch: nothing is ever restored from them."""
    with tempfile.TemporaryDirectory(prefix="fer_scale-tune-") as scratch, variables(SETTINGS):
        ray.tune.Tuner(
            trial,
            tune_config=ray.tune.TuneConfig(
                metric="accuracy",
                mode="max",
                search_alg=proposer,
                num_samples=UNLIMITED,
                max_concurrent_trials=slots,
                reuse_actors=True,
                time_budget_s=max(end - time.time(), 1.0),
            ),
            run_config=ray.tune.RunConfig(
                storage_path=scratch,
                verbose=0,
                checkpoint_config=ray.tune.CheckpointConfig(checkpoint_at_end=False),
            ),
        ).fit()


def _check_numbers(max_trials: int | None, cpus: float, gpus: float | None, price: float | None) -> None:
    least = {"max-trials": (max_trials, 1), "price-per-hour": (price, 0), "cpus-per-trial": (cpus, LEAST)}
    for name, (value, low) in {**least, "gpus-per-trial": (gpus or None, LEAST)}.items():
        if value is not None and not value >= low:
            raise InputError(f"{name} {value}", f"{low} or more", "give a larger number")
    if gpus is not None and gpus > 1 and gpus % 1:
        raise InputError(f"gpus-per-trial {gpus}", "a share of one GPU, or a whole number of them", "round it")


def _check_families(names: Sequence[str] | str | None) -> list[str]:
    chosen = list(dict.fromkeys(words(names) or FAMILIES))
    for name in chosen:
        if name not in FAMILIES:
            raise InputError(f"family {name!r}", f"among {', '.join(FAMILIES)}", "correct the name")
    return chosen
