"""Everything that makes a model, as one value: what is searched over, fitted, stored in a bundle and read back."""

import dataclasses
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from fer_scale import storage
from fer_scale.errors import InputError
from fer_scale.faces.images import Preprocessing
from fer_scale.families import FAMILIES
from fer_scale.learning.recipe import Recipe

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """A family, its network, what the network sees, and how it is fitted."""

    family: str
    network: Any
    """The family's own frozen ``Config``."""
    preprocessing: Preprocessing
    recipe: Recipe
    test_time_flip: bool = False
    """Whether the fitted network averages over a picture and its mirror image, at twice the compute."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; :meth:`from_dict` reads it back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Configuration":
        """Read a configuration; what is left out takes the family's reference or the default.

        Raises:
            InputError: an unknown family or key (the valid ones are named), or a value out of range.
        """
        if not isinstance(values, dict):
            raise InputError(
                f"a configuration of {type(values).__name__}", "a JSON object", "see the docs page of train"
            )
        check_keys(values, tuple(field.name for field in dataclasses.fields(cls)), "configuration")
        reference = cls.reference(str(values.get("family", "")))
        network = replace(reference.network, values.get("network", {}), f"{reference.family} network")
        if getattr(network, "weights", "none") not in ("auto", "imagenet", "none"):
            # workers run in other folders and on other machines
            network = dataclasses.replace(network, weights=storage.normal(network.weights))
        return cls(
            family=reference.family,
            network=network,
            preprocessing=replace(reference.preprocessing, values.get("preprocessing", {}), "preprocessing"),
            recipe=replace(reference.recipe, values.get("recipe", {}), "recipe"),
            test_time_flip=_typed(values.get("test_time_flip", False), bool, "test_time_flip"),
        )

    @classmethod
    def reference(cls, family: str) -> "Configuration":
        """The source's configuration of one family.

        Raises:
            InputError: an unknown family.
        """
        if family not in FAMILIES:
            raise InputError(f"family {family!r}", f"one of {', '.join(FAMILIES)}", "name one of them")
        network, preprocessing = FAMILIES[family].reference()
        return cls(family=family, network=network, preprocessing=preprocessing, recipe=Recipe())

    def with_fixed(self, fixed: Mapping[str, Any]) -> "Configuration":
        """The same with the user's fixed values (``lr``, ``size``, ``resnet.variant``) put in."""

        def put(owner: T, prefix: str = "") -> T:
            names = {f.name for f in dataclasses.fields(owner)}  # type: ignore[arg-type]
            given = {key.removeprefix(prefix): v for key, v in fixed.items() if key.startswith(prefix)}
            return replace(owner, {key: v for key, v in given.items() if key in names}, prefix or "fix")

        return dataclasses.replace(
            self,
            network=put(self.network, f"{self.family}."),
            preprocessing=put(self.preprocessing),
            recipe=put(self.recipe),
            test_time_flip=_typed(fixed.get("test_time_flip", self.test_time_flip), bool, "fix test_time_flip"),
        )


def check_keys(values: dict[str, Any], valid: tuple[str, ...], what: str) -> None:
    """Refuse unknown keys.

    Raises:
        InputError: naming the unknown keys and the valid ones.
    """
    unknown = sorted(set(values) - set(valid))
    if unknown:
        raise InputError(f"{what} key {', '.join(unknown)}", f"only {', '.join(sorted(valid))}", "correct the name")


def replace(base: T, values: dict[str, Any], what: str) -> T:
    """A copy of the frozen dataclass ``base`` with ``values`` put in, keys and types checked.

    Raises:
        InputError: an unknown key, or a value of another type than the field's.
    """
    if not isinstance(values, dict):
        raise InputError(f"{what} of {type(values).__name__}", "a JSON object", "correct the configuration")
    hints = typing.get_type_hints(type(base))
    check_keys(values, tuple(hints), what)
    typed = {key: _typed(value, hints[key], f"{what} {key}") for key, value in values.items()}
    return dataclasses.replace(base, **typed)  # type: ignore[type-var]


def _typed(value: Any, hint: Any, what: str) -> Any:
    """JSON may write a float as an int; anything else must match."""
    origin = typing.get_origin(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None:
            return None
        hint = next(a for a in typing.get_args(hint) if a is not type(None))
        origin = typing.get_origin(hint)
    if origin is typing.Literal:
        if value in typing.get_args(hint):
            return value
        raise InputError(
            f"{what}={value!r}", f"one of {', '.join(map(str, typing.get_args(hint)))}", "name one of them"
        )
    elif hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    elif isinstance(value, hint) and (hint is bool or not isinstance(value, bool)):
        return value
    raise InputError(f"{what}={value!r}", f"a value of type {getattr(hint, '__name__', hint)}", "correct the value")
