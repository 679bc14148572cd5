"""How objects in S3 are read: whole, or as files in steps of a MiB; what breaks off is asked for again."""

import io
import random
import time
from contextlib import closing
from typing import Any

from botocore.exceptions import (
    ClientError,
    FlexibleChecksumError,
    HTTPClientError,
    IncompleteReadError,
    ResponseStreamingError,
)
from urllib3.exceptions import HTTPError

from fer_scale._s3 import client, split, translated

PAUSES = (0.25, 1.0, 4.0, 10.0)
"""Seconds, about, before a body that broke off is asked for again: the client's own tries end where the body begins."""
STEP = 2**20
"""Bytes that are read at a time of an object that is open."""


def read(path: str, limit: int | None = None, **how: str) -> bytes:
    """The object, whole or its first `limit` bytes; ``how`` are more arguments of ``get_object``."""
    bucket, key = split(path)
    pauses = iter(PAUSES)
    while True:
        body = client().get_object(Bucket=bucket, Key=key, **how)["Body"]
        try:
            with closing(body):
                data: bytes = body.read(limit)
                if limit is not None and len(data) < limit:
                    data += body.read()  # nothing more, but what checks the length
            return data
        except (FlexibleChecksumError, HTTPClientError, IncompleteReadError, HTTPError) as error:
            pause = next(pauses, None)
            if pause is None and isinstance(error, FlexibleChecksumError):  # the object's fault, and no outage
                raise
            if pause is None:
                raise ResponseStreamingError(error=error) from error
            time.sleep(pause * random.uniform(0.5, 1.5))


class Ranges(io.RawIOBase):
    """An object as a file, of the version that was there when it was opened.

    It is read in steps, each a GET: tar, zip, CSV and gzip ask for some bytes at a time, and what is at the end of zip
    and Parquet for one piece after another.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._at = self._size = self._kept_at = 0
        self._kept = b""
        self._version = ""
        bucket, key = split(path)
        with translated(path):
            try:  # a HEAD would say the size too, and of a refusal not why
                got = client().get_object(Bucket=bucket, Key=key, Range="bytes=0-0")
            except ClientError as error:
                if error.response.get("Error", {}).get("Code") != "InvalidRange":  # of an empty one
                    raise
                return
            got["Body"].read()
        self._size = int(got["ContentRange"].rpartition("/")[2])
        self._version = got["ETag"]

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def tell(self) -> int:
        """Where the next read begins."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go elsewhere; costs no request."""
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def readinto(self, into: Any) -> int:
        """Fill the buffer, as far as the object goes.

        Raises:
            OSError: the object has been replaced.
            InputError: it cannot be read.
        """
        done, wanted = 0, min(len(into), max(0, self._size - self._at))
        while done < wanted:
            skip = self._at - self._kept_at
            if not 0 <= skip < len(self._kept):
                self._fetch(wanted - done)
                continue
            piece = self._kept[skip : skip + wanted - done]
            into[done : done + len(piece)] = piece
            done += len(piece)
            self._at += len(piece)
        return done

    def readall(self) -> bytes:
        """All that is left, in one request rather than in steps."""
        into = bytearray(max(0, self._size - self._at))
        return bytes(into[: self.readinto(into)])

    def _fetch(self, wanted: int) -> None:
        start = self._at
        if start != self._kept_at + len(self._kept):  # sought: at the end there is more that will be asked for
            start = min(start, max(0, self._size - STEP))
        stop = min(max(self._at + wanted, start + STEP), self._size)
        with translated(self._path):
            try:
                self._kept = read(self._path, Range=f"bytes={start}-{stop - 1}", IfMatch=self._version)
            except ClientError as error:
                if error.response.get("Error", {}).get("Code") in ("412", "PreconditionFailed"):
                    raise OSError(f"{self._path} was replaced while it was read") from error
                raise
        self._kept_at = start
