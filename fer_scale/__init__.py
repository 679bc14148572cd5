"""Search, fit, label and serve facial expression networks on Ray, from a laptop to a cluster.

Each verb of the command line is one function here, and returns as a dict what `--json` prints::

    import fer_scale

    fer_scale.ingest("faces/", "store")
    fer_scale.tune("store", out="search", time_budget="40m")
    fer_scale.train("store", out="bundle", from_search="search")
    fer_scale.label("bundle", "s3://bucket/faces", "s3://bucket/labels")
    fer_scale.certify("s3://bucket/labels")

Nothing heavy is imported before it is used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fer_scale.errors import FerScaleError, InputError, MissingPathError

if TYPE_CHECKING:
    from fer_scale.bundle import Bundle
    from fer_scale.faces.store import Store
    from fer_scale.predictor import Predictor
    from fer_scale.verbs.certify import certify
    from fer_scale.verbs.doctor import doctor
    from fer_scale.verbs.evaluate import evaluate
    from fer_scale.verbs.ingest import ingest
    from fer_scale.verbs.label import label
    from fer_scale.verbs.serve import serve
    from fer_scale.verbs.train import train
    from fer_scale.verbs.tune import tune

__version__ = "0.1.0"

__all__ = [
    "Bundle",
    "FerScaleError",
    "InputError",
    "MissingPathError",
    "Predictor",
    "Store",
    "__version__",
    "certify",
    "doctor",
    "evaluate",
    "ingest",
    "label",
    "serve",
    "train",
    "tune",
]

_HOME = {
    "Bundle": "fer_scale.bundle",
    "Predictor": "fer_scale.predictor",
    "Store": "fer_scale.faces.store",
    **{
        verb: f"fer_scale.verbs.{verb}"
        for verb in ("certify", "doctor", "evaluate", "ingest", "label", "serve", "train", "tune")
    },
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'fer_scale' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
