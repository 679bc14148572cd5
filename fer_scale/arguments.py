"""Lists, pairs and seeds as people give them."""

from collections.abc import Sequence

from fer_scale.errors import InputError


def check_seed(seed: int) -> None:
    """Refuse what NumPy, PyTorch or Optuna does not take, before any work is done.

    Raises:
        InputError: it is no whole number from 0 to 2^32 - 1.
    """
    if not (is_whole(seed) and 0 <= seed < 2**32):
        raise InputError(f"seed {seed}", f"a whole number from 0 to {2**32 - 1}", "give another")


def is_whole(value: object) -> bool:
    """Whether it is an int, and none of Python's True and False."""
    return isinstance(value, int) and not isinstance(value, bool)


def words(text: Sequence[str] | str | None) -> list[str] | None:
    """``["a,b", "c"]`` -> ``["a", "b", "c"]``; None stays None."""
    if text is None:
        return None
    parts = [text] if isinstance(text, str) else text
    return [word.strip() for part in parts for word in part.split(",") if word.strip()]


def pairs(texts: Sequence[str] | None, option: str) -> dict[str, str]:
    """``["a=b,c=d"]`` -> ``{"a": "b", "c": "d"}``.

    Raises:
        InputError: a pair has no ``=`` or an empty side.
    """
    found = {}
    for word in words(texts) or ():
        key, equals, value = (part.strip() for part in word.partition("="))
        if not equals or not key or not value:
            raise InputError(f"{option} {word!r}", "pairs as in a=b,c=d", "write both sides of the =")
        found[key] = value
    return found


def settings(texts: Sequence[str] | None) -> dict[str, str]:
    """``["lr=0.2", "resnet.dense=512-256"]`` -> each value as the text that it is, commas and all."""
    found = {}
    for text in texts or ():
        key, equals, value = (part.strip() for part in text.partition("="))
        if not equals or not key:
            raise InputError(f"--fix {text!r}", "key=value", "write both sides of the =")
        found[key] = value
    return found
