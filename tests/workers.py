"""Which workers of Ray Train a fit has had."""

from pathlib import Path
from typing import Any

import pytest
import ray.train

from fer_scale.verbs import train_fit


def counted(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Path:
    """A file that gets a line of each worker that begins: how many there are of its group."""
    whole, sizes = train_fit._worker, folder / "sizes"

    def worker(told: dict[str, Any]) -> Any:
        with sizes.open("a") as file:
            file.write(f"{ray.train.get_context().get_world_size()}\n")
        return whole(told)

    monkeypatch.setattr(train_fit, "_worker", worker)
    return sizes
