"""On Ray Serve, under constant requests: another bundle rolls in and back, replicas come and go with the load."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from fer_scale.bundle import Bundle
from fer_scale.verbs.serve import APPLICATION, LOGGING, Running, endpoint
from tests.bundles import write_bundle
from tests.serving import picture

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning")]  # Ray Serve's own


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("rollout")
    return [write_bundle(folder / str(seed), seed) for seed in (0, 1)]


@pytest.fixture(scope="module")
def running(bundles: list[Path]) -> Iterator[Running]:
    with endpoint(bundles[0], port=0) as running:
        yield running


def deploy(bundle: Path, **arguments: int) -> None:
    """As `serve deploy` does with a changed configuration."""
    from ray import serve

    from fer_scale.verbs.serve.app import build

    application = build({"bundle": str(bundle), **arguments})
    serve.run(application, name=APPLICATION, route_prefix="/", logging_config=LOGGING)


@contextmanager
def asking(url: str) -> Iterator[list[str]]:
    """Two clients that ask all the time; the models that answered. Any other answer fails the test at the end."""
    ended, models = threading.Event(), []

    def ask() -> None:
        with httpx.Client(base_url=url, timeout=60) as client:
            while not ended.wait(0.01):
                response = client.post("/v1/predict", content=picture(0))
                assert response.status_code == 200, response.text
                models.append(response.json()["model_id"])

    with ThreadPoolExecutor(2) as pool:
        clients = [pool.submit(ask) for _ in range(2)]
        try:
            yield models
        finally:
            ended.set()
        for client in clients:
            client.result()


def answered(models: list[str], model: str) -> None:
    """Wait until that model alone has answered the last requests."""
    until = time.monotonic() + 60
    while models[-20:] != [model] * 20:
        assert time.monotonic() < until
        time.sleep(0.05)


def replicas() -> int:
    """Those that start or end included."""
    from ray import serve

    return sum(serve.status().applications[APPLICATION].deployments["Endpoint"].replica_states.values())


def test_a_bundle_rolls_in_and_back_without_a_failed_request(running: Running, bundles: list[Path]) -> None:
    if not running.haproxy:
        pytest.skip("one process listens on the port where there is no HAProxy")
    old, new = (Bundle.load(bundle).model_id for bundle in bundles)
    with asking(running.url) as models:
        deploy(bundles[0], replicas=2)
        answered(models, old)
        for bundle, model in ((bundles[1], new), (bundles[0], old)):
            deploy(bundle, replicas=2)
            answered(models, model)
    assert set(models) == {old, new}


def test_from_no_replica_the_first_request_waits_for_one(running: Running, bundles: list[Path]) -> None:
    if not running.haproxy:
        pytest.skip("one process listens on the port where there is no HAProxy")
    deploy(bundles[0], replicas=0, max_replicas=1)
    until = time.monotonic() + 90
    while replicas():
        assert time.monotonic() < until
        time.sleep(0.2)
    assert httpx.post(f"{running.url}/v1/predict", content=picture(0), timeout=60).status_code == 200
    assert replicas() == 1
