"""Around every request: the security headers, errors as problem+json, and the counts."""

import logging
import time
import uuid

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

GONE = 499
"""Counted where the client left before its answer."""

logger = logging.getLogger("ray.serve")


class Edge:
    """An ASGI application around another."""

    def __init__(self, app: FastAPI, counts: Counts) -> None:
        self._app = app
        self._counts = counts
        self._paths = {route.path for route in app.routes if hasattr(route, "path")}
        for kind in (Problem, HTTPException, ClientDisconnect, Exception):
            app.add_exception_handler(kind, _handle)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        request_id = str(uuid.uuid4())
        scope.setdefault("state", {})["request_id"] = request_id
        status = GONE

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                spent = 1000 * (time.perf_counter() - began)
                extra = {**HEADERS, "Server-Timing": f"app;dur={spent:.1f}"}
                given = {name.lower() for name, _ in message["headers"]}
                if b"cache-control" not in given:
                    extra["Cache-Control"] = "no-store"
                message["headers"] = [
                    *message["headers"],
                    *((k.lower().encode(), v.encode()) for k, v in extra.items()),
                ]
            await send(message)

        try:
            await self._app(scope, receive, sending)
        except Exception:  # its answer, a 500, is sent and logged already: `_handle`
            status = 500
            raise
        finally:
            path = scope["path"] if scope["path"] in self._paths else "other"
            self._counts.add("fer_scale_requests_total", route=path, code=str(status))
            if path == "/v1/predict":
                self._counts.observe("fer_scale_request_seconds", time.perf_counter() - began, SECONDS)


async def _handle(request: Request, error: Exception) -> Response:
    request_id = request.state.request_id
    if isinstance(error, ClientDisconnect):  # in the midst of its body; nobody reads this
        return Response(status_code=GONE)
    if isinstance(error, HTTPException):
        detail = f"{request.method} {request.url.path}: {error.detail}"
        error = Problem(error.status_code, "http", detail, error.headers)
    if not isinstance(error, Problem):
        logger.error("request %s failed", request_id, exc_info=error)
        error = Problem(500, "fault", "a fault of the endpoint; its log has this request's id")
    return error.response(request_id)
