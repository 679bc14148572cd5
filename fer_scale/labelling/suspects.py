"""A picture that kills whoever reads it: found by those who come after, and set aside as an error.

A decoder that crashes, or memory that runs out, ends a process without a word, and whoever does the unit again dies of
it, too. So an actor that was started again notes in the output which unit it is at; where the note of another is
there, that one died in this unit. Then the unit's pictures are first answered one by one, each noted before it is
touched, with nothing kept. One at which two have died is an error, ``fatal``; then the unit is labelled as always. A
note changes no answer but that, and a unit's end deletes it.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np

from fer_scale import storage
from fer_scale.faces.cutting import cut
from fer_scale.faces.detection import Detection, Detector
from fer_scale.faces.images import ImageError
from fer_scale.labelling.reading import Payload, Reader
from fer_scale.labelling.units import Unit
from fer_scale.labelling.worker import Answers

DEATHS = 2
"""At one picture, after which it is taken for the cause: one may be a machine that was lost just then."""
FOLDER = "trying"


class SparingReader(Reader):
    """Reads units without touching those of their pictures that are said to be fatal: these are errors."""

    def __init__(self, image_column: str, id_column: str | None) -> None:
        super().__init__(image_column, id_column)
        self.fatal: dict[str, list[int]] = {}
        """Places in a unit, by the name of its part."""

    def read(self, unit: Unit) -> Iterator[tuple[str, Payload]]:
        """As `Reader.read`."""
        fatal = self.fatal.get(unit.part)
        if not fatal:
            yield from super().read(unit)
            return
        for low, at in pairwise([-1, *sorted(fatal), unit.size]):
            piece = replace(unit, items=unit.items[low + 1 : at], start=unit.start + low + 1, stop=unit.start + at)
            yield from super().read(piece)
            if at < unit.size:
                yield unit.items[at].id if unit.items else f"{unit.name}#{unit.start + at}", _fatal


def _fatal() -> bytes:
    raise ImageError("fatal", f"{DEATHS} processes died of it, one after the other")


@contextmanager
def noted(
    out: str, unit: Unit, reader: SparingReader, predictor: Answers, detection: Detection | None
) -> Iterator[None]:
    """A unit under way in an actor that was started again; see the module. One at a time in a process."""
    path = storage.join(out, "ledger", FOLDER, f"{unit.part}.json")
    note: dict[str, Any] = {"at": None, "deaths": 0, "fatal": []}
    if storage.exists(path):
        note = storage.read_json(path)
        if note["at"] is not None:
            note["deaths"] += 1
            if note["deaths"] >= DEATHS:
                note["fatal"].append(note["at"])
        reader.fatal[unit.part] = note["fatal"]
        detector = Detector(detection) if detection else None
        pictures = reader.read(unit)
        for at in range(unit.size):
            _write(path, {**note, "at": at, "deaths": note["deaths"] if at == note["at"] else 0})
            _, payload = next(pictures)
            with suppress(ImageError):
                predictor.probabilities(np.stack(cut(payload(), predictor.preprocessing, detector).pixels))
    _write(path, {**note, "at": None, "deaths": 0})
    yield
    reader.fatal.pop(unit.part, None)
    storage.delete(path)


def _write(path: str, note: dict[str, Any]) -> None:
    storage.write_bytes(path, json.dumps(note).encode())
