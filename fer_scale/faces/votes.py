"""Annotators' votes, joined to a source's rows by id: soft labels, as FER+ has them (Barsoum et al. 2016)."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from fer_scale import storage
from fer_scale.errors import InputError
from fer_scale.faces.labels import OTHER, Labels
from fer_scale.faces.records import Record
from fer_scale.faces.sources import PARQUET_ENDINGS

DO = "name the columns with --votes-classes and --id-column"

Counts = npt.NDArray[np.float32]


class Votes:
    """Votes by id.

    Args:
        ids: of M rows.
        counts: float32 ``[M, V]``.
        names: the V options that annotators had, as the file's author calls them.
        labels: says which option is which class of the store.

    Raises:
        InputError: a class of the store is none of the options, an id has votes twice, or a count is no number.
    """

    def __init__(self, ids: Sequence[str], counts: Counts, names: Sequence[str], labels: Labels) -> None:
        places = [labels.place(name) for name in names]
        missing = [name for at, name in enumerate(labels.classes) if at not in places and name != OTHER]
        if missing:
            raise InputError(
                f"votes for {', '.join(names)}",
                f"an option for each class, {', '.join(missing)} too",
                f"say which it is, as --rename {names[0]}={missing[0]}",
            )
        if not (np.isfinite(counts) & (counts >= 0)).all():
            raise InputError("a negative or missing count of votes", "numbers from 0 on", "mend the votes file")
        self._at = {ident: row for row, ident in enumerate(ids)}
        if len(self._at) < len(ids):
            twice = Counter(ids).most_common(1)[0][0]
            raise InputError(f"votes for id {twice!r} twice", "one row an id", "mend the votes file")
        self._names, self._counts = list(names), counts
        to_class = np.zeros((len(names), len(labels.classes)), dtype=np.float32)
        for option, place in enumerate(places):
            if place is not None:
                to_class[option, place] = 1
        self._by_class = counts @ to_class
        total = counts.sum(axis=1)
        self._enough = (total > 0) & (2 * self._by_class.sum(axis=1) >= total)

    @classmethod
    def read(cls, path: str, names: Sequence[str], id_column: str, labels: Labels) -> "Votes":
        """From a CSV or Parquet file, or a folder of Parquet (files without the columns are passed over).

        Args:
            path: local or s3://.
            names: the options; the columns of these names are taken, else the one column of lists as long.
            id_column: the column that equals the id of the source's rows.
            labels: as the class takes it.

        Raises:
            InputError: no file has such columns, or see the class.
        """
        if len(names) < 2 or len(set(names)) < len(names):
            raise InputError(f"votes classes {','.join(names)}", "two options or more, each once", DO)
        if not path.lower().endswith(".csv"):
            files = [file.path for file in storage.list_files(path) if file.path.lower().endswith(PARQUET_ENDINGS)]
        else:
            files = [path]
        found = [part for part in (_columns(file, names, id_column) for file in files) if part is not None]
        if not found:
            raise InputError(
                path,
                f"a CSV or Parquet file with a column {id_column}, and {', '.join(names)} or one column of lists of "
                f"{len(names)} votes",
                DO,
            )
        return cls([i for ids, _ in found for i in ids], np.concatenate([part for _, part in found]), names, labels)

    def of(self, ident: str) -> list[float] | None:
        """Votes for each of the store's classes; None where there are none, or most are for something else."""
        at = self._place(ident)
        return None if at is None or not self._enough[at] else self._by_class[at].tolist()

    def majority(self, ident: str) -> str:
        """The option with more votes than any other; empty where none has."""
        at = self._place(ident)
        if at is None:
            return ""
        best = np.flatnonzero(self._counts[at] == self._counts[at].max())
        return self._names[best[0]] if len(best) == 1 else ""

    def _place(self, ident: str) -> int | None:
        """A row's votes: a row of Parquet keeps the spaces about its id, a CSV's and the votes have none."""
        return self._at.get(ident.strip())

    def labelled(self, records: Iterable[Record]) -> Iterator[Record]:
        """The rows with `majority` as their label."""
        for record in records:
            yield replace(record, label=self.majority(record.id))

    def tally(self, ids: Iterable[str]) -> dict[str, int]:
        """Rows by what they found here: joined, elsewhere (most votes are for other classes), unmatched."""
        counts = dict.fromkeys(("joined", "elsewhere", "unmatched"), 0)
        for ident in ids:
            at = self._place(ident)
            counts["unmatched" if at is None else "joined" if self._enough[at] else "elsewhere"] += 1
        return counts


def _columns(path: str, names: Sequence[str], id_column: str) -> tuple[list[str], Counts] | None:
    """Ids and counts ``[M, V]`` of one file; None where it has no such columns."""
    try:
        with storage.open_input(path) as file:
            if path.lower().endswith(".csv"):
                as_text = pyarrow.csv.ConvertOptions(column_types={id_column: pa.string()})  # 0001 is not 1
                table = pyarrow.csv.read_csv(file, convert_options=as_text)
            else:
                table = _read_parquet(file, id_column, names)
        if table is None or id_column not in table.column_names:
            return None
        if set(names) <= set(table.column_names):
            counts = np.column_stack([table[name].cast(pa.float32()).to_numpy() for name in names])
        else:
            lists = [name for name in table.column_names if _lists_of(table[name], len(names))]
            if len(lists) != 1:
                return None
            table = table.filter(table[lists[0]].is_valid())
            flat = table[lists[0]].combine_chunks().flatten().to_numpy(zero_copy_only=False)
            counts = flat.astype(np.float32).reshape(-1, len(names))
    except (pa.ArrowException, OSError) as error:
        expected = "a sound CSV or Parquet file with numbers as votes"
        raise InputError(f"{path} ({str(error)[:120]})", expected, "check the file") from error
    ids = ["" if value is None else str(value).strip() for value in table[id_column].to_pylist()]
    named = [at for at, ident in enumerate(ids) if ident]
    return [ids[at] for at in named], counts[named]


def _read_parquet(file: pa.NativeFile, id_column: str, names: Sequence[str]) -> pa.Table | None:
    """The id and what may hold votes; pictures that lie beside them are not read."""
    with pq.ParquetFile(file) as opened:
        schema = opened.schema_arrow
        wanted = [f.name for f in schema if f.name in (id_column, *names) or _is_list(f.type)]
        return opened.read(columns=wanted) if id_column in wanted else None


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _lists_of(column: pa.ChunkedArray, length: int) -> bool:
    """Whether every cell is a list of so many numbers, or empty."""
    if not _is_list(column.type):
        return False
    kind = column.type.value_type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        return False
    return bool(pc.list_value_length(column).drop_null().unique().to_pylist() == [length])
