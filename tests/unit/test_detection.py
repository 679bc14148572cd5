"""Faces within real photographs: a portrait of Grace Hopper (US Navy, public domain), a flower and a temple.

Matplotlib and scikit-learn bring them.
"""

import io
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import matplotlib
import pyarrow.parquet as pq
import pytest
import sklearn
from PIL import Image, ImageDraw

from fer_scale.faces.cutting import cut
from fer_scale.faces.detection import Detection, Detector, Face, NoFaceError, square
from fer_scale.faces.images import ImageError, Preprocessing
from fer_scale.labelling import results
from fer_scale.labelling.ledger import Backlog, Ledger
from fer_scale.labelling.reading import Reader
from fer_scale.labelling.sources import Source
from fer_scale.labelling.worker import Worker
from tests.unit.test_labelling import Brightness, run_of

pytestmark = pytest.mark.skipif(find_spec("mtcnn") is None, reason="the extra `detect` is not installed")


@pytest.fixture(scope="module")
def detector() -> Detector:
    return Detector(Detection())


@pytest.fixture(scope="module")
def portrait() -> Image.Image:
    """512 x 600; the face is about 200 x 260 around (270, 170)."""
    return Image.open(Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg").convert("RGB")


def landscape(name: str) -> Image.Image:
    return Image.open(Path(str(sklearn.__file__)).parent / "datasets" / "images" / name).convert("RGB")


def group(portrait: Image.Image) -> Image.Image:
    """Three of different sizes, side by side."""
    picture = Image.new("RGB", (1100, 600), (40, 60, 80))
    for at, height in ((0, 600), (530, 330), (830, 240)):
        picture.paste(portrait.resize((height * 512 // 600, height)), (at, 0))
    return picture


def encoded(picture: Image.Image, form: str = "JPEG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return buffer.getvalue()


def holds(face: Face, x: int, y: int) -> bool:
    return face.x < x < face.x + face.width and face.y < y < face.y + face.height


def test_one_face_is_found_where_it_is(detector: Detector, portrait: Image.Image) -> None:
    (face,) = detector.faces(portrait)
    assert holds(face, 270, 170)
    assert 120 < face.width < 300
    assert face.score > 0.95


def test_several_faces_come_the_largest_first(detector: Detector, portrait: Image.Image) -> None:
    found = detector.faces(group(portrait))
    assert len(found) == 3
    assert [face.x for face in found] == sorted(face.x for face in found)
    areas = [face.width * face.height for face in found]
    assert areas == sorted(areas, reverse=True)


@pytest.mark.parametrize("name", ["flower.jpg", "china.jpg"])
def test_where_nobody_is_nobody_is_found(detector: Detector, name: str) -> None:
    with pytest.raises(NoFaceError, match="640x427"):
        detector.cut(landscape(name))


@pytest.mark.parametrize("side", ["left", "below"])
def test_a_half_hidden_face_is_found_or_left_out_and_never_misplaced(
    detector: Detector, portrait: Image.Image, side: str
) -> None:
    (whole,) = detector.faces(portrait)
    hidden = portrait.copy()
    x, y, width, height = whole.x, whole.y, whole.width, whole.height
    covered = (x - 9, y - 9, x + width // 2, y + height + 9) if side == "left" else (0, y + height * 2 // 3, 512, 600)
    ImageDraw.Draw(hidden).rectangle(covered, fill=(90, 60, 40))
    for face in detector.faces(hidden):
        assert holds(face, x + width * 3 // 5, y + height // 3)
    both = Image.new("RGB", (1024, 600))
    both.paste(hidden, (0, 0))
    both.paste(portrait, (512, 0))
    assert any(holds(face, 512 + 270, 170) for face in detector.faces(both))


def test_boxes_are_in_pixels_of_the_upright_photograph(detector: Detector, portrait: Image.Image) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: 90 degrees clockwise make it upright
    lying = encoded(portrait.rotate(90, expand=True), exif=exif, quality=95)
    (face,) = cut(lying, Preprocessing(size=48), detector).faces
    (upright,) = detector.faces(portrait)
    for edge in ("x", "y", "width", "height"):
        assert abs(getattr(face, edge) - getattr(upright, edge)) <= 8


def test_a_large_photograph_is_searched_in_a_copy_and_cut_from_itself(
    detector: Detector, portrait: Image.Image
) -> None:
    large = portrait.resize((512 * 6, 600 * 6))
    ((face, picture),) = detector.cut(large)
    assert holds(face, 6 * 270, 6 * 170)
    assert picture.width == picture.height > 700


def test_a_square_at_the_edge_is_moved_inside() -> None:
    picture = Image.new("L", (100, 80))
    assert square(picture, Face(80, 0, 30, 40, 1.0), 0.1).size == (42, 42)
    assert square(picture, Face(0, 0, 100, 80, 1.0), 0.5).size == (80, 80)


def test_a_crop_is_no_photograph_and_says_so(detector: Detector) -> None:
    with pytest.raises(NoFaceError, match="faces crop") as caught:
        detector.cut(Image.new("L", (48, 48), 128))
    assert caught.value.reason == "too_small"


def test_bytes_that_are_no_picture_are_an_error_and_not_a_picture_without_faces(detector: Detector) -> None:
    with pytest.raises(ImageError) as caught:
        cut(b"no picture", Preprocessing(size=48), detector)
    assert not isinstance(caught.value, NoFaceError)


def label_all(source: Source, out: Path, detector: Detector) -> Brightness:
    brightness, ledger = Brightness(), Ledger(str(out))
    worker = Worker(brightness, str(out), Reader(source.image_column, source.id_column), batch=4, detector=detector)
    backlog = Backlog(ledger.entries, results.parts(str(out)), False)
    matched = list(backlog.match(source.units(16)))
    for unit, to_do in matched:
        if to_do:
            ledger.commit([worker.label(unit)], 1.0)
    results.settle(str(out), ledger, [unit.key for unit, _ in matched], run_of(detecting=True))
    return brightness


def test_every_photograph_has_its_rows_or_says_that_there_is_no_face(
    detector: Detector, portrait: Image.Image, tmp_path: Path
) -> None:
    root, out = tmp_path / "photographs", tmp_path / "out"
    root.mkdir()
    (root / "one.jpg").write_bytes(encoded(portrait))
    (root / "same.jpg").write_bytes(encoded(portrait))
    (root / "group.png").write_bytes(encoded(group(portrait), "PNG"))
    (root / "flower.jpg").write_bytes(encoded(landscape("flower.jpg")))
    (root / "broken.jpg").write_bytes(encoded(portrait)[:2000])
    brightness = label_all(Source.open(str(root)), out, detector)

    rows = pq.read_table(out / "labels").to_pylist()
    assert sorted((row["id"], row["face"]) for row in rows) == [
        ("group.png", 0),
        ("group.png", 1),
        ("group.png", 2),
        ("one.jpg", 0),
        ("same.jpg", 0),
    ]
    for row in rows:
        assert set(row["box"]) == {"x", "y", "width", "height"}
        assert 0.8 <= row["score"] <= 1
    assert [row["id"] for row in pq.read_table(out / "no_face").to_pylist()] == ["flower.jpg"]
    assert [row["id"] for row in pq.read_table(out / "errors").to_pylist()] == ["broken.jpg"]
    (entry,) = Ledger(str(out)).entries.values()
    counts = {name: entry[name] for name in ("inputs", "labelled", "no_face", "errors", "faces", "duplicates")}
    assert counts == {"inputs": 5, "labelled": 3, "no_face": 1, "errors": 1, "faces": 5, "duplicates": 1}
    assert brightness.seen == 4  # the same photograph is inferred once

    # A photograph more: what is there already keeps its answers, the one without a face too.
    (root / "last.jpg").write_bytes(encoded(portrait.transpose(Image.Transpose.FLIP_LEFT_RIGHT)))
    again = label_all(Source.open(str(root)), out, detector)
    assert again.seen == 1
    after = pq.read_table(out / "labels").to_pylist()
    assert [row for row in after if row["id"] != "last.jpg"] == rows
    assert [row["id"] for row in pq.read_table(out / "no_face").to_pylist()] == ["flower.jpg"]
