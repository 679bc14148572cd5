"""Checks that the families' configurations share."""

from fer_scale.errors import InputError


def one_of(name: str, value: object, valid: tuple[object, ...]) -> None:
    """Refuse a value that is not in ``valid``.

    Raises:
        InputError: naming the valid values.
    """
    if value not in valid:
        raise InputError(f"{name}={value!r}", f"one of {', '.join(map(str, valid))}", f"choose another {name}")


def between(name: str, value: float, low: float, high: float) -> None:
    """Refuse a number outside ``low <= value <= high``.

    Raises:
        InputError: naming the range.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise InputError(f"{name}={value!r}", f"a number from {low:g} to {high:g}", f"choose another {name}")


def dense_widths(dense: str) -> list[int]:
    """The widths that a dense head's text says: ``"512-256"`` gives [512, 256], ``"none"`` gives [].

    Raises:
        InputError: the text is something else, or a width is not from 1 to 8192.
    """
    if dense == "none":
        return []
    parts = str(dense).split("-")
    if not all(part.isdecimal() and 1 <= int(part) <= 8192 for part in parts):
        expected = "widths from 1 to 8192 joined by '-', such as 512-256, or none"
        raise InputError(f"dense={dense!r}", expected, "choose another dense")
    return [int(part) for part in parts]
