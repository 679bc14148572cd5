"""Joining or starting Ray: the only `ray.init` of the package."""

import logging
import os
import secrets
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Ray reads these when it is imported and when it starts its processes.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
# Tune would end a search at Ctrl-C as if it were done; it has to reach the command line.
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
# Below that, its C++ says on stderr what is no news to a user: a remark on each pool of actors of Ray Data (Ray's issue
# 53727; the arguments are the driver's, without which nothing goes on), and a line for every task that Ctrl-C ends.
os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")

import grpc
import ray
from ray._private.gcs_utils import create_gcs_channel
from ray._private.services import find_bootstrap_address
from ray.autoscaler.sdk import request_resources
from ray.core.generated.gcs_service_pb2 import GetClusterIdRequest  # type: ignore[attr-defined]  # made at run time
from ray.core.generated.gcs_service_pb2_grpc import NodeInfoGcsServiceStub
from ray.exceptions import AuthenticationError, RaySystemError

from fer_scale.console import say, warn
from fer_scale.durations import parse_seconds
from fer_scale.errors import InputError
from fer_scale.machines import TOLERANCE, Machine, Machines

AUTHENTICATION = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")

CONNECT_SECONDS = 10.0
"""How long a cluster may take to accept a connection."""

_wait = os.environ.get("FER_SCALE_AUTOSCALER_SECONDS") or "0"
AUTOSCALER_SECONDS = 0.0 if _wait == "0" else parse_seconds(_wait, "FER_SCALE_AUTOSCALER_SECONDS")
"""How long to wait for machines that an autoscaler brings; 0 where there is none, which Ray does not tell."""
AUTOSCALER_GPUS = os.environ.get("FER_SCALE_AUTOSCALER_GPUS", "").lower() in ("1", "true", "yes")
"""Whether it brings machines with GPUs, which Ray does not tell either."""


@dataclass(frozen=True)
class Cluster:
    """What was joined or started."""

    machines: Machines
    """Those that are alive."""
    ours: bool
    """Whether this process started it, so that it ends with this process."""
    memory: float = 0
    """Bytes of the machine that has least, of those that work."""

    @property
    def grows(self) -> bool:
        """Whether an autoscaler may bring what is missing."""
        return AUTOSCALER_SECONDS > 0 and ray.is_initialized() and not self.ours

    @property
    def offers_gpus(self) -> bool:
        """Whether there are GPUs, or an autoscaler brings them when they are asked for."""
        return self.machines.gpus >= 1 or (self.grows and AUTOSCALER_GPUS)

    def require(self, cpus: float, gpus: float = 0, processes: int = 1) -> "Cluster":
        """Refuse to ask for more than there is, or than an autoscaler brings: Ray would wait for it for ever.

        Args:
            cpus: CPUs of a process, which has to find them on one machine.
            gpus: its GPUs, on the same machine.
            processes: how many of them run at once.

        Returns:
            The cluster as it is then.

        Raises:
            InputError: fewer CPUs or GPUs are there than are asked for.
        """
        if (said := self.machines.lacks(cpus, gpus, processes)) is None:
            return self
        if self.grows:
            return self._grown(cpus, gpus, processes)
        raise InputError(*said)

    def _grown(self, cpus: float, gpus: float, processes: int) -> "Cluster":
        """Ask the autoscaler for what is missing, and wait for it.

        Raises:
            InputError: it did not come within `AUTOSCALER_SECONDS`.
        """
        wanted = {kind: share for kind, share in (("CPU", cpus), ("GPU", gpus)) if share}
        say(f"waiting for the autoscaler to bring {cpus * processes:g} CPUs and {gpus * processes:g} GPUs")
        until, found = time.monotonic() + AUTOSCALER_SECONDS, self
        request_resources(bundles=[wanted] * processes)
        try:
            while said := found.machines.lacks(cpus, gpus, processes):
                if time.monotonic() > until:
                    told = f"{said[0]} and did not come within {AUTOSCALER_SECONDS / 60:g} minutes"
                    raise InputError(told, said[1], "ray status says why; give the same command again, or ask for less")
                time.sleep(1.0)
                found = self.now()
        finally:
            request_resources(bundles=[])  # what came stays while work is on it, and goes when idle
        return found

    def now(self) -> "Cluster":
        """What it has now: machines come and go."""
        return _found(self.ours)

    def busy(self, cpus: float, gpus: float) -> str:
        """What would have to be waited for, because others use it now; empty where that is nothing."""
        free: dict[str, float] = ray.available_resources()  # type: ignore[no-untyped-call]
        for asked, there, kind in ((cpus, self.machines.cpus, "CPU"), (gpus, self.machines.gpus, "GPU")):
            if asked > free.get(kind, 0.0) + TOLERANCE:
                return f"{asked:g} {kind}s are asked for, {free.get(kind, 0.0):g} of the cluster's {there:g} are free"
        return ""


def connect(cpus: float = 1, gpus: float | None = 0, processes: int = 1) -> Cluster:
    """Join the running cluster, or start one on this machine, and see that it has what is asked for.

    A running one is that of the job this process is, of RAY_ADDRESS, or the one `ray start` left on this
    machine; RAY_ADDRESS=local starts an own one in any case. A started one asks for a token that only this
    process and its children know, unless RAY_AUTH_MODE says otherwise; to join one, RAY_AUTH_MODE and the
    token must be those of the cluster. Where other jobs use what is asked for, that is said: Ray waits for them.

    Args:
        cpus: CPUs of a process, which has to find them on one machine.
        gpus: its GPUs, on the same machine; None for one where the cluster offers GPUs.
        processes: how many of them will run at the same time.

    Raises:
        InputError: the cluster has fewer CPUs or GPUs, runs another Python or Ray, cannot be reached, or refuses the
            token.
    """
    new = not ray.is_initialized()
    ours = _start() if new else False
    try:
        found = _found(ours)
        if gpus is None:
            gpus = float(found.offers_gpus)
        found = found.require(cpus, gpus, processes)
    except BaseException:
        if new:
            ray.shutdown()
        raise
    if not ours and new and (busy := found.busy(cpus * processes, gpus * processes)):
        warn(f"{busy}; this waits for the other jobs to end (ray job list names them)")
    if not ours:
        there = found.machines
        say(f"cluster: {len(there)} machines, {there.cpus:g} CPUs, {there.gpus:g} GPUs")
    return found


def _found(ours: bool) -> Cluster:
    """What the cluster has now."""
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    machines = Machines(Machine(there.get("CPU", 0.0), there.get("GPU", 0.0)) for there in alive)
    # a head that offers no CPUs does no work
    memory = min((there.get("memory", 0.0) for there in alive if there.get("CPU")), default=0.0)
    return Cluster(machines, ours, memory)


@contextmanager
def connected(cpus: float = 1, gpus: float | None = 0, processes: int = 1) -> Iterator[Cluster]:
    """`connect` for the length of a block; what the block started ends with it."""
    already = ray.is_initialized()
    cluster = connect(cpus, gpus, processes)
    try:
        yield cluster
    finally:
        if not already:
            ray.shutdown()


def _start() -> bool:
    """Run ray.init; True when it started a cluster rather than joined one."""
    logging.getLogger("ray").setLevel(logging.ERROR)
    if not any(map(os.environ.get, AUTHENTICATION)) and not Path("~/.ray/auth_token").expanduser().exists():
        # Ray would write a token into the home folder, and `ray start` and `ray job submit` would go by it.
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    address = os.environ.get("RAY_ADDRESS") or None
    _check_answers(address or find_bootstrap_address(None) or "local")
    handler = signal.getsignal(signal.SIGTERM)
    try:
        with warnings.catch_warnings(), _silent():
            warnings.simplefilter("ignore")  # Ray's own deprecations are no news to a user
            ray.init(
                address=address,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
    except AuthenticationError as error:
        raise _refused(address or "this machine") from error
    except RuntimeError as error:
        if "Version mismatch" not in str(error):
            raise
        raise InputError(
            " ".join(str(error).split()), "the same Ray and Python here and on the cluster", "install the same versions"
        ) from error
    except (ConnectionError, TimeoutError, RaySystemError) as error:
        raise _unreachable(address or "its address") from error
    finally:
        # ray.init puts its own handler in, by which a job that is stopped could not say how to go on.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)
    node: Any = ray._private.worker._global_node
    return node is not None and bool(node.is_head())


@contextmanager
def _silent() -> Iterator[None]:
    """Nothing reaches stderr: before Ray's C++ goes by RAY_BACKEND_LOG_LEVEL it says so. Failures are raised."""
    sys.stderr.flush()
    stderr = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)


def _check_answers(address: str) -> None:
    """Say at once that a cluster is gone, or wants another token: ray.init tries for long and cannot tell which."""
    host, _, port = address.rpartition(":")
    if not port.isdecimal() or "://" in host:  # local, auto, a Ray client's address: ray.init knows what to do
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        raise _unreachable(address) from error
    try:
        with create_gcs_channel(address) as channel:
            service = NodeInfoGcsServiceStub(channel)  # type: ignore[no-untyped-call]
            service.GetClusterId(GetClusterIdRequest(), timeout=CONNECT_SECONDS)
    except AuthenticationError as error:  # there is none to be sent
        raise _refused(address) from error
    except grpc.RpcError as error:
        if error.code() is grpc.StatusCode.UNAUTHENTICATED:
            raise _refused(address) from error
        raise _unreachable(address) from error


def _refused(address: str) -> InputError:
    return InputError(
        f"the Ray cluster at {address} refused the token",
        "the token that the cluster was started with",
        "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH",
    )


def _unreachable(address: str) -> InputError:
    return InputError(
        f"no Ray cluster answers at {address}",
        "the cluster of RAY_ADDRESS, or the one that `ray start` left on this machine, to run",
        "start it, correct RAY_ADDRESS, or set RAY_ADDRESS=local to use this machine alone",
    )


@contextmanager
def variables(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables that Ray's libraries read, and put back what was there before."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
