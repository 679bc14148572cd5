"""Single files, local and in S3; re-exported by `fer_scale.storage`."""

import errno
import json
import os
import random
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from operator import itemgetter
from typing import IO, Any, cast

import pyarrow
import pyarrow.fs
from botocore.exceptions import ClientError

from fer_scale import _s3, _s3_reading
from fer_scale._paths import PathLike, normal
from fer_scale.errors import InputError, MissingPathError

CREATE_TRIES = 20
"""Of a conditional put that S3 asks to repeat, a quarter of a second later."""


@dataclass(frozen=True)
class FileInfo:
    """One file: its full path, its size in bytes, and a version that changes with its content."""

    path: str
    size: int
    version: str


@contextmanager
def translated(path: str) -> Iterator[None]:
    """Say in one line what the user can mend: a wrong path, no permission, no space, no such bucket."""
    try:
        with _s3.translated(path):
            yield
    except FileNotFoundError as error:
        raise MissingPathError(f"there is no {error.filename or path}") from error
    except OSError as error:
        raise of_os_error(path, error) from error


def of_os_error(path: str, error: OSError) -> Exception:
    """The error of ours that says what an error of the file system means."""
    where = str(error.filename or path)
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return InputError(f"no space is left where {where} is written", "a disk with room", "free some space")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return InputError(f"{where} is not open to this user", "a path with access", "change its permissions")
    if error.errno == errno.ENOTDIR:
        return InputError(f"{where} lies below a file", "a path below folders", "choose another path")
    if error.errno == errno.EISDIR:
        return InputError(f"{where} is a folder", "a file", "name a file in it")
    return error


def filesystem(path: PathLike) -> tuple[pyarrow.fs.FileSystem, str]:
    """A pyarrow filesystem and the path within it, e.g. for `pyarrow.parquet` and `ray.data`."""
    path = normal(path)
    if not path.startswith(_s3.SCHEME):
        return pyarrow.fs.LocalFileSystem(), path
    bucket, key = _s3.split(path)
    with translated(path):
        return _s3.filesystem(bucket), f"{bucket}/{key}".rstrip("/")


def exists(path: PathLike) -> bool:
    """Whether there is a file or a folder (in S3: at least one key below) at the path."""
    path = normal(path)
    return os.path.exists(path) if not path.startswith(_s3.SCHEME) else _head(path) is not None or is_dir(path)


def _head(path: str) -> FileInfo | None:
    bucket, key = _s3.split(path)
    if not key:
        return None
    try:
        with translated(path):
            head = _s3.client().head_object(Bucket=bucket, Key=key)
    except MissingPathError:
        return None
    return FileInfo(path, head["ContentLength"], head["ETag"].strip('"'))


def is_dir(path: PathLike) -> bool:
    """Whether the path is a folder; in S3 one with at least one key below it, or a bucket."""
    path = normal(path)
    if not path.startswith(_s3.SCHEME):
        return os.path.isdir(path)
    bucket, key = _s3.split(path)
    with translated(path):
        found = _s3.client().list_objects_v2(Bucket=bucket, Prefix=f"{key}/" if key else "", MaxKeys=1)
    return not key or found["KeyCount"] > 0


def is_empty(path: PathLike) -> bool:
    """Whether nothing is there: no such path, or a folder without files."""
    path = normal(path)
    if not path.startswith(_s3.SCHEME):
        if not os.path.isdir(path):
            return not os.path.lexists(path)
        with translated(path), os.scandir(path) as entries:
            return next(entries, None) is None
    return _head(path) is None and next(list_s3(path), None) is None


def list_files(path: PathLike) -> Iterator[FileInfo]:
    """Every file below a folder, or the one file at the path, in the order of their paths' characters.

    Listing is lazy: a million files cost no more memory than their largest folder. Links are followed,
    a link back to a folder above itself is not, and one to nothing is a file. Raises `MissingPathError` when
    nothing is there.
    """
    path = normal(path)
    if not path.startswith(_s3.SCHEME):
        with translated(path):
            if os.path.isdir(path):
                os.stat(path)
                yield from _list_local(path, frozenset())
            else:
                yield _local_info(path, os.stat(path))
        return
    files = list_s3(path)
    # as `is_dir` has it: an object that is named as the prefix is does not hide what lies below
    first = next(files, None) or _head(path)
    if first is None:
        raise MissingPathError(f"there is no {path}")
    yield first
    yield from files


def _local_info(path: str, status: os.stat_result) -> FileInfo:
    return FileInfo(path, status.st_size, f"{status.st_mtime_ns:x}-{status.st_size:x}")


def _list_local(folder: str, above: frozenset[tuple[int, int]]) -> Iterator[FileInfo]:
    entries: list[tuple[str, os.DirEntry[str], bool]] = []
    try:
        status = os.stat(folder)
        identity = (status.st_dev, status.st_ino)
        if identity in above:
            return
        with os.scandir(folder) as found:
            for entry in found:
                leads = not entry.is_symlink() or os.path.exists(entry)  # one to nothing is a file that cannot be read
                if leads and entry.is_dir():
                    entries.append((f"{entry.name}/", entry, leads))  # as its keys would sort in S3
                elif not leads or entry.is_file():
                    entries.append((entry.name, entry, leads))
    except FileNotFoundError:  # it went while others were listed
        return
    for name, entry, leads in sorted(entries, key=itemgetter(0)):
        if name.endswith("/"):
            yield from _list_local(entry.path, above | {identity})
            continue
        try:
            info = _local_info(entry.path, entry.stat(follow_symlinks=leads))
        except FileNotFoundError:
            continue
        yield info


def list_s3(path: str) -> Iterator[FileInfo]:
    """All objects under a prefix, page after page."""
    bucket, key = _s3.split(path)
    pages = _s3.client().get_paginator("list_objects_v2")
    with translated(path):
        for page in pages.paginate(Bucket=bucket, Prefix=f"{key}/" if key else ""):
            for item in page.get("Contents", ()):
                if item["Size"] or not item["Key"].endswith("/"):  # consoles mark an empty folder so
                    yield FileInfo(f"{_s3.SCHEME}{bucket}/{item['Key']}", item["Size"], item["ETag"].strip('"'))


def read_bytes(path: PathLike, limit: int | None = None) -> bytes:
    """The file: whole, or its first `limit` bytes. Raises `MissingPathError` when it is not there."""
    where = normal(path)
    with translated(where):
        if where.startswith(_s3.SCHEME):
            return _s3_reading.read(os.fspath(path), limit)  # as it was listed: a key may end in a slash
        with open(where, "rb") as file:
            # Room for all that is asked for is made at once, and a limit is far above what a face takes.
            return file.read(limit and min(limit, os.fstat(file.fileno()).st_size + 1))


def read_json(path: PathLike) -> Any:
    """The JSON document in the file. Raises `InputError` where it is none."""
    try:
        return json.loads(read_bytes(path))
    except ValueError as error:
        raise InputError(f"{path} is no JSON ({error})", "a JSON document", "make the file anew") from error


def open_input(path: PathLike) -> IO[bytes]:
    """The file, open for reading at any place in it; what S3 does not give is an `InputError`, as in `read_bytes`."""
    where = normal(path)
    if where.startswith(_s3.SCHEME):
        return cast(IO[bytes], _s3_reading.Ranges(os.fspath(path)))
    with translated(where):
        return cast(IO[bytes], pyarrow.OSFile(where))


def beside(path: str, kind: str) -> str:
    """A new hidden name in the same folder."""
    folder, base = os.path.split(path)
    return os.path.join(folder, f".{base}.{kind}-{secrets.token_hex(6)}")


def write_bytes(path: PathLike, data: bytes) -> None:
    """Write the file, replacing one that is there; readers see the old one or the new one, whole."""
    path = normal(path)
    with translated(path):
        if path.startswith(_s3.SCHEME):
            bucket, key = _s3.split(path)
            _s3.client().put_object(Bucket=bucket, Key=key, Body=data)
            return
        with _written_beside(path, data) as staged:
            os.replace(staged, path)


@contextmanager
def _written_beside(path: str, data: bytes) -> Iterator[str]:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    staged = beside(path, "partial")
    try:
        with open(staged, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())  # a machine that loses power leaves the old file or the new one, and no empty one
        yield staged
    finally:
        with suppress(FileNotFoundError):  # the write itself moved it away
            os.unlink(staged)


def create_bytes(path: PathLike, data: bytes) -> bool:
    """Write the file only if there is none; of several that try at once exactly one gets True.

    As long as ``data`` is the writer's own: in S3 a write of which the answer was lost is told from another's by it.
    """
    path = normal(path)
    with translated(path):
        if not path.startswith(_s3.SCHEME):
            with _written_beside(path, data) as staged:
                try:
                    os.link(staged, path)
                except FileExistsError:
                    return False
            return True
        bucket, key = _s3.split(path)
        for _ in range(CREATE_TRIES):
            try:
                _s3.client().put_object(Bucket=bucket, Key=key, Body=data, IfNoneMatch="*")
            except ClientError as error:
                code = error.response.get("Error", {}).get("Code")
                if code == "PreconditionFailed":
                    return _holds(path, data)
                if code != "ConditionalRequestConflict":
                    raise
                time.sleep(random.uniform(0.05, 0.5))  # S3 asks to try again when two writes meet
            else:
                return True
    raise InputError(f"S3 keeps refusing to write {path} (a conflict with other writes)", "a path that nobody else "
                     "writes", "run the same command again later")  # fmt: skip


def _holds(path: str, data: bytes) -> bool:
    """The client repeats a put whose answer was lost, and is then refused for what it wrote itself."""
    try:
        return read_bytes(path) == data
    except MissingPathError:
        return False
