"""Where a search starts in each family, besides the source's reference: what has worked best for us so far.

Each is a configuration as `train --config` reads it.
"""

from typing import Any

SGD: dict[str, Any] = {"optimizer": "sgd", "lr": 0.05, "weight_decay": 5e-4}

STARTS: dict[str, dict[str, Any]] = {
    "resnet": {
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
    },
    "efficientnet": {
        "network": {"dropout": 0.5},
        "preprocessing": {"size": 96, "channels": 1},
        "recipe": {"lr": 2e-3},
    },
    "cnn2": {"preprocessing": {"size": 48, "channels": 1}, "recipe": SGD},
    "complex_cnn": {"preprocessing": {"size": 48, "channels": 1}, "recipe": SGD},
    "cnn1": {"preprocessing": {"size": 48, "channels": 1}, "network": {"width": 1.5}},
    "vgg16": {
        "network": {"variant": "vgg11_bn", "dense": "256"},
        "preprocessing": {"size": 48, "channels": 1},
    },
}
"""By family, in the order in which families start. Successive halving compares with what came before, so that what
is most likely to be good goes first and sets the mark."""
