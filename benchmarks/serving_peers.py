"""What one would write without fer_scale, as `serving.py` starts it: python serving_peers.py PEER BUNDLE PORT.

Each takes one picture a request, decodes it with Pillow, infers with ONNX Runtime and answers with JSON. None checks a
size, a type or a load.
"""

import base64
import io
import json
import os
import secrets
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))  # or Ray writes one into the home folder

import litserve as ls
import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import ray
import uvicorn
from fastapi import FastAPI, Request
from PIL import Image
from ray import serve
from starlette.concurrency import run_in_threadpool


class Model:
    """The bundle's ONNX file in a session of its own."""

    def __init__(self, bundle: str, threads: int) -> None:
        self._config = json.loads((Path(bundle) / "config.json").read_text())
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        self._session = ort.InferenceSession(str(Path(bundle) / "model.onnx"), options, ["CPUExecutionProvider"])

    def decode(self, data: bytes) -> npt.NDArray[np.uint8]:
        """Encoded bytes to uint8 ``[C, S, S]``."""
        size, channels = self._config["preprocessing"]["size"], self._config["preprocessing"]["channels"]
        image = Image.open(io.BytesIO(data)).convert("L" if channels == 1 else "RGB")
        if image.size != (size, size):
            image = image.resize((size, size), Image.Resampling.BILINEAR)
        pixels = np.asarray(image)
        return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)

    def logits(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """uint8 ``[N, C, S, S]`` to float32 ``[N, K]``."""
        return np.asarray(self._session.run(["logits"], {"images": images})[0])

    def answers(self, images: list[npt.NDArray[np.uint8]]) -> list[dict[str, Any]]:
        """One answer an image."""
        scaled = self.logits(np.stack(images)) / self._config["temperature"]
        odds = np.exp(scaled - scaled.max(axis=1, keepdims=True))
        classes = self._config["classes"]
        return [
            {"label": classes[int(row.argmax())], "probabilities": dict(zip(classes, map(float, row), strict=True))}
            for row in odds / odds.sum(axis=1, keepdims=True)
        ]


def fastapi(bundle: str, port: int, threads: int = 2) -> None:
    """A plain route on FastAPI's thread pool; sessions are safe to share between threads."""
    app, model = FastAPI(), Model(bundle, threads)

    @app.post("/predict")
    async def predict(request: Request) -> dict[str, Any]:
        data = await request.body()
        return await run_in_threadpool(lambda: model.answers([model.decode(data)])[0])

    uvicorn.run(app, port=port, log_level="error")


class LitApi(ls.LitAPI):  # type: ignore[misc]
    """LitServe pickles it to its workers, so it stands here. A body other than JSON or a form it does not take."""

    def __init__(self, bundle: str, threads: int, batch: int) -> None:
        super().__init__(max_batch_size=batch, batch_timeout=0.002 if batch > 1 else 0.0)
        self._given = bundle, threads

    def setup(self, device: str) -> None:
        """In each worker."""
        self._model = Model(*self._given)

    def decode_request(self, request: dict[str, str]) -> npt.NDArray[np.uint8]:
        """JSON to pixels."""
        return self._model.decode(base64.b64decode(request["image"]))

    def batch(self, inputs: list[Any]) -> list[Any]:
        """Only called where a batch may have more than one."""
        return inputs

    def predict(self, images: Any) -> Any:
        """A list where there are batches, else one picture."""
        return self._model.answers(images) if isinstance(images, list) else self._model.answers([images])[0]

    def unbatch(self, output: list[Any]) -> list[Any]:
        """One answer a request."""
        return output

    def encode_response(self, output: Any) -> Any:
        """As it is."""
        return output


def litserve(bundle: str, port: int, workers: int = 1, threads: int = 2, batch: int = 16) -> None:
    """LitServe with its own batching and its faster queue."""
    api = LitApi(bundle, threads, batch)
    server = ls.LitServer(api, accelerator="cpu", workers_per_device=workers, fast_queue=True)
    server.run(port=port, log_level="error", generate_client_file=False)


def ray_serve(bundle: str, port: int, replicas: int = 1, threads: int = 2) -> None:
    """The recipe of Ray Serve's documentation: a deployment with `serve.batch`."""

    @serve.deployment(num_replicas=replicas, max_ongoing_requests=64)
    class Recipe:
        def __init__(self) -> None:
            self._model = Model(bundle, threads)

        @serve.batch(max_batch_size=16, batch_wait_timeout_s=0.002)
        async def answer(self, bodies: list[bytes]) -> list[dict[str, Any]]:
            return self._model.answers([self._model.decode(data) for data in bodies])

        async def __call__(self, request: Request) -> dict[str, Any]:
            found: dict[str, Any] = await self.answer(await request.body())  # type: ignore[arg-type, assignment]
            return found

    ray.init(address="local", include_dashboard=False, log_to_driver=False, configure_logging=False)
    serve.start(http_options={"port": port})
    serve.run(Recipe.bind(), route_prefix="/predict", blocking=True)  # type: ignore[attr-defined]


if __name__ == "__main__":
    peer, path, at, *rest = sys.argv[1:]
    {"fastapi": fastapi, "litserve": litserve, "ray_serve": ray_serve}[peer](path, int(at), *map(int, rest))
