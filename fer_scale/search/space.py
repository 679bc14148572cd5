"""The space a search draws from: family first, then what that family has, then how it is fitted."""

import contextlib
import dataclasses
import json
import tomllib
from collections.abc import Mapping, Sequence
from typing import Any

import optuna

from fer_scale import storage
from fer_scale.errors import InputError
from fer_scale.faces.images import Preprocessing
from fer_scale.families import FAMILIES
from fer_scale.families.picking import Pick, T
from fer_scale.learning.configuration import Configuration
from fer_scale.learning.recipe import Recipe
from fer_scale.search.starts import STARTS

BY_OPTIMIZER = ("lr", "weight_decay")
"""Drawn from a range of its own for each optimiser, and so named by it."""
RATES = {"sgd": (0.01, 0.3), "adamw": (2e-4, 6e-3)}
DECAYS = {"sgd": (1e-5, 2e-3), "adamw": (1e-3, 0.2)}


class OptunaPick:
    """Draws from an Optuna trial; what the user fixed is not drawn, what he narrowed is drawn from that.

    A family's own parameters carry its name (``resnet.variant``), so that the space is a tree for grouped TPE.
    """

    def __init__(self, trial: optuna.Trial, prefix: str, fixed: Mapping[str, Any]) -> None:
        self._trial = trial
        self._prefix = prefix
        self._fixed = fixed
        self.asked: set[str] = set()

    def choice(self, name: str, values: Sequence[T]) -> T:
        """One of ``values``."""
        given = self._given(name, list(values))
        if isinstance(given, dict):
            given = [value for value in values if given["low"] <= value <= given["high"]]
            if not given:
                raise InputError(f"fix {name} to a range", f"one with any of {list(values)}", "widen it")
        return self._one_of(name, given if isinstance(given, list) else [given])  # type: ignore[no-any-return]

    def float(self, name: str, low: float, high: float, log: bool = False) -> float:
        """A number in ``low <= x <= high``."""
        given = self._given(name, {"low": low, "high": high})
        if isinstance(given, dict):
            return self._trial.suggest_float(self._prefix + name, given["low"], given["high"], log=log)
        return self._one_of(name, given if isinstance(given, list) else [given])  # type: ignore[no-any-return]

    def _given(self, name: str, usual: Any) -> Any:
        self.asked |= {name, self._prefix + name}
        return self._fixed.get(self._prefix + name, self._fixed.get(name, usual))

    def _one_of(self, name: str, values: list[Any]) -> Any:
        # a choice of one is no parameter: it would only be ballast for the sampler
        return values[0] if len(values) == 1 else self._trial.suggest_categorical(self._prefix + name, values)


def suggest(trial: optuna.Trial, families: Sequence[str], fixed: Mapping[str, Any]) -> Configuration:
    """Draw one configuration, define-by-run (Akiba et al. 2019, section 2)."""
    name = trial.suggest_categorical("family", list(families))
    family = FAMILIES[name]
    own, shared = OptunaPick(trial, f"{name}.", fixed), OptunaPick(trial, "", fixed)
    network = family.suggest(own)
    preprocessing = Preprocessing(
        size=own.choice("size", family.INPUTS["size"]),
        channels=own.choice("channels", family.INPUTS["channels"]),
    )
    recipe = suggest_recipe(shared, pictures=getattr(network, "unfreeze", None) != 0)
    drawn = Configuration(family=name, network=network, preprocessing=preprocessing, recipe=recipe)
    further = {key: given for key, given in fixed.items() if key not in own.asked | shared.asked | set(BY_OPTIMIZER)}
    put = {}
    for key, given in further.items():  # what a search does not draw, such as ema
        if "." not in key or key.startswith(f"{name}."):
            put[key] = shared.float(key, **given) if isinstance(given, dict) else shared.choice(key, [given])
    return drawn.with_fixed(put)


def pinned(fixed: Mapping[str, Any], configuration: Configuration) -> dict[str, Any]:
    """One value for each name: what is fixed; of what is narrowed the configuration's own or the nearest."""
    whole = configuration.to_dict()
    own = {**whole["recipe"], **whole["preprocessing"]}
    own |= {f"{configuration.family}.{name}": value for name, value in whole["network"].items()}
    return {key: _nearest(own[key], given) for key, given in fixed.items() if key in own}


def _nearest(value: Any, given: Any) -> Any:
    if isinstance(given, list):
        return value if value in given else given[0]
    return min(max(value, given["low"]), given["high"]) if isinstance(given, dict) else given


def suggest_recipe(pick: Pick, *, pictures: bool) -> Recipe:
    """Draw how to fit; what changes the pictures only where they are seen, and not a frozen backbone's features."""
    optimizer = pick.choice("optimizer", ["sgd", "adamw"])
    mixup = pick.choice("mixup", [0.0, 0.2]) if pictures else 0.0
    values: dict[str, Any] = {
        "optimizer": optimizer,
        "lr": pick.float(f"{optimizer}.lr", *RATES[optimizer], log=True),
        "weight_decay": pick.float(f"{optimizer}.weight_decay", *DECAYS[optimizer], log=True),
        "warmup": pick.choice("warmup", [0.3, 0.05]),
        "batch_size": pick.choice("batch_size", [32, 64, 128]),
        "label_smoothing": pick.float("label_smoothing", 0.0, 0.2),
        "mixup": mixup,
        "cutmix": 0.0 if mixup or not pictures else pick.choice("cutmix", [0.0, 1.0]),
        "augmentation": pick.float("augmentation", 0.3, 1.5) if pictures else 0.0,
        "class_weighting": pick.choice("class_weighting", [0.0, 0.5]),
        "layer_decay": pick.float("layer_decay", 0.6, 1.0),
    }
    return Recipe(**values)


def check_fixed(fixed: Mapping[str, Any], families: Sequence[str]) -> dict[str, Any]:
    """Check what the user fixed (``optimizer=sgd``) or narrowed (``size=48,64``, ``lr=0.01..0.1``) and give it typed.

    Returns:
        Each name's one value, its list of values, or its range as ``{"low": 0.01, "high": 0.1}``.

    Raises:
        InputError: an unknown name, with the valid ones, or a value of the wrong type or out of range.
    """
    references = {name: Configuration.reference(name) for name in families}
    shared = [f.name for f in dataclasses.fields(Recipe)] + [f.name for f in dataclasses.fields(Preprocessing)]
    own = [f"{name}.{f.name}" for name, r in references.items() for f in dataclasses.fields(r.network)]
    checked: dict[str, Any] = {}
    for key, value in fixed.items():
        if key not in (*shared, *own):
            raise InputError(f"fix {key}={value}", f"one of {', '.join(sorted(shared + own))}", "correct the name")
        checked[key] = _parsed(key, value)
    for name, reference in references.items():
        start = Configuration.from_dict({"family": name, **STARTS.get(name, [{}])[0]})
        _check_together(reference, start, pinned(checked, reference), pinned(checked, start))
        for key, given in checked.items():
            for value in _members(given):
                alone = pinned({key: value}, reference)
                _check_together(reference, start, {**pinned(checked, reference), **alone}, alone)
    for name in RATES:
        for key in BY_OPTIMIZER:
            if key in checked:
                checked[f"{name}.{key}"] = checked[key]
    return checked


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
    flat = {}
    for key, value in values.items():
        nested = {f"{key}.{name}": one for name, one in value.items()} if key in FAMILIES else {key: value}
        flat.update(nested)
    return flat


def _parsed(key: str, value: Any) -> Any:
    """One value, a list, or a range as a dict; text from the command line is read as JSON where it reads like it."""
    if key.endswith(".weights") and isinstance(value, str):
        return value if value in ("auto", "imagenet", "none") else storage.normal(value)
    if isinstance(value, str) and "," in value and not value.startswith("["):
        value = value.split(",")
    if isinstance(value, str) and ".." in value:
        low, high = (_parsed(key, end) for end in value.split("..", 1))
        if not all(isinstance(end, int | float) for end in (low, high)) or not low <= high:
            raise InputError(f"fix {key}={value}", "a range as 0.01..0.1", "correct it")
        return {"low": low, "high": high}
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            value = json.loads(value)
    if isinstance(value, list | tuple):
        members = [_parsed(key, one) for one in value]
        if not members or any(isinstance(one, list | dict) for one in members):
            raise InputError(f"fix {key}={value}", "values, as 48,64", "correct it")
        return members[0] if len(members) == 1 else members
    if isinstance(value, dict) and set(value) != {"low", "high"}:
        raise InputError(f"fix {key}={value}", "a value, a list of values, or a range as 0.01..0.1", "correct it")
    return value
