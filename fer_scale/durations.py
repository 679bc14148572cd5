"""Spans of time and amounts of memory as people write them."""

import re

from fer_scale.errors import InputError

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}

BYTES = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def parse_bytes(text: str | int, what: str) -> int:
    """Bytes of ``8GB``, ``500M`` or a plain number; K, M, G and T are powers of 1024.

    Raises:
        InputError: anything else, or nothing above zero.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", str(text).strip(), re.IGNORECASE)
    amount = int(float(found[1]) * BYTES[found[2].upper()]) if found else 0
    if amount <= 0:
        raise InputError(f"{what} {text!r}", "an amount like 8GB or 500MB", "correct it")
    return amount


def parse_seconds(text: str | float, what: str) -> float:
    """Seconds of ``90``, ``90s``, ``40m``, ``2h`` or ``1h30m``.

    Raises:
        InputError: anything else, or nothing above zero.
    """
    if isinstance(text, int | float) or re.fullmatch(r"\d+(\.\d+)?", text.strip()):
        seconds = float(text)
    elif re.fullmatch(r"(\d+(\.\d+)?[smhd]\s*)+", text.strip()):
        seconds = sum(float(n) * UNITS[unit] for n, _, unit in re.findall(r"(\d+(\.\d+)?)([smhd])", text))
    else:
        raise InputError(f"{what} {text!r}", "a time like 90s, 40m, 2h or 1h30m", "correct it")
    if not 0 < seconds < float("inf"):
        raise InputError(f"{what} {text!r}", "a time above zero", "correct it")
    return seconds


def duration(seconds: float) -> str:
    """``4000`` -> ``"1 h 7 min"``; ``95`` -> ``"1 min 35 s"``; ``7.2`` -> ``"7.2 s"``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s" if whole >= 60 else f"{whole} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
