"""What ingest remembers of every row while the pictures lie on disk, and what it decides from that."""

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from fer_scale.faces.store import SPLITS

TRAIN, VAL, CALIB, TEST = range(4)
"""Places in `SPLITS`, which lists them from the least to the most protected."""

TEST_SHARE = 0.10
"""Of the different training pictures of each class, where no test split is given."""
VAL_SHARE = 0.15
"""Of the same, where no val split is given; half of val then becomes calib, where none is given."""

KEPT, DUPLICATE, CONFLICT, REPEATED_ID = range(4)

Codes = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
_CHUNK = 65536


class Index:
    """Hash, id, label and split of each decoded row, packed into Arrow arrays (about 100 bytes a row)."""

    def __init__(self) -> None:
        self._hashes: list[pa.Array] = []
        self._ids: list[pa.Array] = []
        self._codes: list[npt.NDArray[np.int32]] = []
        self._open: list[tuple[bytes, str, int, int]] = []

    def add(self, sha256: bytes, ident: str, label: int, split: int) -> None:
        """One row: 32 bytes, its id, its class's place, its split's place or -1."""
        self._open.append((sha256, ident, label, split))
        if len(self._open) >= _CHUNK:
            self._pack()

    def _pack(self) -> None:
        hashes, ids, labels, splits = zip(*self._open, strict=True) if self._open else ((), (), (), ())
        self._hashes.append(pa.array(hashes, pa.binary(32)))
        self._ids.append(pa.array(ids, pa.large_string()))
        self._codes.append(np.array([labels, splits], dtype=np.int32))
        self._open = []

    def finish(self) -> "Rows":
        """All rows as columns; the index itself is emptied."""
        self._pack()
        hashes = pa.chunked_array(self._hashes, pa.binary(32)).dictionary_encode().unify_dictionaries()
        group, unique = _codes(hashes)
        del hashes
        self._hashes = []
        ids = pa.chunked_array(self._ids, pa.large_string()).combine_chunks()
        self._ids = []
        labels, splits = np.concatenate(self._codes, axis=1)
        self._codes = []
        return Rows(ids, group, unique, labels.astype(np.int64), splits.astype(np.int64))


def _codes(encoded: pa.ChunkedArray) -> tuple[Codes, pa.Array]:
    """Codes and dictionary of a dictionary-encoded column whose chunks share one dictionary."""
    codes = np.concatenate([np.asarray(chunk.indices, dtype=np.int64) for chunk in encoded.chunks])
    return codes, encoded.chunk(0).dictionary


@dataclass
class Rows:
    """Decoded rows of the classes asked for, in the order of the source, as columns of one length N."""

    ids: pa.Array
    group: Codes
    """Which picture: rows of the same pixels have the same number, a place in ``hashes``."""
    hashes: pa.Array
    """The different SHA-256, 32 bytes each."""
    label: Codes
    """Place in the classes."""
    given: Codes
    """Place in `SPLITS`, or -1 where the source names none."""

    def __len__(self) -> int:
        return len(self.group)

    def hex_of(self, at: Codes) -> pa.Array:
        """SHA-256 of some rows, as hex."""
        return pa.array(
            [value.hex() for value in self.hashes.take(pa.array(self.group[at])).to_pylist()], pa.string()
        )


@dataclass
class Decision:
    """What becomes of each row."""

    status: npt.NDArray[np.int8]
    """KEPT, DUPLICATE, CONFLICT or REPEATED_ID."""
    split: npt.NDArray[np.int8]
    """Place in `SPLITS`, for rows that are kept."""
    kept_as: Codes
    """For a duplicate: the row that is kept in its place."""


def decide(rows: Rows, *, keep_duplicates: bool, seed: int) -> Decision:
    """Sort rows into kept, duplicates and conflicts, then carve the splits that are missing.

    * Of several rows with one id and different pixels the first is taken, the others are REPEATED_ID.
    * Rows of the same pixels whose classes differ are conflicts, all of them.
    * Of the same pixels with one class, the row on the most protected side is kept, with the smallest id
      there. With ``keep_duplicates`` all rows on that side are kept, as far as their ids differ.

    None of it depends on the order of the rows, save which of several rows with one id is the first.
    """
    count = len(rows)
    status = np.full(count, KEPT, dtype=np.int8)
    id_code, id_rank = _ids(rows.ids)
    first = _first(id_code, np.ones(count, dtype=bool))
    status[rows.group[first[id_code]] != rows.group] = REPEATED_ID

    live = status == KEPT
    one_label = np.zeros(len(rows.hashes), dtype=np.int64)
    one_label[rows.group[live]] = rows.label[live]
    doubtful = np.zeros(len(rows.hashes), dtype=bool)
    doubtful[rows.group[live & (one_label[rows.group] != rows.label)]] = True
    status[live & doubtful[rows.group]] = CONFLICT

    side = np.maximum(rows.given, TRAIN)
    live = status == KEPT
    safest = np.zeros(len(rows.hashes), dtype=np.int64)
    np.maximum.at(safest, rows.group[live], side[live])
    on_side = live & (side == safest[rows.group])
    chosen = _smallest(rows.group, id_rank[id_code], on_side)
    at = np.arange(count)
    kept = on_side & (chosen[rows.group] == at)
    if keep_duplicates:
        kept = on_side & (_first(id_code, on_side)[id_code] == at)
        chosen = _smallest(rows.group, id_rank[id_code], kept)
    status[live & ~kept] = DUPLICATE
    split = _carve(rows, kept, safest, seed)[rows.group].astype(np.int8)
    return Decision(status, split, chosen[rows.group])


def _ids(ids: pa.Array) -> tuple[Codes, Codes]:
    """A number for each id, and for each number its rank among the sorted ids."""
    encoded = ids.dictionary_encode()
    order = np.asarray(pc.sort_indices(encoded.dictionary)).astype(np.int64)
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    return np.asarray(encoded.indices, dtype=np.int64), rank


def _first(code: Codes, among: Mask) -> Codes:
    """For each code the first row that bears it, among some; 0 for codes without one."""
    at = np.flatnonzero(among)[::-1]
    first = np.zeros(int(code.max(initial=-1)) + 1, dtype=np.int64)
    first[code[at]] = at  # the last write of a repeated place wins: the first row
    return first


def _smallest(group: Codes, rank: Codes, among: Mask) -> Codes:
    """For each group its row of the smallest rank, among some; 0 for groups without one."""
    at = np.flatnonzero(among)
    at = at[np.lexsort((at, rank[at]))][::-1]
    smallest = np.zeros(int(group.max(initial=-1)) + 1, dtype=np.int64)
    smallest[group[at]] = at
    return smallest


def _carve(rows: Rows, kept: Mask, safest: Codes, seed: int) -> Codes:
    """The side of each picture (not row), after carving what is not given, class by class.

    Pictures are drawn in the order of a hash of seed and pixels, so their ids and the order of files do not
    matter, and new pictures leave most of the old ones where they were.
    """
    pictures, where = np.unique(rows.group[kept], return_index=True)
    label = rows.label[kept][where]
    side = safest.copy()
    given = set(np.unique(side[pictures]).tolist())
    words = np.frombuffer(b"".join(rows.hashes.take(pa.array(pictures)).to_pylist()), dtype="<u8").reshape(
        -1, 4
    )
    for number in np.unique(label).tolist():
        mine = pictures[label == number]
        draw = words[label == number]
        order = np.lexsort((draw[:, 1], _mixed(draw[:, 0], seed)))
        pool = mine[order][side[mine[order]] == TRAIN]
        tests, vals = shares(
            len(pool), test=TEST not in given, val=VAL not in given, calib=CALIB not in given
        )
        side[pool[:tests]] = TEST
        side[pool[tests : tests + vals]] = VAL
        if CALIB not in given:
            again = np.lexsort((draw[:, 1], _mixed(draw[:, 0], seed + 1)))
            pool = mine[again][side[mine[again]] == VAL]
            side[pool[: len(pool) // 2]] = CALIB
    return side


def shares(count: int, *, test: bool, val: bool, calib: bool) -> tuple[int, int]:
    """How many of ``count`` training pictures of a class become test and val (calib included).

    Few pictures serve train first, then val, test and calib, with one each.
    """
    tests = max(1, round(TEST_SHARE * count)) if test else 0
    vals = max(2 if calib else 1, round(VAL_SHARE * count)) if val else 0
    spare = max(count - 1, 0)
    first_val = min(vals, 1, spare)
    tests = min(tests, spare - first_val)
    return tests, first_val + min(vals - first_val, spare - first_val - tests)


def _mixed(words: npt.NDArray[np.uint64], seed: int) -> npt.NDArray[np.uint64]:
    """SplitMix64's finaliser over words and seed (Steele, Lea and Flood 2014, figure 16)."""
    salt = int.from_bytes(hashlib.sha256(f"split {seed}".encode()).digest()[:8], "little")
    mixed = words ^ np.uint64(salt)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def fingerprint(rows: Rows, decision: Decision, classes: list[str]) -> str:
    """Hex SHA-256 of the kept rows' (id, sha256, label, split), sorted by id: 64 characters."""
    kept = np.flatnonzero(decision.status == KEPT)
    order = kept[np.asarray(pc.sort_indices(rows.ids.take(pa.array(kept))))]
    digest = hashlib.sha256()
    for start in range(0, len(order), _CHUNK):
        at = order[start : start + _CHUNK]
        lines = zip(
            rows.ids.take(pa.array(at)).to_pylist(),
            rows.hex_of(at).to_pylist(),
            (classes[i] for i in rows.label[at]),
            (SPLITS[i] for i in decision.split[at]),
            strict=True,
        )
        digest.update("".join("\t".join(line) + "\n" for line in lines).encode())
    return digest.hexdigest()
