"""Rows in the order of a number drawn for each, also where all of them are more than memory holds."""

import hashlib
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

BLOCK_BYTES = 128 * 2**20
"""Of rows that are sorted in memory at a time."""
PIECE_ROWS = 1000


def drawn(ids: pa.Array, seed: int) -> pa.Array:
    """A number for each id, uint64, that depends on the id and the seed alone."""
    digests = [hashlib.blake2b(f"{seed} {ident}".encode(), digest_size=8).digest() for ident in ids.to_pylist()]
    return pa.array(np.frombuffer(b"".join(digests), dtype="<u8"))


def in_order(tables: Iterable[pa.Table], total: int, scratch: Path) -> Iterator[pa.Table]:
    """The rows by their column ``draw``, up to `PIECE_ROWS` at a time.

    What is more than a block is dealt to files first, each of which takes a range of draws about a block large, and is
    then sorted alone. The order is the same for blocks of any size.

    Args:
        tables: the rows, in any order.
        total: about how many bytes they have.
        scratch: a folder for the files, which is made where they are needed and left empty.
    """
    files = -(-total // BLOCK_BYTES)
    if files > 1:
        scratch.mkdir()
        _deal(tables, files, scratch)
        blocks: Iterable[Iterable[pa.Table]] = map(_taken, sorted(scratch.iterdir()))
    else:
        blocks = [tables]
    for block in blocks:
        yield from _pieces(block)


def _pieces(block: Iterable[pa.Table]) -> Iterator[pa.Table]:
    table, order = _sorted(block)
    for start in range(0, len(order), PIECE_ROWS):
        yield table.take(pa.array(order[start : start + PIECE_ROWS]))


def _deal(tables: Iterable[pa.Table], files: int, scratch: Path) -> None:
    """Append each block's rows to the files of their draws."""
    bounds = np.array([(at << 64) // files for at in range(1, files)], dtype=np.uint64)
    for block in _blocks(tables):
        table, order = _sorted(block)
        ends = np.searchsorted(np.asarray(table["draw"])[order], bounds)
        for number, (start, end) in enumerate(pairwise([0, *ends.tolist(), len(order)])):
            if start < end:
                part = table.take(pa.array(order[start:end]))
                with (scratch / f"{number:06}.arrows").open("ab") as file, pa.ipc.new_stream(file, part.schema) as out:
                    out.write_table(part)


def _blocks(tables: Iterable[pa.Table]) -> Iterator[list[pa.Table]]:
    block: list[pa.Table] = []
    size = 0
    for table in tables:
        block.append(table)
        size += table.nbytes
        if size >= BLOCK_BYTES:
            yield block
            block, size = [], 0
    if block:
        yield block


def _taken(path: Path) -> list[pa.Table]:
    """What was appended to a file, which is then removed."""
    found = []
    with path.open("rb") as file:
        while file.peek(1):
            with pa.ipc.open_stream(file) as stream:
                found.append(stream.read_all())
    path.unlink()
    return found


def _sorted(tables: Iterable[pa.Table]) -> tuple[pa.Table, npt.NDArray[np.int64]]:
    """The rows as one table, and their order."""
    if not (found := list(tables)):
        return pa.table({}), np.empty(0, dtype=np.int64)
    table = pa.concat_tables(found).combine_chunks()
    return table, np.argsort(np.asarray(table["draw"]), kind="stable")
