"""The space a search draws from: family first, then what that family has, then how it is fitted."""

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from fer_scale.errors import InputError
from fer_scale.faces.images import CHANNELS, Preprocessing
from fer_scale.families import FAMILIES, weights
from fer_scale.families.picking import Pick, T
from fer_scale.learning.configuration import Configuration
from fer_scale.learning.recipe import Recipe

Asked = tuple[dict[str, Any], dict[str, BaseDistribution]]
"""Parameters and their distributions."""
DRAWS = 100
"""Draws after which what is fixed is called impossible."""
BY_OPTIMIZER = ("lr", "weight_decay")
"""Drawn from a range of its own for each optimiser, and so named by it."""
UNASKED = ("thaw", "ema", "clip")
"""Numbers of a recipe that are drawn only where the user gives a range."""
RATES = {"sgd": (0.01, 0.3), "adamw": (2e-4, 6e-3)}
DECAYS = {"sgd": (1e-5, 2e-3), "adamw": (1e-3, 0.2)}


class Trial(Protocol):
    """What is asked of an Optuna trial."""

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """One of the choices."""
        ...

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """A number in ``low <= x <= high``."""
        ...


class NeverError(InputError):
    """What is fixed makes a question impossible to answer, whatever else is drawn."""


class OptunaPick:
    """Draws from an Optuna trial; what the user fixed is not drawn, what he narrowed is drawn from that.

    A family's own parameters carry its name (``resnet.variant``), so that the space is a tree for grouped TPE.
    """

    def __init__(self, trial: Trial, prefix: str, fixed: Mapping[str, Any]) -> None:
        self._trial = trial
        self._prefix = prefix
        self._fixed = fixed
        self.asked: set[str] = set()

    def choice(self, name: str, values: Sequence[T]) -> T:
        """One of ``values``."""
        given = self._given(name, list(values))
        if isinstance(given, dict):
            low, high = given["low"], given["high"]
            given = [value for value in values if _is_number(value) and low <= value <= high]
            if not given:
                valid = ", ".join("null" if value is None else str(value) for value in values)
                raise NeverError(
                    f"fix {name}={low}..{high}{self._prefix and f' for {self._prefix[:-1]}'}",
                    f"a range with any of {valid}",
                    "widen it, or give the values",
                )
        return self._one_of(name, given if isinstance(given, list) else [given])  # type: ignore[no-any-return]

    def float(self, name: str, low: float, high: float, log: bool = False) -> float:
        """A number in ``low <= x <= high``."""
        given = self._given(name, {"low": low, "high": high})
        if isinstance(given, dict):
            if log and given["low"] <= 0:
                raise NeverError(
                    f"fix {name.rpartition('.')[2]}={given['low']}..{given['high']}",
                    f"a range above 0, as {low:g}..{high:g}",
                    "raise its low end",
                )
            return self._trial.suggest_float(self._prefix + name, given["low"], given["high"], log=log)
        return self._one_of(name, given if isinstance(given, list) else [given])  # type: ignore[no-any-return]

    def _given(self, name: str, usual: Any) -> Any:
        self.asked |= {name, self._prefix + name}
        return self._fixed.get(self._prefix + name, self._fixed.get(name, usual))

    def _one_of(self, name: str, values: list[Any]) -> Any:
        # a choice of one is no parameter: it would only be ballast for the sampler
        return values[0] if len(values) == 1 else self._trial.suggest_categorical(self._prefix + name, values)


def suggest(trial: Trial, families: Sequence[str], fixed: Mapping[str, Any]) -> Configuration:
    """Draw one configuration, define-by-run (Akiba et al. 2019, section 2)."""
    name = trial.suggest_categorical("family", list(families))
    family = FAMILIES[name]
    own, shared = OptunaPick(trial, f"{name}.", fixed), OptunaPick(trial, "", fixed)
    network = family.suggest(own)
    preprocessing = Preprocessing(size=own.choice("size", family.SIZES), channels=own.choice("channels", CHANNELS))
    pretrained = hasattr(network, "weights") and weights.pretrained(network.variant, network.weights)
    recipe = suggest_recipe(shared, pretrained=pretrained, pictures=getattr(network, "unfreeze", None) != 0)
    flip = shared.choice("test_time_flip", [False, True])
    drawn = Configuration(family=name, network=network, preprocessing=preprocessing, recipe=recipe, test_time_flip=flip)
    put = {}
    for key in sorted(_values(drawn).keys() & fixed.keys() - own.asked - shared.asked - set(BY_OPTIMIZER)):
        if not isinstance(given := fixed[key], dict):
            put[key] = shared.choice(key, [given])
        elif key in UNASKED:  # any other is a question that does not come up with this draw
            put[key] = shared.float(key, **given)
    return drawn.with_fixed(put)


class _Recorder:
    """Answers in place of an Optuna trial from known values, and keeps what was asked, as a trial does.

    A number that the space cannot express becomes the nearest that it can, anything else is left out.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values
        self.params: dict[str, Any] = {}
        self.distributions: dict[str, BaseDistribution] = {}

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        value = self._values[name]
        if value not in choices:
            if not _is_number(value) or not (numbers := [choice for choice in choices if _is_number(choice)]):
                return choices[0]
            value = min(numbers, key=lambda choice: abs(choice - value))
        self.distributions[name] = CategoricalDistribution(choices)
        self.params[name] = value
        return value

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        self.distributions[name] = FloatDistribution(low, high, log=log)
        self.params[name] = min(max(self._values[name], low), high)
        return float(self.params[name])


def asked(configuration: Configuration, families: Sequence[str], fixed: Mapping[str, Any]) -> Asked:
    """The parameters that would draw a configuration, so that one that was given teaches as one that was drawn."""
    family, values = configuration.family, _values(configuration)
    values |= {"family": family, f"{family}.size": values["size"], f"{family}.channels": values["channels"]}
    values |= {f"{optimizer}.{name}": values[name] for optimizer in RATES for name in BY_OPTIMIZER}
    recorder = _Recorder(values)
    with contextlib.suppress(InputError):  # nearest values that do not go together: those before them stand
        suggest(recorder, families, fixed)
    return recorder.params, recorder.distributions


def pinned(fixed: Mapping[str, Any], configuration: Configuration) -> dict[str, Any]:
    """One value for each name: what is fixed; of what is narrowed the configuration's own or the nearest."""
    own = _values(configuration)
    return {key: _nearest(own[key], given) for key, given in fixed.items() if key in own}


def _values(configuration: Configuration) -> dict[str, Any]:
    """A configuration's values by the names by which they are fixed."""
    whole = configuration.to_dict()
    own = {f"{configuration.family}.{name}": value for name, value in whole["network"].items()}
    return {**own, **whole["recipe"], **whole["preprocessing"], "test_time_flip": whole["test_time_flip"]}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _nearest(value: Any, given: Any) -> Any:
    if isinstance(given, list):
        return value if value in given else given[0]
    if not isinstance(given, dict):
        return given
    return min(max(value, given["low"]), given["high"]) if _is_number(value) else value


def suggest_recipe(pick: Pick, *, pretrained: bool, pictures: bool) -> Recipe:
    """Draw how to fit; what changes the pictures only where they are seen, and not a frozen backbone's features.

    What docs/results.md found to be harmful is drawn less: cutmix takes half of the batches at most, and stages further
    from the head have lower rates only where they begin with something to keep.
    """
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
        "cutmix": pick.choice("cutmix", [0.0, 1.0]) if mixup else 0.0,
        "augmentation": pick.float("augmentation", 0.3, 1.5) if pictures else 0.0,
        "class_weighting": pick.choice("class_weighting", [0.0, 0.5]),
        "layer_decay": pick.float("layer_decay", 0.85, 1.0) if pretrained and pictures else 1.0,
    }
    return Recipe(**values)
