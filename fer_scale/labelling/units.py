"""Work units: which images are labelled together, decided by the source alone.

A folder's listing, which is sorted, is cut where the hash of a file's path says so (content-defined
chunking, as in Muthitacharoen et al. 2001, "A low-bandwidth network file system", section 3.1). A file that
comes or goes changes the unit around it and no other. A table or an archive is cut into ranges of rows or
members.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from fer_scale.storage import FileInfo

Kind = Literal["files", "parquet", "csv", "zip", "tar", "stream", "broken"]

SLICES = 8
"""A range that can only be reached by reading all before it is at least an eighth of its file: on average a
file is read five times at most, however large it is."""


@dataclass(frozen=True, slots=True)
class Item:
    """One image of a unit."""

    id: str
    name: str
    """Where to find it: a path below the unit's, or a member's name."""
    size: int
    """Encoded bytes; 0 also where it is not known."""
    version: str = ""
    """Changes with the content (files), or the offset in the archive (tar)."""

    def stamp(self) -> bytes:
        """8 bytes that change when the file is another."""
        return hashlib.blake2b(f"{self.id}\0{self.size}\0{self.version}".encode(), digest_size=8).digest()


@dataclass(frozen=True, slots=True)
class Unit:
    """Images that one worker reads, labels and publishes together, all or none."""

    kind: Kind
    path: str
    """Folder with a slash at its end, nothing where the items are named in full (files), or file."""
    name: str
    """The file's path relative to SOURCE; empty for files of a folder."""
    version: str
    start: int
    stop: int
    """Rows or members of the file; 0 to the number of items for files of a folder."""
    items: tuple[Item, ...] = ()
    """What to read, for kinds that are read by name."""
    part: str = ""
    """The name of what it publishes; set by the ledger."""
    former: tuple[str, ...] = ()
    """Parts that may already hold answers for some of its images; set by the ledger."""

    @property
    def size(self) -> int:
        """Images."""
        return self.stop - self.start

    @property
    def key(self) -> str:
        """A hash of what is to be labelled: other files, other content or another range give another key."""
        digest = hashlib.blake2b(
            f"{self.kind}\0{self.name}\0{self.version}\0{self.start}\0{self.stop}".encode(), digest_size=16
        )
        if self.kind == "files":
            for item in self.items:
                digest.update(item.stamp())
        return digest.hexdigest()

    @property
    def span(self) -> tuple[str, str]:
        """First and last id, in their order, of a stretch of files; of other kinds two empty strings."""
        ids = [item.id for item in self.items] if self.kind == "files" else [""]
        return min(ids), max(ids)

    def to_bytes(self) -> bytes:
        """JSON, to be sent to a worker; by hand, for `asdict` takes longer over a thousand items than listing them."""
        values: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        items = [(item.id, item.name, item.size, item.version) for item in self.items]
        return json.dumps({**values, "items": items}).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> "Unit":
        """What `to_bytes` made."""
        values: dict[str, Any] = json.loads(data)
        items = tuple(Item(*item) for item in values.pop("items"))
        return cls(**{**values, "items": items, "former": tuple(values["former"])})

    def published_as(self, part: str, former: Iterable[str] = ()) -> "Unit":
        """The same unit with the names of its part and of those before it."""
        return replace(self, part=part, former=tuple(former))


def stretches(root: str, items: Iterable[Item], target: int) -> Iterator[Unit]:
    """Cut a sorted listing into units of about ``target`` files, a quarter to twice as many."""
    held: list[Item] = []
    for item in items:
        held.append(item)
        if len(held) >= 2 * target or (len(held) >= target // 4 and _cuts(item.id, target)):
            yield Unit("files", root, "", "", 0, len(held), tuple(held))
            held = []
    if held:
        yield Unit("files", root, "", "", 0, len(held), tuple(held))


def _cuts(name: str, target: int) -> bool:
    value = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest())
    return value % target == 0


def ranges(total: int, length: int) -> Iterator[tuple[int, int]]:
    """``(start, stop)`` of even ranges that cover ``total`` and are about ``length`` long."""
    count = max(1, round(total / length))
    for index in range(count if total else 0):
        yield total * index // count, total * (index + 1) // count


def broken(path: str, file: FileInfo, name: str, detail: str) -> Unit:
    """A file that should hold images and cannot be opened: one input, one error."""
    item = Item(name, name, file.size, detail)
    return Unit("broken", path, name, file.version, 0, 1, (item,))
