"""The lease of a run: one at a time writes to an output, and a dead one does not block it for ever."""

import json
import os
import socket
import threading
import time
from types import TracebackType
from typing import Any, Self

import psutil

from fer_scale import storage
from fer_scale.console import say, warn
from fer_scale.errors import FerScaleError, InputError, MissingPathError

BEAT_SECONDS = 5.0
EXPIRY_SECONDS = 30.0


class LeaseLostError(FerScaleError):
    """Another run has taken over while this one gave no sign of life."""


class Lease:
    """Holds ``lease.json`` and renews it from a thread, from `__enter__` to `__exit__`.

    Clocks of two machines are never compared: a lease has expired when this process has watched it stand
    still for ``EXPIRY_SECONDS``, or at once when its process ran on this machine and is gone.

    Args:
        out: the folder that the run writes.
        run_id: of the run, for people.

    Raises:
        InputError: on entering, when another run is alive.
    """

    def __init__(self, out: str, run_id: str) -> None:
        self._path = storage.join(out, "lease.json")
        self._where = out
        self._mine = {
            "run_id": run_id,
            "host": socket.gethostname(),
            "token": os.urandom(8).hex(),
            **_process(),
        }
        self._beats = 0
        self._lost = False
        self._seen = 0.0
        """When the lease was last seen to be ours, by this machine's clock."""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)

    def __enter__(self) -> Self:
        if not storage.create_bytes(self._path, self._text()):
            self._wait_for_expiry()
            storage.delete(self._path)
            if not storage.create_bytes(self._path, self._text()):
                raise self._refusal(_read(self._path) or {})
            time.sleep(1.0)  # another that waited as well may just have done the same
            if not self._is_mine():
                raise self._refusal(_read(self._path) or {})
        self._seen = time.time()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        if self._is_mine():
            storage.delete(self._path)

    @property
    def ours(self) -> tuple[str, str]:
        """What tells another process whether we still have it: see `held`."""
        return self._path, self._mine["token"]

    def check(self, last: bool = False) -> None:
        """Go on only while the lease is ours.

        Where the thread has not seen to that lately, as after the process was suspended, it is looked at here.

        Args:
            last: renew it no more: the folder is replaced next, which takes less than ``EXPIRY_SECONDS``, and a
                heartbeat meanwhile would make it anew.

        Raises:
            LeaseLostError: another run has it.
        """
        if last:
            self._stop.set()
            self._thread.join()
        if not self._lost and abs(time.time() - self._seen) > 2 * BEAT_SECONDS:  # unlike others, this clock never rests
            self._look()
        if self._lost:
            raise LeaseLostError(f"another run has taken over {self._where}; this one has stopped")

    def _renew(self) -> None:
        while not self._stop.wait(BEAT_SECONDS):
            try:
                self._look()
                if self._lost:
                    return
                self._beats += 1
                storage.write_bytes(self._path, self._text())
            except Exception as error:
                # Whatever it is (a disk that errs, an S3 that asks to slow down), a thread that ended here would let
                # another run take over a live one. The next beat may get through; if none does, check() says so.
                warn(f"the heartbeat of this run could not be written: {error}")

    def _text(self) -> bytes:
        return json.dumps({**self._mine, "beats": self._beats, "beat": time.time()}).encode()

    def _look(self) -> None:
        began = time.time()
        if self._is_mine():
            self._seen = began
        else:
            self._lost = True

    def _is_mine(self) -> bool:
        return held(*self.ours)

    def _wait_for_expiry(self) -> None:
        first = _read(self._path)
        if first is None:
            return
        if _is_dead(first):
            say(f"the run {first.get('run_id')} on {self._where} was killed; this one takes its place")
            return
        say(f"{_holder(first)} holds {self._where}; waiting up to {EXPIRY_SECONDS:.0f} s for a sign of life")
        until = time.monotonic() + EXPIRY_SECONDS
        while time.monotonic() < until:
            time.sleep(0.5)
            now = _read(self._path)
            if now is None:
                return
            if now != first:
                raise self._refusal(now)
        say(f"no heartbeat for {EXPIRY_SECONDS:.0f} s: taking over")

    def _refusal(self, found: dict[str, Any]) -> InputError:
        return InputError(
            f"{_holder(found)} is at work on {self._where} now", "an output that nobody else writes",
            "wait for it to end, or choose another OUT",
        )  # fmt: skip


def held(path: str, token: str) -> bool:
    """Whether the lease at a path is still the one of a token; for processes that write on behalf of its holder."""
    found = _read(path)
    return found is not None and found.get("token") == token


def _read(path: str) -> dict[str, Any] | None:
    try:
        values: dict[str, Any] = storage.read_json(path)
    except MissingPathError:
        return None
    return values


def _holder(found: dict[str, Any]) -> str:
    return f"run {found.get('run_id')} (process {found.get('pid')} on {found.get('host')})"


def _process() -> dict[str, Any]:
    """What tells this process from every other one on this machine since it was started."""
    machine = _machine()
    return {"machine": machine, "pid": os.getpid(), "started": _started(os.getpid()) if machine else ""}


def _started(pid: int) -> str:
    """When a process of this machine was started, in the kernel's ticks: a clock that is set changes other times.

    Raises:
        OSError: there is no such process, or no Linux.
    """
    with open(f"/proc/{pid}/stat", "rb") as file:
        return file.read().rpartition(b")")[2].split()[19].decode()  # proc_pid_stat(5), field 22


def _machine() -> str:
    """The running kernel and the namespace in which process ids count; empty where that cannot be told."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return f"{file.read().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _is_dead(found: dict[str, Any]) -> bool:
    """Whether the holder ran here and is gone for certain."""
    if not found.get("machine") or found["machine"] != _machine() or not isinstance(found["started"], str):
        return False
    try:
        return _started(found["pid"]) != found["started"] or (
            psutil.Process(found["pid"]).status() == psutil.STATUS_ZOMBIE
        )
    except (FileNotFoundError, ProcessLookupError, psutil.NoSuchProcess):
        return True
    except OSError:  # another user's, which the system hides
        return False
