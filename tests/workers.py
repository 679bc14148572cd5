"""Which workers of Ray Train a fit has had."""

from pathlib import Path
from typing import Any

import pytest
import ray
import ray.train

from fer_scale.verbs import train_fit


class Workers:
    """Those that have begun, told by themselves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        whole, path = train_fit._worker, folder / "workers"

        def worker(told: dict[str, Any]) -> Any:
            with path.open("a") as file:
                size, node = ray.train.get_context().get_world_size(), ray.get_runtime_context().get_node_id()
                file.write(f"{size} {node}\n")
            return whole(told)

        monkeypatch.setattr(train_fit, "_worker", worker)
        self._path = path

    def _told(self) -> list[list[str]]:
        return [line.split() for line in self._path.read_text().splitlines()] if self._path.exists() else []

    @property
    def groups(self) -> list[int]:
        """For each of them, in their order, how many its group had."""
        return [int(size) for size, _ in self._told()]

    @property
    def nodes(self) -> set[str]:
        """Where they ran."""
        return {node for _, node in self._told()}
