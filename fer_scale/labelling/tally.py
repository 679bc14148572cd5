"""What a work unit has come to, in memory until it is published."""

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from fer_scale.faces.cutting import Cut, Shown
from fer_scale.faces.detection import Face
from fer_scale.faces.images import ImageError
from fer_scale.labelling.tables import repeated
from fer_scale.learning.acceptance import Acceptance

EXAMPLES = 2
"""Of the surest, of the least sure, and of whole photographs, that a unit keeps for the report."""
Failure = tuple[str, str, str]
"""Id, reason, detail."""


@dataclass
class Tally:
    """The answers of a unit, and what it has of those that were given before."""

    ids: list[str] = field(default_factory=list)
    """Of every row; a photograph with three faces has three."""
    numbers: list[int] = field(default_factory=list)
    """Which face of the photograph each row is about."""
    faces: list[Face] = field(default_factory=list)
    """Of every row, where they are detected."""
    answers: list[int] = field(default_factory=list)
    """For every row the one of ``probabilities`` that answers it."""
    probabilities: list[npt.NDArray[np.float32]] = field(default_factory=list)
    inferred: int = 0
    inferring: float = 0.0
    """Seconds that the engine took."""
    errors: list[Failure] = field(default_factory=list)
    no_face: list[Failure] = field(default_factory=list)
    known: dict[bytes, int] = field(default_factory=dict)
    """Digest of the pixels to the row of ``probabilities`` that answers them."""
    digests: dict[str, bytes] = field(default_factory=dict)
    """Id to the first 8 bytes of its pixels' digest, of all images that are labelled."""
    surest: list[dict[str, Any]] = field(default_factory=list)
    unsurest: list[dict[str, Any]] = field(default_factory=list)
    shown: list[tuple[str, Shown, int]] = field(default_factory=list)
    """Id, photograph, and its first row."""
    photographs: list[dict[str, Any]] = field(default_factory=list)
    """Those of earlier parts."""
    carried_labels: list[pa.Table] = field(default_factory=list)
    carried: int = 0
    """Images that were answered before."""

    def fail(self, ident: str, error: ImageError, no_face: bool) -> None:
        """An image without a label."""
        (self.no_face if no_face else self.errors).append((ident, error.reason, error.detail))

    def begin(self, ident: str, cut: Cut) -> list[tuple[int, bytes]]:
        """An image that is to be labelled: of each of its faces the number and the digest of its pixels.

        Raises:
            InputError: the unit has the id already, which the check of all ids, beside the work, has not come to.
        """
        if ident in self.digests:
            raise repeated(ident, "the source")
        found = [hashlib.blake2b(pixels.tobytes(), digest_size=16).digest() for pixels in cut.pixels]
        whole = found[0] if len(found) == 1 else hashlib.blake2b(b"".join(found), digest_size=16).digest()
        self.digests[ident] = whole[:8]
        if cut.shown is not None:
            self.shown.append((ident, cut.shown, len(self.ids)))
        self.faces.extend(cut.faces)
        return list(enumerate(found))

    def row(self, ident: str, number: int, answer: int) -> None:
        """A face, and the row of ``probabilities`` that answers it, now or soon."""
        self.ids.append(ident)
        self.numbers.append(number)
        self.answers.append(answer)

    def table(
        self, schema: pa.Schema, classes: Sequence[str], model_id: str, acceptance: Acceptance | None
    ) -> pa.Table:
        """All rows, fresh and carried over."""
        distinct = np.concatenate([np.zeros((0, len(classes)), dtype=np.float32), *self.probabilities])
        found = distinct[self.answers] if self.answers else distinct[:0]
        labels = np.array(classes, dtype=object)[found.argmax(axis=1)]
        confidence = found.max(axis=1, initial=0.0)
        columns: dict[str, Any] = {
            "id": self.ids,
            "face": np.array(self.numbers, dtype=np.int32),
            "label": labels,
            "confidence": confidence,
            **{f"prob_{name}": values for name, values in zip(classes, found.T, strict=True)},
            "model_id": [model_id] * len(found),
        }
        if acceptance is not None:
            columns["accepted"] = acceptance.mask(confidence, labels)
        if "box" in schema.names:
            columns["box"] = [face.box for face in self.faces]
            columns["score"] = [face.score for face in self.faces]
        fresh = pa.table([columns[name] for name in schema.names], schema=schema)
        return pa.concat_tables([fresh, *(rows.cast(schema) for rows in self.carried_labels)])

    def kept_photographs(self, rows: pa.Table) -> list[dict[str, Any]]:
        """The photographs with most faces, for the report: a small picture, and boxes with their labels."""
        found = list(self.photographs)
        for ident, shown, first in self.shown:
            mine = rows.slice(first, self.ids.count(ident)).select(["box", "label", "confidence"]).to_pylist()
            jpeg = base64.b64encode(shown.jpeg).decode()
            found.append({"id": ident, "jpeg": jpeg, "width": shown.width, "height": shown.height, "faces": mine})
        return sorted(found, key=lambda one: (-len(one["faces"]), one["id"]))[:EXAMPLES]
