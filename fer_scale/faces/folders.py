"""Class folders: a picture's folder says its class and the one above, where there is one, its split."""

import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from functools import partial

import pyarrow as pa

from fer_scale import storage
from fer_scale.faces.records import Columns, Record
from fer_scale.faces.tables import read_picture

PICTURE_ENDINGS = (".png", ".jpg", ".jpeg", ".jpe", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")
DOCUMENTS = ("readme", "license", "licence", "notice")
"""What data sets bring beside their folders; nobody has to be told that these are no pictures."""
BESIDE = (".bib", ".csv", ".html", ".json", ".md", ".pdf", ".rst", ".txt")
"""Endings of texts and tables: where such a file lies says nothing of where the class folders are."""
LISTING_ROWS = 65536


def is_hidden(name: str) -> bool:
    """Whether a relative path is a system's own: ``.DS_Store``, ``__MACOSX/...``, anything behind a dot."""
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


def is_document(name: str) -> bool:
    """Whether a relative path is a data set's README or licence."""
    return os.path.splitext(os.path.basename(name))[0].lower() in DOCUMENTS


def may_be_picture(name: str) -> bool:
    """Whether a relative path may be a picture's, which may have any ending or none."""
    return not is_document(name) and not name.lower().endswith(BESIDE)


class Layout:
    """Which folder of a tree is the split and which the class.

    ``split/class/...`` where the first folder's name is a split's, else ``class/...``. Folders that merely
    wrap all others (archives often hold one) are passed over, unless they bear the name of a class.
    """

    def __init__(self, folders: Iterable[str], columns: Columns, classes: Collection[str]) -> None:
        """``folders``: those that may hold pictures, relative, separated by ``/``; the root itself is ``""``."""
        self.columns = columns
        self.classes = classes
        parts = {tuple(folder.split("/")) for folder in folders if folder}
        self.depth = 0
        while parts and all(len(path) > self.depth + 1 for path in parts):
            tops = {path[self.depth] for path in parts}
            top = next(iter(tops))
            if len(tops) > 1 or top in classes or columns.split_of(top) is not None:
                break
            self.depth += 1

    def of(self, name: str) -> tuple[str, str]:
        """(split, label) of a file's relative path; ``""`` for what it does not say."""
        folders = name.split("/")[self.depth : -1]
        split = self.columns.split_of(folders[0]) if folders else None
        if split is not None:
            folders = folders[1:]
        return split or "", folders[0].strip() if folders else ""

    def is_input(self, name: str) -> bool:
        """A file in a class folder, whatever it is, or a picture that is in none; no README beside them."""
        return not is_hidden(name) and bool(self.of(name)[1] or name.lower().endswith(PICTURE_ENDINGS))

    def has_class_folders(self, names: Iterable[str]) -> bool:
        """Whether class folders hold pictures: what they end in says so, or a folder with the name of a class."""
        return any(
            name.lower().endswith(PICTURE_ENDINGS) or (label in self.classes and may_be_picture(name))
            for name in names
            if (label := self.of(name)[1])
        )


class Listing:
    """File names and sizes, packed (a Python string apiece would take three times the memory)."""

    def __init__(self) -> None:
        self._names: list[pa.Array] = []
        self._sizes: list[pa.Array] = []
        self._open: list[tuple[bytes, int]] = []
        self.folders: set[str] = set()
        """Those that may hold pictures, as `Layout` takes them."""
        self.endings: Counter[str] = Counter()

    def add(self, name: str, size: int) -> None:
        """Note one file by its relative path."""
        self._open.append((os.fsencode(name), size))
        if may_be_picture(name):
            self.folders.add(name.rpartition("/")[0])
        self.endings[os.path.splitext(name)[1].lower()] += 1
        if len(self._open) >= LISTING_ROWS:
            self._pack()

    def _pack(self) -> None:
        self._names.append(pa.array([name for name, _ in self._open], pa.binary()))
        self._sizes.append(pa.array([size for _, size in self._open], pa.int64()))
        self._open = []

    def __iter__(self) -> Iterator[tuple[str, int]]:
        """(name, size in bytes), in the order of adding."""
        self._pack()
        for names, sizes in zip(self._names, self._sizes, strict=True):
            yield from zip(map(os.fsdecode, names.to_pylist()), sizes.to_pylist(), strict=True)


def list_folder(root: str) -> Listing:
    """All files below a folder, local or in S3, without hidden ones.

    Raises:
        MissingPathError: there is no such folder.
    """
    listing = Listing()
    start = len(root.rstrip("/")) + 1
    for item in storage.list_files(root):
        if not is_hidden(item.path[start:]):
            listing.add(item.path[start:], item.size)
    return listing


class FolderSource:
    """Class folders on disk or in S3."""

    def __init__(self, root: str, listing: Listing, columns: Columns, classes: Collection[str]) -> None:
        self.root = root
        self.listing = listing
        self.layout = Layout(listing.folders, columns, classes)
        self.remarks: list[str] = []
        self.total: int | None = sum(self.layout.is_input(name) for name, _ in listing)
        ignored = sum(not self.layout.is_input(name) and not is_document(name) for name, _ in listing)
        if ignored:
            self.remarks.append(f"left out: {ignored} file(s) outside the class folders that are no pictures")

    def labels(self) -> Counter[str]:
        """Files by class folder."""
        return Counter(self.layout.of(name)[1] for name, _ in self.listing if self.layout.is_input(name))

    def records(self) -> Iterator[Record]:
        """All files, by path; each is read only when its payload is called."""
        source = storage.name(self.root)
        for name, size in self.listing:
            if self.layout.is_input(name):
                split, label = self.layout.of(name)
                payload = partial(read_picture, f"{self.root.rstrip('/')}/{name}", size)
                yield Record(utf8(name), payload, utf8(label), split, source, size)


def utf8(name: str) -> str:
    """A file's name as text that Parquet can hold: bytes that are no UTF-8 are written as \\xNN."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
