"""What `fer_scale.storage` needs to know of S3: clients, addresses, and errors in a user's words.

Settings come from the standard AWS environment alone (AWS_ACCESS_KEY_ID, AWS_PROFILE, AWS_REGION,
AWS_ENDPOINT_URL and so on).
"""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

import boto3
import pyarrow.fs
from boto3.exceptions import Boto3Error
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError,
    FlexibleChecksumError,
    HTTPClientError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
)

from fer_scale.errors import InputError, MissingPathError

SCHEME = "s3://"
CONNECTIONS = 128
"""The most that a process has open: as many as it has threads that fetch."""
MISSING = {"404", "NoSuchKey", "NotFound"}
CONDITIONAL = {"ConditionalRequestConflict", "PreconditionFailed"}
REFUSED = {
    "401", "403", "AccessDenied", "AllAccessDisabled", "ExpiredToken", "Forbidden", "InvalidAccessKeyId",
    "InvalidToken", "SignatureDoesNotMatch", "TokenRefreshRequired",
}  # fmt: skip
THROTTLED = {
    "InternalError", "RequestLimitExceeded", "RequestTimeout", "ServiceUnavailable", "SlowDown", "Throttling",
    "ThrottlingException",
}  # fmt: skip
"""What S3 says when it is asked too much, or is ill, rather than asked wrongly; after all tries of the client."""
NOT_IMPLEMENTED = 501
CREDENTIALS = {"ExpiredToken", "InvalidAccessKeyId", "InvalidToken", "SignatureDoesNotMatch", "TokenRefreshRequired"}


def split(path: str) -> tuple[str, str]:
    """``s3://bucket/a/b`` -> ``("bucket", "a/b")``; of the key no slash is left out, for ``/a`` and ``a`` are two."""
    bucket, _, key = path.removeprefix("s3:").lstrip("/").partition("/")  # pathlib makes s3:/bucket of s3://bucket
    if not bucket:
        raise InputError(f"{path!r} names no bucket", "s3://bucket/prefix", "name the bucket")
    return bucket, key


def _settings() -> tuple[str, ...]:
    """What a client depends on: another process or other settings need another client."""
    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_REGION",
             "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3")  # fmt: skip
    return (str(os.getpid()), *(os.environ.get(name, "") for name in names))


def _endpoint() -> str:
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""


class _Pace:
    """Counts whoever asks, and lets them go on so that no more than ``rate`` a second do."""

    rate: float | None = None
    passed = 0

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._next = 0.0

    def __call__(self, **_: Any) -> None:
        with self._lock:
            self.passed += 1
            if self.rate is None:
                return
            at = max(self._next, time.monotonic())
            self._next = at + 1 / self.rate
        time.sleep(max(0.0, at - time.monotonic()))


_pace = _Pace()


def limit_requests(rate: float | None) -> None:
    """Hold this process to so many requests a second, repeated ones counted; None: no limit.

    What goes through `client` alone: of a face store, which pyarrow reads, none.
    """
    _pace.rate = rate


def requests_made() -> int:
    """Requests to S3 that this process has sent, repeated ones counted; of pyarrow's none, as in `limit_requests`."""
    return _pace.passed


@lru_cache(maxsize=4)
def _client(settings: tuple[str, ...]) -> Any:
    session = boto3.Session()
    region = os.environ.get("AWS_REGION") or session.region_name or "us-east-1"
    config = Config(
        # Backs off, and after a refusal for its rate holds this process's requests to what S3 takes.
        retries={"mode": "adaptive", "total_max_attempts": 6},
        connect_timeout=10,
        read_timeout=60,
        max_pool_connections=CONNECTIONS,
    )
    client = session.client("s3", region_name=region, endpoint_url=_endpoint() or None, config=config)
    client.meta.events.register("before-send.s3", _pace)
    return client


def client() -> Any:
    """A boto3 S3 client of this process; safe to share between threads."""
    return _client(_settings())


@lru_cache(maxsize=32)
def _filesystem(settings: tuple[str, ...], bucket: str) -> pyarrow.fs.S3FileSystem:
    endpoint = _endpoint()
    if not endpoint:
        # pyarrow does not follow a bucket to its region as boto3 does.
        region = client().head_bucket(Bucket=bucket).get("BucketRegion")
        return pyarrow.fs.S3FileSystem(region=region, retry_strategy=_patience())
    parts = urlsplit(endpoint)
    return pyarrow.fs.S3FileSystem(
        endpoint_override=parts.netloc or endpoint,
        scheme=parts.scheme if parts.netloc else "https",
        region=client().meta.region_name,
        retry_strategy=_patience(),
    )


def _patience() -> pyarrow.fs.AwsStandardS3RetryStrategy:
    return pyarrow.fs.AwsStandardS3RetryStrategy(max_attempts=6)


def filesystem(bucket: str) -> pyarrow.fs.S3FileSystem:
    """pyarrow's view of the bucket, by the same settings as `client`."""
    return _filesystem(_settings(), bucket)


def _where() -> str:
    return _endpoint() or "AWS"


@contextmanager
def translated(path: str) -> Iterator[None]:
    """Turn what boto3 says into an `InputError`; the lost race of a conditional put passes as it is."""
    try:
        yield
    except ClientError as error:
        raise _of_client_error(path, error) from error
    except (NoCredentialsError, PartialCredentialsError) as error:
        raise InputError(
            f"no complete AWS credentials were found for {path}",
            "credentials in the standard AWS settings",
            "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
        ) from error
    except (ConnectionError, HTTPClientError) as error:
        raise InputError(
            f"{_where()} cannot be reached for {path} ({error})",
            "an S3 endpoint that answers",
            "check the network and AWS_ENDPOINT_URL",
        ) from error
    except (BotoCoreError, Boto3Error) as error:
        inner = error.__context__
        if isinstance(error, Boto3Error) and isinstance(inner, ClientError):
            raise _of_client_error(path, inner) from error  # what the transfer manager wraps
        raise InputError(
            f"S3 cannot be used for {path} ({error})", "working AWS settings", "check the AWS_* environment"
        ) from error


def _of_client_error(path: str, error: ClientError) -> Exception:
    code = str(error.response.get("Error", {}).get("Code", ""))
    if code == "NoSuchBucket":
        return MissingPathError(
            f"there is no bucket {split(path)[0]!r} at {_where()}",
            "a bucket that exists",
            "check its name, or make it first",
        )
    if code in MISSING:
        return MissingPathError(f"there is no {path}")
    if code in REFUSED:
        return InputError(
            f"{_where()} refuses access to {path} ({code})",
            "credentials that may read and write there",
            "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and the bucket's policy",
        )
    if _is_ill(error):
        return InputError(
            f"{_where()} keeps refusing requests for {path} ({code})",
            "an S3 endpoint that keeps up",
            "run the same command again later, or with fewer --workers",
        )
    if code in CONDITIONAL:
        return error
    said = error.response.get("Error", {}).get("Message", "")
    return InputError(
        f"{_where()} does not serve {path} ({code}: {said})", "an object that can be read", "look at it in the bucket"
    )


def is_outage(error: InputError) -> bool:
    """Whether S3 as a whole cannot be used (network, credentials, its load), rather than the one path asked for."""
    cause = error.__cause__
    if isinstance(cause, ClientError):
        return cause.response.get("Error", {}).get("Code") in CREDENTIALS or _is_ill(cause)
    return isinstance(cause, BotoCoreError) and not isinstance(cause, ParamValidationError | FlexibleChecksumError)


def _is_ill(error: ClientError) -> bool:
    """Whether S3, or a gateway before it, is asked too much or is ill: each has words of its own for that."""
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    ill = status == 429 or (status >= 500 and status != NOT_IMPLEMENTED)
    return ill or error.response.get("Error", {}).get("Code") in THROTTLED
