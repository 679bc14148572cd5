"""faces=detect: the endpoint's answers for photographs are those of `label --faces detect`."""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from starlette.testclient import TestClient

from fer_scale.faces.detection import Detection, Detector
from fer_scale.labelling.reading import Reader
from fer_scale.labelling.sources import Source
from fer_scale.labelling.worker import Worker
from fer_scale.learning.acceptance import Acceptance
from fer_scale.predictor import Predictor
from fer_scale.verbs.serve import service as service_module
from fer_scale.verbs.serve.batching import Overloaded
from fer_scale.verbs.serve.detecting import Finder
from fer_scale.verbs.serve.limits import Limits
from fer_scale.verbs.serve.service import Service
from fer_scale.verbs.serve.web import create_app
from tests import photographs
from tests.bundles import write_bundle
from tests.serving import picture

PATH = "/v1/predict?faces=detect"
ACCEPTANCE = Acceptance(0.05, 0.95, 0.27, rows=100, accepted=80, wrong=1)

needs_mtcnn = pytest.mark.skipif(find_spec("mtcnn") is None, reason="the extra `detect` is not installed")


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    return Predictor.load(write_bundle(tmp_path_factory.mktemp("faces") / "bundle"), threads=1)


@pytest.fixture(scope="module")
def client(predictor: Predictor) -> Iterator[TestClient]:
    limits = Limits(max_pixels=1000 * 1000)
    with TestClient(create_app(Service(predictor, limits, acceptance=ACCEPTANCE))) as client:
        yield client


def sent() -> dict[str, bytes]:
    """Photographs under the names that both sides see; one lies on its side and says so in its Exif data."""
    turned = photographs.Image.Exif()
    turned[0x0112] = 6
    return {
        "astronaut.jpg": photographs.ASTRONAUT.read_bytes(),
        "group.png": photographs.encoded(photographs.group()),
        "lying.jpg": photographs.encoded(photographs.hopper().rotate(90, expand=True), "JPEG", exif=turned),
        "nobody.jpg": photographs.encoded(photographs.scenery(), "JPEG"),
        "small.png": picture(0),
    }


@needs_mtcnn
def test_the_endpoint_and_label_give_the_same_faces(client: TestClient, predictor: Predictor, tmp_path: Path) -> None:
    files = sent()
    root, out = tmp_path / "photographs", str(tmp_path / "out")
    root.mkdir()
    for name, data in files.items():
        (root / name).write_bytes(data)
    source, detector = Source.open(str(root)), Detector(Detection())
    reader = Reader(source.image_column, source.id_column)
    worker = Worker(predictor, out, reader, acceptance=ACCEPTANCE, detector=detector)
    for unit in source.units(16):
        worker.label(unit.published_as(unit.key))
    rows = pq.read_table(f"{out}/ledger/labels").to_pylist()
    without = {row["id"]: (row["reason"], row["detail"]) for row in pq.read_table(f"{out}/ledger/no_face").to_pylist()}

    answer = client.post(PATH, files=[("images", item) for item in files.items()]).raise_for_status().json()
    found = dict(zip(files, answer["results"], strict=True))
    got = {(name, at): face for name, result in found.items() for at, face in enumerate(result["faces"])}
    assert len(rows) == 5  # one, three, one
    assert set(got) == {(row["id"], row["face"]) for row in rows}
    for row in rows:
        face = got[row["id"], row["face"]]
        assert (face["box"], face["label"], face["accepted"]) == (row["box"], row["label"], row["accepted"])
        assert face["score"] == pytest.approx(row["score"], abs=1e-6)
        expected = {name: row[f"prob_{name}"] for name in predictor.classes}
        assert face["probabilities"] == pytest.approx(expected, abs=1e-5)
    assert set(without) == {"nobody.jpg", "small.png"}
    assert {name: (r["reason"], r["detail"]) for name, r in found.items() if not r["faces"]} == without
    assert answer["model_id"] == predictor.model_id
    assert answer["milliseconds"] > 0
    counted = client.get("/metrics").text
    assert 'fer_scale_no_face_total{reason="none_found"} 1\n' in counted
    assert sum(float(line.split()[-1]) for line in counted.splitlines() if line.startswith("fer_scale_faces_tot")) == 5


@needs_mtcnn
def test_of_many_faces_the_largest_are_answered(predictor: Predictor) -> None:
    with TestClient(create_app(Service(predictor, Limits(max_faces=2)))) as client:
        (result,) = client.post(PATH, content=sent()["group.png"]).json()["results"]
        assert client.get("/v1/model").json()["limits"]["max_faces"] == 2
    sides = [face["box"]["width"] for face in result["faces"]]
    assert sides == sorted(sides, reverse=True)
    assert len(sides) == 2
    assert "accepted" not in result["faces"][0]


@needs_mtcnn
def test_what_is_no_photograph_refuses_the_request_and_is_named(client: TestClient) -> None:
    large = photographs.encoded(photographs.Image.new("L", (1001, 1000)))
    response = client.post(PATH, files=[("images", (name, data)) for name, data in (("a", large), ("b", b"junk"))])
    assert response.status_code == 422
    assert [(e["name"], e["reason"]) for e in response.json()["errors"]] == [("a", "too_large"), ("b", "undecodable")]
    assert client.post(PATH, content=large).status_code == 413


@pytest.mark.parametrize("query", ["faces=all", "face=detect", "faces=crop&faces=detect", "faces", "x=1"])
def test_a_query_that_is_not_understood_is_refused(client: TestClient, query: str) -> None:
    response = client.post(f"/v1/predict?{query}", content=picture(0))
    assert (response.status_code, response.json()["type"]) == (400, "urn:fer-scale:problem:query")


def test_crops_are_the_default(client: TestClient) -> None:
    one, other = (client.post(f"/v1/predict{query}", content=picture(0)).json() for query in ("", "?faces=crop"))
    assert one["results"] == other["results"]
    assert isinstance(one["results"][0]["accepted"], bool)


def test_without_the_extra_it_says_so(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service_module, "available", lambda: False)
    with TestClient(create_app(Service(predictor, Limits()))) as client:
        response = client.post(PATH, content=picture(0))
        assert (response.status_code, response.json()["type"]) == (501, "urn:fer-scale:problem:no-detector")
        assert client.get("/v1/model").json()["detection"] is None
        (query,) = client.get("/openapi.json").json()["paths"]["/v1/predict"]["post"]["parameters"]
        assert query["schema"]["enum"] == ["crop"]


@needs_mtcnn
def test_photographs_of_a_request_are_taken_together_or_not_at_all(predictor: Predictor) -> None:
    finder = Finder(predictor.preprocessing, Limits(max_waiting=3))
    with finder.room(2):
        with pytest.raises(Overloaded), finder.room(2):
            pass
        assert finder.waiting == 2
        with finder.room(1):
            assert finder.full
    with finder.room(64):  # more than may wait, but nobody else does
        assert finder.full
    assert finder.waiting == 0
    finder.close()
