"""The body of a request to its images: bounded, and never on disk."""

import logging
from collections.abc import AsyncGenerator

from fastapi import Request
from starlette.formparsers import MultiPartException, MultiPartParser

from fer_scale.verbs.serve.limits import Limits
from fer_scale.verbs.serve.problems import Problem

RAW = ("application/octet-stream", "application/x-www-form-urlencoded", "")
"""Types that a raw image may come under besides image/*: `curl --data-binary` calls its body a form."""

ACCEPT = {"Accept-Post": "image/*, application/octet-stream, multipart/form-data"}

# It logs each malformed body, which is no news.
logging.getLogger("python_multipart").setLevel(logging.CRITICAL)


async def read_images(request: Request, limits: Limits) -> tuple[list[str], list[bytes]]:
    """The names and the encoded images of a request, in order.

    Raises:
        Problem: 400 nothing in it or a broken multipart body, 413 too much, 415 another type.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        names, images = await _parts(request, limits)
    elif kind in RAW or kind.startswith("image/"):
        names, images = ["body"], [b"".join([chunk async for chunk in _bounded(request, limits)])]
    else:
        raise Problem(415, "media-type", f"a body of type {kind!r}; send an image, or multipart/form-data", ACCEPT)
    if not images or images == [b""]:
        raise Problem(400, "empty", "no image in the body; send its bytes, or parts with a file name", ACCEPT)
    return names, images


async def _bounded(request: Request, limits: Limits) -> AsyncGenerator[bytes, None]:
    too_large = Problem(413, "body-too-large", f"a body of more than {limits.max_bytes:,} bytes; send less at a time")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared[:20]) > limits.max_bytes:
        raise too_large
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limits.max_bytes:
            raise too_large
        yield chunk


class _Form(MultiPartParser):
    """Starlette's, which also knows whether the form's end was seen."""

    ended = False

    def on_end(self) -> None:
        """After the last boundary."""
        self.ended = True
        super().on_end()


async def _parts(request: Request, limits: Limits) -> tuple[list[str], list[bytes]]:
    async def whole() -> AsyncGenerator[bytes, None]:
        async for chunk in _bounded(request, limits):
            yield chunk
        if not parser.ended:  # the parser would give what came before, and leave the file of the last part open
            raise Problem(400, "multipart", "a form that is cut off; send all of it, up to the last boundary")

    parser = _Form(
        request.headers,
        whole(),
        max_files=limits.max_images + 1,
        max_fields=16,
        max_part_size=4096,
    )
    parser.spool_max_size = limits.max_bytes + 1  # no picture is ever written to disk
    try:
        form = await parser.parse()
    except MultiPartException as error:
        if "Too many files" in error.message:
            raise _too_many(limits) from None
        raise Problem(400, "multipart", f"{error.message} Send multipart/form-data with a boundary.") from None
    except UnicodeError:  # `charset` may name any codec of Python's, and some decode nothing
        raise Problem(400, "multipart", "a name that is not in the charset of its form; send UTF-8.") from None
    names, images = [], []
    try:
        for _, value in form.multi_items():
            if not isinstance(value, str):
                names.append((value.filename or "")[:200])
                images.append(await value.read())
    finally:
        await form.close()
    if len(images) > limits.max_images:
        raise _too_many(limits)
    return names, images


def _too_many(limits: Limits) -> Problem:
    return Problem(413, "too-many-images", f"more than {limits.max_images} images; send fewer at a time")
