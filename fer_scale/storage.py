"""The one seam to files: local paths and ``s3://bucket/key`` by the same functions.

What is published is there at once or not at all. That guards against a killed process; like most programs it does not
ask the disk to survive a power cut.
"""

import errno
import hashlib
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.fs
from botocore.exceptions import ClientError

from fer_scale import _s3
from fer_scale.errors import InputError, MissingPathError

PathLike = str | os.PathLike[str]
TRANSFERS = 8
"""Files that are moved to or from S3 at the same time."""


@dataclass(frozen=True)
class FileInfo:
    """One file: its full path, its size in bytes, and a version that changes with its content."""

    path: str
    size: int
    version: str


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
    if text.startswith("s3:/"):  # pathlib makes s3:/bucket of s3://bucket
        bucket, key = _s3.split(_s3.SCHEME + text[4:].lstrip("/"))
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


@contextmanager
def _translated(path: str) -> Iterator[None]:
    """Say in one line what the user can mend: no such path, no permission, no space, no access to the bucket."""
    try:
        with _s3.translated(path):
            yield
    except FileNotFoundError as error:
        raise MissingPathError(f"there is no {error.filename or path}") from error
    except OSError as error:
        raise _of_os_error(path, error) from error


def _of_os_error(path: str, error: OSError) -> Exception:
    where = str(error.filename or path)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
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
    with _translated(path):
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
        with _translated(path):
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
    with _translated(path):
        found = _s3.client().list_objects_v2(Bucket=bucket, Prefix=f"{key}/" if key else "", MaxKeys=1)
    return not key or found["KeyCount"] > 0


def is_empty(path: PathLike) -> bool:
    """Whether nothing is there: no such path, or a folder without files."""
    path = normal(path)
    if not path.startswith(_s3.SCHEME):
        if not os.path.isdir(path):
            return not os.path.lexists(path)
        with _translated(path), os.scandir(path) as entries:
            return next(entries, None) is None
    return _head(path) is None and next(_list_s3(path), None) is None


def list_files(path: PathLike) -> Iterator[FileInfo]:
    """Every file below a folder, or the one file at the path, in the order of their paths' characters.

    Listing is lazy: a million files cost no more memory than their largest folder. Links are followed, a link back to a
    folder above itself is not. Raises `MissingPathError` when nothing is there.
    """
    path = normal(path)
    if not path.startswith(_s3.SCHEME):
        with _translated(path):
            if os.path.isdir(path):
                yield from _list_local(path, frozenset())
            else:
                yield _local_info(path, os.stat(path))
        return
    single = _head(path)
    if single is not None:
        yield single
        return
    files = _list_s3(path)
    first = next(files, None)
    if first is None:
        raise MissingPathError(f"there is no {path}")
    yield first
    yield from files


def _local_info(path: str, status: os.stat_result) -> FileInfo:
    return FileInfo(path, status.st_size, f"{status.st_mtime_ns:x}-{status.st_size:x}")


def _list_local(folder: str, above: frozenset[tuple[int, int]]) -> Iterator[FileInfo]:
    status = os.stat(folder)
    identity = (status.st_dev, status.st_ino)
    if identity in above:
        return
    with os.scandir(folder) as found:
        # A folder sorts as its keys would in S3, where its name is followed by a slash.
        entries = sorted((f"{e.name}/" if e.is_dir() else e.name, e) for e in found if e.is_dir() or e.is_file())
    for _, entry in entries:
        if entry.is_dir():
            yield from _list_local(entry.path, above | {identity})
        else:
            yield _local_info(entry.path, entry.stat())


def _list_s3(path: str) -> Iterator[FileInfo]:
    bucket, key = _s3.split(path)
    pages = _s3.client().get_paginator("list_objects_v2")
    with _translated(path):
        for page in pages.paginate(Bucket=bucket, Prefix=f"{key}/" if key else ""):
            for item in page.get("Contents", ()):
                if not item["Key"].endswith("/"):  # consoles mark an empty folder so
                    yield FileInfo(f"{_s3.SCHEME}{bucket}/{item['Key']}", item["Size"], item["ETag"].strip('"'))


def read_bytes(path: PathLike) -> bytes:
    """The whole file. Raises `MissingPathError` when it is not there."""
    path = normal(path)
    with _translated(path):
        if not path.startswith(_s3.SCHEME):
            return Path(path).read_bytes()
        bucket, key = _s3.split(path)
        data: bytes = _s3.client().get_object(Bucket=bucket, Key=key)["Body"].read()
        return data


def read_json(path: PathLike) -> Any:
    """The JSON document in the file. Raises `InputError` where it is none."""
    try:
        return json.loads(read_bytes(path))
    except ValueError as error:
        raise InputError(f"{path} is no JSON ({error})", "a JSON document", "make the file anew") from error


def open_input(path: PathLike) -> pyarrow.NativeFile:
    """The file, open for reading at any place in it."""
    path = normal(path)
    where, inner = filesystem(path)
    with _translated(path):
        return where.open_input_file(inner)


def _beside(path: str, kind: str) -> str:
    folder, base = os.path.split(path)
    return os.path.join(folder, f".{base}.{kind}-{secrets.token_hex(6)}")


def write_bytes(path: PathLike, data: bytes) -> None:
    """Write the file, replacing one that is there; readers see the old one or the new one, whole."""
    path = normal(path)
    with _translated(path):
        if path.startswith(_s3.SCHEME):
            bucket, key = _s3.split(path)
            _s3.client().put_object(Bucket=bucket, Key=key, Body=data)
            return
        with _written_beside(path, data) as staged:
            os.replace(staged, path)


@contextmanager
def _written_beside(path: str, data: bytes) -> Iterator[str]:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    staged = _beside(path, "partial")
    try:
        Path(staged).write_bytes(data)
        yield staged
    finally:
        with suppress(FileNotFoundError):  # the write itself moved it away
            os.unlink(staged)


def create_bytes(path: PathLike, data: bytes) -> bool:
    """Write the file only if there is none; of several that try at once exactly one gets True."""
    path = normal(path)
    with _translated(path):
        if not path.startswith(_s3.SCHEME):
            with _written_beside(path, data) as staged:
                try:
                    os.link(staged, path)
                except FileExistsError:
                    return False
            return True
        bucket, key = _s3.split(path)
        while True:
            try:
                _s3.client().put_object(Bucket=bucket, Key=key, Body=data, IfNoneMatch="*")
            except ClientError as error:
                code = error.response.get("Error", {}).get("Code")
                if code == "PreconditionFailed":
                    return False
                if code != "ConditionalRequestConflict":  # S3 asks to try again when two writes meet
                    raise
            else:
                return True


def delete(path: PathLike) -> None:
    """Remove the file, or the folder with all that is below; nothing happens where there is nothing."""
    path = normal(path)
    with _translated(path):
        if path.startswith(_s3.SCHEME):
            bucket, key = _s3.split(path)
            _delete_keys(bucket, [_s3.split(item.path)[1] for item in _list_s3(path)] + ([key] if key else []))
        elif os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        else:
            with suppress(FileNotFoundError):  # gone is what was wanted
                os.unlink(path)


def _delete_keys(bucket: str, keys: Sequence[str]) -> None:
    for start in range(0, len(keys), 1000):  # S3 takes a thousand a call
        objects = [{"Key": key} for key in keys[start : start + 1000]]
        _s3.client().delete_objects(Bucket=bucket, Delete={"Objects": objects, "Quiet": True})


def check_output(
    path: PathLike, overwrite: bool = False, resume: bool | None = None, inputs: Sequence[PathLike] = ()
) -> None:
    """Refuse an output that would be harmed, before any work is done.

    Args:
        path: the folder that is to be written.
        overwrite: the user allows to replace what is there.
        resume: the user wants to go on with what is there; None for a verb that cannot resume.
        inputs: what the verb reads: an output may not replace it.

    Raises:
        InputError: the output is a file, is not empty and neither flag was given, or would replace an input.
    """
    path = normal(path)
    if overwrite and resume:
        raise InputError("both --resume and --overwrite", "one of them", "drop the other")
    for source in map(normal, inputs):
        if source == path or source.startswith(f"{path.rstrip('/')}/"):
            raise InputError(f"the output {path} holds the input {source}", "an output of its own", "choose another")
    if not path.startswith(_s3.SCHEME):
        if os.path.lexists(path) and not os.path.isdir(path):
            raise InputError(f"the output {path} is a file", "a folder", "choose another path")
        if overwrite and (path == os.path.expanduser("~") or f"{os.getcwd()}/".startswith(f"{path.rstrip('/')}/")):
            raise InputError(
                f"--overwrite would replace {path}, where you are at home", "a folder for this output", "choose another"
            )
        _check_writable(path)
    if not overwrite and not resume and not is_empty(path):
        way = "pass --overwrite to replace it" if resume is None else "pass --resume to go on, or --overwrite"
        raise InputError(f"the output {path} exists and is not empty", "a new or empty folder", way)


def _check_writable(path: str) -> None:
    folder = path
    while not os.path.lexists(folder):
        folder = os.path.dirname(folder)
    if not os.path.isdir(folder):
        raise InputError(f"the output {path} lies below the file {folder}", "a folder", "choose another path")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"{folder} cannot be written by this user", "a folder with access", "choose another path")


@contextmanager
def publishing(dest: PathLike, overwrite: bool = False, last: str = "manifest.json") -> Iterator[Path]:
    """A local folder to write into, which becomes `dest` when the block ends, and vanishes when the block fails.

    A local `dest` is renamed into place. In S3, which has no rename, the files are uploaded with `last` as the last of
    them, and an old `last` is removed first: a folder without it is not complete.

    Raises:
        InputError: `dest` is not empty and `overwrite` is false, or there is no space or permission to write.
    """
    dest = normal(dest)
    check_output(dest, overwrite)
    remote = dest.startswith(_s3.SCHEME)
    staging = _beside(os.path.join(tempfile.gettempdir(), name(dest)) if remote else dest, "partial")
    try:
        with _written_here(staging):
            os.makedirs(staging)
            yield Path(staging)
            if remote:
                _upload(staging, dest, last)
            else:
                _swap(staging, dest, overwrite)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def _written_here(staging: str) -> Iterator[None]:
    """Translate a full disk alone: any other error within the block is the writer's own affair."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _of_os_error(staging, error) from error
        raise


def _swap(staging: str, dest: str, overwrite: bool) -> None:
    if overwrite and os.path.lexists(dest):
        old = _beside(dest, "partial")
        os.rename(dest, old)
        try:
            os.rename(staging, dest)
        except OSError:
            os.rename(old, dest)
            raise
        shutil.rmtree(old)
        return
    try:
        os.rename(staging, dest)  # also onto an empty folder
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        check_output(dest)  # somebody else wrote there meanwhile
        raise


def _upload(staging: str, dest: str, last: str) -> None:
    bucket, prefix = _s3.split(dest)
    files = {os.path.relpath(item.path, staging): item.path for item in list_files(staging)}
    keys = {inner: "/".join(filter(None, (prefix, inner))) for inner in files}
    old = [_s3.split(item.path)[1] for item in _list_s3(dest)]
    with _translated(dest):
        _delete_keys(bucket, [key for key in old if key == "/".join(filter(None, (prefix, last)))])
        client = _s3.client()
        try:
            with ThreadPoolExecutor(TRANSFERS) as pool:
                first = [inner for inner in files if inner != last]
                list(pool.map(lambda inner: client.upload_file(files[inner], bucket, keys[inner]), first))
            _delete_keys(bucket, [key for key in old if key not in keys.values()])
            if last in files:
                client.upload_file(files[last], bucket, keys[last])
        except BaseException:
            _delete_keys(bucket, list(keys.values()))
            raise


def fetch_dir(path: PathLike) -> Path:
    """The folder as a local one: itself, or a copy of the S3 prefix that is made once for each version of its files.

    Meant for bundles and searches, megabytes in size. Raises `MissingPathError` when nothing is there.
    """
    path = normal(path)
    if not path.startswith(_s3.SCHEME):
        if not os.path.isdir(path):
            raise MissingPathError(f"there is no folder {path}")
        return Path(path)
    files = list(list_files(path))
    versions = "\n".join(f"{item.path} {item.version}" for item in files)
    cache = Path(tempfile.gettempdir(), f"fer_scale-{os.getuid()}")
    cache.mkdir(mode=0o700, exist_ok=True)
    if cache.lstat().st_uid != os.getuid():
        raise InputError(f"{cache} belongs to another user", "a cache of this user's", "set TMPDIR")
    local = cache / hashlib.sha256(versions.encode()).hexdigest()[:24]
    if local.is_dir():
        return local
    bucket, prefix = _s3.split(path)
    client = _s3.client()
    staging = Path(_beside(str(local), "partial"))
    try:
        with _translated(path), ThreadPoolExecutor(TRANSFERS) as pool:
            list(pool.map(lambda item: _download(client, bucket, prefix, item, staging), files))
        with suppress(FileExistsError, OSError):  # another process may have put the same copy there
            staging.rename(local)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return local


def _download(client: Any, bucket: str, prefix: str, item: FileInfo, staging: Path) -> None:
    key = _s3.split(item.path)[1]
    target = staging / key[len(prefix) :].lstrip("/")
    if not target.resolve().is_relative_to(staging.resolve()):
        raise InputError(f"{item.path} leads out of its folder", "plain names", "remove that key")
    target.parent.mkdir(parents=True, exist_ok=True)
    client.download_file(bucket, key, str(target))
