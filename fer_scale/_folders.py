"""Folders that appear whole or not at all, and copies of remote folders; re-exported by `fer_scale.storage`."""

import errno
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from fer_scale import _s3
from fer_scale._deleting import delete_keys
from fer_scale._files import FileInfo, beside, is_empty, list_files, list_s3, of_os_error, translated
from fer_scale._paths import PathLike, join, name, normal
from fer_scale.errors import InputError, MissingPathError

TRANSFERS = 8
"""Files that are moved to or from S3 at the same time."""
_OCTAL = re.compile(rb"\\([0-7]{3})")


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
    path = _real(path)
    if overwrite and resume:
        raise InputError("both --resume and --overwrite", "one of them", "drop the other")
    for source in map(_real, inputs):
        if source == path or source.startswith(f"{path.rstrip('/')}/"):
            raise InputError(f"the output {path} holds the input {source}", "an output of its own", "choose another")
    if not path.startswith(_s3.SCHEME):
        if os.path.lexists(path) and not os.path.isdir(path):
            raise InputError(f"the output {path} is a file", "a folder", "choose another path")
        home, here = os.path.realpath(os.path.expanduser("~")), f"{os.getcwd()}/"
        if overwrite and (path == home or here.startswith(f"{path.rstrip('/')}/")):
            raise InputError(
                f"the output would replace {path}, a folder that you work in",
                "a folder for this output alone",
                "choose another",
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
    """A local folder to write into, which becomes `dest` when the block ends and vanishes when it fails.

    Locally that is one rename. A `dest` that cannot be renamed over (a mount point, or a folder in one that this
    user may not write) is filled entry by entry with `last` as the last, and put back as it was when that fails.

    S3 has no rename. There an old `last` goes first, so that it never describes what is half replaced (a folder
    without it is not complete); then the files are uploaded, `last` after all others, and then old ones that are not
    among them are deleted. Until the new folder is complete nothing old is deleted but `last`, so there is always
    something to go on from. When the upload fails, a folder that was not there before is removed again.

    Raises:
        InputError: `dest` is not empty and `overwrite` is false, or there is no space or permission to write.
    """
    dest = _real(dest)
    check_output(dest, overwrite)
    remote = dest.startswith(_s3.SCHEME)
    within = not remote and _is_fixed(dest)
    if remote:
        staging = beside(os.path.join(tempfile.gettempdir(), name(dest)), "partial")
    else:
        staging = beside(os.path.join(dest, os.path.basename(dest)) if within else dest, "partial")
    try:
        with _written_here(staging):
            os.makedirs(staging)
            yield Path(staging)
            if remote:
                _upload(staging, dest, last)
            elif within:
                _fill(staging, dest, overwrite, last)
            else:
                with translated(dest):
                    _swap(staging, dest, overwrite)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def writing(path: PathLike) -> Iterator[str]:
    """A local file to write, which becomes the one at `path` when the block ends and vanishes when it fails.

    Readers see the old one or the new one, whole; for what is too large for `write_bytes`.
    """
    path = normal(path)
    remote = path.startswith(_s3.SCHEME)
    staged = beside(os.path.join(tempfile.gettempdir(), name(path)) if remote else path, "partial")
    try:
        with translated(path):
            if not remote:
                os.makedirs(os.path.dirname(path), exist_ok=True)
            yield staged
            if remote:
                bucket, key = _s3.split(path)
                _s3.client().upload_file(staged, bucket, key)
            else:
                os.replace(staged, path)
    finally:
        with suppress(FileNotFoundError):  # moved away
            os.unlink(staged)


def _real(path: PathLike) -> str:
    """The path, and locally where links lead from it: a link to a folder stays one."""
    path = normal(path)
    return path if path.startswith(_s3.SCHEME) else os.path.realpath(path)


def _is_fixed(path: str) -> bool:
    """Whether a folder is there that cannot be renamed."""
    if not os.path.isdir(path):
        return False
    return not os.access(os.path.dirname(path), os.W_OK | os.X_OK) or _is_mount(path)


def _is_mount(path: str) -> bool:
    try:
        mounts = Path("/proc/self/mountinfo").read_bytes().splitlines()
    except OSError:  # not Linux; there this misses what is mounted from the same file system
        return os.path.ismount(path)
    # proc_pid_mountinfo(5): the fifth field is the mount point, with spaces and the like in octal
    return any(_OCTAL.sub(lambda m: bytes([int(m[1], 8)]), line.split()[4]) == os.fsencode(path) for line in mounts)


@contextmanager
def _written_here(staging: str) -> Iterator[None]:
    """Translate a full disk alone: any other error within the block is the writer's own affair."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise of_os_error(staging, error) from error
        raise


def _swap(staging: str, dest: str, overwrite: bool) -> None:
    if overwrite and os.path.lexists(dest):
        old = beside(dest, "partial")
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


def _fill(staging: str, dest: str, overwrite: bool, last: str) -> None:
    """Move what is in ``staging``, a folder within ``dest``, into place."""
    mine = os.path.basename(staging)
    old = f"{staging}-old"
    there = [entry for entry in os.listdir(dest) if entry != mine]
    if not overwrite and not all(entry.startswith(mine.rpartition("-")[0]) for entry in there):
        check_output(dest)  # somebody else wrote there meanwhile
    moved: list[tuple[str, str]] = []

    def move(source: str, target: str) -> None:
        os.rename(source, target)
        moved.append((source, target))

    os.mkdir(old)
    try:
        for entry in sorted(there if overwrite else (), key=lambda entry: entry != last):
            move(os.path.join(dest, entry), os.path.join(old, entry))
        for entry in sorted(os.listdir(staging), key=lambda entry: entry == last):
            move(os.path.join(staging, entry), os.path.join(dest, entry))
    except BaseException:
        for source, target in reversed(moved):
            os.rename(target, source)
        os.rmdir(old)
        raise
    shutil.rmtree(old)


def _upload(staging: str, dest: str, last: str) -> None:
    bucket, prefix = _s3.split(dest)
    files = {os.path.relpath(item.path, staging): item.path for item in list_files(staging)}
    keys = {inner: "/".join(filter(None, (prefix, inner))) for inner in files}
    old = {_s3.split(item.path)[1] for item in list_s3(dest)}
    with translated(dest):
        delete_keys(bucket, sorted(old & {"/".join(filter(None, (prefix, last)))}))
        client = _s3.client()
        try:
            with ThreadPoolExecutor(TRANSFERS) as pool:
                first = [inner for inner in files if inner != last]
                list(pool.map(lambda inner: client.upload_file(files[inner], bucket, keys[inner]), first))
            if last in files:
                client.upload_file(files[last], bucket, keys[last])
        except BaseException:
            if not old:  # else it would take what was to be replaced, and with it what is left to go on from
                with suppress(InputError):
                    delete_keys(bucket, sorted(keys.values()))
            raise
        delete_keys(bucket, sorted(old - set(keys.values())))


def fetch_dir(path: PathLike, only: Collection[str] | None = None) -> Path:
    """The folder as a local one: itself, or a copy of the S3 prefix, made once for each version of its files.

    Meant for bundles and searches, megabytes in size. Raises `MissingPathError` when nothing is there.

    Args:
        path: the folder.
        only: the files directly in it that are copied from S3; None for all, in folders too.
    """
    path = normal(path)
    if not path.startswith(_s3.SCHEME):
        if not os.path.isdir(path):
            raise MissingPathError(f"there is no folder {path}")
        return Path(path)
    wanted = None if only is None else {join(path, inner) for inner in only}
    files = [item for item in list_files(path) if wanted is None or item.path in wanted]
    versions = "\n".join(f"{item.path} {item.version}" for item in files)
    cache = Path(tempfile.gettempdir(), f"fer_scale-{os.getuid()}")
    cache.mkdir(mode=0o700, exist_ok=True)
    if cache.lstat().st_uid != os.getuid():
        raise InputError(f"{cache} belongs to another user", "a cache of this user's", "set TMPDIR")
    local = cache / hashlib.sha256(versions.encode()).hexdigest()[:24]
    bucket, prefix = _s3.split(path)
    inner = [_s3.split(item.path)[1][len(prefix) :].lstrip("/") for item in files]
    there = local.is_dir()
    if there and all((local / each).is_file() for each in inner):
        return local
    if there:
        shutil.rmtree(local, ignore_errors=True)  # what cleans /tmp has been there
    client = _s3.client()
    staging = Path(beside(str(local), "partial"))
    try:
        with translated(path), ThreadPoolExecutor(TRANSFERS) as pool:
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
