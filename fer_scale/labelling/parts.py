"""What a work unit publishes: where it is, its columns, its notes."""

import base64
import io
from collections.abc import Iterable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from fer_scale import storage

ERRORS_SCHEMA = pa.schema([("id", pa.string()), ("reason", pa.string()), ("detail", pa.string())])
"""Of ``errors``, and of ``no_face``."""
BOX = pa.struct([("x", pa.int32()), ("y", pa.int32()), ("width", pa.int32()), ("height", pa.int32())])
"""Left and upper edge, width and height, in pixels of the upright picture."""


def labels_schema(classes: list[str], accepting: bool = False, detecting: bool = False) -> pa.Schema:
    """The columns of ``labels``: one row a face; ``accepted`` where an error was promised, ``box`` and ``score`` where
    faces are detected."""
    return pa.schema(
        [
            ("id", pa.string()),
            ("face", pa.int32()),
            ("label", pa.string()),
            ("confidence", pa.float32()),
            *((f"prob_{name}", pa.float32()) for name in classes),
            ("model_id", pa.string()),
            *([("accepted", pa.bool_())] if accepting else []),
            *([("box", BOX), ("score", pa.float32())] if detecting else []),
        ]
    )


def part_path(out: str, kind: str, part: str) -> str:
    """Where a unit's rows of ``labels``, ``errors`` or ``no_face`` are; of the last two only if it has any."""
    return storage.join(out, "ledger", kind, f"{part}.parquet")


def notes_path(out: str, part: str) -> str:
    """Where a unit's notes are: which files it answered for, and its examples."""
    return storage.join(out, "ledger", "units", f"{part}.json")


def shown(example: dict[str, Any]) -> dict[str, Any]:
    """An example with its pixels as a PNG in base64."""
    if "png" in example:
        return example
    pixels = example["pixels"]
    image = Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))
    image.thumbnail((96, 96))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    plain = {key: value for key, value in example.items() if key != "pixels"}
    return {**plain, "png": base64.b64encode(buffer.getvalue()).decode()}


def packed(pieces: Iterable[bytes]) -> str:
    """Pieces of 8 bytes as base64."""
    return base64.b64encode(b"".join(pieces)).decode()


def unpacked(text: str) -> list[bytes]:
    """What `packed` made."""
    data = base64.b64decode(text)
    return [data[at : at + 8] for at in range(0, len(data), 8)]


def parquet(table: pa.Table) -> bytes:
    """A table as the bytes of a file."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()
