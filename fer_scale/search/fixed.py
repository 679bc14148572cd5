"""What a user fixes or narrows in the space of a search: read, typed and checked before anything is fitted."""

import contextlib
import dataclasses
import json
import random
import tomllib
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from fer_scale import storage
from fer_scale.errors import InputError, MissingPathError
from fer_scale.faces.images import Preprocessing
from fer_scale.families import FAMILIES
from fer_scale.learning.configuration import Configuration
from fer_scale.learning.recipe import Recipe
from fer_scale.search.space import BY_OPTIMIZER, DRAWS, RATES, NeverError, pinned, suggest
from fer_scale.search.starts import STARTS

NAMED = ("auto", "imagenet", "none")
"""Weights that are no path."""


def check_fixed(fixed: Mapping[str, Any], families: Sequence[str]) -> dict[str, Any]:
    """Check what the user fixed (``optimizer=sgd``) or narrowed (``size=48,64``, ``lr=0.01..0.1``) and give it typed.

    Returns:
        Each name's one value, its list of values, or its range as ``{"low": 0.01, "high": 0.1}``.

    Raises:
        InputError: an unknown name, with the valid ones, or a value of the wrong type or out of range.
    """
    references = {name: Configuration.reference(name) for name in families}
    shared = [f.name for owner in (Recipe, Preprocessing) for f in dataclasses.fields(owner)] + ["test_time_flip"]
    own = {
        f"{name}.{field}": hint
        for name, reference in references.items()
        for field, hint in typing.get_type_hints(type(reference.network)).items()
    }
    checked: dict[str, Any] = {}
    for key, value in fixed.items():
        if key not in (*shared, *own):
            raise InputError(f"fix {key}={value}", f"one of {', '.join(sorted([*shared, *own]))}", "correct the name")
        checked[key] = _parsed(key, value, text=own.get(key) is str)
    for name, reference in references.items():
        start = Configuration.from_dict({"family": name, **STARTS.get(name, [{}])[0]})
        _check_together(reference, start, pinned(checked, reference), pinned(checked, start))
        for key, given in checked.items():
            for value in _members(given):
                alone = pinned({key: value}, reference)
                _check_together(reference, start, {**pinned(checked, reference), **alone}, alone)
    _check_weights(checked)
    for name in RATES:
        for key in BY_OPTIMIZER:
            if key in checked:
                checked[f"{name}.{key}"] = checked[key]
    for name in families if checked else []:
        _check_drawn(name, checked)
    return checked


def _check_weights(fixed: Mapping[str, Any]) -> None:
    """Refuse a file that is not there: every fit of the family would find out for itself."""
    for key, given in fixed.items():
        for path in given if isinstance(given, list) else [given]:
            if key.endswith(".weights") and path not in NAMED and not storage.exists(path):
                raise MissingPathError(f"fix {key}={path}", f"{', '.join(NAMED)}, or a file", "correct it")


class _Dice:
    """Answers in place of an Optuna trial by chance."""

    def __init__(self) -> None:
        self._random = random.Random(0)

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        return self._random.choice(choices)

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        return self._random.uniform(low, high)


def _check_drawn(family: str, fixed: Mapping[str, Any]) -> None:
    """Refuse what a family's draws cannot go together with: a search would find out after its references."""
    dice, refused = _Dice(), []
    for _ in range(DRAWS):
        try:
            suggest(dice, [family], fixed)
        except NeverError:
            raise
        except InputError as error:
            refused.append(error)
    if len(refused) == DRAWS:
        raise refused[0]


def _members(given: Any) -> list[Any]:
    """The values of a list, the ends of a range."""
    return given if isinstance(given, list) else list(given.values()) if isinstance(given, dict) else []


def _check_together(
    reference: Configuration, start: Configuration, first: Mapping[str, Any], then: Mapping[str, Any]
) -> None:
    """A family's values must go with one of its known configurations: alone some of them are impossible."""
    try:
        reference.with_fixed(first)
    except InputError:
        start.with_fixed(then)


def read(path: str) -> dict[str, Any]:
    """What a file fixes and narrows, TOML or JSON: ``lr = "0.01..0.1"``; a table ``[resnet]`` for a family's own names.

    Raises:
        InputError: no such file, or it cannot be read.
    """
    try:
        text = storage.read_bytes(path).decode()
        values: dict[str, Any] = json.loads(text) if path.endswith(".json") else tomllib.loads(text)
    except ValueError as error:
        raise InputError(f"--space {path} ({error})", "TOML, or JSON in a file named .json", "correct it") from None
    tables = [key for key in FAMILIES if isinstance(values, dict) and not isinstance(values.get(key, {}), dict)]
    if not isinstance(values, dict) or tables:
        received = f"{tables[0]} = {values[tables[0]]}" if tables else type(values).__name__
        raise InputError(f"--space {path} with {received}", "names and values, a family's own in a table", "correct it")
    flat = {}
    for key, value in values.items():
        nested = {f"{key}.{name}": one for name, one in value.items()} if key in FAMILIES else {key: value}
        flat.update(nested)
    return flat


def _parsed(key: str, value: Any, *, text: bool) -> Any:
    """One value, a list, or a range as a dict; text from the command line is read as JSON where it reads like it.

    What is asked for as ``text`` stays text though it reads like a number, as the 256 of a dense head.
    """
    given = value
    parts = [part.strip() for part in value.split(",")] if isinstance(value, str) else []
    if key.endswith(".weights") and not set(parts) <= set(NAMED):
        return storage.normal(value)
    if len(parts) > 1 and not value.startswith("["):
        value = parts
    if isinstance(value, str) and ".." in value:
        low, high = (_parsed(key, end, text=text) for end in value.split("..", 1))
        value = {"low": low, "high": high}
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            read = json.loads(value)
            value = read if not text or isinstance(read, str | list) else value
    if isinstance(value, list | tuple):
        members = [_parsed(key, one, text=text) for one in value]
        if not members or any(isinstance(one, list | dict) for one in members):
            raise InputError(f"fix {key}={given}", "values, as 48,64", "correct it")
        return members[0] if len(members) == 1 else members
    if isinstance(value, dict) and not _is_range(value):
        raise InputError(f"fix {key}={given}", "a value, a list of values, or a range as 0.01..0.1", "correct it")
    return value


def _is_range(value: dict[str, Any]) -> bool:
    numbers = all(isinstance(end, int | float) for end in value.values())
    return set(value) == {"low", "high"} and numbers and value["low"] <= value["high"]
