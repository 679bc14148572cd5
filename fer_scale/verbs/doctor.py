"""``fer-scale doctor``: is the cluster fit for the verbs, and what to do where it is not."""

import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from rich.table import Table

from fer_scale import diagnosis
from fer_scale import storage as files
from fer_scale.cluster import Cluster, connected
from fer_scale.console import console, progress, set_quiet
from fer_scale.diagnosis import Finding, Machine
from fer_scale.errors import InputError
from fer_scale.provenance import versions

ANSWER_SECONDS = 90.0
"""For how long a machine's answer is waited for: its first worker may have to import PyTorch."""
NAMED = 3
"""Machines that a line of the table names."""
COLOURS = {"ok": "green", "warning": "yellow", "problem": "red"}


def doctor(
    storage: files.PathLike | None = None,
    *,
    cpus: float = 1,
    gpus: float = 0,
    seed: int = 0,
    quiet: bool = False,
) -> dict[str, Any]:
    """Look at the cluster, or at this machine where there is none, and say what is wrong and what mends it.

    Args:
        storage: a folder, local or s3://, that every machine has to read and write; nothing stays in it.
        cpus: CPUs that are wanted at the same time.
        gpus: GPUs that are wanted at the same time.
        seed: taken like everywhere; nothing is drawn here.
        quiet: print nothing but the result.

    Returns:
        healthy (no problem was found), problems, warnings, machines, cpus, gpus, seconds, and findings: a list of
        check, level (ok, warning, problem), found, fix, machines.

    Raises:
        InputError: an argument is of no use; what is wrong with a cluster is a finding.
    """
    set_quiet(quiet)
    began = time.monotonic()
    for name, value in (("cpus", cpus), ("gpus", gpus)):
        if value < 0:
            raise InputError(f"{name} {value:g}", "0 or more", "give a larger number")
    path = None if storage is None else files.normal(storage)
    cluster: Cluster | None = None
    try:
        with connected(processes=0) as cluster:
            findings = _examine(cluster, path, cpus, gpus)
    except InputError as error:
        if cluster is not None:
            raise
        findings = [Finding("cluster", "problem", error.received, error.do)]
    _show(findings)
    levels = [finding.level for finding in findings]
    return {
        "healthy": "problem" not in levels,
        "problems": levels.count("problem"),
        "warnings": levels.count("warning"),
        "machines": len(cluster.machines) if cluster else 0,
        "cpus": cluster.machines.cpus if cluster else 0.0,
        "gpus": cluster.machines.gpus if cluster else 0.0,
        "seconds": round(time.monotonic() - began, 3),
        "findings": [asdict(finding) for finding in findings],
    }


def _examine(cluster: Cluster, path: str | None, cpus: float, gpus: float) -> list[Finding]:
    machines = f"{len(cluster.machines)} machine" + "s" * (len(cluster.machines) > 1)
    there = f"{machines}, {cluster.machines.cpus:g} CPUs, {cluster.machines.gpus:g} GPUs"
    found = [Finding("cluster", "ok", f"{'started here' if cluster.ours else 'joined'}: {there}")]
    found.append(_resources(cluster, cpus, gpus))
    probe = ""
    if path is not None:
        fresh = not files.exists(path) if not files.is_s3(path) else False
        probe, problems = diagnosis.begin_probe(path)
        found += problems
    try:
        found += _ask(probe)
    finally:
        if probe:
            files.delete(probe)
            if fresh:
                with suppress(OSError):  # others have written into it meanwhile
                    os.rmdir(path or "")
    return found


def _resources(cluster: Cluster, cpus: float, gpus: float) -> Finding:
    if said := cluster.machines.lacks_in_all(cpus, gpus):
        received, expected, do = said
        if cluster.grows:
            return Finding("resources", "ok", f"{received}; the autoscaler may bring them, and a verb waits for that")
        return Finding("resources", "problem", f"{received}; {expected}", do)
    busy = cluster.busy(cpus, gpus)
    if busy:
        return Finding("resources", "warning", busy, "wait for the other jobs, or stop them: ray job list")
    return Finding("resources", "ok", f"{cpus:g} CPUs and {gpus:g} GPUs are there and free")


def _ask(probe: str) -> list[Finding]:
    """Let a task on each machine look around."""
    nodes = {_name(node): node for node in ray.nodes() if node["Alive"]}  # type: ignore[no-untyped-call]
    own: Any = ray._private.worker._global_node
    scratch = own.get_session_dir_path()  # of the same name on each machine
    look = ray.remote(num_cpus=0, max_retries=0)(diagnosis.look)
    asked = {}
    for name, node in nodes.items():
        here = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        offers_gpus = node["Resources"].get("GPU", 0) > 0
        task = look.options(scheduling_strategy=here)
        asked[task.remote(scratch, offers_gpus, probe or None, node["NodeID"])] = name
    machines, found = {}, []
    waiting, until = list(asked), time.monotonic() + ANSWER_SECONDS
    with progress("asking machines", len(asked)) as meter:
        while waiting and time.monotonic() < until:
            done, waiting = ray.wait(waiting, timeout=1.0)
            for answer in done:
                try:
                    machines[asked[answer]] = Machine(**ray.get(answer))
                except ray.exceptions.RayError as error:
                    found.append(_silent(asked[answer], str(error).strip().splitlines()[-1]))
                meter.advance()
    found += [_silent(asked[answer], f"no answer within {ANSWER_SECONDS:.0f} s") for answer in waiting]
    if probe:
        found += _not_shared(probe, {name: nodes[name]["NodeID"] for name in machines}, machines)
    offered: Mapping[str, Mapping[str, float]] = {name: node["Resources"] for name, node in nodes.items()}
    return [*found, *diagnosis.judge(machines, offered, versions(diagnosis.LIBRARIES))]


def _silent(name: str, said: str) -> Finding:
    fix = "install fer_scale there, or submit it with --working-dir; the machine's log says more: ray logs"
    return Finding("cluster", "problem", said, fix, (name,))


def _not_shared(probe: str, nodes: Mapping[str, str], machines: Mapping[str, Machine]) -> list[Finding]:
    """Whether what each machine wrote is there for the others."""
    lost = [
        name
        for name, node in nodes.items()
        if machines[name].storage_seconds is not None and not files.exists(files.join(probe, node))
    ]
    fix = "name a path that all machines share"
    return [Finding("storage", "problem", "wrote a file that is not here", fix, tuple(lost))] if lost else []


def _name(node: Mapping[str, Any]) -> str:
    return f"{node['NodeManagerAddress']} ({node['NodeID'][:6]})"


def _show(findings: list[Finding]) -> None:
    table = Table("check", "", "found, and what mends it", "machines", box=None, pad_edge=False)
    for one in findings:
        names = ", ".join(one.machines[:NAMED])
        more = f" and {len(one.machines) - NAMED} more" if len(one.machines) > NAMED else ""
        level = f"[{COLOURS[one.level]}]{one.level}[/]"
        said = _literal(one.found) + (f"\n[bold]{_literal(one.fix)}[/]" if one.fix else "")
        table.add_row(one.check, level, said, _literal(names + more))
    console.print(table, soft_wrap=False)


def _literal(text: str) -> str:
    return text.replace("[", r"\[")
