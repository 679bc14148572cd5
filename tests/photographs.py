"""Real photographs, of one face, several, a half-hidden one, and none."""

import io
from pathlib import Path

import matplotlib
import sklearn
from PIL import Image, ImageDraw

SCENERY = Path(sklearn.__file__).parent / "datasets/images"
HOPPER = Path(matplotlib.__file__).parent / "mpl-data/sample_data/grace_hopper.jpg"
ASTRONAUT = Path(__file__).parent / "pictures/astronaut.jpg"


def astronaut() -> Image.Image:
    """320x320, the face at about (120, 62), 86 wide and 111 high."""
    return Image.open(ASTRONAUT).convert("RGB")


def hopper() -> Image.Image:
    """256x300, the face at about (82, 52), 97 wide and 119 high."""
    return Image.open(HOPPER).convert("RGB").resize((256, 300))


def scenery(name: str = "china.jpg") -> Image.Image:
    """640x427, without a face."""
    return Image.open(SCENERY / name).convert("RGB")


def group() -> Image.Image:
    """1000x427: Hopper's face is the largest, then the astronaut's, then a small copy of Hopper's."""
    wide = Image.new("RGB", (1000, 427), (96, 110, 120))
    wide.paste(astronaut(), (0, 50))
    wide.paste(hopper().resize((320, 375)), (340, 30))
    wide.paste(hopper().resize((128, 150)), (800, 200))
    return wide


def half_hidden() -> Image.Image:
    """The astronaut, the left 45 % of her face behind something brown."""
    image = astronaut()
    ImageDraw.Draw(image).rectangle((110, 50, 120 + 0.45 * 86, 190), fill=(90, 60, 40))
    return image


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    """The picture as a file's bytes."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()
