"""How a family draws a configuration, whatever searches: Optuna, a random generator, or given values."""

from collections.abc import Sequence
from typing import Protocol, TypeVar

T = TypeVar("T", bound=bool | int | float | str | None)


class Pick(Protocol):
    """Draws one value a name. A configuration draws a name once, and it is the name of the field."""

    def choice(self, name: str, values: Sequence[T]) -> T:
        """One of ``values``; the list for a name is always the same."""
        ...

    def float(self, name: str, low: float, high: float, log: bool = False) -> float:
        """A number in ``low <= x <= high``, uniform, or uniform in its logarithm."""
        ...
