"""The six model families, by name."""

from typing import Any, Protocol

from fer_scale.faces.images import Preprocessing
from fer_scale.families import cnn1, cnn2, complex_cnn, efficientnet, resnet, vgg16
from fer_scale.families.network import Network
from fer_scale.families.picking import Pick


class Family(Protocol):
    """What a family's module offers."""

    SIZES: list[int]
    """Search choices for ``size`` of the input, pixels a side."""

    @property
    def Config(self) -> type[Any]:
        """The family's frozen, keyword-only dataclass; checks itself."""
        ...

    def build(self, config: Any, preprocessing: Preprocessing, num_classes: int) -> Network:
        """The network of a configuration, with its weights."""
        ...

    def reference(self) -> tuple[Any, Preprocessing]:
        """The source's configuration and what its network sees."""
        ...

    def suggest(self, pick: Pick) -> Any:
        """Draw a configuration from the search space."""
        ...


FAMILIES: dict[str, Family] = {
    "cnn1": cnn1,
    "cnn2": cnn2,
    "complex_cnn": complex_cnn,
    "vgg16": vgg16,
    "resnet": resnet,
    "efficientnet": efficientnet,
}

__all__ = ["FAMILIES", "Family", "Network", "Pick"]
