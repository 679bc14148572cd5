"""What a search began with, in its folder's ``search.json``: a search that goes on keeps to it."""

import json
from collections.abc import Mapping
from typing import Any

from fer_scale import storage
from fer_scale.errors import InputError

KEPT = ("fingerprint", "families", "fixed", "seed", "cpus_per_trial", "gpus_per_trial")
"""What must be the same for a search to go on: the last two decide what a second of compute is worth."""


def settled(out: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the search in a folder, or those given where it holds none yet.

    Raises:
        InputError: the search there began with others, or the folder holds something else.
    """
    path = storage.join(out, "search.json")
    if not storage.exists(path):
        _check_free(out)
        return dict(given)
    # an earlier version's search does not say what its trials had: from here on it is what they have now
    earlier: dict[str, Any] = {**given, **storage.read_json(path)}
    for key in KEPT:
        then, now = earlier[key], given[key]
        if then != now and not (key == "families" and sorted(then) == sorted(now)):
            raise InputError(
                f"--resume of {out} with {key} {now}",
                f"{then} as the search began with",
                "give the same store and options, or another --out",
            )
    return earlier


def _check_free(out: str) -> None:
    """Refuse a folder that holds something else, such as a report or a bundle; a lease may be of a killed run."""
    files = () if storage.is_empty(out) else storage.list_files(out)
    names = (storage.name(file.path) for file in files)
    if found := next((name for name in names if name != "lease.json" and not name.startswith(".")), None):
        raise InputError(
            f"--resume of {out}, which holds {found} and no search.json",
            "a search, or an empty folder",
            "correct --out",
        )


def write(out: str, settings: Mapping[str, Any]) -> None:
    """Write them down, at once."""
    storage.write_bytes(storage.join(out, "search.json"), json.dumps(settings, indent=2).encode())
