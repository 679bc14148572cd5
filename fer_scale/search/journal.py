"""Optuna's journal of a search: a file here, kept up line by line in SEARCH, which may be on S3.

On local disk it is appended to ``journal.log``. S3 has no appending: there each piece is an object of its own under
``journal/``, named by the byte that it begins at, and now and then the whole is written as ``journal.log``. The journal
is ``journal.log`` and the pieces that go on from its end.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from optuna.storages.journal import JournalFileBackend
from optuna.storages.journal._file import BaseJournalFileLock

from fer_scale import storage

PIECES = 200
"""Pieces after which the whole is written."""


class _NoLock(BaseJournalFileLock):
    """One process writes: the search has a lease. A lock file would outlive a kill."""

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        pass


class Journal:
    """The journal of the search in ``out``, worked on in the local file ``scratch``."""

    def __init__(self, out: str, scratch: Path) -> None:
        self._out = out
        self._whole = storage.join(out, "journal.log")
        self._file = scratch
        self._pieces = 0
        data = read(out)
        self._kept = len(data)
        scratch.write_bytes(data)
        if not storage.is_s3(out) and storage.exists(self._whole):
            os.truncate(self._whole, self._kept)  # a kill may have cut the last line short
        self.backend = JournalFileBackend(str(scratch), lock_obj=_NoLock())

    def keep(self) -> None:
        """Bring what was written since the last time to SEARCH."""
        with self._file.open("rb") as file:
            file.seek(self._kept)
            new = file.read()
        if not new:
            return
        if not storage.is_s3(self._out):
            os.makedirs(self._out, exist_ok=True)
            with open(self._whole, "ab") as kept:
                kept.truncate(self._kept)  # what an earlier write that failed may have left
                kept.write(new)
                kept.flush()
                os.fsync(kept.fileno())
        else:
            storage.write_bytes(storage.join(self._out, "journal", f"{self._kept:015d}.log"), new)
            self._pieces += 1
        self._kept += len(new)
        if self._pieces >= PIECES:
            self.close()

    def close(self) -> None:
        """On S3 write the whole, which a dashboard opens, and drop the pieces."""
        if storage.is_s3(self._out) and self._kept:
            storage.write_bytes(self._whole, self._file.read_bytes()[: self._kept])
            if storage.is_dir(pieces := storage.join(self._out, "journal")):
                storage.delete(pieces)
            self._pieces = 0


def read(out: str) -> bytes:
    """The journal of a search as far as its lines are whole; empty where there is none."""
    whole = storage.join(out, "journal.log")
    data = storage.read_bytes(whole) if storage.exists(whole) else b""
    pieces = storage.join(out, "journal")
    if storage.is_s3(out) and storage.is_dir(pieces):
        starts = {int(storage.name(info.path).removesuffix(".log")): info.path for info in storage.list_files(pieces)}
        after = [start for start in sorted(starts) if start >= len(data)]
        with ThreadPoolExecutor(16) as pool:
            for start, piece in zip(after, pool.map(storage.read_bytes, [starts[s] for s in after]), strict=True):
                if start != len(data):
                    break
                data += piece
    return data[: data.rfind(b"\n") + 1]
