"""Replicas that answer HTTP themselves, as they do behind HAProxy and, for one replica, with nothing in front.

Ray Serve's own proxy takes each request through two processes and five messages, which costs several times what the
network does. With Ray's "direct ingress" a replica listens on a port of its own. So where HAProxy is not installed
the endpoint is one replica that listens on the endpoint's port and computes on several threads.
"""

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

_UNWATCHED = (b"x-request-disconnect-disabled", b"?1")

COMMON = {
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "fer_scale.verbs.serve.direct.middlewares",
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
}


def environment(port: int) -> dict[str, str]:
    """What must be in the environment before Ray starts, for one replica to listen on this port."""
    return {
        **COMMON,
        "RAY_SERVE_ENABLE_HA_PROXY": "0",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(port),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(port),
        "RAY_SERVE_PORT_QUARANTINE_S": "0",  # the replica that follows a dead one takes its port
    }


def middlewares() -> list[Middleware]:
    """What Ray Serve puts around a replica's HTTP server."""
    return [Middleware(Unwatched)]


class Unwatched:
    """Lets Ray Serve await an answer without watching whether its client leaves, which takes three tasks a request.

    A crop is answered in less time than it takes to leave; what takes longer has a query, and is watched.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not scope["query_string"]:
            scope["headers"] = [*scope["headers"], _UNWATCHED]
        await self._app(scope, receive, send)
