"""The endpoint's web application: answers, refusals, headers and counts, without Ray."""

import asyncio
import io
import json
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from fer_scale.errors import InputError
from fer_scale.faces.images import prepare
from fer_scale.learning.acceptance import Acceptance
from fer_scale.predictor import Predictor
from fer_scale.verbs.serve import metrics, web
from fer_scale.verbs.serve import service as service_module
from fer_scale.verbs.serve.batching import Answer, Batcher, Overloaded, Waiting
from fer_scale.verbs.serve.limits import Limits
from fer_scale.verbs.serve.metrics import Counts, Snapshot, Tally, render
from fer_scale.verbs.serve.service import BadImages, Service
from fer_scale.verbs.serve.token import read_token
from fer_scale.verbs.serve.web import PAGE, Alone, create_app
from tests.bundles import write_bundle
from tests.serving import listening, picture

PROBLEM = "application/problem+json"
PATH = "/v1/predict"


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    return Predictor.load(write_bundle(tmp_path_factory.mktemp("serve") / "bundle"), threads=1)


@pytest.fixture(scope="module")
def client(predictor: Predictor) -> Iterator[TestClient]:
    limits = Limits(max_bytes=100_000, max_images=3, max_pixels=200 * 200)
    with TestClient(create_app(Service(predictor, limits))) as client:
        yield client


def parts(*images: bytes) -> list[tuple[str, tuple[str, bytes]]]:
    return [("images", (f"{at}.png", data)) for at, data in enumerate(images)]


def check_problem(response, status: int, kind: str) -> dict:
    assert response.status_code == status
    assert response.headers["content-type"] == PROBLEM
    document = response.json()
    assert document["status"] == status
    assert document["type"] == f"urn:fer-scale:problem:{kind}"
    assert document["title"]
    assert document["instance"].startswith("urn:uuid:")
    return document


def test_accepted_follows_the_threshold(predictor: Predictor) -> None:
    images = [picture(0), picture(1)]
    confidences = sorted(
        predictor.probabilities(np.stack([prepare(d, predictor.preprocessing) for d in images])).max(1)
    )
    acceptance = Acceptance(0.05, 0.95, float(confidences[1]), rows=100, accepted=80, wrong=1)
    with TestClient(create_app(Service(predictor, Limits(), acceptance=acceptance))) as client:
        results = client.post(PATH, files=parts(*images)).json()["results"]
    assert sorted((result["confidence"], result["accepted"]) for result in results) == [
        (pytest.approx(confidences[0], abs=1e-6), False),
        (pytest.approx(confidences[1], abs=1e-6), True),
    ]


def test_answers_are_the_predictors(client: TestClient, predictor: Predictor) -> None:
    images = [picture(0), picture(1, 90, "JPEG"), picture(2, 64, "GIF")]
    arrays = np.stack([prepare(data, predictor.preprocessing) for data in images])
    expected = predictor.probabilities(arrays)
    together = client.post(PATH, files=parts(*images)).json()
    alone = [client.post(PATH, content=data).json()["results"][0] for data in images]
    for results in (together["results"], alone):
        got = np.array([[r["probabilities"][name] for name in predictor.classes] for r in results])
        assert np.abs(got - expected).max() < 1e-5
        assert [r["label"] for r in results] == [predictor.classes[i] for i in expected.argmax(1)]
        assert [r["confidence"] for r in results] == [max(r["probabilities"].values()) for r in results]
    assert together["model_id"] == predictor.model_id
    assert set(together) == {"model_id", "results", "milliseconds"}


@pytest.mark.parametrize(
    "kind",
    ["image/png", "application/octet-stream", "application/x-www-form-urlencoded", "", "IMAGE/JPEG; a=b"],
)
def test_a_raw_body_may_come_under_many_types(client: TestClient, kind: str) -> None:
    response = client.post(PATH, content=picture(0), headers={"content-type": kind} if kind else {})
    assert response.status_code == 200


def png(size: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (size, size)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("request_", "status", "kind"),
    [
        ({"content": b""}, 400, "empty"),
        ({"content": b"not a picture"}, 422, "image-unreadable"),
        ({"content": picture(0, 64)[:-300]}, 422, "image-unreadable"),
        ({"content": b"x" * 100_001}, 413, "body-too-large"),
        ({"content": iter([b"x" * 60_000] * 2)}, 413, "body-too-large"),
        ({"content": png(201)}, 413, "image-too-large"),
        ({"content": b"{}", "headers": {"content-type": "application/json"}}, 415, "media-type"),
        ({"content": b"x", "headers": {"content-type": "multipart/form-data"}}, 400, "multipart"),
        ({"content": b"x", "headers": {"content-type": "multipart/form-data; boundary=y"}}, 400, "multipart"),
        ({"files": parts(*[picture(0)] * 4)}, 413, "too-many-images"),
        ({"files": {"note": (None, "no file in here")}}, 400, "empty"),
    ],
)
def test_what_cannot_be_answered_is_a_problem(client: TestClient, request_, status: int, kind: str) -> None:
    check_problem(client.post(PATH, **request_), status, kind)


def test_one_bad_image_refuses_the_request_and_is_named(client: TestClient) -> None:
    response = client.post(PATH, files=parts(picture(0), b"junk", b""))
    document = check_problem(response, 422, "image-unreadable")
    assert [(e["index"], e["name"], e["reason"]) for e in document["errors"]] == [
        (1, "1.png", "undecodable"),
        (2, "2.png", "empty"),
    ]


def test_unknown_paths_and_methods_are_problems(client: TestClient) -> None:
    check_problem(client.get("/nowhere"), 404, "http")
    response = client.get(PATH)
    check_problem(response, 405, "http")
    assert response.headers["allow"] == "POST"


def test_health_model_and_description(client: TestClient, predictor: Predictor) -> None:
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/readyz").json() == {"status": "ready", "model_id": predictor.model_id}
    card = client.get("/v1/model").json()
    assert card["classes"] == predictor.classes
    assert card["limits"]["max_images"] == 3
    assert predictor.model_id in card["card"]
    operation = client.get("/openapi.json").json()["paths"][PATH]["post"]
    assert set(operation["requestBody"]["content"]) == {
        "image/*",
        "application/octet-stream",
        "multipart/form-data",
    }
    assert operation["responses"]["200"]["content"]["application/json"]["examples"]
    assert PROBLEM in operation["responses"]["422"]["content"]


def test_every_answer_has_the_security_headers(client: TestClient) -> None:
    for path in ("/", "/app.js", "/style.css", "/icon.svg", "/healthz", "/nowhere"):
        headers = client.get(path).headers
        assert "script-src 'self'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
    assert client.get("/docs").status_code == 404  # it would load its scripts from another host


def test_the_page_needs_no_other_host(client: TestClient) -> None:
    for path in ("/", *(f"/{path.name}" for path in PAGE.glob("*.[jc]s*"))):
        text = client.get(path).text.replace("http://www.w3.org/2000/svg", "")
        assert "http://" not in text
        assert "https://" not in text


def test_metrics_count_what_happened(predictor: Predictor) -> None:
    with TestClient(create_app(Service(predictor, Limits()))) as client:
        client.post(PATH, files=parts(picture(0), picture(1)))
        client.post(PATH, content=b"junk")
        client.get("/wp-admin")
        text = client.get("/metrics").text
    assert 'fer_scale_requests_total{route="/v1/predict",code="200"} 1\n' in text
    assert 'fer_scale_requests_total{route="other",code="404"} 1\n' in text
    assert 'fer_scale_image_errors_total{reason="undecodable"} 1\n' in text
    assert "fer_scale_batch_images_sum 3\n" in text
    assert 'fer_scale_request_seconds_bucket{le="+Inf"} 2\n' in text
    assert f'model_id="{predictor.model_id}"' in text
    images = [line.split()[-1] for line in text.splitlines() if line.startswith("fer_scale_images_total")]
    assert sum(map(float, images)) == 2
    for family in text_string_to_metric_families(text):  # Prometheus' own reader
        assert family.type in ("counter", "gauge", "histogram")
        assert family.documentation
        buckets = [sample.value for sample in family.samples if sample.name.endswith("_bucket")]
        assert buckets == sorted(buckets)
        assert buckets[-1:] == [sample.value for sample in family.samples if sample.name.endswith("_count")]


def test_the_tally_sums_over_replicas_and_keeps_the_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    tally, one, other = Tally(), Counts(), Counts()
    one.add("fer_scale_images_total", 2, label='a "b"\n')
    one.observe("fer_scale_request_seconds", 0.3, (0.1, 1.0))
    other.add("fer_scale_images_total", 3, label='a "b"\n')
    asyncio.run(tally.hand_in("one", one.snapshot(), True))
    asyncio.run(tally.hand_in("other", other.snapshot(), True))
    text = render(asyncio.run(tally.total()))
    assert 'fer_scale_images_total{label="a \\"b\\"\\n"} 5' in text
    assert 'fer_scale_request_seconds_bucket{le="1"} 1' in text
    assert 'fer_scale_request_seconds_bucket{le="0.1"} 0\n' in text
    assert "fer_scale_replicas 2" in text
    monkeypatch.setattr(metrics, "ALIVE_SECONDS", 0.0)
    assert "fer_scale_replicas 0" in render(asyncio.run(tally.total()))
    monkeypatch.setattr(metrics, "GONE_SECONDS", 0.0)
    monkeypatch.setattr(metrics, "ALIVE_SECONDS", 5.0)
    for at in range(300):
        asyncio.run(tally.hand_in(str(at), one.snapshot(), True))
    text = render(asyncio.run(tally.total()))
    assert f'fer_scale_images_total{{label="a \\"b\\"\\n"}} {5 + 2 * 300}' in text
    assert "fer_scale_replicas 1" in text


def test_a_tally_that_begins_anew_counts_from_there(predictor: Predictor) -> None:
    tally, old = Tally(), Counts()
    old.add("fer_scale_images_total", 1000, label="happy")
    asyncio.run(tally.hand_in("old", old.snapshot(), False))
    old.add("fer_scale_images_total", 7, label="happy")
    asyncio.run(tally.hand_in("old", old.snapshot(), False))
    assert asyncio.run(tally.total())["fer_scale_images_total", 'label="happy"'] == 7

    class Stuck(Alone):
        """While Ray replaces it."""

        async def total(self) -> Snapshot:
            await asyncio.sleep(60)
            return {}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(web, "TALLY_SECONDS", 0.1)
        with TestClient(create_app(Service(predictor, Limits()), Stuck())) as client:
            check_problem(client.get("/metrics"), 503, "tally")


def test_a_token_guards_the_answers_and_not_the_page(predictor: Predictor, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("correct-horse-battery\n")
    service = Service(predictor, Limits(), read_token(tmp_path / "token"))
    with TestClient(create_app(service)) as client:
        for headers in (
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": "Basic correct-horse-battery"},
        ):
            response = client.post(PATH, content=picture(0), headers=headers)
            check_problem(response, 401, "token")
            assert response.headers["www-authenticate"].startswith("Bearer")
            assert client.get("/metrics", headers=headers).status_code == 401
        good = {"Authorization": "Bearer correct-horse-battery"}
        assert client.post(PATH, content=picture(0), headers=good).status_code == 200
        assert client.get("/").status_code == client.get("/readyz").status_code == 200


@pytest.mark.parametrize("text", ["", "short", "two words in one token file", "ümlaut-ümlaut-ümlaut"])
def test_a_useless_token_file_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "token").write_text(text)
    with pytest.raises(InputError, match="token"):
        read_token(tmp_path / "token")
    with pytest.raises(InputError, match="No such file"):
        read_token(tmp_path / "none")


def test_a_fault_is_a_500_that_says_nothing_of_the_inside(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(images: object) -> None:
        raise RuntimeError("secret detail")

    service = Service(predictor, Limits())
    monkeypatch.setattr(predictor, "probabilities", broken)
    with TestClient(create_app(service), raise_server_exceptions=False) as client:
        document = check_problem(client.post(PATH, content=picture(0)), 500, "fault")
        assert "secret" not in json.dumps(document)
        assert client.get("/healthz").status_code == 200


def rows(requests: Sequence[Waiting]) -> list[Answer]:
    return [
        np.array([[len(data)] for data in images], dtype=np.float32)
        for images in (request.images for request in requests)
    ]


def test_what_arrives_while_a_batch_runs_makes_the_next() -> None:
    batches: list[int] = []
    gate = threading.Event()

    def slow(requests: Sequence[Waiting]) -> list[Answer]:
        gate.wait(5)
        return rows(requests)

    async def scene() -> list:
        batcher = Batcher(slow, max_images=4, max_waiting=99, observe=batches.append)
        first = asyncio.create_task(batcher.submit([b"1"]))
        await asyncio.sleep(0.02)
        sizes = (1, 2, 1, 1, 9, 1)
        later = [asyncio.create_task(batcher.submit([b"22"] * n)) for n in sizes]
        gone = asyncio.create_task(batcher.submit([b"3"]))
        await asyncio.sleep(0.02)
        gone.cancel()
        gate.set()
        answers = await asyncio.gather(first, *later)
        batcher.close()
        assert batcher.waiting == 0
        return [len(answer) for answer in answers]

    assert asyncio.run(scene()) == [1, 1, 2, 1, 1, 9, 1]
    assert batches == [1, 4, 1, 9, 1]


def test_a_full_queue_refuses_at_once_and_a_fault_ends_nothing() -> None:
    gate = threading.Event()

    def faulty(requests: Sequence[Waiting]) -> list[Answer]:
        gate.wait(5)
        if any(request.images == [b"bad"] for request in requests):
            raise ValueError("engine")
        return rows(requests)

    async def scene() -> None:
        batcher = Batcher(faulty, max_images=1, max_waiting=2)
        tasks = [asyncio.create_task(batcher.submit([data])) for data in (b"bad", b"good")]
        await asyncio.sleep(0.02)
        assert batcher.full
        with pytest.raises(Overloaded):
            await batcher.submit([b"late"])
        gate.set()
        with pytest.raises(ValueError, match="engine"):
            await tasks[0]
        assert (await tasks[1]).shape == (1, 1)
        batcher.close()

    asyncio.run(scene())


def test_a_request_is_bounded_as_a_whole_and_nothing_is_read_for_a_client_that_left(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_module, "REQUEST_PIXELS", 1)
    size = 100
    limits = Limits(max_pixels=2 * size * size)
    with TestClient(create_app(Service(predictor, limits))) as client:
        large = picture(0, size)
        assert client.post(PATH, files=parts(large, large, large)).status_code == 200
        document = check_problem(client.post(PATH, files=parts(*[large] * 5)), 413, "image-too-large")
        assert [error["index"] for error in document["errors"]] == [3, 4]
        document = client.post(PATH, files=parts(*[large[: len(large) // 2]] * 4)).json()
    assert [error["reason"] for error in document["errors"]] == ["truncated"] * 3 + ["too_large"]
    service = Service(predictor, limits)
    loop = asyncio.new_event_loop()
    left, waits = (Waiting([b"no picture", large], loop.create_future()) for _ in range(2))
    left.answer.cancel()
    gone, bad = service._compute([left, waits])
    assert isinstance(gone, TimeoutError)
    assert isinstance(bad, BadImages)
    service.close()
    loop.close()


def test_a_body_that_is_being_read_counts(predictor: Predictor) -> None:
    service = Service(predictor, Limits(max_waiting=1, max_seconds=5))
    with listening(service) as url:
        address = (url.split("/")[2].split(":")[0], int(url.rsplit(":", 1)[1]))
        with socket.create_connection(address) as slow:
            slow.sendall(b"POST /v1/predict HTTP/1.1\r\nHost: here\r\nContent-Length: 100\r\n\r\nfirst")
            until = time.monotonic() + 5
            while not service.full:
                assert time.monotonic() < until
                time.sleep(0.01)
            check_problem(httpx.post(f"{url}{PATH}", content=picture(0)), 503, "overloaded")
        while service.full:
            assert time.monotonic() < until + 5
            time.sleep(0.01)
        assert httpx.post(f"{url}{PATH}", content=picture(0)).status_code == 200


def test_overload_and_slow_answers_are_503_with_retry_after(predictor: Predictor) -> None:
    gate = threading.Event()
    service = Service(predictor, Limits(max_waiting=1, max_seconds=3))
    compute = service.batcher._compute

    def waits(requests: Sequence[Waiting]) -> list[Answer]:
        gate.wait(10)
        return compute(requests)

    service.batcher._compute = waits
    with TestClient(create_app(service)) as client:
        answers: list = []
        slow = threading.Thread(target=lambda: answers.append(client.post(PATH, content=picture(0))))
        slow.start()
        while not service.full:
            gate.wait(0.01)
        for response in (client.post(PATH, content=picture(0)), client.get("/readyz")):
            check_problem(response, 503, "overloaded")
            assert response.headers["retry-after"] == "1"
        slow.join()
        check_problem(answers[0], 503, "timeout")
        gate.set()


def test_the_application_refuses_a_bundle_where_none_can_be_read() -> None:
    from fer_scale.verbs.serve.app import build

    with pytest.raises(InputError, match="scheme gs://"):
        build({"bundle": "gs://bucket/bundle"})
