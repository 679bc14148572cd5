"""A replica that answers HTTP itself, on a port that all replicas of a machine share: for where there is no HAProxy.

Ray Serve's own proxy takes each request through two processes and some messages, which costs several times what a small
network does. Here Linux hands each new connection to one of the replicas that listen.
"""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn
from starlette.types import ASGIApp

KEEP_ALIVE_SECONDS = 30


@asynccontextmanager
async def listening(app: ASGIApp, host: str, port: int) -> AsyncIterator[None]:
    """Answer for the length of a block; what was taken is answered before it ends."""
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            lifespan="off",
            access_log=False,
            log_config=None,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            server_header=False,
        )
    )
    family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    with socket.socket(family, socket.SOCK_STREAM) as shared:
        shared.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        shared.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        shared.bind(address)
        task = asyncio.create_task(server.serve(sockets=[shared]))
        yield
        server.should_exit = True
        await task
