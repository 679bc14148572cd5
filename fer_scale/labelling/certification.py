"""What a person is asked to judge of a labelling run: a random sample of its labels, with their pictures."""

import io
import json
from collections.abc import Hashable, Iterable, Iterator, Set
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from PIL import Image

from fer_scale import storage
from fer_scale.errors import InputError
from fer_scale.faces.detection import Face, square
from fer_scale.faces.images import ImageError, decode
from fer_scale.labelling.ledger import Backlog, Ledger
from fer_scale.labelling.parts import notes_path, unpacked
from fer_scale.labelling.reading import Reader
from fer_scale.labelling.results import labels_version
from fer_scale.labelling.sources import Source
from fer_scale.labelling.units import Unit
from fer_scale.report import picture

FOLDER = "certificate"
"""Within a run: what `draw` found and what a person is given."""
ROWS = 65536
MARGIN = 0.25
"""Around a detected face on the sheet, as a share of its size."""


@dataclass(frozen=True)
class Sample:
    """Labels drawn at random, and what is known of all those that they were drawn from."""

    rows: pd.DataFrame
    """``id``, ``face``, ``label``, ``confidence``, and ``box`` where faces were detected, in random order."""
    population: int
    """Labels that they were drawn from."""
    mean_doubt: float
    """Mean of 1 - confidence over these."""
    version: str
    """Of the labels, see `results.labels_version`."""


def draw(out: str, ledger: Ledger, size: int, seed: int) -> Sample:
    """Draw among the accepted labels, or among all where the run accepts none on its own.

    Those with the smallest keyed hash of id and face are drawn: at random, in one pass over the labels, a piece in
    memory at a time, and the same ones whatever the order of rows and files is.

    Raises:
        InputError: there is nothing to draw from.
    """
    kept = pd.DataFrame()
    population, doubt = 0, 0.0
    for batch in _batches(storage.join(out, "labels")):
        if "accepted" in batch:
            batch = batch[batch["accepted"]]
        population += len(batch)
        doubt += float((1.0 - batch["confidence"].to_numpy(np.float64)).sum())
        key = f"{seed % 10**16:016d}"  # 16 bytes, as the hash wants it
        names = batch["id"] + "\0" + batch["face"].astype(str)
        batch = batch.assign(key=pd.util.hash_pandas_object(names, index=False, hash_key=key, categorize=False))
        kept = pd.concat([kept, batch]).nsmallest(size, "key") if len(kept) else batch.nsmallest(size, "key")
    if not population:
        raise InputError(f"{out}, in which no label is accepted", "labels to draw from", "allow a larger --max-error")
    rows = kept.drop(columns=["key", "accepted"], errors="ignore").reset_index(drop=True)
    return Sample(rows, population, doubt / population, labels_version(ledger))


def _batches(folder: str) -> Iterator[pd.DataFrame]:
    wanted = ("id", "face", "label", "confidence", "accepted", "box")
    for file in storage.list_files(folder):
        with pq.ParquetFile(storage.open_input(file.path)) as table:
            columns = [name for name in table.schema_arrow.names if name in wanted]
            for batch in table.iter_batches(batch_size=ROWS, columns=columns):
                yield batch.to_pandas()


def pictures(
    out: str, ledger: Ledger, source: Source, unit_images: int, rows: pd.DataFrame
) -> dict[tuple[str, int], str]:
    """What each row is about, read again from the source, as data URIs by id and face.

    What is gone is left out, and what has changed since it was labelled: that label was given to another picture.
    """
    reader, found = Reader(source.image_column, source.id_column), {}
    wanted: dict[str, list[dict[Hashable, Any]]] = {}
    for row in rows.to_dict("records"):
        wanted.setdefault(row["id"], []).append(row)
    backlog = Backlog(ledger.entries, {entry["part"] for entry in ledger.entries.values()})
    for unit, changed in backlog.match(source.units(unit_images)):
        if changed:
            unit = _unchanged(out, unit)
        unit = _only(unit, source, wanted.keys())
        for ident, payload in reader.read(unit) if unit.size else ():
            if ident in wanted:
                try:
                    image = decode(payload())
                except ImageError:
                    continue
                for row in wanted[ident]:
                    found[ident, row["face"]] = picture(_face(image, row["box"]) if "box" in row else image)
        if len(found) == len(rows):
            break
    return found


def _face(image: Image.Image, box: dict[str, int]) -> Image.Image:
    """A detected face with some of what is around it, which a person needs to judge it."""
    return square(image, Face(**box, score=1.0), MARGIN)


def _unchanged(out: str, unit: Unit) -> Unit:
    """Of a unit that the ledger does not have, those files that were labelled, as they are now, in another."""
    notes = (storage.read_json(notes_path(out, part)) for part in unit.former)
    labelled = {stamp for each in notes for stamp in unpacked(each["stamps"])}
    items = tuple(item for item in unit.items if item.stamp() in labelled) if unit.kind == "files" else ()
    return replace(unit, start=0, stop=len(items), items=items)


def _only(unit: Unit, source: Source, ids: Set[str]) -> Unit:
    """The unit without what nobody wants, so that it is not read: members, or rows of Parquet before and behind."""
    if unit.kind == "csv":
        return unit
    if unit.kind != "parquet":
        items = tuple(item for item in unit.items if item.id in ids)
        return replace(unit, start=0, stop=len(items), items=items)
    named: Iterable[str] = (f"{unit.name}#{at}" for at in range(unit.start, unit.stop))
    if source.id_column:
        named = (ident for ident, _ in Reader(source.id_column, source.id_column).read(unit))  # no other column is read
    rows = [at for at, ident in enumerate(named, unit.start) if ident in ids]
    return replace(unit, start=rows[0], stop=rows[-1] + 1) if rows else replace(unit, stop=unit.start)


def save(out: str, sample: Sample, facts: dict[str, Any]) -> None:
    """Keep what was drawn for the day on which the answers come."""
    plain = {
        **facts,
        "population": sample.population,
        "mean_doubt": sample.mean_doubt,
        "version": sample.version,
        "rows": sample.rows.to_dict("records"),
    }
    storage.write_bytes(storage.join(out, FOLDER, "sample.json"), json.dumps(plain, indent=1).encode())


def load(out: str) -> tuple[Sample, dict[str, Any]]:
    """What `save` kept, and its ``facts`` with it.

    Raises:
        InputError: nothing was drawn.
    """
    path = storage.join(out, FOLDER, "sample.json")
    if not storage.exists(path):
        raise InputError(f"answers to a sample of {out}, where none was drawn", "a sheet that was filled in",
                         "draw one first: the same command without --answers")  # fmt: skip
    found = storage.read_json(path)
    sample = Sample(pd.DataFrame(found["rows"]), found["population"], found["mean_doubt"], found["version"])
    return sample, found


def blank(sample: Sample) -> bytes:
    """The CSV for a person: a row a picture of the sheet, ``truth`` empty."""
    rows = sample.rows[["id", "face"]].assign(truth="")
    rows.insert(0, "number", range(1, len(rows) + 1))
    return rows.to_csv(index=False).encode()


def judged(sample: Sample, text: bytes, words: list[str]) -> pd.Series:
    """The truth of each row of the sample, in its order, from the CSV that came back.

    Args:
        words: what ``truth`` may be.

    Raises:
        InputError: another sample's rows, a row without an answer, or an answer that is none of ``words``.
    """
    try:
        given = pd.read_csv(io.BytesIO(text), dtype=str, keep_default_na=False)
    except (ValueError, UnicodeDecodeError) as error:
        raise InputError(f"answers that are no CSV ({error})"[:200], "the CSV that was drawn", "fill it in") from None
    missing = {"id", "face", "truth"} - set(given.columns)
    if missing:
        raise InputError(f"answers without the column {', '.join(sorted(missing))}", "id, face and truth", "add it")
    given = given.assign(truth=given["truth"].str.strip(), key=given["id"] + "\0" + given["face"].str.strip())
    keys = sample.rows["id"] + "\0" + sample.rows["face"].astype(str)
    if sorted(given["key"]) != sorted(keys):
        raise InputError(
            f"answers to {len(given)} rows, not to the {len(keys)} that were drawn last",
            "every row of the sample once, for only all of them are a random sample",
            "fill in the CSV that was drawn last",
        )
    empty = int((given["truth"] == "").sum())
    strange = sorted(set(given["truth"]) - {*words, ""})
    if empty or strange:
        what = f"{empty} rows without an answer" if empty else f"the answer {strange[0]!r}"
        raise InputError(what, f"one of {', '.join(words)} in every row", "complete the column truth")
    return given.set_index("key")["truth"].loc[keys].reset_index(drop=True)
