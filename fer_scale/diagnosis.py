"""What a machine says of itself, and what is wrong with it; `fer-scale doctor` asks each machine of a cluster."""

import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from fer_scale import storage
from fer_scale.errors import InputError, MissingPathError
from fer_scale.provenance import versions

LIBRARIES = ("ray", "torch", "onnxruntime", "numpy", "pillow", "pyarrow")
"""Those whose versions decide whether machines understand each other and give the same answers."""
GIB = 2**30
DISK_FULL = 0.95
"""Ray makes no more objects on a machine whose disk is fuller (RAY_local_fs_capacity_threshold)."""
DISK_LOW = 10 * GIB
PROOF = b"fer-scale doctor"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    check: str
    level: Literal["ok", "warning", "problem"]
    found: str
    fix: str = ""
    machines: tuple[str, ...] = ()
    """Whom it concerns; empty: the cluster as a whole."""


@dataclass(frozen=True)
class Machine:
    """What one machine says of itself; sizes in bytes."""

    versions: Mapping[str, str]
    disk_free: int
    disk_total: int
    shared_memory: int
    """Of /dev/shm; 0 where there is none."""
    gpus: int
    """That PyTorch sees."""
    storage_seconds: float | None = None
    """A write and a read of a small file; None where it was not tried or failed."""
    storage_error: str = ""


def look(scratch: str, expect_gpus: bool = False, probe: str | None = None, name: str = "") -> dict[str, Any]:
    """A `Machine` as a dict: what this one says of itself.

    Args:
        scratch: the folder that Ray writes to.
        expect_gpus: Ray offers GPUs here, so PyTorch is asked, which takes some seconds.
        probe: a folder, local or s3://, that holds the driver's proof; this machine writes its own beside it.
        name: of this machine's proof.
    """
    while not os.path.exists(scratch):
        scratch = os.path.dirname(scratch)
    disk = shutil.disk_usage(scratch)
    shared = shutil.disk_usage("/dev/shm").total if os.path.isdir("/dev/shm") else 0
    gpus = _gpus() if expect_gpus or Path("/dev/nvidia0").exists() else 0
    machine = Machine(versions(LIBRARIES), disk.free, disk.total, shared, gpus)
    return asdict(machine if probe is None else _reach(machine, probe, name))


def _gpus() -> int:
    # A task that asks for no GPU may have them hidden from it.
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        del os.environ["CUDA_VISIBLE_DEVICES"]
    import torch

    return torch.cuda.device_count()


def _reach(machine: Machine, probe: str, name: str) -> Machine:
    began = time.monotonic()
    try:
        storage.write_bytes(storage.join(probe, name), PROOF)
        if storage.read_bytes(storage.join(probe, "driver")) != PROOF:
            return replace(machine, storage_error=f"{probe}/driver does not hold what was written")
    except MissingPathError:
        storage.delete(probe)  # a folder of this machine's own
        return replace(machine, storage_error="a file that another machine wrote is not there")
    except Exception as error:  # whatever it is, it is what the machine has to say
        return replace(machine, storage_error=f"{type(error).__name__}: {error}")
    return replace(machine, storage_seconds=time.monotonic() - began)


def begin_probe(path: str) -> tuple[str, list[Finding]]:
    """Write the driver's proof below `path`; gives the folder, empty where that failed, and what was found."""
    folder = storage.join(path, f".fer_scale-doctor-{os.urandom(6).hex()}")
    try:
        proof = storage.join(folder, "driver")
        storage.create_bytes(proof, PROOF)
        if storage.create_bytes(proof, b"second"):
            return folder, [
                Finding(
                    "storage",
                    "problem",
                    f"{path} takes a second write of a file that was to be written once",
                    "use an S3 that knows conditional writes (If-None-Match): two runs could spoil each other's labels",
                )
            ]
    except InputError as error:
        return "", [Finding("storage", "problem", f"{error.received}", f"{error.do}")]
    except Exception as error:
        return "", [
            Finding(
                "storage",
                "problem",
                f"{path}: {type(error).__name__}: {error}",
                "check AWS_ENDPOINT_URL, AWS_REGION and the network",
            )
        ]
    return folder, []


def judge(
    machines: Mapping[str, Machine], offered: Mapping[str, Mapping[str, float]], own: Mapping[str, str]
) -> list[Finding]:
    """What is wrong with the machines, or that nothing is.

    Args:
        machines: by name.
        offered: by the same names what Ray offers there: GPU, object_store_memory in bytes.
        own: `versions` of the `LIBRARIES` in the process that asks.
    """
    found: list[Finding] = []
    for name, machine in machines.items():
        for finding in (
            *_versions(machine, own),
            _disk(machine),
            _shared_memory(machine, offered[name].get("object_store_memory", 0)),
            _gpu(machine, int(offered[name].get("GPU", 0))),
            *_storage(machine),
        ):
            found.append(replace(finding, machines=(name,)))
    return merged(found)


def _versions(machine: Machine, own: Mapping[str, str]) -> Iterator[Finding]:
    other = {key: version for key, version in machine.versions.items() if _public(version) != _public(own.get(key))}
    for key, version in other.items():
        said = f"{key} {version}, here {own.get(key)}"
        yield Finding("versions", "problem", said, "install one environment everywhere: pip install -c constraints.txt")
    if not other:
        yield Finding("versions", "ok", ", ".join(f"{key} {version}" for key, version in own.items()))


def _public(version: str | None) -> str | None:
    """Without what a build adds: torch for CPUs and for GPUs, 2.14.1+cpu and 2.14.1, are one version."""
    return version and version.partition("+")[0]


def _disk(machine: Machine) -> Finding:
    used = 1 - machine.disk_free / machine.disk_total
    said = f"{machine.disk_free / GIB:,.0f} of {machine.disk_total / GIB:,.0f} GiB free where Ray writes"
    if used >= DISK_FULL:
        return Finding("disk", "problem", said, "free some: Ray makes no objects on a disk that is 95 % full")
    if machine.disk_free < DISK_LOW:
        return Finding("disk", "warning", said, "free some, or start Ray with --temp-dir on a larger disk")
    return Finding("disk", "ok", "enough where Ray writes")


def _shared_memory(machine: Machine, store: float) -> Finding:
    if machine.shared_memory and machine.shared_memory < store:
        said = f"/dev/shm has {machine.shared_memory / GIB:.1f} GiB, the object store {store / GIB:.1f}"
        fix = "give it as much (docker run --shm-size, or an emptyDir of medium Memory at /dev/shm): Ray goes by disk"
        return Finding("shared memory", "warning", said, fix)
    return Finding("shared memory", "ok", "the object store fits")


def _gpu(machine: Machine, offered: int) -> Finding:
    said = f"Ray offers {offered} GPUs, PyTorch sees {machine.gpus}"
    if offered > machine.gpus:
        fix = "install the driver and a CUDA build of torch, and start containers with --gpus all"
        return Finding("gpu", "problem", said, fix)
    if offered < machine.gpus:
        return Finding("gpu", "warning", said, "start Ray there with --num-gpus, or they are not used")
    return Finding("gpu", "ok", said if offered else "none")


def _storage(machine: Machine) -> Iterator[Finding]:
    if machine.storage_error:
        fix = "name a path that all machines reach alike: s3:// with its AWS_* settings on each, or a shared mount"
        yield Finding("storage", "problem", machine.storage_error, fix)
    elif machine.storage_seconds is not None:
        yield Finding("storage", "ok", "readable and writable")


def merged(findings: Iterable[Finding]) -> list[Finding]:
    """One line for what several machines have in common."""
    together: dict[tuple[str, str, str, str], tuple[str, ...]] = {}
    for one in findings:
        key = (one.check, one.level, one.found, one.fix)
        together[key] = together.get(key, ()) + one.machines
    order = ["cluster", "resources", "versions", "storage", "disk", "shared memory", "gpu"]
    found = [Finding(*key, machines) for key, machines in together.items()]  # type: ignore[arg-type]
    return sorted(found, key=lambda finding: order.index(finding.check))
