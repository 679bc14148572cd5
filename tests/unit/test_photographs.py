"""Photographs of one, several, a half-hidden and no person, labelled; then the folder changes."""

import importlib.util
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from fer_scale.faces.detection import Detection, Detector, Face
from fer_scale.faces.images import Preprocessing
from fer_scale.labelling import results
from fer_scale.labelling.ledger import Backlog, Ledger
from fer_scale.labelling.reading import Reader
from fer_scale.labelling.sources import Source
from fer_scale.labelling.worker import Worker
from tests.photographs import astronaut, encoded, group, half_hidden, hopper, scenery
from tests.unit.test_labelling import run_of

needs_weights = pytest.mark.skipif(importlib.util.find_spec("mtcnn") is None, reason="needs fer_scale[detect]")


@pytest.fixture(scope="module")
def detector() -> Detector:
    return Detector(Detection())


def near(face: Face, box: tuple[int, int, int, int]) -> bool:
    """Whether they overlap by more than six tenths of their union."""
    left, top = max(face.x, box[0]), max(face.y, box[1])
    right, low = min(face.x + face.width, box[0] + box[2]), min(face.y + face.height, box[1] + box[3])
    common = max(0, right - left) * max(0, low - top)
    return common > 0.6 * (face.width * face.height + box[2] * box[3] - common)


@needs_weights
def test_one_several_half_hidden_none(detector: Detector) -> None:
    (alone,) = detector.faces(astronaut())
    assert near(alone, (120, 62, 86, 111))
    assert alone.score > 0.95

    found = detector.faces(group())
    assert [near(face, box) for face, box in zip(
        found, [(442, 96, 121, 149), (120, 112, 86, 111), (841, 226, 48, 60)], strict=True
    )] == [True] * 3  # fmt: skip
    areas = [face.width * face.height for face in found]
    assert areas == sorted(areas, reverse=True)
    assert found == detector.faces(group())

    assert len(detector.faces(half_hidden())) == 1
    assert detector.faces(scenery()) == detector.faces(scenery("flower.jpg")) == []
    noise = np.random.default_rng(0).integers(0, 256, (600, 800, 3), dtype=np.uint8)
    assert detector.faces(Image.fromarray(noise)) == []


class Brightness:
    """The brighter the face, the happier."""

    classes = ["happy", "sad"]  # noqa: RUF012
    model_id = "brightness"
    preprocessing = Preprocessing(size=16)

    def probabilities(self, images: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
        happy = images.reshape(len(images), -1).mean(axis=1) / 255
        return np.stack([happy, 1 - happy], axis=1).astype(np.float32)


def label(source: Path, out: Path, detector: Detector, threads: int = 0) -> dict[str, int]:
    """One pass over a folder; the counts of its end."""
    worker = Worker(Brightness(), str(out), Reader("image", None), batch=2, threads=threads, detector=detector)
    ledger = Ledger(str(out))
    backlog = Backlog(ledger.entries, results.parts(str(out)))
    keys, carried = [], 0
    for unit, to_do in backlog.match(Source.open(str(source)).units(16)):
        keys.append(unit.key)
        if to_do:
            entry = worker.label(unit)
            carried += entry["carried"]
            ledger.commit([entry], 0.1)
    results.settle(str(out), ledger, keys, run_of(detecting=True))
    names = ("inputs", "labelled", "no_face", "errors", "faces", "duplicates")
    return {name: sum(entry[name] for entry in ledger.entries.values()) for name in names} | {"carried": carried}


@needs_weights
@pytest.mark.parametrize("threads", [0, 3])
def test_rows_of_photographs(tmp_path: Path, detector: Detector, threads: int) -> None:
    source, out = tmp_path / "photographs", tmp_path / "out"
    source.mkdir()
    pictures = {"group": group(), "again": group(), "one": hopper(), "hidden": half_hidden(), "none": scenery()}
    for name, image in pictures.items():
        (source / f"{name}.png").write_bytes(encoded(image))
    (source / "empty.png").touch()
    counts = label(source, out, detector, threads)
    assert counts == {
        "inputs": 6, "labelled": 4, "no_face": 1, "errors": 1, "faces": 8, "duplicates": 1, "carried": 0
    }  # fmt: skip
    rows = pq.read_table(out / "labels").to_pylist()
    assert sorted((row["id"], row["face"]) for row in rows) == [
        *(("again.png", n) for n in range(3)), *(("group.png", n) for n in range(3)), ("hidden.png", 0), ("one.png", 0)
    ]  # fmt: skip
    for row in rows:
        face = detector.faces(pictures[row["id"].removesuffix(".png")])[row["face"]]
        assert (row["box"], row["score"]) == (face.box, pytest.approx(face.score))
    assert [row["id"] for row in pq.read_table(out / "no_face").to_pylist()] == ["none.png"]
    assert [row["id"] for row in pq.read_table(out / "errors").to_pylist()] == ["empty.png"]

    (source / "more.png").write_bytes(encoded(astronaut()))
    (source / "one.png").unlink()
    grown = label(source, out, detector, threads)
    assert grown == {
        "inputs": 6, "labelled": 4, "no_face": 1, "errors": 1, "faces": 8, "duplicates": 1, "carried": 5
    }  # fmt: skip
    assert {row["id"] for row in pq.read_table(out / "labels").to_pylist()} == {
        "group.png", "again.png", "hidden.png", "more.png"
    }  # fmt: skip

    (source / "none.png").unlink()
    assert label(source, out, detector, threads)["no_face"] == 0
    assert pq.read_table(out / "no_face").num_rows == 0
