"""What of an encoded picture goes into the network: the picture as it is, or each face in it."""

import io
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from fer_scale.faces.detection import Detector, Face
from fer_scale.faces.images import MAX_BYTES, MAX_PIXELS, Preprocessing, decode, to_array

SHOWN_SIDE = 480
"""Pixels of a photograph in the report, at most."""


@dataclass(frozen=True)
class Shown:
    """A photograph for the report."""

    jpeg: bytes
    width: int
    """Of the photograph itself, as boxes count."""
    height: int


@dataclass(frozen=True)
class Cut:
    """One picture for the network."""

    pixels: list[npt.NDArray[np.uint8]]
    """uint8 ``[C, S, S]`` a face; one, where the picture is taken as it is."""
    faces: list[Face]
    """The largest first; empty where the picture is taken as it is."""
    unpacked: int
    """Pixels of the picture."""
    shown: Shown | None = None


def cut(
    data: bytes,
    preprocessing: Preprocessing,
    detector: Detector | None,
    show: bool = False,
    *,
    max_bytes: int = MAX_BYTES,
    max_pixels: int = MAX_PIXELS,
) -> Cut:
    """Decode a picture and prepare what the network is to read of it; what `label` and `serve` both do.

    Args:
        detector: finds the faces; None takes the picture as it is.
        show: keep a small copy of a photograph.

    Raises:
        ImageError: the bytes give no picture.
        NoFaceError: there is no face in it.
    """
    image = decode(data, max_bytes=max_bytes, max_pixels=max_pixels)
    if detector is None:
        return Cut([to_array(image, preprocessing)], [], image.width * image.height)
    found = detector.cut(image)
    pixels = [to_array(square, preprocessing) for _, square in found]
    faces, unpacked = [face for face, _ in found], image.width * image.height
    return Cut(pixels, faces, unpacked, _small(image) if show else None)


def _small(image: Image.Image) -> Shown:
    size = image.size
    small = image.convert("RGB")
    small.thumbnail((SHOWN_SIDE, SHOWN_SIDE))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=80)
    return Shown(buffer.getvalue(), *size)
