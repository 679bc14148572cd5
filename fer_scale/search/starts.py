"""Where a search starts in each family, before the source's reference: what has worked best for us so far.

Each is a configuration as `train --config` reads it.
"""

from typing import Any

SGD: dict[str, Any] = {"optimizer": "sgd", "lr": 0.05, "weight_decay": 5e-4}
FINE: dict[str, Any] = {"lr": 2e-3, "batch_size": 32, "label_smoothing": 0.02}
"""Of a network that begins with ImageNet's weights: at a batch of 32 a short fit takes enough steps."""

STARTS: dict[str, list[dict[str, Any]]] = {
    "efficientnet": [
        {
            "network": {"stem": 2, "dropout": 0.5},
            "preprocessing": {"size": size, "channels": 1},
            "recipe": FINE,
        }
        for size in (64, 96)  # a step of the second costs 2.25 times one of the first
    ],
    "resnet": [
        {
            "network": {
                "variant": "slim10",
                "width": 2.0,
                "cut": 3,
                "stem": 2,
                "dense": "none",
                "dropout": 0.2,
                "weights": "none",
            },
            "preprocessing": {"size": 48, "channels": 1},
            "recipe": SGD,
        }
    ],
    "cnn2": [{"preprocessing": {"size": 48, "channels": 1}, "recipe": SGD}],
    "complex_cnn": [{"preprocessing": {"size": 48, "channels": 1}, "recipe": SGD}],
    "cnn1": [{"preprocessing": {"size": 48, "channels": 1}, "network": {"width": 1.5}}],
    "vgg16": [
        {
            "network": {"variant": "vgg11_bn", "dense": "256"},
            "preprocessing": {"size": 48, "channels": 1},
        }
    ],
}
"""By family, in the order in which families start. What is most likely to be good goes first: of those that val cannot
tell apart it climbs first."""
