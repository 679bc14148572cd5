"""The optional bearer token: read from a file, kept as its hash alone."""

import hashlib
import os
from pathlib import Path

from fer_scale.errors import InputError


def read_token(path: str | os.PathLike[str]) -> str:
    """The hex SHA-256 of the token in a file; the token itself goes no further.

    Raises:
        InputError: no such file, or a token that is empty, short or not of visible ASCII characters.
    """
    try:
        token = Path(path).read_text(encoding="ascii").strip()
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not ASCII"
        raise InputError(f"token file {path} ({reason})", "a text file with one token", "check the path") from None
    if len(token) < 16 or not all("!" <= character <= "~" for character in token):
        raise InputError(
            f"token file {path} with {len(token)} characters",
            "one token of at least 16 visible ASCII characters",
            "make one: openssl rand -hex 32",
        )
    return hashlib.sha256(token.encode()).hexdigest()
