"""What ingest remembers of every row while the pictures lie on disk, and what it decides from that."""

import hashlib
import json
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from fer_scale.faces.store import SPLITS
from fer_scale.faces.votes import Votes

TRAIN, VAL, CALIB, TEST = range(4)
"""Places in `SPLITS`, which lists them from the least to the most protected."""

TEST_SHARE = 0.10
"""Of the different training pictures of each class, where no test split is given."""
VAL_SHARE = 0.10
"""Of the same, where no val split is given; half of val then becomes calib, where none is given."""

KEPT, DUPLICATE, CONFLICT, REPEATED_ID = range(4)

Codes = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
_CHUNK = 65536


class Index:
    """Hash, id, label and split of each decoded row, packed: 100 bytes a row with ids of 30 letters."""

    def __init__(self) -> None:
        self._hashes = bytearray()
        self._ids: list[pa.Array] = []
        self._codes: list[npt.NDArray[np.int16]] = []
        self._open: list[tuple[str, int, int]] = []

    def add(self, sha256: bytes, ident: str, label: int, split: int) -> None:
        """One row: 32 bytes, its id, its class's place, its split's place or -1."""
        self._hashes += sha256
        self._open.append((ident, label, split))
        if len(self._open) >= _CHUNK:
            self._pack()

    def _pack(self) -> None:
        self._ids.append(pa.array([row[0] for row in self._open], pa.large_string()))
        self._codes.append(np.array([row[1:] for row in self._open], dtype=np.int16).reshape(-1, 2))
        self._open = []

    def finish(self) -> "Rows":
        """All rows as columns; the index itself is emptied."""
        self._pack()
        words = np.frombuffer(bytes(self._hashes), dtype="<u8").reshape(-1, 4)
        self._hashes = bytearray()
        group, hashes = _grouped(words)
        del words
        ids = pa.chunked_array(self._ids).combine_chunks()
        codes = np.concatenate(self._codes)
        self._ids, self._codes = [], []
        return Rows(ids, group, hashes, codes[:, 0].copy(), codes[:, 1].copy())


def _grouped(words: npt.NDArray[np.uint64]) -> tuple[Codes, npt.NDArray[np.uint64]]:
    """A number for each row of ``[N, 4]`` words, the same for equal rows, and the different rows ``[G, 4]``.

    Sorted by the first half: 128 bits of SHA-256 put equal rows beside each other, all 256 decide.
    """
    order = np.lexsort((words[:, 1], words[:, 0]))
    new = np.ones(len(words), dtype=bool)
    for start in range(1, len(words), _CHUNK):
        at = order[start - 1 : start + _CHUNK]
        new[start : start + _CHUNK] = (words[at[1:]] != words[at[:-1]]).any(axis=1)
    group = np.empty(len(words), dtype=np.int64)
    group[order] = np.cumsum(new) - 1
    return group, words[order[new]]


@dataclass
class Rows:
    """Decoded rows of the classes asked for, in the order of the source, as columns of one length N."""

    ids: pa.Array
    group: Codes
    """Which picture: rows of the same pixels have the same number, a place in ``hashes``."""
    hashes: npt.NDArray[np.uint64]
    """The different SHA-256, ``[G, 4]``, little-endian words."""
    label: npt.NDArray[np.int16]
    """Place in the classes."""
    given: npt.NDArray[np.int16]
    """Place in `SPLITS`, or -1 where the source names none."""

    def __len__(self) -> int:
        return len(self.group)

    def hex_of(self, at: Codes) -> pa.Array:
        """SHA-256 of some rows, as hex."""
        return pa.array([row.tobytes().hex() for row in self.hashes[self.group[at]]], pa.string())


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
    rank = _ranks(rows.ids)
    first = _first(rank, np.ones(count, dtype=bool))
    status[rows.group[first[rank]] != rows.group] = REPEATED_ID

    live = status == KEPT
    one_label = np.zeros(len(rows.hashes), dtype=np.int16)
    one_label[rows.group[live]] = rows.label[live]
    doubtful = np.zeros(len(rows.hashes), dtype=bool)
    doubtful[rows.group[live & (one_label[rows.group] != rows.label)]] = True
    status[live & doubtful[rows.group]] = CONFLICT

    side = np.maximum(rows.given, TRAIN)
    live = status == KEPT
    safest = np.zeros(len(rows.hashes), dtype=np.int64)
    np.maximum.at(safest, rows.group[live], side[live])
    on_side = live & (side == safest[rows.group])
    chosen = _smallest(rows.group, rank, on_side)
    at = np.arange(count)
    kept = on_side & (chosen[rows.group] == at)
    if keep_duplicates:
        kept = on_side & (_first(rank, on_side)[rank] == at)
        chosen = _smallest(rows.group, rank, kept)
    status[live & ~kept] = DUPLICATE
    split = _carve(rows, kept, safest, seed)[rows.group].astype(np.int8)
    return Decision(status, split, chosen[rows.group])


def _ranks(ids: pa.Array) -> Codes:
    """The place of each id among the sorted different ids: equal ids have equal ranks."""
    order = np.asarray(pc.sort_indices(ids)).astype(np.int64)
    new = np.ones(len(order), dtype=bool)
    for start in range(1, len(order), _CHUNK):
        near = ids.take(pa.array(order[start - 1 : start + _CHUNK]))
        new[start : start + _CHUNK] = np.asarray(pc.not_equal(near.slice(1), near.slice(0, len(near) - 1)))
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.cumsum(new) - 1
    return rank


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
    for number in np.unique(label).tolist():
        mine = pictures[label == number]
        draw = rows.hashes[mine]
        order = np.lexsort((draw[:, 1], _mixed(draw[:, 0], seed)))
        pool = mine[order][side[mine[order]] == TRAIN]
        tests, vals = shares(len(pool), test=TEST not in given, val=VAL not in given, calib=CALIB not in given)
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


def fingerprint(rows: Rows, decision: Decision, classes: list[str], votes: Votes | None = None) -> str:
    """Hex SHA-256 of the kept rows' (id, sha256, label, split, and votes if any), sorted by id: 64 characters."""
    kept = np.flatnonzero(decision.status == KEPT)
    order = kept[np.asarray(pc.sort_indices(rows.ids.take(pa.array(kept))))]
    digest = hashlib.sha256()
    for start in range(0, len(order), _CHUNK):
        at = order[start : start + _CHUNK]
        ids = rows.ids.take(pa.array(at)).to_pylist()
        lines = zip(
            ids,
            rows.hex_of(at).to_pylist(),
            (classes[i] for i in rows.label[at]),
            (SPLITS[i] for i in decision.split[at]),
            *([(json.dumps(votes.of(ident)) for ident in ids)] if votes else []),
            strict=True,
        )
        digest.update("".join("\t".join(line) + "\n" for line in lines).encode())
    return digest.hexdigest()
