"""Drawn faces to try the program with: ``python -m fer_scale.faces.sample OUT [--count 600] [--seed 0]``.

No photograph is behind them. Expression acts through mouth, brows and eyes with values that vary and
overlap a little between classes; pose, light, skin, hair, glasses, blur and noise vary apart from it. So a
small network gets most of them right, and not all.
"""

import argparse
import io
import math
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from fer_scale import storage
from fer_scale.errors import InputError
from fer_scale.faces.drawing import Colour, Expression, Person, paint, shade

CLASSES = ("happy", "sad", "surprised", "neutral")
SUPERSAMPLING = 4
README = """These faces are drawn by a program (fer_scale.faces.sample); they show nobody.
One folder a class, {count} pictures in all, seed {seed}. Made to try fer-scale with, not to measure it by.
"""


MEANS = {
    "happy": Expression(curve=0.75, opening=0.30, width=1.2, brow_height=0.1, brow_slant=0.1, eyes=0.8, cheeks=0.7),
    "sad": Expression(curve=-0.6, opening=0.04, width=0.9, brow_height=0.05, brow_slant=0.75, eyes=0.78, cheeks=0.1),
    "surprised": Expression(curve=0.0, opening=0.8, width=0.72, brow_height=0.9, brow_slant=0.1, eyes=1.4, cheeks=0.1),
    "neutral": Expression(curve=0.03, opening=0.04, width=1.0, brow_height=0.0, brow_slant=0.0, eyes=1.0, cheeks=0.15),
}


def express(label: str, random: np.random.Generator) -> Expression:
    """One way of showing a class, some of them faint."""
    mean, rest = MEANS[label], MEANS["neutral"]
    strength = random.uniform(0.6, 1.25)

    def near(name: str, spread: float) -> float:
        calm = getattr(rest, name)
        return float(calm + strength * (getattr(mean, name) - calm) + random.normal(0, spread))

    return Expression(
        curve=near("curve", 0.14),
        opening=max(near("opening", 0.08), 0.0),
        width=max(near("width", 0.07), 0.5),
        brow_height=near("brow_height", 0.16),
        brow_slant=near("brow_slant", 0.16),
        eyes=min(max(near("eyes", 0.10), 0.3), 1.6),
        cheeks=min(max(near("cheeks", 0.1), 0.0), 1.0),
    )


def face(label: str, random: np.random.Generator, size: int) -> Image.Image:
    """One drawn face, gray ``size x size`` pixels: posed, lit, blurred and noisy."""
    side = size * SUPERSAMPLING
    ground = shade((150, 160, 170), random.uniform(0.3, 1.4))
    image = paint(Person.draw(random), express(label, random), side, ground)
    image = _posed(image, random, ground)
    small = image.resize((size, size), Image.Resampling.BOX).convert("L")
    pixels = np.asarray(small, dtype=np.float64)
    across, down = np.meshgrid(np.linspace(-1, 1, size), np.linspace(-1, 1, size))
    angle, depth = random.uniform(0, 2 * math.pi), random.uniform(0, 0.45)
    pixels *= 1 + depth * (math.cos(angle) * across + math.sin(angle) * down)
    pixels = (pixels - 128) * random.uniform(0.6, 1.15) + 128 + random.uniform(-28, 22)
    if random.random() < 0.5:
        blurred = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
        radius = random.uniform(0.2, 0.9) * size / 48
        pixels = np.asarray(blurred.filter(ImageFilter.GaussianBlur(radius)), dtype=np.float64)
    pixels = pixels + random.normal(0, random.uniform(1, 8), pixels.shape)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _posed(image: Image.Image, random: np.random.Generator, ground: Colour) -> Image.Image:
    """Shifted, tilted, scaled, and turned a little to the side (as a shear and a narrowing)."""
    side = image.width
    tilt, turn = math.radians(random.normal(0, 8)), random.uniform(-0.12, 0.12)
    zoom = random.uniform(0.80, 1.05)
    wide = zoom * (1 + abs(turn))
    a, b = math.cos(tilt) * wide, math.sin(tilt) * zoom + turn
    d, e = -math.sin(tilt) * wide, math.cos(tilt) * zoom
    mid = side / 2
    x, y = mid + random.normal(0, 0.03) * side, mid * 1.06 + random.normal(0, 0.03) * side
    matrix = (a, b, x - a * mid - b * mid, d, e, y - d * mid - e * mid)
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC, fillcolor=ground)


def draw(out: storage.PathLike, count: int = 600, seed: int = 0, size: int = 48) -> None:
    """Write ``count`` faces as class folders of PNG below ``out``, and a README that says what they are.

    Raises:
        InputError: ``out`` is not empty, or fewer than one face a class is asked for.
    """
    if count < len(CLASSES) or not 16 <= size <= 512:
        raise InputError(f"count={count}, size={size}", "4 faces or more of 16 to 512 pixels", "ask for those")
    with storage.publishing(out, last="README.txt") as staging:
        for number in range(count):
            label = CLASSES[number % len(CLASSES)]
            path = Path(staging, label, f"synthetic_{label}_{number:05}.png")
            path.parent.mkdir(exist_ok=True)
            buffer = io.BytesIO()
            face(label, np.random.default_rng([seed, number]), size).save(buffer, format="PNG")
            path.write_bytes(buffer.getvalue())
        Path(staging, "README.txt").write_text(README.format(count=count, seed=seed))


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m fer_scale.faces.sample", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("out", help="folder to write, new or empty")
    parser.add_argument("--count", type=int, default=600, help="faces in all (default 600)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", type=int, default=48, help="pixels a side (default 48)")
    given = parser.parse_args(arguments)
    try:
        draw(given.out, given.count, given.seed, given.size)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{given.count} drawn faces in {given.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
