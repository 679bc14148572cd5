"""One loaded model behind the checks: what all routes of a replica share."""

import asyncio
import hashlib
import hmac
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt
from fastapi import Request

from fer_scale.faces.cutting import cut
from fer_scale.faces.detection import NoFaceError
from fer_scale.faces.images import ImageError
from fer_scale.learning.acceptance import Acceptance
from fer_scale.predictor import Predictor
from fer_scale.verbs.serve.batching import Answer, Batcher, Overloaded, Waiting
from fer_scale.verbs.serve.body import read_images
from fer_scale.verbs.serve.detecting import Finder, available
from fer_scale.verbs.serve.limits import Limits
from fer_scale.verbs.serve.metrics import IMAGES, Counts
from fer_scale.verbs.serve.problems import Problem

BATCH_IMAGES = 64
REQUEST_PIXELS = 8
"""Times `Limits.max_pixels`: of all images of a request. A few kilobytes unpack to as many, one after the other."""
DIGITS = 7
"""Decimals of a probability in the answer: more than the 1e-5 within which `label` agrees."""

LIMITS = ("max_bytes", "max_images", "max_pixels", "max_faces")
"""Those that a client can keep to."""

RETRY = {"Retry-After": "1"}


class BadImages(Exception):
    """Some images of a request could not be read."""

    def __init__(self, errors: list[tuple[int, ImageError]]) -> None:
        super().__init__(f"{len(errors)} images")
        self.errors = errors


class Service:
    """A predictor, its limits, its counts and its token."""

    def __init__(
        self,
        predictor: Predictor,
        limits: Limits,
        token_digest: str | None = None,
        acceptance: Acceptance | None = None,
    ) -> None:
        self.predictor = predictor
        self.limits = limits
        self.counts = Counts()
        self.batcher = Batcher(
            self._compute,
            max_images=BATCH_IMAGES,
            max_waiting=limits.max_waiting,
            observe=lambda n: self.counts.observe("fer_scale_batch_images", n, IMAGES),
        )
        self._finder = Finder(predictor.preprocessing, limits)
        self.waiting = 0
        """Requests whose body is read, that wait or are computed."""
        self.faces = ("crop", "detect") if available() else ("crop",)
        self._token_digest = token_digest
        self._acceptance = acceptance
        family = str(predictor.bundle.config.get("family", ""))
        self.counts.put("fer_scale_model_info", 1, model_id=predictor.model_id, family=family)

    def authorise(self, request: Request) -> None:
        """Refuse a request without the bearer token, where there is one.

        Raises:
            Problem: 401.
        """
        if self._token_digest is None:
            return
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        digest = hashlib.sha256(given.strip().encode()).hexdigest()
        if scheme.lower() != "bearer" or not hmac.compare_digest(digest, self._token_digest):
            challenge = {"WWW-Authenticate": 'Bearer realm="fer-scale"'}
            raise Problem(401, "token", "no valid token; send the header Authorization: Bearer TOKEN", challenge)

    @property
    def full(self) -> bool:
        """Whether the next request would be refused."""
        return self.waiting >= self.limits.max_waiting

    async def predict(self, request: Request) -> dict[str, Any]:
        """The answer to one request.

        Raises:
            Problem: the request cannot be answered.
        """
        faces = self._faces_wanted(request)
        if self.full or (faces == "detect" and self._finder.full):  # before its body takes any memory
            raise overloaded()
        self.waiting += 1
        try:
            return await self._predicted(request, faces)
        finally:
            self.waiting -= 1

    async def _predicted(self, request: Request, faces: str) -> dict[str, Any]:
        began = time.perf_counter()
        names: Sequence[str] = ()
        deadline = asyncio.get_running_loop().time() + self.limits.max_seconds
        try:
            async with asyncio.timeout_at(deadline):
                names, images = await read_images(request, self.limits)
        except TimeoutError:
            raise Problem(408, "slow-body", f"the body took more than {self.limits.max_seconds} s") from None
        try:
            async with asyncio.timeout_at(deadline):
                results = await (self._photographs(images) if faces == "detect" else self._crops(images))
        except TimeoutError:
            raise Problem(503, "timeout", f"no answer within {self.limits.max_seconds} s", RETRY) from None
        except Overloaded:
            raise overloaded() from None
        except BadImages as bad:
            raise self._unreadable(bad, names) from None
        spent = 1000 * (time.perf_counter() - began)
        return {"model_id": self.predictor.model_id, "results": results, "milliseconds": round(spent, 2)}

    def _faces_wanted(self, request: Request) -> str:
        if not request.scope["query_string"]:
            return "crop"
        given = request.query_params.multi_items()
        if len(given) != 1 or given[0][0] != "faces" or given[0][1] not in ("crop", "detect"):
            raise Problem(400, "query", "a query that is not understood; send none, faces=crop or faces=detect")
        if given[0][1] not in self.faces:
            raise Problem(
                501, "no-detector", "this endpoint cannot find faces: its extra `detect` is not installed; send crops"
            )
        return given[0][1]

    async def _crops(self, images: Sequence[bytes]) -> list[dict[str, Any]]:
        """A result an image, each taken as it is."""
        rows = await self.batcher.submit(images)
        return [self._answer(row, "fer_scale_images_total") for row in rows]

    async def _photographs(self, images: Sequence[bytes]) -> list[dict[str, Any]]:
        """A result an image, with all faces in it."""
        with self._finder.room(len(images)):
            found = await asyncio.gather(*map(self._photograph, images), return_exceptions=True)
        bad = [(at, error) for at, error in enumerate(found) if isinstance(error, ImageError)]
        for error in found:
            if isinstance(error, BaseException) and not isinstance(error, ImageError):
                raise error
        if bad:
            raise BadImages(bad)
        return [result for result in found if isinstance(result, dict)]

    async def _photograph(self, image: bytes) -> dict[str, Any]:
        try:
            found = await self._finder.cut(image)
        except NoFaceError as error:
            self.counts.add("fer_scale_no_face_total", reason=error.reason)
            return {"faces": [], "reason": error.reason, "detail": error.detail}
        rows = await self.batcher.submit(found.pixels)
        answers = [self._answer(row, "fer_scale_faces_total") for row in rows]
        return {
            "faces": [
                {"box": face.box, "score": face.score, **answer}
                for face, answer in zip(found.faces, answers, strict=True)
            ]
        }

    def _answer(self, row: npt.NDArray[np.float32], counter: str) -> dict[str, Any]:
        classes = self.predictor.classes
        best = int(row.argmax())
        values = [round(p, DIGITS) for p in row.tolist()]
        answer: dict[str, Any] = {
            "label": classes[best],
            "confidence": values[best],
            "probabilities": dict(zip(classes, values, strict=True)),
        }
        if self._acceptance is not None:
            sure = self._acceptance.mask(row[best : best + 1], np.array([classes[best]], dtype=object))
            answer["accepted"] = bool(sure[0])
        self.counts.add(counter, label=classes[best])
        return answer

    def close(self) -> None:
        """Let the threads end."""
        self.batcher.close()
        self._finder.close()

    def _unreadable(self, bad: BadImages, names: Sequence[str]) -> Problem:
        for _, error in bad.errors:
            self.counts.add("fer_scale_image_errors_total", reason=error.reason)
        errors = [
            {"index": at, "name": names[at], "reason": error.reason, "detail": error.detail} for at, error in bad.errors
        ]
        first_at, first = bad.errors[0]
        which = "the image" if len(names) == 1 else f"image {first_at} of {len(names)} ({names[first_at]!r})"
        others = f", and {len(errors) - 1} more" if len(errors) > 1 else ""
        large = all(error.reason == "too_large" for _, error in bad.errors)
        status, kind = (413, "image-too-large") if large else (422, "image-unreadable")
        return Problem(status, kind, f"{which} is {first.reason}: {first.detail}{others}", errors=errors)

    def _compute(self, requests: Sequence[Waiting]) -> list[Answer]:
        """One batch, on the engine's thread: decode, then run the network once over all that could be."""
        decoded = [self._decoded(request) for request in requests]
        arrays = [array for found in decoded if not isinstance(found, Exception) for array in found]
        probabilities = self.predictor.probabilities(np.stack(arrays)) if arrays else np.empty(0, np.float32)
        answers: list[Answer] = []
        done = 0
        for found in decoded:
            if isinstance(found, Exception):
                answers.append(found)
            else:
                answers.append(probabilities[done : done + len(found)])
                done += len(found)
        return answers

    def _decoded(self, request: Waiting) -> list[npt.NDArray[np.uint8]] | Exception:
        """What the network is to see of a request's images, or why it sees none."""
        limits, unpacked = self.limits, 0
        pixels: list[npt.NDArray[np.uint8]] = []
        bad: list[tuple[int, ImageError]] = []
        for at, image in enumerate(request.images):
            if request.gone:  # nobody reads the answer, and others wait for this thread
                return TimeoutError()
            if isinstance(image, np.ndarray):
                pixels.append(image)
                continue
            try:
                if unpacked > REQUEST_PIXELS * limits.max_pixels:
                    most = REQUEST_PIXELS * limits.max_pixels
                    raise ImageError("too_large", f"more than {most:,} pixels before it in one request; send fewer")
                found = cut(
                    image,
                    self.predictor.preprocessing,
                    None,
                    max_bytes=limits.max_bytes,
                    max_pixels=limits.max_pixels,
                )
            except ImageError as error:
                bad.append((at, error))
                unpacked += error.unpacked
            else:
                pixels += found.pixels
                unpacked += found.unpacked
        return BadImages(bad) if bad else pixels

    def card(self) -> dict[str, Any]:
        """What is being served: the facts of the model card, and the limits."""
        bundle = self.predictor.bundle
        keys = ("family", "classes", "preprocessing", "preprocessing_version", "temperature", "versions")
        card = bundle.directory / "README.md"
        return {
            "model_id": self.predictor.model_id,
            **{key: bundle.config[key] for key in keys if key in bundle.config},
            "engine": self.predictor.engine,
            "detection": asdict(self._finder.settings) if "detect" in self.faces else None,
            "max_error": self._acceptance.max_error if self._acceptance else None,
            "metrics": bundle.metrics,
            "limits": {name: getattr(self.limits, name) for name in LIMITS},
            "card": card.read_text(encoding="utf-8", errors="replace"),
        }


def overloaded() -> Problem:
    """The answer to a request for which there is no room."""
    return Problem(503, "overloaded", "as many requests wait as may; try again", RETRY)
