"""Files that would cost a decoder minutes or gigabytes, told by their structure before one sees them.

Pillow bounds the pixels of a picture. What it does not bound is how often a few bytes may ask for work: 32 MiB have
room for eight million empty segments, for four million strips that are all the same bytes, or for a hundred thousand
scans of a progressive JPEG, each of which goes over all pixels.
"""

import struct
from itertools import islice

SMALL = 16 * 1024
"""Bytes below which nothing can cost much."""
MOST_SEGMENTS = 4096
"""Before the first pixels; what is in use needs hundreds for a profile or a depth map."""
MOST_CHUNKS = 2**17
"""Of a PNG, where encoders cut the pixels into pieces of 8 KiB and more, and of a GIF's comments, 255 bytes each."""
MOST_BYTES = 16 * 2**20
"""Before the first pixels of a JPEG."""
MOST_FILL = 64 * 1024
"""Bytes between segments that belong to none."""
MOST_SCANS = 100
"""Of a progressive JPEG; encoders write ten or so."""
MOST_VALUES = 2**19
"""In one field of a TIFF, texts and bytes aside: a palette has 196,608, and so many strips have few rows each."""
_BARE = frozenset((0x01, *range(0xD0, 0xD9)))
_BYTES = (1, 2, 7)


def costly(data: bytes) -> str:
    """What of the file is beyond all use, in a line for a person; empty where nothing is."""
    if len(data) < SMALL:
        return ""
    try:
        if data.startswith(b"\xff\xd8"):
            return _jpeg(data)
        if data.startswith(b"\x89PNG"):
            return _png(data)
        if data.startswith(b"GIF8"):
            return _gif(data)
        if data[:2] in (b"II", b"MM"):
            return _tiff(data)
    except (IndexError, struct.error):  # it ends in the middle, as its decoder will say
        return ""
    return ""


def _jpeg(data: bytes) -> str:
    at, segments, fill = 2, 0, 0
    while True:
        start = data.find(b"\xff", at)
        if start < 0:
            return ""
        marker = start + 1
        while data[marker] == 0xFF and marker - start <= MOST_FILL:
            marker += 1
        fill += marker - 1 - at
        if data[marker] == 0xDA:
            break
        segments += 1
        if segments > MOST_SEGMENTS or fill > MOST_FILL or marker > MOST_BYTES:
            return f"{segments:,} segments, {marker:,} bytes and {fill:,} bytes of filling before the first scan"
        at = marker + 1
        if data[marker] and data[marker] not in _BARE:
            at += struct.unpack_from(">H", data, at)[0]
    end = data.find(b"\xff\xd9", marker)
    scans = data.count(b"\xff\xda", start, end if end >= 0 else len(data))
    return f"{scans} scans; the limit is {MOST_SCANS}" if scans > MOST_SCANS else ""


def _png(data: bytes) -> str:
    at, chunks = 8, 0
    while at < len(data):
        chunks += 1
        if chunks > MOST_CHUNKS:
            return f"more than {MOST_CHUNKS:,} chunks"
        at += 12 + struct.unpack_from(">I", data, at)[0]
    return ""


def _gif(data: bytes) -> str:
    at = 13 + (3 << (data[10] & 7) + 1 if data[10] & 128 else 0)
    blocks = pieces = 0
    while data[at] not in b",;":
        blocks += 1
        if data[at] == 0x21:
            at += 2
            while data[at] and pieces <= MOST_CHUNKS:
                at += data[at] + 1
                pieces += 1
        at += 1
        if blocks > MOST_SEGMENTS or pieces > MOST_CHUNKS:
            return f"{blocks:,} blocks in {pieces:,} pieces before the first frame"
    return ""


def _tiff(data: bytes) -> str:
    order = "<" if data[:2] == b"II" else ">"
    if 43 in data[2:4]:
        (at,) = struct.unpack_from(f"{order}Q", data, 8)
        (fields,) = struct.unpack_from(f"{order}Q", data, at)
        layout = struct.Struct(f"{order}HHQ8x")
        at += 8
    else:
        (at,) = struct.unpack_from(f"{order}I", data, 4)
        (fields,) = struct.unpack_from(f"{order}H", data, at)
        layout = struct.Struct(f"{order}HHI4x")
        at += 2
    for _, kind, count in islice(layout.iter_unpack(data[at : at + layout.size * fields]), fields):
        if kind not in _BYTES and count > MOST_VALUES:
            return f"{count:,} values in a field; the limit is {MOST_VALUES:,}"
    return ""
