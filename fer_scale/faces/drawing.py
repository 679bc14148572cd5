"""One drawn face: who it is, what it does, and the strokes for both. No photograph is behind it."""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

UNITS = 200
"""Faces are laid out on a square of so many units, then drawn at the size asked for."""

Colour = tuple[int, int, int]
Point = tuple[float, float]
SKINS: tuple[Colour, ...] = (
    (255, 224, 196),
    (243, 201, 165),
    (224, 172, 125),
    (198, 140, 95),
    (150, 100, 66),
    (104, 68, 48),
)
HAIRS: tuple[Colour, ...] = (
    (35, 26, 22),
    (74, 48, 32),
    (122, 78, 42),
    (196, 152, 84),
    (160, 70, 40),
    (150, 150, 155),
)


@dataclass(frozen=True, kw_only=True)
class Expression:
    """What a face does, each as a number around zero."""

    curve: float
    """Corners of the mouth: up 1, down -1."""
    opening: float
    """Of the mouth: shut 0, wide 1."""
    width: float
    """Of the mouth, 1 at rest."""
    brow_height: float
    """Raised 1, lowered -1."""
    brow_slant: float
    """Inner ends up (worried) 1, down (stern) -1."""
    eyes: float
    """Openness, 1 at rest."""
    cheeks: float
    """How much the cheeks lift and redden, 0 to 1."""


def shade(colour: Colour, by: float) -> Colour:
    """Darker below 1, lighter above."""
    red, green, blue = (min(255, max(0, round(value * by))) for value in colour)
    return red, green, blue


class Canvas:
    """A square to draw on in units, whatever its pixels."""

    def __init__(self, side: int, ground: Colour) -> None:
        self.image = Image.new("RGB", (side, side), ground)
        self._draw = ImageDraw.Draw(self.image)
        self._scale = side / UNITS

    def _points(self, points: list[Point]) -> list[Point]:
        return [(x * self._scale, y * self._scale) for x, y in points]

    def oval(self, centre: Point, radii: Point, fill: Colour) -> None:
        """A filled ellipse."""
        (x, y), (rx, ry) = centre, radii
        self._draw.ellipse([p for point in self._points([(x - rx, y - ry), (x + rx, y + ry)]) for p in point], fill)

    def shape(self, points: list[Point], fill: Colour) -> None:
        """A filled polygon."""
        self._draw.polygon(self._points(points), fill)

    def line(self, points: list[Point], fill: Colour, width: float) -> None:
        """A line with round ends."""
        self._draw.line(self._points(points), fill, max(1, round(width * self._scale)), joint="curve")
        for point in (points[0], points[-1]):
            self.oval(point, (width / 2, width / 2), fill)

    def glow(self, centre: Point, radius: float, fill: Colour, strength: float) -> None:
        """A soft spot."""
        mask = Image.new("L", self.image.size, 0)
        (x, y), r = centre, radius
        box = [p for point in self._points([(x - r, y - r), (x + r, y + r)]) for p in point]
        ImageDraw.Draw(mask).ellipse(box, round(255 * strength))
        mask = mask.filter(ImageFilter.GaussianBlur(radius * self._scale * 0.45))
        self.image.paste(Image.new("RGB", self.image.size, fill), (0, 0), mask)


def curve(start: Point, end: Point, bend: float, steps: int = 24) -> list[Point]:
    """A parabola from start to end, its middle lower (y grows downwards) by ``bend``."""
    ts = [i / steps for i in range(steps + 1)]
    return [
        (start[0] + (end[0] - start[0]) * t, start[1] + (end[1] - start[1]) * t + 4 * bend * t * (1 - t)) for t in ts
    ]


@dataclass(frozen=True, kw_only=True)
class Person:
    """What a face is, whatever it does."""

    skin: Colour
    hair: Colour
    style: int
    """0 short, 1 long, 2 curly, 3 bald, 4 fringe."""
    width: float
    length: float
    gap: float
    """Half the distance of the eyes, units."""
    iris: Colour
    lips: float
    nose: float
    glasses: bool
    beard: bool
    brow_weight: float

    @classmethod
    def draw(cls, random: np.random.Generator) -> "Person":
        """Anybody."""
        return cls(
            skin=shade(SKINS[random.integers(len(SKINS))], random.uniform(0.93, 1.06)),
            hair=shade(HAIRS[random.integers(len(HAIRS))], random.uniform(0.8, 1.2)),
            style=int(random.choice(5, p=[0.3, 0.26, 0.18, 0.08, 0.18])),
            width=random.uniform(54, 63),
            length=random.uniform(68, 78),
            gap=random.uniform(23, 28),
            iris=[(70, 45, 30), (60, 95, 130), (80, 110, 70), (45, 35, 30)][random.integers(4)],
            lips=random.uniform(0.55, 0.85),
            nose=random.uniform(0.8, 1.25),
            glasses=bool(random.random() < 0.15),
            beard=bool(random.random() < 0.12),
            brow_weight=random.uniform(3.5, 6.5),
        )


def paint(person: Person, doing: Expression, side: int, ground: Colour) -> Image.Image:
    """A face, frontal and upright, RGB ``side x side`` pixels."""
    canvas = Canvas(side, ground)
    _paint_behind(canvas, person)
    x, y = 100.0, 108.0
    for sign in (-1, 1):
        canvas.oval((x + sign * person.width, y + 4), (9, 14), shade(person.skin, 0.9))
    canvas.oval((x, y), (person.width, person.length), person.skin)
    canvas.oval((x, y + 18), (person.width * 0.86, person.length * 0.78), person.skin)
    canvas.glow((x - 14, y - 34), 34, shade(person.skin, 1.12), 0.45)
    canvas.glow((x, y + person.length - 8), 26, shade(person.skin, 0.8), 0.45)
    if person.beard:
        canvas.glow((x, y + 50), 36, person.hair, 0.75)
    for sign in (-1, 1):
        blush = (min(255, person.skin[0] + 10), round(person.skin[1] * 0.78), round(person.skin[2] * 0.78))
        canvas.glow((x + sign * 36, y + 20 - 5 * doing.cheeks), 15, blush, 0.25 + 0.4 * doing.cheeks)
        _paint_eye(canvas, person, doing, (x + sign * person.gap, y - 12), sign)
    _paint_nose(canvas, person, (x, y + 12))
    _paint_mouth(canvas, person, doing, (x, y + 42))
    if person.glasses:
        _paint_glasses(canvas, person, (x, y - 11))
    _paint_hair(canvas, person)
    return canvas.image


def _paint_behind(canvas: Canvas, person: Person) -> None:
    shirt = shade((90, 110, 140), 0.6 + 0.12 * person.style)
    canvas.oval((100, 226), (84, 46), shirt)
    if person.style == 1:
        canvas.oval((100, 112), (person.width + 18, person.length + 16), shade(person.hair, 0.85))
        canvas.shape([(30, 110), (170, 110), (178, 205), (22, 205)], shade(person.hair, 0.85))
        canvas.oval((100, 226), (70, 38), shirt)
    if person.style == 2:
        for step in range(17):
            angle = math.pi * (1.12 - 1.24 * step / 16) + math.pi
            centre = (100 + (person.width + 8) * math.cos(angle), 94 + (person.length - 2) * math.sin(angle))
            canvas.oval(centre, (19, 19), shade(person.hair, 0.85))
    canvas.shape([(82, 160), (118, 160), (124, 196), (76, 196)], shade(person.skin, 0.78))


def _paint_eye(canvas: Canvas, person: Person, doing: Expression, at: Point, sign: int) -> None:
    x, y = at
    height = 8.2 * doing.eyes
    canvas.oval((x, y), (14.5, height + 2.2), shade(person.skin, 0.82))
    canvas.oval((x, y), (12.5, height), (250, 248, 244))
    radius = 7.0
    canvas.oval((x, y), (radius, min(radius, height)), person.iris)
    canvas.oval((x, y), (3.6, min(3.6, height)), (15, 12, 12))
    canvas.oval((x - 2.2, y - 2.6), (1.8, min(1.8, height / 3)), (255, 255, 255))
    dark = shade(person.hair if sum(person.hair) < 300 else (80, 60, 50), 0.6)
    canvas.line(curve((x - 13, y - height * 0.15), (x + 13, y - height * 0.15), -height * 0.92), dark, 2.4)
    if doing.cheeks > 0.35:
        canvas.line(curve((x - 10, y + height + 3), (x + 10, y + height + 3), 2), shade(person.skin, 0.78), 1.6)
    lift = y - 20 - 2.2 * max(doing.eyes - 1, 0) * 8 - 9 * doing.brow_height
    inner = (x - sign * 13, lift - 7.5 * doing.brow_slant + 1)
    outer = (x + sign * 15, lift + 4.5 * doing.brow_slant + 2)
    bend = -3.5 - 3 * max(doing.brow_height, 0)
    canvas.line(curve(inner, outer, bend), shade(person.hair, 0.75), person.brow_weight)


def _paint_nose(canvas: Canvas, person: Person, at: Point) -> None:
    x, y = at
    dark = shade(person.skin, 0.72)
    canvas.glow((x + 5, y - 6), 10 * person.nose, shade(person.skin, 0.85), 0.4)
    canvas.line(curve((x - 8 * person.nose, y + 6), (x + 8 * person.nose, y + 6), 4), dark, 2.2)
    canvas.glow((x - 1, y + 1), 6, shade(person.skin, 1.15), 0.5)


def _paint_mouth(canvas: Canvas, person: Person, doing: Expression, at: Point) -> None:
    x, y = at
    half = 23 * doing.width
    corner = y - 8.5 * doing.curve
    bend = 9.0 * doing.curve
    left, right = (x - half, corner), (x + half, corner)
    gap = 26 * doing.opening
    red, green, blue = person.skin
    rouge = person.lips
    lip = (
        round(red * (1 - 0.18 * rouge)),
        round(green * (1 - 0.48 * rouge)),
        round(blue * (1 - 0.46 * rouge)),
    )
    upper = curve(left, right, bend - gap * 0.42)
    lower = curve(left, right, bend + gap * 0.62)
    if gap < 3:
        canvas.line(curve(left, right, bend + 3.2), lip, 5.5)
        canvas.line(curve(left, right, bend), shade(lip, 0.55), 2.8)
        return
    canvas.line(curve(left, right, bend - gap * 0.42 - 1.5), lip, 4.5)
    canvas.line(curve(left, right, bend + gap * 0.62 + 1.5), lip, 5.5)
    canvas.shape(upper + lower[::-1], (88, 28, 32))
    if doing.curve > 0.25:
        teeth = curve(left, right, bend - gap * 0.42 + min(gap * 0.5, 7))
        canvas.shape(upper[2:-2] + teeth[2:-2][::-1], (250, 248, 242))
    elif gap > 10:
        canvas.oval((x, corner + bend * 0.9 + gap * 0.42), (half * 0.45, gap * 0.16), (190, 90, 90))


def _paint_glasses(canvas: Canvas, person: Person, at: Point) -> None:
    x, y = at
    for sign in (-1, 1):
        ring = [
            (x + sign * person.gap + 18 * math.cos(a / 16 * math.pi), y + 15 * math.sin(a / 16 * math.pi))
            for a in range(33)
        ]
        canvas.line(ring, (40, 38, 42), 2.4)
        canvas.line([(x + sign * (person.gap + 18), y - 3), (x + sign * person.width, y - 6)], (40, 38, 42), 2.4)
    canvas.line(curve((x - person.gap + 18, y - 3), (x + person.gap - 18, y - 3), -3), (40, 38, 42), 2.4)


def _paint_hair(canvas: Canvas, person: Person) -> None:
    if person.style == 3:
        return
    top, wide = 108 - person.length, person.width
    start = 1.05 if person.style == 1 else 1.12
    angles = [math.pi * (start + (3 - 2 * start) * step / 32) for step in range(33)]
    cap = [(100 + (wide + 3) * math.cos(a), 108 + (person.length + 5) * math.sin(a)) for a in angles]
    left, right = (100 - wide * 0.96, cap[0][1]), (100 + wide * 0.96, cap[-1][1])
    if person.style == 1:
        parting = (106.0, top + 12)
        line = curve(right, parting, -10) + curve(parting, left, -12)
    else:
        line = curve(right, left, (-16 if person.style == 4 else -34) + (82 - right[1]))
    canvas.shape(cap + line, person.hair)
    canvas.glow((84, top + 6), 16, shade(person.hair, 1.5), 0.3)
