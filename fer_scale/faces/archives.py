"""Zip and tar: class folders or a CSV inside, read as a stream. Nothing is ever unpacked to disk."""

import io
import lzma
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import partial
from typing import IO, Any, Self

from fer_scale import storage
from fer_scale.errors import InputError
from fer_scale.faces.folders import Layout, Listing, is_hidden, utf8
from fer_scale.faces.images import MAX_BYTES, ImageError, too_large
from fer_scale.faces.records import Columns, Record
from fer_scale.faces.tables import CsvSource

ZIP_ENDINGS = (".zip",)
TAR_ENDINGS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
BUFFER_BYTES = 2**20
DAMAGE = (RuntimeError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError)
"""What a member raises that does not unpack: a password, an unknown method, broken bytes of any method."""


class Header(tarfile.TarInfo):
    """A member's header, of which a damaged one is an error; `tarfile` takes it for the archive's end."""

    __slots__ = ()

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> Self:
        """The next header."""
        try:
            return super().fromtarfile(tarfile_)
        except (tarfile.InvalidHeaderError, tarfile.TruncatedHeaderError) as error:  # type: ignore[attr-defined]
            raise tarfile.ReadError(f"{error} at byte {tarfile_.offset:,}") from error


class _Zip:
    def __init__(self, path: str) -> None:
        self.path = path

    def members(self) -> Iterator[tuple[str, int, Callable[[], IO[bytes]]]]:
        with _translated(self.path), storage.open_input(self.path) as file, zipfile.ZipFile(file) as archive:
            for info in archive.infolist():
                if not info.is_dir():
                    yield info.filename, info.file_size, partial(archive.open, info)


class _Tar:
    def __init__(self, path: str) -> None:
        self.path = path

    def members(self) -> Iterator[tuple[str, int, Callable[[], IO[bytes]]]]:
        with (
            _translated(self.path),
            storage.open_input(self.path) as file,
            tarfile.open(fileobj=file, mode="r|*", encoding="utf-8", tarinfo=Header) as archive,
        ):
            for info in archive:
                if info.isfile():
                    yield info.name, info.size, partial(_opened, archive, info)
                archive.members = []  # type: ignore[attr-defined] # it would remember them all


def _opened(archive: tarfile.TarFile, info: tarfile.TarInfo) -> IO[bytes]:
    opened = archive.extractfile(info)
    if opened is None:
        raise ImageError("unreadable", f"{info.name} is no plain file")
    return opened


@contextmanager
def _translated(path: str) -> Iterator[None]:
    try:
        yield
    except (*DAMAGE, tarfile.TarError, ValueError) as error:
        raise InputError(
            f"{path} ({type(error).__name__}: {str(error)[:120]})",
            "a whole zip or tar archive",
            "fetch it again",
        ) from error


class ArchiveSource:
    """Class folders inside a zip or a tar."""

    def __init__(self, path: str, archive: _Zip | _Tar, listing: Listing, layout: Layout) -> None:
        self.path = path
        self.archive = archive
        self.listing = listing
        self.layout = layout
        self.remarks: list[str] = []
        self.total: int | None = sum(layout.is_input(name) for name, _ in listing)

    def labels(self) -> Counter[str]:
        """Members by class folder."""
        return Counter(self.layout.of(name)[1] for name, _ in self.listing if self.layout.is_input(name))

    def records(self) -> Iterator[Record]:
        """All members in the archive's order; one that unpacks to more than the limit is not unpacked."""
        source = storage.name(self.path)
        for raw, size, open_member in self.archive.members():
            name = clean(raw)
            if self.layout.is_input(name):
                split, label = self.layout.of(name)
                yield Record(utf8(name), _payload(open_member, size), utf8(label), split, source, size)


def _payload(open_member: Callable[[], IO[bytes]], size: int) -> bytes | Callable[[], bytes]:
    if size > MAX_BYTES:
        return partial(_refuse, too_large(size))
    try:
        with open_member() as member:
            return member.read(MAX_BYTES + 1)  # the size above is only the archive's word
    except DAMAGE as error:
        return partial(_refuse, ImageError("unreadable", f"{type(error).__name__}: {error}"[:200]))


def _refuse(error: ImageError) -> bytes:
    raise error


def clean(name: str) -> str:
    """A member's name as a plain relative path."""
    return "/".join(part for part in name.replace("\\", "/").split("/") if part not in ("", ".", ".."))


def open_archive(path: str, columns: Columns, classes: Collection[str]) -> ArchiveSource | CsvSource:
    """The archive as class folders or, where it holds a CSV and no such folders, as that table.

    Raises:
        InputError: it is damaged, or nothing in it can be used.
    """
    archive = _Zip(path) if path.lower().endswith(ZIP_ENDINGS) else _Tar(path)
    listing = Listing()
    for raw, size, _ in archive.members():
        name = clean(raw)
        if name and not is_hidden(name):
            listing.add(name, size)
    layout = Layout(listing.folders, columns, classes)
    tables = [name for name, _ in listing if name.lower().endswith(".csv")]
    if tables and not layout.has_class_folders(name for name, _ in listing):
        return CsvSource(tables, partial(_member_text, archive), storage.name(path), columns)
    if ".parquet" in listing.endings:
        raise InputError(f"{path} holds Parquet", "Parquet files outside of archives", "unpack it first")
    return ArchiveSource(path, archive, listing, layout)


class _Stream(io.RawIOBase):
    """A member as a plain stream: tar's own, read as one, lacks what io asks for."""

    def __init__(self, member: IO[bytes]) -> None:
        self._member = member

    def readable(self) -> bool:
        return True

    def readinto(self, into: Any) -> int:
        data = self._member.read(len(into))
        into[: len(data)] = data
        return len(data)


@contextmanager
def _member_text(archive: _Zip | _Tar, wanted: str) -> Iterator[io.TextIOWrapper]:
    for raw, _, open_member in archive.members():
        if clean(raw) == wanted:
            with _translated(archive.path), open_member() as member:
                plain = io.BufferedReader(_Stream(member), BUFFER_BYTES)
                yield io.TextIOWrapper(plain, encoding="utf-8-sig", newline="")
            return
