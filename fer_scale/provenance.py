"""What made a result: versions and the commit, for every file that others will read later."""

import functools
import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

LIBRARIES = ("ray", "torch", "torchvision", "timm", "optuna", "onnxruntime", "numpy", "pillow")


@functools.cache
def _versions() -> dict[str, str]:
    found = {name: importlib.metadata.version(name) for name in LIBRARIES}
    return {"fer_scale": own_version(), "python": platform.python_version(), **found}


def own_version() -> str:
    """The version of the package, also where it runs from a folder and is not installed."""
    try:
        return importlib.metadata.version("fer_scale")
    except importlib.metadata.PackageNotFoundError:
        return "uninstalled"


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
    return {"versions": dict(_versions()), "commit": _commit()}
