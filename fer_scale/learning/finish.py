"""From the best checkpoint of a fit to the bundle: temperature, figures on val, model card."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from safetensors.torch import load

from fer_scale import bundle, storage
from fer_scale.errors import InputError
from fer_scale.faces.images import Preprocessing
from fer_scale.faces.store import Store
from fer_scale.families.network import Network
from fer_scale.learning import metrics
from fer_scale.learning.calibration import fit_temperature, probabilities
from fer_scale.learning.checkpoints import Checkpoints
from fer_scale.learning.configuration import Configuration
from fer_scale.learning.loop import logits
from fer_scale.learning.plan import Plan
from fer_scale.provenance import provenance
from fer_scale.report import render

OTHER_SECONDS = 30.0
"""Of what :func:`finish` and the command around it take, all but answering val and calib: the export most of all."""
MEASURED = 64
"""Faces that are answered to know what one takes."""
SLACK = 1.3
"""On the time that is measured: faces are also read and decoded, and the machine is not always as idle."""


def seconds_needed(configuration: Configuration, faces: Store, gpu: bool, threads: int | None) -> float:
    """About what is left to do after a fit's last step began: measured on this machine, to be kept back of its time.

    Args:
        configuration: what is fitted.
        faces: on what.
        gpu: whether GPUs answer, for which that is nothing beside the rest.
        threads: that answer; None for those of this process.
    """
    if gpu:
        return OTHER_SECONDS
    network, inputs = bundle.build(configuration, len(faces.classes), pretrained=False), configuration.preprocessing
    images = np.zeros((MEASURED, inputs.channels, inputs.size, inputs.size), dtype=np.uint8)
    took, before = [], torch.get_num_threads()
    torch.set_num_threads(threads or before)
    for _ in range(3):
        began = time.monotonic()
        logits(network, images, torch.device("cpu"))
        took.append(time.monotonic() - began)
    torch.set_num_threads(before)
    val, calib = faces.rows("val"), faces.rows("calib")
    # the last step takes about four answers a face, then the fit scores val, and finish() answers val and calib
    rows = 4 * configuration.recipe.batch_size + 2 * val + calib
    return OTHER_SECONDS + SLACK * rows * min(took) / MEASURED


@dataclass(frozen=True)
class Predictions:
    """Of the fitted network, on one split."""

    split: str
    ids: list[str]
    labels: npt.NDArray[np.int64]
    logits: npt.NDArray[np.float32]

    def table(self, temperature: float, classes: list[str]) -> pd.DataFrame:
        """A row a face: split, id, label, and the classes' calibrated probabilities."""
        shares = probabilities(self.logits, temperature)
        truth = [classes[at] for at in self.labels]
        said = {f"prob_{name}": shares[:, at] for at, name in enumerate(classes)}
        return pd.DataFrame({"split": self.split, "id": self.ids, "label": truth, **said})


def predict(plan: Plan) -> list[Predictions]:
    """What the network that a fit leaves says of val and, where there is one, of calib, in float32.

    Raises:
        InputError: the fit left no checkpoint.
    """
    device, faces = torch.device("cuda" if plan.gpu else "cpu"), Store.open(plan.store)
    inputs = Configuration.from_dict(plan.configuration).preprocessing
    network = _fitted(plan, faces)[0].to(device).to(memory_format=torch.channels_last)
    return [_of_split(network, faces, split, inputs, device) for split in ("val", "calib") if faces.rows(split)]


def finish(plan: Plan, found: list[Predictions], directory: Path) -> None:
    """Write the bundle of a fit into an empty local directory.

    Args:
        plan: the fit.
        found: by its network on val and calib.
        directory: where to.
    """
    configuration, faces = Configuration.from_dict(plan.configuration), Store.open(plan.store)
    network, state = _fitted(plan, faces)
    val = found[0]
    temperature = fit_temperature(val.logits, val.labels)
    figures = {
        **metrics.summarise(probabilities(val.logits, temperature), val.labels, faces.classes),
        "ece_uncalibrated": metrics.expected_calibration_error(probabilities(val.logits), val.labels),
        "temperature": temperature,
        "split": "val",
    }
    calibration = None
    if len(found) > 1:
        calibration = pd.concat([one.table(temperature, faces.classes) for one in found])
    facts = {
        "data_fingerprint": faces.fingerprint,
        "data_counts": faces.counts,
        "weights": state["weights"],
        "init_from": plan.init_from,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "epochs": round(state["curve"][-1]["epoch"], 2),
        "step": int(state["best_file"].removeprefix("best-").removesuffix(".safetensors")),
        "fit_seconds": round(state["used"], 1),
        "seed": plan.seed,
        **provenance(),
    }
    card = render(
        "card.md.j2",
        configuration=configuration.to_dict(),
        classes=faces.classes,
        counts=faces.counts,
        fingerprint=faces.fingerprint,
        metrics=figures,
        weights=state["weights"],
        versions=facts["versions"],
        seconds=state["used"],
    )
    bundle.write(
        directory,
        network,
        configuration,
        classes=faces.classes,
        temperature=temperature,
        facts=facts,
        metrics=figures,
        curve=pd.DataFrame(state["curve"]),
        card=card,
        calibration=calibration,
    )


def _fitted(plan: Plan, faces: Store) -> tuple[Network, dict[str, Any]]:
    """The network to publish, and what the last checkpoint says."""
    state = Checkpoints(plan.checkpoints).state()
    if state is None or not state["best_file"]:
        raise InputError("a fit that ended without one checkpoint", "time for one step", "give a larger --time-budget")
    network = bundle.build(Configuration.from_dict(plan.configuration), len(faces.classes), pretrained=False).eval()
    network.load_state_dict(load(storage.read_bytes(storage.join(plan.checkpoints, state["best_file"]))))
    return network, state


def _of_split(network: Network, store: Store, split: str, inputs: Preprocessing, device: torch.device) -> Predictions:
    ids: list[str] = []
    labels, found = [], []
    for part in store.parts(split, inputs, rows=256):
        ids += part.ids
        labels.append(part.labels)
        found.append(logits(network, part.images, device))
    return Predictions(split, ids, np.concatenate(labels), np.concatenate(found))
