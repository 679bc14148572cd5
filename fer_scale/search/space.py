"""The space a search draws from: family first, then what that family has, then how it is fitted."""

import dataclasses
import json
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

RATES = {"sgd": (0.01, 0.3), "adamw": (2e-4, 6e-3)}
DECAYS = {"sgd": (1e-5, 2e-3), "adamw": (1e-3, 0.2)}


class OptunaPick:
    """Draws from an Optuna trial; what the user fixed is not drawn.

    A family's own parameters carry its name (``resnet.variant``), so that the space is a tree for grouped TPE.
    """

    def __init__(self, trial: optuna.Trial, prefix: str, fixed: Mapping[str, Any]) -> None:
        self._trial = trial
        self._prefix = prefix
        self._fixed = fixed

    def choice(self, name: str, values: Sequence[T]) -> T:
        """One of ``values``."""
        key = self._prefix + name
        if self._fixes(name):
            return self._value(name)  # type: ignore[no-any-return]
        # a choice of one is no parameter: it would only be ballast for the sampler
        return values[0] if len(values) == 1 else self._trial.suggest_categorical(key, list(values))  # type: ignore[return-value]

    def float(self, name: str, low: float, high: float, log: bool = False) -> float:
        """A number in ``low <= x <= high``."""
        if self._fixes(name):
            return self._value(name)  # type: ignore[no-any-return]
        return self._trial.suggest_float(self._prefix + name, low, high, log=log)

    def int(self, name: str, low: int, high: int) -> int:
        """A whole number in ``low <= x <= high``."""
        if self._fixes(name):
            return self._value(name)  # type: ignore[no-any-return]
        return self._trial.suggest_int(self._prefix + name, low, high)

    def _fixes(self, name: str) -> bool:
        return self._prefix + name in self._fixed or name in self._fixed

    def _value(self, name: str) -> Any:
        return self._fixed[self._prefix + name if self._prefix + name in self._fixed else name]


def suggest(trial: optuna.Trial, families: Sequence[str], fixed: Mapping[str, Any]) -> Configuration:
    """Draw one configuration, define-by-run (Akiba et al. 2019, section 2)."""
    name = trial.suggest_categorical("family", list(families))
    family = FAMILIES[name]
    own = OptunaPick(trial, f"{name}.", fixed)
    network = family.suggest(own)
    preprocessing = Preprocessing(
        size=own.choice("size", family.INPUTS["size"]),
        channels=own.choice("channels", family.INPUTS["channels"]),
    )
    recipe = suggest_recipe(OptunaPick(trial, "", fixed))
    drawn = Configuration(family=name, network=network, preprocessing=preprocessing, recipe=recipe)
    return drawn.with_fixed(fixed)  # what is fixed may be something that is not drawn, such as ema


def suggest_recipe(pick: Pick) -> Recipe:
    """Draw how to fit. Rates and decays have ranges of their own for each optimiser, so they are named by it."""
    optimizer = pick.choice("optimizer", ["sgd", "adamw"])
    values: dict[str, Any] = {
        "optimizer": optimizer,
        "lr": pick.float(f"{optimizer}.lr", *RATES[optimizer], log=True),
        "weight_decay": pick.float(f"{optimizer}.weight_decay", *DECAYS[optimizer], log=True),
        "warmup": pick.choice("warmup", [0.3, 0.05]),
        "batch_size": pick.choice("batch_size", [32, 64, 128]),
        "label_smoothing": pick.float("label_smoothing", 0.0, 0.2),
        "mixup": pick.choice("mixup", [0.0, 0.2]),
        "augmentation": pick.float("augmentation", 0.3, 1.5),
        "class_weighting": pick.choice("class_weighting", [0.0, 0.5]),
        "layer_decay": pick.float("layer_decay", 0.6, 1.0),
    }
    return Recipe(**values)


def check_fixed(fixed: Mapping[str, Any], families: Sequence[str]) -> dict[str, Any]:
    """Check what the user fixed (``optimizer=sgd``, ``size=48``, ``resnet.variant=resnet18``) and give it typed.

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
        checked[key] = _parsed(value)
        if key.endswith(".weights") and checked[key] not in ("auto", "imagenet", "none"):
            checked[key] = storage.normal(str(checked[key]))
    for name, reference in references.items():
        _check_together(reference, Configuration.from_dict({"family": name, **STARTS.get(name, {})}), checked)
    for name in RATES:
        for key in ("lr", "weight_decay"):
            if key in checked:
                checked[f"{name}.{key}"] = checked[key]
    return checked


def _check_together(reference: Configuration, start: Configuration, fixed: Mapping[str, Any]) -> None:
    """A family's fixed values must go with one of its known configurations: alone some of them are impossible."""
    try:
        reference.with_fixed(fixed)
    except InputError:
        start.with_fixed(fixed)


def _parsed(value: Any) -> Any:
    """A value from the command line: a number, true, false or null where it reads like one, else text."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        return value
