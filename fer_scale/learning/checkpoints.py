"""A fit's memory: what a killed fit goes on from, on local disk or S3, as safetensors and JSON."""

import contextlib
import json
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save

from fer_scale import storage
from fer_scale.errors import FerScaleError, InputError, MissingPathError
from fer_scale.learning.loop import Learner

KEPT = 2


class Checkpoints:
    """The checkpoints of one fit under ``path``.

    ``state.json`` names the files that belong together and is written last, each time at once: whatever is killed
    in between leaves the checkpoint before as it was.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    def state(self) -> dict[str, Any] | None:
        """What the last checkpoint says; None before the first.

        ``files`` (those kept, oldest first) and ``best_file``; ``step``; ``start``, ``used`` (seconds of the budget),
        ``began`` (of the command) and ``saved`` (seconds since the epoch); ``weights``, ``frozen`` (stages); ``curve``.
        """
        at = storage.join(self.path, "state.json")
        if not storage.exists(at):
            return None
        state: dict[str, Any] = storage.read_json(at)
        return state

    def save(self, learner: Learner, state: dict[str, Any], is_best: bool) -> None:
        """Write a checkpoint; the network to keep is written apart when it is the best so far.

        Raises:
            InputError: no space is left, or there is no access; the checkpoint before is as it was.
        """
        name = f"step-{learner.step:09d}.safetensors"
        storage.write_bytes(storage.join(self.path, name), learner.saved())
        files = [*state["files"], name]
        if is_best:
            state["best_file"] = f"best-{learner.step:09d}.safetensors"
            tensors = {key: value.contiguous() for key, value in learner.best.state_dict().items()}
            storage.write_bytes(storage.join(self.path, state["best_file"]), save(tensors))
        state["files"] = files[-KEPT:]
        state["step"] = learner.step
        storage.write_bytes(storage.join(self.path, "state.json"), json.dumps(state, indent=2).encode())
        with contextlib.suppress(FerScaleError):  # what stays costs space, and the next time it is tried again
            self._drop_others({"state.json", state["best_file"], *state["files"]})

    def _drop_others(self, kept: set[str]) -> None:
        there = {storage.name(info.path): info.path for info in storage.list_files(self.path)}
        # what a kill left half written is named .step-*.partial-*
        ours = {name for name in there if name.endswith(".safetensors") or ".partial-" in name}
        storage.delete_files(there[name] for name in ours - kept)

    def load(self, learner: Learner, state: dict[str, Any]) -> None:
        """Put a learner back to where ``state`` was written.

        Where that file cannot be read, to the one before, and ``state`` with it. The best network stays, though its
        row is dropped: the same steps are taken again, and write it anew.

        Raises:
            InputError: none can be read.
        """
        for name in reversed(state["files"]):
            step = int(name.removeprefix("step-").removesuffix(".safetensors"))
            try:
                learner.load(storage.read_bytes(storage.join(self.path, name)), step)
            except (MissingPathError, SafetensorError):
                continue
            if step < state["step"]:
                curve = [row for row in state["curve"] if row["step"] <= step]
                state |= {"files": [name], "step": step, "curve": curve, "used": curve[-1]["seconds"]}
            return
        received = f"{self.path} with no checkpoint that can be read"
        raise InputError(received, f"{' or '.join(state['files'])}, whole", "begin anew with --overwrite")
