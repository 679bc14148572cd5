"""Bytes to pixels: every mode and format alike, hostile bytes refused with a reason."""

import io
import struct
import threading
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from fer_scale.errors import InputError
from fer_scale.faces import images
from fer_scale.faces.images import ImageError, Preprocessing, decode, encode_png, pixel_sha256, prepare

GRAY = np.random.default_rng(0).integers(0, 256, (40, 30), dtype=np.uint8)


def encoded(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=format, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_mode_becomes_uint8_of_the_shape_asked_for(mode, channels):
    source = Image.fromarray(GRAY)
    image = Image.fromarray(GRAY.astype(np.uint16) * 257) if mode == "I;16" else source.convert(mode)
    data = encoded(image, "TIFF" if mode in ("CMYK", "F", "I") else "PNG")
    array = prepare(data, Preprocessing(size=32, channels=channels))
    assert array.shape == (channels, 32, 32)
    assert array.dtype == np.uint8
    if mode not in ("1", "P"):
        plain = prepare(encode_png(GRAY), Preprocessing(size=32, channels=channels))
        assert np.abs(array.astype(int) - plain).mean() < 2.5


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "PPM", "WEBP", "GIF"])
def test_lossless_formats_give_the_same_pixels(format):
    options = {"lossless": True} if format == "WEBP" else {}
    image = decode(encoded(Image.fromarray(GRAY), format, **options)).convert("L")
    assert np.array_equal(np.asarray(image), GRAY)


def test_pictures_are_turned_upright():
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to show it
    image = decode(encoded(Image.fromarray(GRAY), "PNG", exif=exif))
    assert image.size == (40, 30)
    assert np.array_equal(np.asarray(image), np.rot90(GRAY, -1))


def test_see_through_pixels_become_white():
    rgba = np.zeros((4, 4, 4), dtype=np.uint8)
    rgba[0, 0] = (10, 20, 30, 255)
    pixels = np.asarray(decode(encoded(Image.fromarray(rgba))))
    assert pixels[0, 0].tolist() == [10, 20, 30]
    assert (pixels[1:] == 255).all()


@pytest.mark.parametrize("mode", ["LA", "P", "RGBA", "CMYK", "I;16", "I", "F"])
def test_large_pictures_are_changed_in_bands_to_the_same_pixels(mode, monkeypatch):
    source = Image.fromarray(GRAY)
    image = Image.fromarray(GRAY.astype(np.uint16) * 257) if mode == "I;16" else source.convert(mode)
    if mode in ("LA", "RGBA"):
        image.putalpha(Image.fromarray(GRAY[::-1].copy()))
    options = {"transparency": 3} if mode == "P" else {}
    data = encoded(image, "TIFF" if mode in ("CMYK", "F", "I") else "PNG", **options)
    whole = decode(data)
    monkeypatch.setattr(images, "BAND_PIXELS", 100)
    again = decode(data)
    assert (again.mode, again.size, again.tobytes()) == (whole.mode, whole.size, whole.tobytes())


def test_broken_metadata_leaves_the_picture_readable():
    for exif in (b"MM\0*\0\0\0\x08\xff\xff", b"II*\0\x08\0\0\0\1\0\x12\1\3\0\xff\xff\xff\xff\0\0\0\0", b"x" * 2**21):
        for format in ("PNG", "JPEG", "WEBP"):
            if format != "JPEG" or len(exif) < 2**16:
                assert decode(encoded(Image.fromarray(GRAY), format, exif=b"Exif\0\0" + exif)).size == (30, 40)


def test_the_hash_is_of_pixels_mode_and_size_alone():
    image = Image.fromarray(GRAY)
    small, large = encoded(image, compress_level=9), encoded(image, compress_level=0)
    assert small != large
    assert pixel_sha256(decode(small)) == pixel_sha256(decode(large))
    others = [image.convert("RGB"), Image.fromarray(GRAY.reshape(30, 40)), image.rotate(180)]
    assert len({pixel_sha256(other) for other in [image, *others]}) == 4


def test_the_middle_square_is_kept():
    wide = np.zeros((20, 60), dtype=np.uint8)
    wide[:, 20:40] = GRAY[:20, :20]
    assert np.array_equal(prepare(encode_png(wide), Preprocessing(size=20))[0], GRAY[:20, :20])


def bomb(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds nothing."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"not a picture", "undecodable"),
        (encode_png(GRAY)[:300], "truncated"),
        (encoded(Image.fromarray(GRAY), "JPEG")[:-200], "truncated"),
        (bomb(8000, 8000), "too_large"),
        (bomb(60000, 60000), "too_large"),
        (bytes(33 * 2**20), "too_large"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "undecodable"),
        (b"GIF89a" + bytes(20), "undecodable"),
    ],
)
def test_bytes_that_are_no_picture_say_why(data, reason):
    with pytest.raises(ImageError) as caught:
        decode(data)
    assert caught.value.reason == reason
    assert caught.value.detail
    assert "\n" not in caught.value.detail


def test_threads_leave_the_warning_filters_as_they_were():
    before = list(warnings.filters)
    data = encode_png(GRAY)
    threads = [threading.Thread(target=lambda: [decode(data) for _ in range(200)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(warnings.filters) == before


@pytest.mark.parametrize("wrong", [{"size": 8}, {"size": 1000}, {"channels": 2}])
def test_wrong_preprocessing_is_refused(wrong):
    with pytest.raises(InputError):
        Preprocessing(**wrong)
