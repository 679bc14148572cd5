"""Optuna's journal of a search: kept line by line in SEARCH, which may be on S3.

On local disk it is appended to ``journal.log``. S3 has no appending: there each piece is an object of its own under
``journal/``, named by the byte that it begins at, and now and then the whole is written as ``journal.log``. The journal
is ``journal.log`` and the pieces that go on from its end.
"""

import json
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from optuna.storages.journal import BaseJournalBackend

from fer_scale import storage
from fer_scale.errors import InputError

PIECES = 200
"""Pieces after which the whole is written."""


class Journal(BaseJournalBackend):
    """The journal of the search in ``out``, in Optuna's own format; one process writes, for the search has a lease.

    Raises:
        InputError: a line is no JSON.
    """

    def __init__(self, out: str) -> None:
        self._out = out
        self._whole = storage.join(out, "journal.log")
        self._pieces = 0
        data = read(out)
        self._lines = data.splitlines(keepends=True)
        self._kept, self._bytes = len(self._lines), len(data)
        if not storage.is_s3(out) and storage.exists(self._whole):
            os.truncate(self._whole, self._bytes)  # a kill may have cut the last line short

    def read_logs(self, log_number_from: int) -> Iterable[dict[str, Any]]:
        """The lines from a number on, as Optuna asks for them."""
        try:
            return [json.loads(line) for line in self._lines[log_number_from:]]
        except ValueError as error:
            received = f"{self._whole} with a line that is no JSON ({error})"
            raise InputError(received, "the journal as it was written", "begin anew with --overwrite") from error

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Take lines in; :meth:`keep` brings them to SEARCH."""
        self._lines += [json.dumps(log, separators=(",", ":")).encode() + b"\n" for log in logs]

    def keep(self) -> None:
        """Bring what was taken in since the last time to SEARCH; where that fails, the next time brings it too."""
        new = b"".join(lines := self._lines[self._kept :])
        if not new:
            return
        if not storage.is_s3(self._out):
            os.makedirs(self._out, exist_ok=True)
            with open(self._whole, "ab") as kept:
                kept.truncate(self._bytes)  # what an earlier write that failed may have left
                kept.write(new)
                kept.flush()
                os.fsync(kept.fileno())
        else:
            storage.write_bytes(storage.join(self._out, "journal", f"{self._bytes:015d}.log"), new)
            self._pieces += 1
        self._kept += len(lines)
        self._bytes += len(new)
        if self._pieces >= PIECES:
            self.close()

    def close(self) -> None:
        """On S3 write the whole, which a dashboard opens, and drop the pieces."""
        if storage.is_s3(self._out) and self._kept:
            storage.write_bytes(self._whole, b"".join(self._lines[: self._kept]))
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
