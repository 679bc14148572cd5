"""What a source yields, and what of it the user names: columns and split names."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from fer_scale.errors import InputError
from fer_scale.faces.images import ImageError, encode_png
from fer_scale.faces.store import SPLITS

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "calib": "calib",
    "calibration": "calib",
    "test": "test",
    "testing": "test",
}
"""Names understood without a split map, whatever their case."""

FER2013_SPLITS = {"training": "train", "publictest": "val", "privatetest": "test"}
"""FER2013's own names, understood only where the user gives no split map."""

FER2013_LABELS = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
"""The numbers 0 to 6 of fer2013.csv's column ``emotion``."""


@dataclass(slots=True)
class Record:
    """One row of a source, before its picture is decoded."""

    id: str
    payload: bytes | Callable[[], bytes]
    """The encoded bytes, or what gives them when called in a worker thread (it may raise `ImageError`)."""
    label: str
    """As the source has it, stripped; empty where there is none."""
    split: str
    """One of `SPLITS`, or empty where the source names none."""
    source: str
    """The file, archive or folder that the row came from."""
    size: int = 0
    """Encoded bytes, 0 where not known ahead."""


@dataclass(frozen=True, kw_only=True)
class Columns:
    """How the user's names map to ours."""

    image: str = "image"
    label: str = "label"
    id: str | None = None
    split: str | None = None
    split_map: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, split in self.split_map.items():
            if split not in SPLITS:
                raise InputError(
                    f"split map {name}={split}",
                    f"one of {', '.join(SPLITS)} on the right",
                    "map it to one of them",
                )

    def split_of(self, value: str) -> str | None:
        """One of `SPLITS` for a name in the source, or None where the name means nothing to us."""
        value = value.strip()
        if value in self.split_map:
            return self.split_map[value]
        known = SPLIT_NAMES if self.split_map else {**SPLIT_NAMES, **FER2013_SPLITS}
        return known.get(value.lower())

    def split_of_cell(self, value: object, where: str) -> str:
        """The same for a table's cell: empty gives ``""``.

        Raises:
            InputError: the value is not known.
        """
        text = "" if value is None else str(value).strip()
        if not text:
            return ""
        split = self.split_of(text)
        if split is None:
            raise InputError(
                f"split {text!r} in {where}",
                f"one of {', '.join(SPLITS)} or a name in the split map",
                f"say what it is, e.g. --split-map {text}=test",
            )
        return split


_PIXELS = re.compile(r"\s*\d+(?:[\s,]+\d+)+\s*")


def is_pixel_text(text: str) -> bool:
    """Whether a cell holds gray values as text, as fer2013.csv's column ``pixels`` does."""
    head = text.lstrip()
    if len(head) > 64:
        head = re.sub(r"[\s,]+\d*$", "", head[:64])  # the last number may be cut
    return _PIXELS.fullmatch(head) is not None


def png_of_pixel_text(text: str) -> bytes:
    """Gray values 0 to 255 as text, row by row, of a square picture: its PNG.

    Raises:
        ImageError: not numbers, not a square, out of range.
    """
    if not text.strip():
        raise ImageError("empty", "no pixels")
    try:
        values = np.array(text.replace(",", " ").split(), dtype=np.int64)
    except (ValueError, OverflowError) as error:  # a number of more than 64 bits
        raise ImageError("undecodable", f"pixels are no numbers: {error}"[:200]) from None
    side = math.isqrt(values.size)
    if side * side != values.size:
        raise ImageError("undecodable", f"{values.size} pixels are no square")
    if values.min() < 0 or values.max() > 255:
        raise ImageError("undecodable", f"pixel values {values.min()} to {values.max()}, not 0 to 255")
    return encode_png(values.astype(np.uint8).reshape(side, side))
