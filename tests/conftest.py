"""What all tests share: one thread a process, no cluster but their own, and a real S3 server on request."""

import os
import secrets

# Before torch, Ray and the AWS libraries are imported, and for the processes that tests start.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["RAY_ADDRESS"] = "local"
os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)  # read once a process; the home folder may hold another
os.environ["MPLBACKEND"] = "Agg"
for _name in [name for name in os.environ if name.startswith("AWS_")]:
    del os.environ[_name]  # no test may reach anybody's buckets
os.environ["AWS_EC2_METADATA_DISABLED"] = "true"
os.environ["AWS_CONFIG_FILE"] = os.environ["AWS_SHARED_CREDENTIALS_FILE"] = os.devnull

import logging
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's background job; what tests start would ignore Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)

S3_SETTINGS = {
    "AWS_ACCESS_KEY_ID": "tests",
    "AWS_SECRET_ACCESS_KEY": "only-for-tests",
    "AWS_REGION": "eu-central-1",
}


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """The address of an S3 server (moto's, over HTTP) that lives as long as the test run."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # else a line a request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """``s3://bucket`` of a new bucket, with the AWS settings in the environment that lead there."""
    import boto3

    for name, value in {**S3_SETTINGS, "AWS_ENDPOINT_URL": s3_endpoint}.items():
        monkeypatch.setenv(name, value)
    bucket = f"faces-{secrets.token_hex(4)}"
    client = boto3.client("s3", region_name=S3_SETTINGS["AWS_REGION"], endpoint_url=s3_endpoint)
    client.create_bucket(Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": S3_SETTINGS["AWS_REGION"]})
    return f"s3://{bucket}"


@pytest.fixture(scope="session")
def fer2013() -> Path:
    """The folder with FER2013, or a skip."""
    default = Path(__file__).parents[2] / "shared/data/fer2013"
    folder = Path(os.environ.get("FER_SCALE_DATA", default))
    if not folder.is_dir():
        pytest.skip("FER2013 is not here; FER_SCALE_DATA names its folder")
    return folder


@pytest.fixture(autouse=True)
def _loud() -> None:
    """Every test begins with a console that speaks, whatever the one before it asked for."""
    from fer_scale.console import set_quiet

    set_quiet(False)
