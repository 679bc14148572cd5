"""What the tests of the endpoint share: drawn faces, and the application on a real socket."""

import io
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import uvicorn

from fer_scale.faces.sample import CLASSES, face
from fer_scale.verbs.serve.service import Service
from fer_scale.verbs.serve.web import create_app


def picture(seed: int, size: int = 48, kind: str = "PNG") -> bytes:
    """A drawn face."""
    buffer = io.BytesIO()
    face(CLASSES[seed % len(CLASSES)], np.random.default_rng(seed), size).save(buffer, kind)
    return buffer.getvalue()


@contextmanager
def listening(service: Service) -> Iterator[str]:
    """The application under uvicorn, without Ray; its address."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(create_app(service), log_level="critical", lifespan="on"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        while not server.started and thread.is_alive():
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()
