"""Replicas that share a port: both answer, and one that ends first answers what it took."""

import asyncio
import socket

import httpx
from starlette.types import ASGIApp, Receive, Scope, Send

from fer_scale.verbs.serve.listening import listening


def app(name: str, seconds: float = 0.0) -> ASGIApp:
    async def answer(_scope: Scope, _receive: Receive, send: Send) -> None:
        await asyncio.sleep(seconds)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": name.encode()})

    return answer


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def ask(port: int) -> str:
    async with httpx.AsyncClient() as client:  # a connection of its own
        return (await client.get(f"http://127.0.0.1:{port}/")).text


def test_connections_go_to_both() -> None:
    async def scene() -> set[str]:
        port = free_port()
        async with listening(app("one"), "127.0.0.1", port), listening(app("other"), "127.0.0.1", port):
            return {await ask(port) for _ in range(40)}

    assert asyncio.run(scene()) == {"one", "other"}


def test_what_was_taken_is_answered() -> None:
    async def scene() -> str:
        port = free_port()
        async with listening(app("slow", 0.5), "127.0.0.1", port):
            asked = asyncio.create_task(ask(port))
            await asyncio.sleep(0.2)
        return await asked

    assert asyncio.run(scene()) == "slow"
