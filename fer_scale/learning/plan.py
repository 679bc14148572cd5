"""What one fit is: told to every worker, and laid down beside its checkpoints, to be gone on with as it began."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from fer_scale import storage
from fer_scale.errors import InputError
from fer_scale.faces.store import Store


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One fit, as every worker is told it."""

    store: str
    checkpoints: str
    configuration: dict[str, Any]
    epochs: int | None
    """None: by the clock."""
    seconds: float | None
    """Wall time from ``began`` to the last step."""
    began: float
    """Unix time at which the command began."""
    init_from: str | None
    """A bundle whose weights it begins with."""
    seed: int
    threads: int
    """Of each worker."""
    gpu: bool
    """Whether each worker has a GPU."""
    streamed: bool
    """Whether faces are read as they are needed, rather than kept in memory."""
    lease: tuple[str, str] | None = None
    """Of the run that the checkpoints are written for, as `fer_scale.lease.held` takes it; None where there is none."""
    weights: str | None = None
    """What the network began with where the command runs, which every worker has to find too."""

    @property
    def path(self) -> str:
        """Where it is laid down."""
        return storage.join(self.checkpoints, "plan.json")

    def laid_down(self, faces: Store) -> "Plan":
        """Write down what the fit is, or see that it is what it began as.

        Returns:
            The plan to go on with: whether faces are streamed decides their order, and stays as it was at the
            beginning, whatever memory is free now.

        Raises:
            InputError: something is not as the fit began with.
        """
        whole = asdict(self)
        mine = {key: whole[key] for key in ("configuration", "epochs", "init_from", "seed")} | source(faces)
        if not storage.exists(self.path):
            storage.write_bytes(self.path, json.dumps({**mine, "streamed": self.streamed}).encode())
            return self
        theirs = storage.read_json(self.path)
        check_same(theirs, mine)
        return replace(self, streamed=theirs["streamed"])


def source(faces: Store) -> dict[str, Any]:
    """What a fit learns from."""
    return {"fingerprint": faces.fingerprint, "classes": faces.classes}


def check_same(theirs: Mapping[str, Any], mine: Mapping[str, Any]) -> None:
    """Refuse to go on with another fit than that which began.

    Raises:
        InputError: naming what is not the same.
    """
    if changed := [key for key in mine if theirs.get(key) != mine[key]]:
        raise InputError(
            f"--resume with another {', '.join(changed)}",
            "what the fit began with",
            "repeat its command, or --overwrite",
        )
