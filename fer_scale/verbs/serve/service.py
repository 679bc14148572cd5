"""One loaded model behind the checks: what all routes of a replica share."""

import asyncio
import hashlib
import hmac
from collections.abc import Sequence
from typing import Any

import numpy as np
from fastapi import Request

from fer_scale.faces.images import ImageError, decode, to_array
from fer_scale.learning.acceptance import Acceptance
from fer_scale.predictor import Predictor
from fer_scale.verbs.serve.batching import Answer, Batcher, Overloaded
from fer_scale.verbs.serve.body import read_images
from fer_scale.verbs.serve.limits import Limits
from fer_scale.verbs.serve.metrics import IMAGES, Counts
from fer_scale.verbs.serve.problems import Problem

BATCH_IMAGES = 64
DIGITS = 7
"""Decimals of a probability in the answer: more than the 1e-5 within which `label` agrees."""

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

    async def predict(self, request: Request) -> dict[str, Any]:
        """The answer to one request.

        Raises:
            Problem: the request cannot be answered.
        """
        if self.batcher.full:  # before the body is read: an overloaded replica should not fill its memory
            raise overloaded()
        names: Sequence[str] = ()
        deadline = asyncio.get_running_loop().time() + self.limits.max_seconds
        try:
            async with asyncio.timeout_at(deadline):
                names, images = await read_images(request, self.limits)
        except TimeoutError:
            raise Problem(408, "slow-body", f"the body took more than {self.limits.max_seconds} s") from None
        try:
            async with asyncio.timeout_at(deadline):
                probabilities = await self.batcher.submit(images)
        except TimeoutError:
            raise Problem(503, "timeout", f"no answer within {self.limits.max_seconds} s", RETRY) from None
        except Overloaded:
            raise overloaded() from None
        except BadImages as bad:
            raise self._unreadable(bad, names) from None
        classes = self.predictor.classes
        results: list[dict[str, Any]] = []
        for row in probabilities:
            best = int(row.argmax())
            values = [round(float(p), DIGITS) for p in row]
            results.append(
                {
                    "label": classes[best],
                    "confidence": values[best],
                    "probabilities": dict(zip(classes, values, strict=True)),
                }
            )
            if self._acceptance is not None:
                sure = self._acceptance.mask(row[best : best + 1], np.array([classes[best]], dtype=object))
                results[-1]["accepted"] = bool(sure[0])
            self.counts.add("fer_scale_images_total", label=classes[best])
        return {"model_id": self.predictor.model_id, "results": results}

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

    def _compute(self, requests: list[Sequence[bytes]]) -> list[Answer]:
        """One batch, on the engine's thread: decode, then run the network once over all that could be."""
        arrays: list[np.ndarray[Any, np.dtype[np.uint8]]] = []
        answers: list[Answer | None] = []
        for images in requests:
            mine, bad = [], []
            for at, data in enumerate(images):
                try:
                    image = decode(data, max_bytes=self.limits.max_bytes, max_pixels=self.limits.max_pixels)
                    mine.append(to_array(image, self.predictor.preprocessing))
                except ImageError as error:
                    bad.append((at, error))
            answers.append(BadImages(bad) if bad else None)
            if not bad:
                arrays += mine
        probabilities = self.predictor.probabilities(np.stack(arrays)) if arrays else None
        done = 0
        for at, images in enumerate(requests):
            if answers[at] is None and probabilities is not None:
                answers[at] = probabilities[done : done + len(images)]
                done += len(images)
        return [answer for answer in answers if answer is not None]

    def card(self) -> dict[str, Any]:
        """What is being served: the facts of the model card, and the limits."""
        bundle = self.predictor.bundle
        keys = ("family", "classes", "preprocessing", "preprocessing_version", "temperature", "versions")
        card = bundle.directory / "README.md"
        return {
            "model_id": self.predictor.model_id,
            **{key: bundle.config[key] for key in keys if key in bundle.config},
            "engine": self.predictor.engine,
            "metrics": bundle.metrics,
            "limits": {name: getattr(self.limits, name) for name in ("max_bytes", "max_images", "max_pixels")},
            "card": card.read_text(encoding="utf-8", errors="replace"),
        }


def overloaded() -> Problem:
    """The answer to a request for which there is no room."""
    return Problem(503, "overloaded", "as many requests wait as may; try again", RETRY)
