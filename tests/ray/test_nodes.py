"""Several nodes, one of which is lost in the middle: label, tune and train on raylets that are all this machine."""

import json
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from ray.cluster_utils import Cluster

import fer_scale
from fer_scale.bundle import Bundle
from fer_scale.cluster import connected
from fer_scale.errors import InputError
from fer_scale.faces.sample import draw
from fer_scale.verbs import train_fit
from tests.bundles import write_bundle
from tests.workers import Workers

NODE: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 100_000_000}


@pytest.fixture(scope="module")
def nodes() -> Iterator[Cluster]:
    """A head that offers nothing, as it should be, and three nodes; this process is connected to it."""
    folder = tempfile.mkdtemp(prefix="fs-")  # short: sockets live below it
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TMPDIR", folder)
        running = Cluster(shutdown_at_exit=False)
        try:
            running.add_node(num_cpus=0, object_store_memory=100_000_000)
            for _ in range(3):
                running.add_node(**NODE)
            patch.setenv("RAY_ADDRESS", running.address)
            with connected(processes=3) as cluster:
                assert sorted(machine.cpus for machine in cluster.machines) == [0, 1, 1, 1]
                yield running
        finally:
            running.shutdown()
            shutil.rmtree(folder, ignore_errors=True)


def losing_one(
    nodes: Cluster, busy: Callable[[], Collection[str]], verb: Callable[..., Any], *args: Any, **options: Any
) -> Any:
    """What a verb gives that loses the first node that is busy; another comes when it has ended."""
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(verb, *args, **options)
        until = time.monotonic() + 120
        while not (found := busy()):
            assert time.monotonic() < until
            time.sleep(0.05)
        lost = next(node for node in nodes.worker_nodes if node.node_id in found)
        nodes.remove_node(lost, allow_graceful=False)
        assert not running.done(), "it ended before it could lose anything"
    nodes.add_node(**NODE)
    return running.result()


def every(nodes: Cluster) -> set[str]:
    """All but the head, where each has its share of the work."""
    return {node.node_id for node in nodes.worker_nodes}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nodes")
    draw(folder / "faces", 160, seed=0)
    fer_scale.ingest(folder / "faces", folder / "store", quiet=True)
    return folder / "store"


@pytest.mark.slow
def test_label_loses_nothing_with_a_node(nodes: Cluster, tmp_path: Path) -> None:
    draw(tmp_path / "faces", 1500, seed=0)
    bundle, out = write_bundle(tmp_path / "bundle"), tmp_path / "out"
    options: dict[str, Any] = {"include": "*.png", "quiet": True}

    def busy() -> Collection[str]:
        return every(nodes) if len(list((out / "ledger" / "labels").glob("*.parquet"))) >= 2 else ()

    summary = losing_one(nodes, busy, fer_scale.label, bundle, tmp_path / "faces", out, **options)
    ids = pq.read_table(out / "labels")["id"].to_pylist()
    assert len(ids) == len(set(ids)) == summary["labelled"] == summary["inputs"] == 1500
    assert fer_scale.label(bundle, tmp_path / "faces", out, **options)["new"] == 0


@pytest.fixture
def config(tmp_path: Path) -> Path:
    network = {"variant": "slim10", "width": 0.25, "weights": "none", "dense": "none", "dropout": 0.0}
    recipe = {"batch_size": 16, "lr": 3e-3}
    shape = {"size": 48, "channels": 1}
    path = tmp_path / "slim.json"
    path.write_text(json.dumps({"family": "resnet", "network": network, "preprocessing": shape, "recipe": recipe}))
    return path


@pytest.mark.slow
def test_a_fit_goes_on_with_the_nodes_that_are_left(
    nodes: Cluster, store: Path, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, workers = tmp_path / "bundle", Workers(monkeypatch, tmp_path)
    state, seen = out / "fit" / "state.json", []

    def busy() -> Collection[str]:
        if state.exists():
            seen[:] = [row["seconds"] for row in json.loads(state.read_text())["curve"]]
        return workers.nodes if seen else ()

    options: dict[str, Any] = {"out": out, "config": config, "epochs": 12, "workers": "1..3", "quiet": True}
    assert losing_one(nodes, busy, fer_scale.train, store, **options)["epochs"] == 12
    first, *_, last = workers.groups
    assert last <= first < len(workers.groups), "they have begun anew, and no more of them"
    assert 1 <= len(seen) < 12
    curve = pd.read_parquet(out / "curve.parquet")
    assert list(curve["epoch"]) == list(range(1, 13))
    assert curve["seconds"].iloc[: len(seen)].tolist() == seen
    assert Bundle.load(out).model_id
    fer_scale.train(store, **{**options, "out": tmp_path / "unbroken"})
    unbroken = pd.read_parquet(tmp_path / "unbroken" / "curve.parquet")
    assert list(curve["step"]) == list(unbroken["step"])
    np.testing.assert_allclose(curve["train_loss"].iloc[-3:], unbroken["train_loss"].iloc[-3:], rtol=0.15)


@pytest.mark.slow
def test_an_elastic_fit_grows_with_its_cluster(
    nodes: Cluster, store: Path, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, workers = tmp_path / "bundle", Workers(monkeypatch, tmp_path)
    monkeypatch.setattr(train_fit, "RESIZE_SECONDS", 2)
    options: dict[str, Any] = {"config": config, "epochs": 60, "workers": "1..4", "quiet": True}
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(fer_scale.train, store, out=out, **options)
        until = time.monotonic() + 120
        while not (out / "fit" / "state.json").exists():
            assert time.monotonic() < until
            time.sleep(0.05)
        added = nodes.add_node(**NODE)
        try:
            assert running.result()["epochs"] == 60
        finally:
            nodes.remove_node(added)
    first, *_, last = workers.groups
    assert first < last == 4
    curve = pd.read_parquet(out / "curve.parquet")
    assert list(curve["step"]) == list(range(curve["step"][0], 60 * curve["step"][0] + 1, curve["step"][0]))


@pytest.mark.slow
def test_a_fit_of_a_fixed_number_of_workers_says_that_it_waits_for_a_node(
    nodes: Cluster, store: Path, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, said = tmp_path / "bundle", ""
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(fer_scale.train, store, out=out, config=config, epochs=8, workers=3)
        until = time.monotonic() + 120
        while not (out / "fit" / "state.json").exists() and time.monotonic() < until:
            time.sleep(0.05)
        nodes.remove_node(next(iter(nodes.worker_nodes)), allow_graceful=False)
        while "the fit waits for machines: 3 CPUs were asked for; there are at most the 2" not in said:
            assert time.monotonic() < until, said
            time.sleep(0.5)
            said += capsys.readouterr().err
        nodes.add_node(**NODE)
        assert running.result()["epochs"] == 8


@pytest.mark.slow
def test_a_search_keeps_a_row_of_every_trial(nodes: Cluster, store: Path, tmp_path: Path) -> None:
    out = tmp_path / "search"
    fixed = {"size": 48, "batch_size": 32, "cnn1.width": 0.25}
    options: dict[str, Any] = {"out": out, "families": ["cnn1"], "fix": fixed, "time_budget": 60, "max_trials": 8}

    def busy() -> Collection[str]:
        return every(nodes) if (out / "trials.parquet").exists() else ()

    found = losing_one(nodes, busy, fer_scale.tune, store, **options, quiet=True)
    rows = pq.read_table(out / "trials.parquet").to_pylist()
    assert len(rows) == found["trials"] >= 3
    assert all(row["status"] not in ("running", None) for row in rows)
    assert sum(row["status"] == "failed" for row in rows) <= 1, "only what ran on the node that was lost"


def test_an_actor_with_a_gpu_finds_it_on_another_node(nodes: Cluster, store: Path, tmp_path: Path) -> None:
    """The GPU is there in name only: Ray gives it away, and PyTorch goes on with the CPU."""
    bundle, out = write_bundle(tmp_path / "bundle"), tmp_path / "out"
    nodes.add_node(**NODE, num_gpus=1)
    summary = fer_scale.label(bundle, store, out, engine="torch", quiet=True)
    assert summary["labelled"] == summary["inputs"] == 160
    assert json.loads((out / "run.json").read_text())["settings"]["engine"] == "torch"


def test_trials_share_the_one_gpu_that_there_is(nodes: Cluster, store: Path, tmp_path: Path) -> None:
    """Four at once by a quarter of it and of a CPU; PyTorch finds none, and each trial's row says so."""
    options: dict[str, Any] = {"families": ["cnn1"], "cpus_per_trial": 0.25, "gpus_per_trial": 0.25, "max_trials": 4}
    with pytest.raises(InputError, match=r"(?i)cuda|nvidia"):
        fer_scale.tune(store, out=tmp_path / "search", time_budget=60, quiet=True, **options)
    reasons = pq.read_table(tmp_path / "search" / "trials.parquet")["reason"].to_pylist()
    assert len(reasons) == 4
    assert all(re.search(r"(?i)cuda|nvidia", reason) for reason in reasons)
