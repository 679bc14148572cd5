"""Faces within photographs: found, and cut out as a network that reads expressions wants them."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from fer_scale.errors import InputError
from fer_scale.faces import mtcnn
from fer_scale.faces.images import ImageError

Boxes = npt.NDArray[np.float64]
"""``[N, 5]``: left, top, right, bottom, score."""


@dataclass(frozen=True, kw_only=True)
class Detection:
    """What decides which faces are found and how they are cut out; part of a run's settings."""

    weights: str = ""
    """Package and version; empty for those that are installed."""
    longest_side: int = 1280
    """Pixels: a larger photograph is searched in a copy of that size; faces are cut out of the photograph itself."""
    smallest_face: int = 24
    """Pixels, in the copy: what is smaller is not looked for."""
    score: float = 0.8
    """A face has at least this one."""
    margin: float = 0.05
    """Beside a face, as a share of its size, the mean of the box's sides: FER2013's pictures frame theirs like that."""
    most_faces: int = 100
    """Of one photograph; the largest are kept."""


@dataclass(frozen=True)
class Face:
    """A face within an upright picture, in its pixels."""

    x: int
    y: int
    width: int
    height: int
    score: float

    @property
    def box(self) -> dict[str, int]:
        """Left and upper edge, width and height."""
        return {"x": self.x, "y": self.y, "width": self.width, "height": self.height}


class NoFaceError(ImageError):
    """A picture in which there is no face."""


class Detector:
    """Finds faces with MTCNN's cascade: a small network over a pyramid proposes, two larger ones check and mend.

    It may be used from several threads.

    Raises:
        InputError: the extra is missing, or has other weights than the settings name.
    """

    def __init__(self, settings: Detection) -> None:
        there = mtcnn.release()
        if settings.weights not in ("", there):
            raise InputError(f"{there} on a machine", f"{settings.weights} on all of them", "install that version")
        self.settings = settings
        self._proposals = mtcnn.network("pnet")
        self._checks = ((mtcnn.network("rnet"), 24, 0.7), (mtcnn.network("onet"), 48, self.settings.score))

    def faces(self, image: Image.Image) -> list[Face]:
        """The faces of an upright picture, the largest first (of equal ones the left, then the upper)."""
        scale = self.settings.longest_side / max(image.size)
        small = (_resized(image, scale) if scale < 1 else image).convert("RGB")
        boxes = self._propose(small)
        for network, side, threshold in self._checks:
            if not len(boxes):
                return []
            boxes = _check(network, small, _squares(boxes), side, threshold)
            boxes = boxes[_distinct(boxes, 0.7, side == 48)]
        return self._upright(boxes, image.size, small.size)

    def cut(self, image: Image.Image) -> list[tuple[Face, Image.Image]]:
        """The faces of an upright picture, and of each the square that a network is to read.

        Raises:
            NoFaceError: there is none.
        """
        found = self.faces(image)
        if not found:
            size = f"{image.width}x{image.height} pixels"
            if max(image.size) < CROP:
                raise NoFaceError(
                    "too_small", f"{size}: rather a crop than a photograph; faces crop labels it as it is"
                )
            raise NoFaceError("none_found", size)
        return [(face, square(image, face, self.settings.margin)) for face in found]

    def _propose(self, image: Image.Image) -> Boxes:
        found = []
        scale = CELL / self.settings.smallest_face
        while min(image.size) * scale >= CELL:
            level = _resized(image, scale)
            offsets, scores = self._proposals.run(None, {"pixels": _scaled(np.asarray(level)[None])})
            rows, columns = np.nonzero(scores[0, ..., 1] > PROPOSED)
            score = scores[0, rows, columns, 1].astype(np.float64)
            corner = 2.0 * np.stack([columns, rows, columns, rows], axis=1) + [0, 0, CELL, CELL]
            mended = corner + offsets[0, rows, columns] * CELL
            ratio = [image.width / level.width, image.height / level.height] * 2
            here = np.concatenate([mended * ratio, score[:, None]], axis=1)
            here = here[np.argsort(-score, kind="stable")[:CANDIDATES]]
            found.append(here[_distinct(here, 0.5)])
            scale *= STEP
        every: Boxes = np.concatenate([np.zeros((0, 5)), *found])
        every = every[np.argsort(-every[:, 4], kind="stable")]
        return every[_distinct(every, 0.7)[:CANDIDATES]]

    def _upright(self, boxes: Boxes, size: tuple[int, int], searched: tuple[int, int]) -> list[Face]:
        ratio = [size[0] / searched[0], size[1] / searched[1]] * 2
        edges = np.clip(boxes[:, :4] * ratio, 0, [*size, *size])
        found = []
        for (left, top, right, bottom), score in zip(np.rint(edges).astype(int).tolist(), boxes[:, 4], strict=True):
            if min(right - left, bottom - top) >= self.settings.smallest_face // 2:
                found.append(Face(left, top, right - left, bottom - top, round(float(score), 4)))
        found.sort(key=lambda face: (-face.width * face.height, face.x, face.y, face.height))
        return found[: self.settings.most_faces]


CROP = 64
"""Pixels: a picture of less is itself no larger than a face. It is searched as it is, never enlarged."""
CELL = 12
"""Pixels that the first network sees at once."""
STEP = 0.709
"""From one level of the pyramid to the next: half the area."""
PROPOSED = 0.6
CANDIDATES = 512
"""Kept of each level, and of all together, the likeliest first: a picture of nothing but texture costs no more."""


def square(image: Image.Image, face: Face, margin: float) -> Image.Image:
    """A square around a face, moved rather than filled up where it would reach over the picture's edge."""
    side = min(round((1 + 2 * margin) * (face.width + face.height) / 2), *image.size)
    left = round(face.x + (face.width - side) / 2)
    top = round(face.y + (face.height - side) / 2)
    left = min(max(left, 0), image.width - side)
    top = min(max(top, 0), image.height - side)
    return image.crop((left, top, left + side, top + side))


def _resized(image: Image.Image, scale: float) -> Image.Image:
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)


def _scaled(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    return (pixels.astype(np.float32) - np.float32(127.5)) / np.float32(128)


def _squares(boxes: Boxes) -> Boxes:
    """The smallest squares around boxes, of the same centres."""
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    side = np.maximum(width, height)
    left, top = boxes[:, 0] + (width - side) / 2, boxes[:, 1] + (height - side) / 2
    squares: Boxes = np.stack([left, top, left + side, top + side, boxes[:, 4]], axis=1)
    return squares


def _check(network: Any, image: Image.Image, boxes: Boxes, side: int, threshold: float) -> Boxes:
    """What a later network leaves of candidates, mended, the likeliest first."""
    patches = np.empty((len(boxes), side, side, 3), dtype=np.uint8)
    for patch, box in zip(patches, np.rint(boxes[:, :4]).astype(int).tolist(), strict=True):
        # Beyond the picture's edge a crop is black, which is what the networks were trained with.
        box = (box[0], box[1], max(box[2], box[0] + 1), max(box[3], box[1] + 1))
        patch[:] = np.asarray(image.crop(box).resize((side, side), Image.Resampling.BILINEAR))
    offsets, scores = network.run(None, {"pixels": _scaled(patches)})
    score = scores[:, 1].astype(np.float64)
    size = np.tile(boxes[:, 2:4] - boxes[:, :2], 2)
    mended: Boxes = np.concatenate([boxes[:, :4] + offsets * size, score[:, None]], axis=1)
    order = np.argsort(-score, kind="stable")
    left: Boxes = mended[order[score[order] >= threshold]]
    return left


def _distinct(boxes: Boxes, most: float, within: bool = False) -> list[int]:
    """Which boxes, the likeliest first, overlap none before them by more than ``most``.

    Args:
        within: overlap as a share of the smaller of the two, not of their union.
    """
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    left = np.arange(len(boxes))
    kept = []
    while len(left):
        best, left = left[0], left[1:]
        kept.append(int(best))
        low, high = np.maximum(boxes[best, :2], boxes[left, :2]), np.minimum(boxes[best, 2:4], boxes[left, 2:4])
        common = np.clip(high - low, 0, None).prod(axis=1)
        other = np.minimum(area[best], area[left]) if within else area[best] + area[left] - common
        left = left[common <= most * other]
    return kept
