"""Bytes to checked pixels to the array that a network takes: the only preprocessing there is.

Training, evaluation, labelling and serving all come through :func:`prepare`, so the same bytes give the same
pixels everywhere. Scaling to floats and normalisation belong to the network, which takes uint8.
"""

import hashlib
import io
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

from fer_scale.errors import InputError
from fer_scale.faces.headers import costly

PREPROCESSING_VERSION = 1
"""Raised whenever :func:`prepare` gives other pixels for the same bytes."""

MAX_BYTES = 32 * 2**20
MAX_PIXELS = 40_000_000
MAX_SIDE = 65_535
"""Pixels, as in a JPEG: of a fax with a million rows libtiff complains a million times, which fills disks with logs."""
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")

SMALL_PIXELS = 2**20
"""A picture up to this many is unpacked whatever else is; larger ones share `ROOM_PIXELS`."""
ROOM_PIXELS = 2 * MAX_PIXELS
"""Unpacked at the same time in a process, however many threads it has; up to 16 bytes each while modes change."""
BAND_PIXELS = 2**20
"""Changed to another mode at a time."""
MAX_EXIF = 2**20
"""Bytes in which the orientation is looked for."""

ImageFile.LOAD_TRUNCATED_IMAGES = False


class ImageError(Exception):
    """Bytes that give no picture.

    Attributes:
        reason: a short word for counting: ``empty``, ``too_large``, ``undecodable``, ``truncated``.
        detail: a line for a person.
        unpacked: pixels that a decoder may have gone through before it gave up.
    """

    def __init__(self, reason: str, detail: str, unpacked: int = 0) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
        self.unpacked = unpacked


def too_large(size: int) -> ImageError:
    """What more than `MAX_BYTES` are answered with."""
    return ImageError("too_large", f"{size:,} bytes; the limit is {MAX_BYTES:,}")


CHANNELS = (1, 3)
"""Gray, RGB."""


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """What a network sees of a picture."""

    size: int = 48
    """Height and width, pixels."""
    channels: int = 1
    """1 gray, 3 RGB."""

    def __post_init__(self) -> None:
        if not 16 <= self.size <= 512:
            raise InputError(f"size={self.size}", "16 to 512 pixels", "choose an input size in that range")
        if self.channels not in CHANNELS:
            raise InputError(f"channels={self.channels}", "1 (gray) or 3 (RGB)", "choose one of them")


class _NoWarnings:
    """Pillow's warnings off: sizes are checked here, and what it says of metadata changes no pixel.

    `warnings.catch_warnings` swaps filters of the whole process, so threads that overlap would leave them
    off for good: the first thread in turns them off, the last one out gives them back.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._caught: warnings.catch_warnings[None] | None = None

    def __enter__(self) -> None:
        with self._lock:
            self._inside += 1
            if self._caught is None:
                self._caught = warnings.catch_warnings()
                self._caught.__enter__()
                warnings.simplefilter("ignore")

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0 and self._caught is not None:
                self._caught.__exit__(None, None, None)
                self._caught = None


_no_warnings = _NoWarnings()


class _Room:
    """Lets pictures in while there is room for their pixels, so that many threads need no more memory than a few."""

    def __init__(self, pixels: int) -> None:
        self._changed = threading.Condition()
        self._free = pixels

    @contextmanager
    def take(self, pixels: int) -> Iterator[None]:
        """Hold room for so many, of which there must be as many in all."""
        if pixels <= SMALL_PIXELS:
            yield
            return
        with self._changed:
            self._changed.wait_for(lambda: self._free >= pixels)
            self._free -= pixels
        try:
            yield
        finally:
            with self._changed:
                self._free += pixels
                self._changed.notify_all()


_room = _Room(ROOM_PIXELS)


def decode(data: bytes, *, max_bytes: int = MAX_BYTES, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode the first frame of a picture, upright, as mode ``L`` or ``RGB``.

    The header is read before the pixels, so a picture that unpacks to more than ``max_pixels`` costs nothing.

    Raises:
        ImageError: empty, too large, truncated or not a picture.
    """
    if not data:
        raise ImageError("empty", "0 bytes")
    if len(data) > max_bytes:
        raise ImageError("too_large", f"{len(data):,} bytes; the limit is {max_bytes:,}")
    if reason := costly(data):
        raise ImageError("too_large", reason)
    begun = 0
    try:
        with _no_warnings, Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise ImageError("too_large", f"{width}x{height} pixels; the limit is {max_pixels:,}")
            if max(width, height) > MAX_SIDE:
                raise ImageError("too_large", f"{width}x{height} pixels; the limit of a side is {MAX_SIDE:,}")
            if not width or not height:
                raise ImageError("empty", f"{width}x{height} pixels")
            begun = width * height
            with _room.take(min(begun, ROOM_PIXELS)):
                image.load()
                return _upright(image)
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError("too_large", str(error)[:200]) from None
    except UnidentifiedImageError:
        raise ImageError("undecodable", f"no known picture format; it begins with {data[:8]!r}") from None
    except Exception as error:  # a decoder may raise anything at all on hostile bytes
        reason = "truncated" if "truncated" in str(error).lower() else "undecodable"
        raise ImageError(reason, f"{type(error).__name__}: {error}"[:200], begun) from None


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _orientation(image: Image.Image) -> int:
    """EXIF's, 1 (upright) where it cannot be told: metadata that is broken makes no picture unreadable."""
    if len(image.info.get("exif", b"")) > MAX_EXIF:
        return 1
    try:
        found: int = image.getexif().get(ExifTags.Base.Orientation, 1)
        return found if found in _TURNS else 1
    except Exception:  # its parser may raise anything at all on hostile bytes
        return 1


def _upright(image: Image.Image) -> Image.Image:
    """A copy that the file's buffers do not hold on to, turned as EXIF says."""
    turn, plain = _TURNS.get(_orientation(image)), _plain(image)
    if turn is not None:
        return plain.transpose(turn)
    return plain.copy() if plain is image else plain


def _plain(image: Image.Image) -> Image.Image:
    """`_flat`, band by band: what is between takes several times the memory of the picture."""
    if image.mode in ("L", "RGB"):
        return image
    top = 255.0
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        top = 65535.0 if np.asarray(image).max(initial=0) > 255 else 255.0
    rows = max(1, BAND_PIXELS // image.width)
    if rows >= image.height:
        return _flat(image, top)
    whole = Image.new(_flat(image.crop((0, 0, 1, 1)), top).mode, image.size)
    for upper in range(0, image.height, rows):
        band = image.crop((0, upper, image.width, min(upper + rows, image.height)))
        whole.paste(_flat(band, top), (0, upper))
    return whole


def _flat(image: Image.Image, top: float) -> Image.Image:
    """16-bit, palette, alpha and CMYK to L or RGB; what is see-through becomes black's opposite, white.

    Args:
        top: the value that becomes 255, of modes with more than 8 bits.
    """
    if image.mode == "1":
        return image.convert("L")
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        values = np.asarray(image, dtype=np.float64)
        return Image.fromarray(np.clip(np.nan_to_num(values) * (255.0 / top), 0, 255).astype(np.uint8))
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        flat = Image.alpha_composite(white, rgba).convert("RGB")
        return flat.convert("L") if image.mode in ("LA", "La") else flat
    return image.convert("RGB")


def encode_png(pixels: npt.NDArray[np.uint8]) -> bytes:
    """uint8 ``[H, W]`` (gray) or ``[H, W, 3]`` to PNG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def pixel_sha256(image: Image.Image) -> str:
    """Hex SHA-256 of mode, size and decoded pixels: two files with the same pixels have the same hash."""
    head = f"{image.mode}:{image.width}x{image.height}:".encode()
    return hashlib.sha256(head + image.tobytes()).hexdigest()


def to_array(image: Image.Image, preprocessing: Preprocessing) -> npt.NDArray[np.uint8]:
    """Centre square, resized with antialiasing, gray or RGB: uint8 ``[C, S, S]``."""
    gray = preprocessing.channels == 1 or image.mode == "L"  # gray becomes RGB at the end: a third of the work
    mode = "L" if gray else "RGB"
    if image.mode != mode:
        image = image.convert(mode)
    if image.width != image.height:
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side))
    if image.width != preprocessing.size:
        image = image.resize((preprocessing.size, preprocessing.size), Image.Resampling.BILINEAR)
    pixels = np.asarray(image, dtype=np.uint8)
    if gray:
        return np.repeat(pixels[None], preprocessing.channels, axis=0)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def prepare(data: bytes, preprocessing: Preprocessing) -> npt.NDArray[np.uint8]:
    """Encoded bytes to uint8 ``[C, S, S]``.

    Raises:
        ImageError: the bytes give no picture.
    """
    return to_array(decode(data), preprocessing)
