"""What goes: files, folders and keys of S3; re-exported by `fer_scale.storage`."""

import os
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

from fer_scale import _s3
from fer_scale._files import is_empty, list_s3, translated
from fer_scale._paths import PathLike, normal
from fer_scale.errors import InputError

DELETED_AT_ONCE = 1000
"""Keys that S3 deletes in one call."""


def delete(path: PathLike) -> None:
    """Remove the file, or the folder with all that is below; nothing happens where there is nothing."""
    path = normal(path)
    with translated(path):
        if path.startswith(_s3.SCHEME):
            bucket, key = _s3.split(path)
            delete_keys(bucket, [_s3.split(item.path)[1] for item in list_s3(path)] + ([key] if key else []))
        elif os.path.isdir(path) and not os.path.islink(path):
            try:
                shutil.rmtree(path)
            except OSError:
                if not is_empty(path):  # one that cannot go itself, as a mount point, is left empty
                    raise
        else:
            with suppress(FileNotFoundError):  # gone is what was wanted
                os.unlink(path)


def delete_files(paths: Iterable[PathLike], check: Callable[[], None] = lambda: None) -> None:
    """Remove files, all local or all in one bucket, where a thousand go at once; those that are gone are passed over.

    ``check`` is called before each removal, and ends the work where it raises.
    """
    files = [normal(path) for path in paths]
    remote = bool(files) and files[0].startswith(_s3.SCHEME)
    for at in range(0, len(files), DELETED_AT_ONCE if remote else 1):
        check()
        with translated(files[at]):
            if remote:
                bucket, _ = _s3.split(files[at])
                delete_keys(bucket, [_s3.split(path)[1] for path in files[at : at + DELETED_AT_ONCE]])
            else:
                with suppress(FileNotFoundError):
                    os.unlink(files[at])


def delete_keys(bucket: str, keys: Sequence[str]) -> None:
    """Raises `InputError` where S3 keeps one: it answers 200 all the same, and names those that it did not delete."""
    for start in range(0, len(keys), DELETED_AT_ONCE):
        left = keys[start : start + DELETED_AT_ONCE]
        for pause in (0.2, 1.0, 0.0):
            wanted = {"Objects": [{"Key": key} for key in left], "Quiet": True}
            errors = _s3.client().delete_objects(Bucket=bucket, Delete=wanted).get("Errors", [])
            if not errors:
                break
            left = [error["Key"] for error in errors]
            time.sleep(pause)
        else:
            raise InputError(
                f"s3://{bucket}/{left[0]}, which S3 did not delete ({errors[0].get('Code')})",
                "a key that may be deleted",
                "allow s3:DeleteObject below this output",
            )
