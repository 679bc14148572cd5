"""What there is to label, as work units: files of a folder, rows of tables, members of archives, URIs of manifests."""

import fnmatch
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

from fer_scale import storage
from fer_scale.errors import InputError
from fer_scale.faces.archives import TAR_ENDINGS, ZIP_ENDINGS, clean
from fer_scale.faces.folders import utf8
from fer_scale.faces.sources import PARQUET_ENDINGS
from fer_scale.labelling import containers
from fer_scale.labelling.manifests import URI, Manifest, columns
from fer_scale.labelling.reading import fault
from fer_scale.labelling.tables import NoColumnError, cells, check_unique, csv_rows, open_parquet, picture_column
from fer_scale.labelling.units import SLICES, Item, Unit, broken, ranges, stretches

if TYPE_CHECKING:
    import pandas as pd

ARCHIVES = (*ZIP_ENDINGS, *TAR_ENDINGS)
CONTAINERS = (*PARQUET_ENDINGS, *ARCHIVES, ".csv")
LOOK_AHEAD = 8192
"""A source with fewer images is small: it is cut finer, so that all workers have some."""
SMALL_UNIT, UNIT = 256, 1024


@dataclass(frozen=True)
class Source:
    """A source that was looked at; listing it is left to `units`."""

    path: str
    containers: bool
    """Whether its files are tables and archives rather than images."""
    single: bool
    """Whether it is one file."""
    image_column: str
    id_column: str | None
    include: str | None
    manifest: Manifest | None = None
    """Where it names the images by URI."""
    points_away: bool = False
    """Whether the first row of its first table is the path of a picture in S3."""

    @classmethod
    def open(
        cls,
        path: str,
        *,
        image_column: str = "image",
        id_column: str | None = None,
        include: str | None = None,
        uri_column: str | None = None,
    ) -> "Source":
        """Look at a source: what is it, and is there anything in it.

        A folder is one of tables and archives when every visible file in it is one; otherwise every file in
        it is an image. A face store stands for its ``data/``. Tables are manifests when ``uri_column`` says so, or
        when they have no pictures and a column ``uri``; S3 Inventory's ``manifest.json`` is one.

        Raises:
            InputError: nothing is there, it is empty, or its first table cannot be used.
        """
        path = storage.normal(path)
        if _is_store(path):
            path = storage.join(path, "data")
        single = not storage.is_dir(path)
        source = cls(path, True, single, image_column, id_column, include)
        manifest = source._manifest(uri_column)
        if manifest is not None:
            found = replace(source, containers=False, manifest=manifest)
            if next(found.units(SMALL_UNIT), None) is None:
                raise found._nothing("images")
            return found
        found = replace(source, containers=source._all_containers())
        if next(found._files(), None) is None:
            raise found._nothing("files")
        if found.containers:
            found._check_first()
            found = replace(found, points_away=found._points_away())
        return found

    @property
    def remote(self) -> bool:
        """Whether pictures may come from far away, so that it pays to ask for many at once."""
        return storage.is_s3(self.path) or self.manifest is not None or self.points_away

    def units(self, target: int) -> Iterator[Unit]:
        """All work units in the order of the listing, of about ``target`` images each; lazily."""
        if self.containers:
            for name, file in self._visible():
                yield from self._container(name, file, target)
            return
        if self.manifest is not None:
            yield from stretches("", self._named(self.manifest), target)
            return
        root = self.path.rpartition("/")[0] if self.single else self.path.rstrip("/")
        items = (Item(utf8(name), name, file.size, file.version) for name, file in self._files())
        yield from stretches(f"{root}/", items, target)

    def _named(self, manifest: Manifest) -> Iterator[Item]:
        """What the manifest names and ``include`` lets through."""
        return (item for item in manifest.items() if _matches(item.name, self.include))

    def _manifest(self, uri_column: str | None) -> Manifest | None:
        inventory = Manifest.of_inventory(self.path)
        if inventory is not None:
            if uri_column is not None or self.id_column is not None:
                received = f"--uri-column or --id-column for {self.path}, an S3 Inventory"
                raise InputError(received, "neither: its images have their URIs as ids", "leave them out")
            return inventory
        every = replace(self, include=None)  # which narrows the images, not the tables
        tables = [file.path for _, file in every._visible()] if every._all_containers() else []
        if not all(path.lower().endswith((*PARQUET_ENDINGS, ".csv")) for path in tables):
            tables = []
        if uri_column is None and tables and self.image_column == "image":
            try:
                there = columns(tables[0])
            except Exception as error:  # as in `_container`; `_check_first` says what is wrong with it
                fault(error)
                there = []
            uri_column = URI if URI in there and not {"image", "pixels"} & set(there) else None
        elif uri_column is not None and not tables:
            raise InputError(
                f"--uri-column {uri_column} for {self.path}",
                "a Parquet or CSV file, or a folder of them",
                "leave it out",
            )
        if uri_column is None:
            return None
        return Manifest(tuple(tables), uri_column, self.id_column if self.id_column != uri_column else None)

    def unit_images(self) -> int:
        """How many images a unit should have."""
        seen = 0
        for unit in self.units(SMALL_UNIT):
            seen += unit.size
            if seen >= LOOK_AHEAD:
                return UNIT
        return SMALL_UNIT

    def _files(self) -> Iterator[tuple[str, storage.FileInfo]]:
        """Relative path and file, sorted, of what ``include`` lets through, and archives whose members it chooses."""
        skip = len(self.path.rpartition("/")[0] if self.single else self.path.rstrip("/")) + 1
        for file in storage.list_files(self.path):
            name = file.path[skip:]
            if _matches(name, self.include) or (self.containers and self._chooses_within(name)):
                yield name, file

    def _visible(self) -> Iterator[tuple[str, storage.FileInfo]]:
        """Of `_files` those that are no marks, such as _SUCCESS, which Ray, Spark and others put beside tables."""
        hidden = () if self.single else (".", "_")
        return ((name, file) for name, file in self._files() if not any(p.startswith(hidden) for p in name.split("/")))

    def _chooses_within(self, name: str) -> bool:
        """Whether the file is an archive and ``include`` a pattern for its members, rather than for archives."""
        archives = name.lower().endswith(ARCHIVES)
        return archives and self.include is not None and not self.include.lower().endswith(ARCHIVES)

    def _nothing(self, kind: str) -> InputError:
        wanted = f" that match {self.include}" if self.include else ""
        return InputError(f"{self.path} holds no {kind}{wanted}", "images to label", "check the path and --include")

    def _all_containers(self) -> bool:
        visible = (name.lower() for name, _ in self._visible())
        first = next(visible, "")
        return first.endswith(CONTAINERS) and all(name.endswith(CONTAINERS) for name in visible)

    def _check_first(self) -> None:
        """A mistake in a column's name or a path is the user's: better one line now than an error row a file."""
        name, file = self._first()
        found = list(islice(self._container(name, file, UNIT), 2))
        if found and found[0].kind == "broken":
            raise InputError(
                f"{name}: {found[0].items[0].version}",
                f"pictures in the column {self.image_column!r}"
                if name.lower().endswith((*PARQUET_ENDINGS, ".csv"))
                else "an archive",
                "name yours with --image-column and --id-column"
                if "column" in found[0].items[0].version
                else "check the file",
            )
        if not found and (self.single or self.include) and next(self.units(UNIT), None) is None:
            raise self._nothing("images")

    def _first(self) -> tuple[str, storage.FileInfo]:
        return next(self._visible())

    def _points_away(self) -> bool:
        name, file = self._first()
        cell: Any = None
        try:
            if name.lower().endswith(".csv"):
                _, cell = next(csv_rows(file.path, self.image_column, self.id_column), ("", ""))
            elif name.lower().endswith(PARQUET_ENDINGS):
                with open_parquet(file.path) as table:
                    rows = table.iter_batches(batch_size=1, columns=[self.image_column])
                    cell = next((cells(batch.column(0))[0] for batch in rows if batch.num_rows), None)
        except Exception as error:  # as in `_container`
            fault(error)
        return isinstance(cell, str) and cell.startswith("s3://")

    def _container(self, name: str, file: storage.FileInfo, target: int) -> Iterator[Unit]:
        lower = name.lower()
        try:
            if lower.endswith(PARQUET_ENDINGS):
                units = containers.parquet(utf8(name), file, self.image_column, self.id_column, target)
            elif lower.endswith(".csv"):
                units = containers.csv_table(utf8(name), file, self.image_column, self.id_column, target)
            elif lower.endswith(ZIP_ENDINGS):
                units = self._zip(name, file, target)
            else:
                units = self._tar(name, file, target)
        except NoColumnError as error:
            units = [broken(file.path, file, utf8(name), str(error))]
        except Exception as error:  # what reads an archive or a table may raise anything at all on hostile bytes
            units = [broken(file.path, file, utf8(name), fault(error).detail)]
        yield from units

    def _zip(self, name: str, file: storage.FileInfo, target: int) -> list[Unit]:
        return self._members("zip", name, file, containers.zip_members(file.path), target)

    def _tar(self, name: str, file: storage.FileInfo, target: int) -> list[Unit]:
        members, why = containers.tar_members(file.path, file.version)
        rest = [broken(file.path, file, utf8(name), why)] if why else []
        if name.lower().endswith(".tar"):
            return self._members("tar", name, file, members, target) + rest
        return self._members("stream", name, file, members, max(target, len(members) // SLICES)) + rest

    def _members(self, kind: Any, name: str, file: storage.FileInfo, members: list[Item], target: int) -> list[Unit]:
        prefix = "" if self.single else f"{utf8(name)}/"
        if self._chooses_within(name):
            members = [m for m in members if any(_matches(n, self.include) for n in (m.name, prefix + m.name))]
        plain = Counter(clean(m.name) for m in members)  # two that differ in what a plain path leaves out keep it
        names = [clean(m.name) if plain[clean(m.name)] == 1 else m.name for m in members]
        items = [Item(prefix + utf8(n), m.name, m.size, m.version) for n, m in zip(names, members, strict=True)]
        return [
            Unit(kind, file.path, utf8(name), file.version, low, high, tuple(items[low:high]))
            for low, high in ranges(len(items), target)
        ]

    def check_ids(self) -> None:
        """Refuse ids that a table gives and that are not unique, see `check_unique`.

        Raises:
            InputError: an id stands twice.
        """
        if self.manifest is None and (self.id_column is None or not self.containers):
            return
        where = f"column {self.id_column!r} of " if self.id_column else ""
        check_unique(self._id_batches, where + self.path)

    def _id_batches(self) -> Iterator["pd.Series[str]"]:
        import pandas as pd  # here alone: the actors, which load this module too, do without

        if self.manifest is not None:
            named = (item.id for item in self._named(self.manifest))
            while batch := list(islice(named, 65536)):
                yield pd.Series(batch, dtype="object")
            return
        for name, file in self._visible():
            if not name.lower().endswith((*PARQUET_ENDINGS, ".csv")):
                continue
            ids = self._table_ids(file.path)
            while batch := list(islice(ids, 65536)):
                yield pd.Series(batch, dtype="object")

    def _table_ids(self, path: str) -> Iterator[str]:
        """As far as the table can be read: what follows has no ids of its own, and will be rows in errors."""
        try:
            if path.lower().endswith(".csv"):
                yield from (given for given, _ in csv_rows(path, self.image_column, self.id_column) if given)
                return
            with open_parquet(path) as table:
                picture_column(table.schema_arrow, self.image_column, self.id_column)
                for batch in table.iter_batches(batch_size=65536, columns=[self.id_column]):
                    yield from (str(value) for value in cells(batch.column(0)) if value not in (None, ""))
        except Exception as error:  # as in `_container`
            fault(error)


def _is_store(path: str) -> bool:
    manifest = storage.join(path, "manifest.json")
    if not storage.exists(manifest) or not storage.is_dir(storage.join(path, "data")):
        return False
    try:
        values = storage.read_json(manifest)
    except InputError as error:
        if storage.is_outage(error):
            raise
        return False  # another's, of another kind
    return isinstance(values, dict) and "fingerprint" in values


def _matches(name: str, pattern: str | None) -> bool:
    names = (name, name.rpartition("/")[2])
    return pattern is None or any(fnmatch.fnmatchcase(each, pattern) for each in names)
