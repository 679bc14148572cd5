"""What `--faces detect` finds: faces alone, within a photograph, half-hidden, and pictures without any.

    python benchmarks/detection.py [--faces 150] [--lfw skimage/data/lfw_subset.npy]

Faces are FER2013's PublicTest (48x48) and, with --lfw, scikit-image's subset of Labeled Faces in the Wild (100 faces
and 100 pictures of something else, 25x25). ``as they are``: nothing is around the face. ``in a photograph``: enlarged
to 120x120 and put somewhere into one of scikit-learn's two photographs, which show no face. ``half hidden``: the same
with one half, in turn the left, right, upper and lower, under a brown rectangle. A find counts where its centre lies
within the face's square and its side is 0.4 to 1.6 of it; any other is a false one. Everything is looked at once with
a score of 0.6, and counted for several.
"""

import argparse
import io
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import pyarrow.parquet as pq
import sklearn
from PIL import Image, ImageDraw

from fer_scale.faces.detection import Detection, Detector

ROOT = Path(__file__).resolve().parents[1]
SCORES = (0.6, 0.7, 0.8, 0.9, 0.95)
SIDE = 120
HALVES = {"left": (0, 0, 0.5, 1), "right": (0.5, 0, 1, 1), "upper": (0, 0, 1, 0.5), "lower": (0, 0.5, 1, 1)}
Case = tuple[str, Image.Image, tuple[float, float, float] | None]
"""What it is, the picture, and where the face is: left, top, side; None where there is none."""


def placed(name: str, faces: list[Image.Image], random: np.random.Generator) -> Iterator[Case]:
    """Faces in a photograph, and the same half hidden."""
    folder = Path(sklearn.__file__).parent / "datasets/images"
    scenes = [Image.open(folder / file).convert("RGB") for file in ("china.jpg", "flower.jpg")]
    for n, face in enumerate(faces):
        for hidden in ("", list(HALVES)[n % 4]):
            scene = scenes[n % 2].copy()
            left, top = (int(random.integers(0, size - SIDE)) for size in scene.size)
            scene.paste(face.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC), (left, top))
            if hidden:
                part = HALVES[hidden]
                box = tuple(SIDE * share + start for share, start in zip(part, (left, top, left, top), strict=True))
                ImageDraw.Draw(scene).rectangle(box, fill=(90, 60, 40))
            yield f"{name}, {f'{hidden} half hidden' if hidden else 'in a photograph'}", scene, (left, top, SIDE)


def cases(count: int, lfw: Path | None) -> Iterator[Case]:
    """All pictures."""
    random = np.random.default_rng(0)
    folder = Path(os.environ.get("FER_SCALE_DATA", ROOT.parent / "shared/data/fer2013"))
    rows = pq.read_table(folder / "publictest.parquet", columns=["image"])["image"].to_pylist()
    step = len(rows) // count
    fer = [Image.open(io.BytesIO(data)) for data in rows[: step * count : step]]
    for image in fer:
        yield "FER2013, as they are", image, (0, 0, image.width)
    yield from placed("FER2013", fer, random)
    if lfw is None:
        return
    pictures = [Image.fromarray((255 * array).astype(np.uint8)) for array in np.load(lfw)]
    for n, image in enumerate(pictures):
        large = image.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        yield f"LFW, {'faces' if n < 100 else 'no faces'}, as they are", large, (0, 0, SIDE) if n < 100 else None
    yield from placed("LFW", pictures[:100], random)


def measure(count: int, lfw: Path | None) -> dict[str, Any]:
    """Shares of the faces found, and false finds a picture, by score."""
    detector = Detector(Detection(score=min(SCORES)))
    found: dict[str, Any] = {}
    for name, image, where in cases(count, lfw):
        began = time.process_time()
        finds = detector.faces(image)
        here = found.setdefault(
            name, {"pictures": 0, "found": [0] * len(SCORES), "false": [0] * len(SCORES), "cpu": 0.0}
        )
        here["pictures"] += 1
        here["cpu"] += time.process_time() - began
        for at, score in enumerate(SCORES):
            right = [right_one(find, where) for find in finds if find.score >= score]
            here["found"][at] += any(right)
            here["false"][at] += len(right) - sum(right)
    for here in found.values():
        here["cpu"] = round(here["cpu"] / here["pictures"], 4)
    return found


def right_one(find: Any, where: tuple[float, float, float] | None) -> bool:
    """Whether a find is the face."""
    if where is None:
        return False
    left, top, side = where
    middle = find.x + find.width / 2 - left, find.y + find.height / 2 - top
    return all(0 < at < side for at in middle) and 0.4 < (find.width + find.height) / 2 / side < 1.6


def main() -> None:
    """Measure, print and store."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--faces", type=int, default=150)
    parser.add_argument("--lfw", type=Path)
    parser.add_argument("--to", type=Path, default=ROOT / "benchmarks" / "results" / "detection.json")
    options = parser.parse_args()
    found = {"scores": SCORES, "date": time.strftime("%Y-%m-%d"), "of": measure(options.faces, options.lfw)}
    options.to.write_text(json.dumps(found, indent=2) + "\n")
    print(
        f"| pictures | {' | '.join(f'from {score:g}' for score in SCORES)} | CPU ms |\n|---|{'---|' * len(SCORES)}---|"
    )
    for name, here in found["of"].items():
        counts = zip(here["found"], here["false"], strict=True)
        cells = [f"{100 * right / here['pictures']:.0f} %, {wrong}" for right, wrong in counts]
        print(f"| {name} ({here['pictures']}) | {' | '.join(cells)} | {1000 * here['cpu']:.0f} |")


if __name__ == "__main__":
    main()
