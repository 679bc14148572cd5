"""Paths as text, local and in S3; re-exported by `fer_scale.storage`."""

import os

from fer_scale import _s3
from fer_scale.errors import InputError

PathLike = str | os.PathLike[str]


def is_s3(path: PathLike) -> bool:
    """Whether the path is in S3."""
    return normal(path).startswith(_s3.SCHEME)


def normal(path: PathLike) -> str:
    """The path as an absolute local path or as ``s3://bucket/key`` without a slash at its end.

    Raises:
        InputError: the path is empty, or of a scheme other than s3:// and file://.
    """
    text = os.fspath(path)
    if not text.strip():
        raise InputError("an empty path was given", "a local path or s3://bucket/key", "name one")
    if text.startswith("s3:/"):
        bucket, key = _s3.split(text)
        return f"{_s3.SCHEME}{bucket}/{key}".rstrip("/")
    scheme, separator, rest = text.partition("://")
    if separator and scheme != "file":
        raise InputError(f"{text!r} has the scheme {scheme}://", "a local path or s3://", "copy the data there")
    return os.path.abspath(os.path.expanduser(rest if separator else text))


def join(path: PathLike, *parts: str) -> str:
    """The path of something below `path`."""
    return "/".join((normal(path).rstrip("/"), *(part.strip("/") for part in parts)))


def name(path: PathLike) -> str:
    """The last part of the path."""
    return normal(path).rpartition("/")[2]
