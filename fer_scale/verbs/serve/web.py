"""The endpoint as an ASGI application: its routes. It knows nothing of Ray."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol

from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, PlainTextResponse, Response
from starlette.types import ASGIApp

from fer_scale import __version__
from fer_scale.verbs.serve import openapi
from fer_scale.verbs.serve.edge import Edge, Handler
from fer_scale.verbs.serve.listening import listening
from fer_scale.verbs.serve.metrics import Snapshot, Tally, render
from fer_scale.verbs.serve.problems import Problem
from fer_scale.verbs.serve.service import RETRY, Service, overloaded

PAGE = Path(__file__).parent / "page"
MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}

HEARTBEAT_SECONDS = 1.0
"""Between two hand-ins of a replica's counts."""

TALLY_SECONDS = 2.0
"""For which the sum over all replicas is waited for: Ray replaces the tally when another bundle rolls in."""

logger = logging.getLogger("ray.serve")


class Shared(Protocol):
    """The `Tally` of all replicas, as one of them sees it."""

    async def hand_in(self, counts: Snapshot, first: bool) -> None:
        """Take this replica's counts; ``first``: it has never handed in any."""

    async def total(self) -> Snapshot:
        """The sum over all replicas."""


class Alone:
    """The tally where there is one process only."""

    def __init__(self) -> None:
        self._tally = Tally()

    async def hand_in(self, counts: Snapshot, first: bool) -> None:
        """Take its counts."""
        await self._tally.hand_in("", counts, first)

    async def total(self) -> Snapshot:
        """The same, and what a tally adds."""
        return await self._tally.total()


def create_app(service: Service, tally: Shared | None = None, address: tuple[str, int] | None = None) -> ASGIApp:
    """The whole endpoint over a loaded model.

    Args:
        tally: of all replicas; None where there is one process only.
        address: host and port to listen on while it lives; None leaves that to whoever runs it.
    """
    shared = tally or Alone()

    first = True

    async def hand_in() -> None:
        nonlocal first
        service.counts.put("fer_scale_requests_waiting", service.waiting)
        await shared.hand_in(service.counts.snapshot(), first)
        first = False

    async def total() -> Snapshot:
        try:
            async with asyncio.timeout(TALLY_SECONDS):
                await hand_in()
                return await shared.total()
        except TimeoutError:
            raise Problem(503, "tally", "the counts of all replicas are not to be had just now", RETRY) from None

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        beat = asyncio.create_task(_beat(hand_in))
        async with listening(edge, *address) if address else nullcontext():
            yield
        beat.cancel()
        service.close()

    app = FastAPI(
        title="fer_scale",
        version=__version__,
        description=openapi.DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
    )
    predict = _routes(app, service, total)
    edge = Edge(app, service.counts, {("POST", "/v1/predict"): predict})
    return edge


def _routes(app: FastAPI, service: Service, total: Callable[[], Awaitable[Snapshot]]) -> Handler:
    """Add all routes; gives the handler of POST /v1/predict."""
    card: dict[str, Any] = service.card()

    asked = openapi.request(service.limits, service.faces)

    @app.post("/v1/predict", responses=openapi.PREDICT, openapi_extra=asked, tags=["v1"])
    async def predict(request: Request) -> Response:
        """Label one image (a raw body) or several (multipart/form-data), in order, or the faces that are in them."""
        service.authorise(request)
        return _json(await service.predict(request))

    @app.get("/v1/model", responses=openapi.GUARDED, tags=["v1"])
    async def model(request: Request) -> Response:
        """The model card: classes, preprocessing, figures, intended use, and the limits of a request."""
        service.authorise(request)
        return _json(card)

    @app.get("/healthz", tags=["operation"])
    async def healthz() -> Response:
        """The process is alive."""
        return _json({"status": "ok"})

    @app.get("/readyz", responses=openapi.READY, tags=["operation"])
    async def readyz() -> Response:
        """The model is loaded and there is room for a request; 503 where there is none."""
        if service.full:
            raise overloaded()
        return _json({"status": "ready", "model_id": service.predictor.model_id})

    @app.get("/metrics", responses=openapi.METRICS, response_class=PlainTextResponse, tags=["operation"])
    async def metrics(request: Request) -> Response:
        """Counts over all replicas as Prometheus text; those of the other replicas are up to a second old."""
        service.authorise(request)
        return PlainTextResponse(render(await total()), media_type="text/plain; version=0.0.4")

    def file(name: str, media_type: str) -> None:
        path = "/" if name == "index.html" else f"/{name}"

        @app.api_route(path, methods=["GET", "HEAD"], include_in_schema=False, name=name)
        async def static() -> Response:
            return FileResponse(PAGE / name, media_type=media_type, headers={"Cache-Control": "no-cache"})

    for page in sorted(PAGE.iterdir()):
        if page.suffix in MEDIA_TYPES:
            file(page.name, MEDIA_TYPES[page.suffix])
    return predict


async def _beat(hand_in: Callable[[], Awaitable[None]]) -> None:
    """Hand the counts in for as long as the replica lives; a failure ends nothing."""
    while True:
        try:
            await hand_in()
        except Exception as error:  # whatever Ray raises while it replaces the tally; the next beat tries again
            logger.warning("counts were not handed in: %s", error)
        await asyncio.sleep(HEARTBEAT_SECONDS)


def _json(value: Any) -> Response:
    return Response(json.dumps(value), media_type="application/json")
