"""Around every request: the security headers, errors as problem+json, and the counts."""

import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping

from fastapi import FastAPI, Request
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope, Send

from fer_scale.verbs.serve.metrics import SECONDS, Counts
from fer_scale.verbs.serve.problems import Problem

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' blob:; media-src 'self' blob:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
_ENCODED = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
_NO_STORE = (b"cache-control", b"no-store")

Handler = Callable[[Request], Awaitable[Response]]

GONE = 499
"""Counted where the client left before its answer."""

logger = logging.getLogger("ray.serve")


class Edge:
    """An ASGI application around another.

    Args:
        shortcuts: handlers by method and path that are called without FastAPI's routing, which would cost as much as
            the rest of a small request; FastAPI describes them.
    """

    def __init__(self, app: FastAPI, counts: Counts, shortcuts: Mapping[tuple[str, str], Handler]) -> None:
        self._app = app
        self._shortcuts = shortcuts
        self._counts = counts
        self._paths = {route.path for route in app.routes if hasattr(route, "path")}
        for kind in (Problem, HTTPException, ClientDisconnect, Exception):
            app.add_exception_handler(kind, _handle)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        status = GONE

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                spent = 1000 * (time.perf_counter() - began)
                given = message["headers"]
                headers = [*given, *_ENCODED, (b"server-timing", b"app;dur=%.1f" % spent)]
                if not any(name == b"cache-control" for name, _ in given):
                    headers.append(_NO_STORE)
                message["headers"] = headers
            await send(message)

        try:
            if (handler := self._shortcuts.get((scope["method"], scope["path"]))) is None:
                await self._app(scope, receive, sending)
            else:
                await _call(handler, scope, receive, sending)
        except Exception:  # its answer, a 500, is sent and logged already: `_handle`
            status = 500
            raise
        finally:
            path = scope["path"] if scope["path"] in self._paths else "other"
            self._counts.add("fer_scale_requests_total", route=path, code=str(status))
            if path == "/v1/predict":
                self._counts.observe("fer_scale_request_seconds", time.perf_counter() - began, SECONDS)


async def _call(handler: Handler, scope: Scope, receive: Receive, send: Send) -> None:
    request = Request(scope, receive)
    try:
        response = await handler(request)
    except Exception as error:  # as FastAPI would
        response = await _handle(request, error)
    await response(scope, receive, send)


async def _handle(request: Request, error: Exception) -> Response:
    if isinstance(error, ClientDisconnect):  # in the midst of its body; nobody reads this
        return Response(status_code=GONE)
    request_id = str(uuid.uuid4())
    if isinstance(error, HTTPException):
        detail = f"{request.method} {request.url.path}: {error.detail}"
        error = Problem(error.status_code, "http", detail, error.headers)
    if not isinstance(error, Problem):
        logger.error("request %s failed", request_id, exc_info=error)
        error = Problem(500, "fault", "a fault of the endpoint; its log has this request's id")
    return error.response(request_id)
