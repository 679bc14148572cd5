"""Hostile bytes through the real path, from files to rows: an answer or an error each, in bounded memory and time."""

import io
import json
import struct
import subprocess
import sys
import zipfile
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from fer_scale.faces.images import MAX_PIXELS, ImageError, Preprocessing, decode
from fer_scale.labelling.reading import Reader
from fer_scale.labelling.sources import Source
from fer_scale.labelling.worker import Worker
from tests import hostile


class Flat:
    """A model of one answer."""

    def __init__(self) -> None:
        self.classes = ["happy", "sad"]
        self.model_id = "flat"
        self.preprocessing = Preprocessing(size=16)

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        return np.full((len(images), 2), 0.5, dtype=np.float32)


def labelled(source: Path, out: Path) -> tuple[set[str], dict[str, str]]:
    """Ids that were labelled, and ids and reasons that were not; they are all there are, each once."""
    worker = Worker(Flat(), str(out), Reader("image", None))
    images = 0
    for unit in Source.open(str(source)).units(500):
        entry = worker.label(unit.published_as(unit.key))
        images += unit.size
        assert entry["inputs"] == entry["labelled"] + entry["errors"] == unit.size
    good = pq.read_table(out / "ledger" / "labels")["id"].to_pylist()
    errors = out / "ledger" / "errors"
    bad = {row["id"]: row["reason"] for row in pq.read_table(errors).to_pylist()} if errors.exists() else {}
    assert len(good) + len(bad) == len({*good, *bad}) == images
    return set(good), bad


def test_every_kind_of_file_ends_as_a_row(tmp_path: Path) -> None:
    expected = hostile.mixture(tmp_path / "faces")
    good, bad = labelled(tmp_path / "faces", tmp_path / "out")
    assert bad == {name: reason for name, reason in expected.items() if reason}
    assert good == {name for name, reason in expected.items() if not reason}


def test_thousands_of_damaged_pictures_in_an_archive(tmp_path: Path) -> None:
    """Of each format: bytes replaced, cut out, put in twice, or the end missing."""
    random = np.random.default_rng(7)
    with zipfile.ZipFile(tmp_path / "fuzz.zip", "w") as archive:
        for format in hostile.FORMATS:
            for number in range(400):
                archive.writestr(f"{format}-{number}", hostile.damaged(hostile.picture(format, number), random))
    good, bad = labelled(tmp_path / "fuzz.zip", tmp_path / "out")
    assert len(good) + len(bad) == 2400
    kinds = Counter(name.split("-")[0] for name in good)
    assert all(kinds[format] for format in hostile.FORMATS), "some damage shows in the pixels alone"
    assert {"undecodable", "truncated"} <= set(bad.values()) <= {"undecodable", "truncated", "too_large", "empty"}


def test_only_the_first_frame_is_looked_at() -> None:
    frames = [Image.new("L", (40, 40), shade) for shade in range(250)]
    for format in ("GIF", "WEBP", "PNG", "TIFF"):
        buffer = io.BytesIO()
        options = {"lossless": True} if format == "WEBP" else {}
        frames[60].save(buffer, format, save_all=True, append_images=frames[:20] * 20, **options)
        assert int(np.asarray(decode(buffer.getvalue()).convert("L")).max()) == 60
        if format == "GIF":  # what is behind is not even there
            assert decode(buffer.getvalue()[: len(buffer.getvalue()) // 50]).size == (40, 40)


def test_the_limit_is_the_header_s_not_the_file_s() -> None:
    side = int(MAX_PIXELS**0.5)
    header = struct.pack(">IIBBBBB", side + 1, side + 1, 8, 0, 0, 0, 0)
    lying = hostile.chunk(b"IHDR", header) + hostile.chunk(b"IDAT", zlib.compress(bytes(100)))
    with pytest.raises(ImageError, match="too_large"):
        decode(b"\x89PNG\r\n\x1a\n" + lying)
    for format in ("EPS", "ICO", "ICNS", "PDF", "TGA", "JPEG2000"):
        buffer = io.BytesIO()
        Image.new("RGB", (64, 64)).save(buffer, format)
        with pytest.raises(ImageError, match="undecodable"):
            decode(buffer.getvalue())


MEMORY = """
import json, resource, sys
from concurrent.futures import ThreadPoolExecutor
from fer_scale.faces.images import ImageError, Preprocessing, prepare
from tests import hostile

def one(name):
    try:
        return name, list(prepare(hostile.bomb(name), Preprocessing()).shape)
    except ImageError as error:
        return name, error.reason

one("bmp header")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with ThreadPoolExecutor(4) as pool:
    found = list(pool.map(one, sys.argv[1:]))
print(json.dumps([(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024, found]))
"""


def in_four_threads(names: list[str]) -> tuple[float, dict[str, object]]:
    """Resident MiB that a process of its own took for them, and the shape or reason of each."""
    command = [sys.executable, "-c", MEMORY, *names]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=200)
    assert done.stderr == ""
    memory, found = json.loads(done.stdout)
    return memory, dict(found)


def test_small_files_that_ask_for_much_are_refused() -> None:
    """The files themselves, of 30 MiB, are most of what it takes; unguarded, several took more than 12 s."""
    memory, found = in_four_threads([name for name in hostile.BOMBS if name != "see-through"])
    assert {name for name, what in found.items() if what == [1, 48, 48]} == hostile.HARMLESS - {"see-through"}
    assert set(map(str, found.values())) == {"too_large", "undecodable", "[1, 48, 48]"}
    assert memory < 450


def test_large_pictures_share_their_room() -> None:
    """Four threads with 40 megapixels each: two at a time, 160 MiB before and 160 after a change of mode."""
    memory, found = in_four_threads(["see-through"] * 4)
    assert found == {"see-through": [1, 48, 48]}
    assert memory < 1000
