"""What made a result: versions and the commit, for every file that others will read later."""

import functools
import platform
import subprocess
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

from fer_scale import __version__

LIBRARIES = ("ray", "torch", "torchvision", "timm", "optuna", "onnxruntime", "numpy", "pillow")


def versions(libraries: Iterable[str] = LIBRARIES) -> dict[str, str]:
    """Of Python, this package and libraries; ``none`` of one that is not installed."""
    found = {"fer_scale": __version__, "python": platform.python_version()}
    for library in libraries:
        try:
            found[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            found[library] = "none"
    return found


@functools.cache
def _commit() -> str | None:
    """The commit of the source tree, where it is one."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    run = subprocess.run(
        ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"],
        capture_output=True,
        text=True,
        check=False,
    )
    return run.stdout.strip() or None


def provenance() -> dict[str, Any]:
    """``versions`` of the libraries and ``commit`` of the source tree (None outside one)."""
    return {"versions": versions(), "commit": _commit()}
