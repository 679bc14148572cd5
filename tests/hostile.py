"""Files that nobody means well with: bombs, damage, and what only looks like a picture."""

import io
import struct
import zlib
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
ROWS = 6300
"""Height and width of just below 40 megapixels."""


def encoded(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def picture(format: str, seed: int) -> bytes:
    """A small real picture, smooth enough for every format."""
    random = np.random.default_rng(seed % 16)
    small = Image.fromarray(random.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    return encoded(small.resize((40 + seed % 16, 36), Image.Resampling.BICUBIC), format)


def damaged(data: bytes, random: np.random.Generator) -> bytes:
    found = bytearray(data)
    way = int(random.integers(4))
    at, length = int(random.integers(len(found))), int(random.integers(1, 60))
    if way == 0:
        for place in random.integers(0, len(found), int(random.integers(1, 12))):
            found[place] = int(random.integers(256))
    elif way == 1:
        del found[at : at + length]
    elif way == 2:
        found[at:at] = found[at : at + length]
    else:
        del found[at:]
    return bytes(found)


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def tiff(fields: list[tuple[int, int, int, int]], before: bytes = b"") -> bytes:
    """A TIFF of fields (tag, type, count, value), whose directory stands behind ``before``."""
    packed = b"".join(struct.pack("<HHII", *field) for field in sorted(fields))
    return b"II*\0" + struct.pack("<I", 8 + len(before)) + before + struct.pack("<H", len(fields)) + packed + bytes(4)


def _strips() -> bytes:
    many = 7_000_000
    fields = [(256, 4, 1, 1), (257, 4, 1, many), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (277, 3, 1, 1)]
    return tiff([*fields, (278, 4, 1, 1), (273, 4, many, 8), (279, 4, many, 8)], struct.pack("<I", 1) * many)


def _fax() -> bytes:
    lines = np.random.default_rng(0).integers(0, 256, 200_000, dtype=np.uint8).tobytes()
    fields = [(256, 4, 1, 30), (257, 4, 1, 1_000_000), (258, 3, 1, 1), (259, 3, 1, 3), (262, 3, 1, 0), (277, 3, 1, 1)]
    return tiff([*fields, (278, 4, 1, 1_000_000), (273, 4, 1, 8), (279, 4, 1, len(lines))], lines)


def _scans() -> bytes:
    data = encoded(Image.new("L", (ROWS, ROWS), 7), "JPEG", progressive=True)
    last = data.rfind(b"\xff\xda")
    return data[:-2] + data[last:-2] * 3000 + data[-2:]


def _gif(before: bytes) -> bytes:
    data = encoded(Image.new("P", (64, 64)), "GIF")
    at = 13 + (3 << ((data[10] & 7) + 1) if data[10] & 128 else 0)
    return data[:at] + before + data[at:]


def _png(between: bytes) -> bytes:
    data = picture("PNG", 0)
    return data[:33] + between + data[33:]


def _jpeg(between: bytes) -> bytes:
    data = picture("JPEG", 0)
    return data[:2] + between + data[2:]


@cache
def _large(side: int, see_through: bool = False) -> bytes:
    header = struct.pack(">IIBBBBB", side, side, 8, 6 if see_through else 0, 0, 0, 0)
    packer = zlib.compressobj(1)
    row = bytes(1 + side * (4 if see_through else 1))
    body = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


_MAKERS = {
    "100 megapixels": lambda: _large(10_000),
    "see-through": lambda: _large(ROWS, see_through=True),
    "tiff strips": _strips,
    "tiff values": lambda: tiff([(256, 4, 1, 10), (257, 4, 1, 10), (258, 3, 15_000_000, 8)], b"\xff\x7f" * 15_000_000),
    "tiff fax": _fax,
    "gif comments": lambda: _gif(b"\x21\xfe\1x\0" * 6_000_000),
    "gif comment": lambda: _gif(b"\x21\xfe" + b"\1x" * 15_000_000 + b"\0"),
    "gif junk": lambda: _gif(bytes(30_000_000)),
    "jpeg segments": lambda: _jpeg(b"\xff\xe5\0\2" * 7_500_000),
    "jpeg filling": lambda: _jpeg(b"\xff" * 30_000_000),
    "jpeg exif": lambda: _jpeg((b"\xff\xe1\xff\xffExif\0\0" + bytes(65527)) * 500),
    "jpeg scans": _scans,
    "png chunks": lambda: _png(chunk(b"abCd", b"") * 2_500_000),
    "png texts": lambda: _png(chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(1 << 20))) * 2000),
    "png text": lambda: _png(chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(1 << 28)))),
    "png profile": lambda: _png(chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(1 << 28)))),
    "png exif": lambda: _png(chunk(b"eXIf", tiff([(0x112, 3, 15_000_000, 8)], b"\xff\x7f" * 15_000_000))),
    "webp canvas": lambda: b"RIFF\x16\0\0\0WEBPVP8X\x0a\0\0\0\2\0\0\0\xff\xff\0\xfe\xff\0",
    "bmp header": lambda: b"BM" + struct.pack("<IIIIiiHHIIIIII", 60, 0, 54, 40, 30000, 30000, 1, 24, 0, 0, 0, 0, 0, 0),
}
BOMBS = list(_MAKERS)
HARMLESS = {"see-through", "png exif"}
"""Which are pictures all the same."""


def bomb(name: str) -> bytes:
    return _MAKERS[name]()


def mixture(folder: Path) -> dict[str, str]:
    """A folder of files that are read and files that are not; names, and reasons or nothing."""
    gray = Image.fromarray(np.random.default_rng(1).integers(0, 256, (30, 40), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    frames = [Image.new("P", (50, 50), shade) for shade in range(100)]
    deep = Image.fromarray(np.asarray(gray).astype(np.uint16) * 257)
    good = {
        **{f"{format}.{format.lower()}": picture(format, 3) for format in FORMATS},
        "16-bit.png": encoded(deep, "PNG"),
        "16-bit.tif": encoded(deep, "TIFF"),
        "cmyk.jpg": encoded(gray.convert("CMYK"), "JPEG"),
        "cmyk.tif": encoded(gray.convert("CMYK"), "TIFF"),
        "palette.png": encoded(gray.convert("P"), "PNG", transparency=3),
        "alpha.png": encoded(gray.convert("RGBA"), "PNG"),
        "alpha.webp": encoded(gray.convert("RGBA"), "WEBP"),
        "turned.jpg": encoded(gray, "JPEG", exif=exif),
        "progressive.jpg": encoded(gray, "JPEG", progressive=True),
        "frames.gif": encoded(frames[0], "GIF", save_all=True, append_images=frames * 20),
        "frames.webp": encoded(frames[0].convert("RGB"), "WEBP", save_all=True, append_images=frames[1:9]),
        "two.mpo": encoded(gray, "MPO", save_all=True, append_images=[gray]),
        "a png.jpg": picture("PNG", 1),
        "without ending": picture("JPEG", 2),
    }
    jpeg, png = picture("JPEG", 3), encoded(gray, "PNG")
    bad = {
        "empty.png": (b"", "empty"),
        "text.jpg": (b"this is not a picture at all", "undecodable"),
        "page.png": (b"<!doctype html><title>404</title>", "undecodable"),
        "cut.jpg": (jpeg[: len(jpeg) // 2], "truncated"),
        "cut.png": (png[: len(png) // 2], "truncated"),
        "begun.jpg": (jpeg[:3], "undecodable"),
        "noise.webp": (bytes(range(256)) * 4, "undecodable"),
        "zeros.tif": (bytes(5000), "undecodable"),
        "table.parquet": (b"PAR1", "undecodable"),
        "bomb.png": (_large(10_000), "too_large"),
        "bomb.webp": (bomb("webp canvas"), "too_large"),
        "bomb.bmp": (bomb("bmp header"), "too_large"),
        "segments.jpg": (_jpeg(b"\xff\xe5\0\2" * 50_000), "too_large"),
        "canvas.gif": (b"GIF89a" + struct.pack("<HHBBB", 60000, 60000, 0, 0, 0) + b",", "undecodable"),
        "many.bytes": (bytes(33 * 2**20), "too_large"),
    }
    folder.mkdir()
    for name, data in [*good.items(), *((name, data) for name, (data, _) in bad.items())]:
        (folder / name).write_bytes(data)
    return {**dict.fromkeys(good, ""), **{name: reason for name, (_, reason) in bad.items()}}
