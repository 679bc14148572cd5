"""What the endpoint takes, and no more: of a request, and of a promise."""

import contextlib
from dataclasses import dataclass, fields
from typing import Any

from fer_scale.errors import InputError
from fer_scale.faces.detection import Detection


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of one replica on what is sent to it."""

    max_bytes: int = 8 * 2**20
    """Of a request's whole body."""
    max_images: int = 64
    """Of one request."""
    max_pixels: int = 25_000_000
    """Of one image, read from its header before anything is unpacked."""
    max_faces: int = Detection.most_faces
    """Of one photograph; the largest are labelled. As many as `label` takes."""
    max_waiting: int = 128
    """Requests that wait or are computed in a replica, and photographs; further ones get 503 with Retry-After."""
    max_seconds: int = 30
    """From a request's first byte to its answer; a slow body gets 408, a slow answer 503."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, int) or value < 1:
                raise InputError(f"{field.name}={value!r}", "a whole number of at least 1", "raise it")


def share(value: Any) -> float:
    """A share of errors.

    Raises:
        InputError: it is none.
    """
    with contextlib.suppress(TypeError, ValueError):
        if 0 < float(value) < 1:
            return float(value)
    raise InputError(f"max_error={value!r}", "a share between 0 and 1, as 0.05", "correct it")
