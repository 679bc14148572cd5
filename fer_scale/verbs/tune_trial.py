"""A trial of `tune` on Ray Tune: one fit on an actor, and the pictures that all of them share."""

import time
from collections.abc import Callable, Iterable
from typing import Any

import ray
import ray.tune
import torch

from fer_scale.bundle import build
from fer_scale.errors import FerScaleError
from fer_scale.faces.images import Preprocessing
from fer_scale.faces.store import Faces, Store
from fer_scale.faces.windows import Windows, decoded_bytes
from fer_scale.families.network import Network
from fer_scale.learning.batches import Batches, Feed
from fer_scale.learning.configuration import Configuration
from fer_scale.learning.stream import StreamedBatches
from fer_scale.search.features import BATCH, backbone, features, head_alone, head_of
from fer_scale.search.trial import Trial

FEATURES_SHARE = 0.1
"""Most of the time left that a backbone's features may take; beyond it the backbone runs in every step."""


@ray.remote(num_cpus=0)
class Pictures:
    """Decodes a split once for each input size and lays it into the object store, where trials share it."""

    def __init__(self, store: str) -> None:
        self._store = Store.open(store)
        self._refs: dict[tuple[str, Preprocessing], list[Any]] = {}
        self._features: dict[tuple[str, str], list[Any]] = {}

    def faces(self, split: str, preprocessing: Preprocessing) -> list[Any]:
        """The reference to one split's :class:`Faces`, in a list so that Ray does not resolve it on the way."""
        key = (split, preprocessing)
        if key not in self._refs:
            self._refs[key] = [ray.put(self._store.faces(split, preprocessing))]
        return self._refs[key]

    def features(self, key: tuple[str, str]) -> list[Any]:
        """The reference to one split's features of a backbone, in a list; empty where there are none yet."""
        return self._features.get(key, [])

    def keep(self, key: tuple[str, str], features: Faces) -> None:
        """Share what a trial has computed."""
        self._features[key] = [ray.put(features)]


class Climber(ray.tune.Trainable):
    """A Ray Tune trial is one fit, in one step. The actor is kept from one fit to the next, with its imports."""

    def setup(
        self,
        config: dict[str, Any],
        pictures: Any = None,
        store: str = "",
        memory_limit: float = 0,
        threads: int = 1,
        gpu: bool = False,
    ) -> None:
        """Called once an actor."""
        torch.set_num_threads(threads)
        self._device = torch.device("cuda" if gpu else "cpu")
        self._pictures = pictures
        self._store = Store.open(store)
        self._memory_limit = memory_limit
        self._config = config

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Called for every further fit on the same actor."""
        self._config = new_config
        return True

    def step(self) -> dict[str, Any]:
        """The fit; whatever goes wrong becomes the reason in the trial's row."""
        facts: dict[str, Any] = {}
        trial: Trial | None = None
        began = time.time()
        try:
            configuration = Configuration.from_dict(self._config["configuration"])
            compute, seed = self._config["compute"], self._config["seed"]
            counts = [self._store.counts["train"].get(name, 0) for name in self._store.classes]
            torch.manual_seed(seed)
            network = build(configuration, len(counts))
            facts["parameters"] = sum(parameter.numel() for parameter in network.parameters())
            facts["weights"] = network.weights
            network, batches, val = self._data(configuration, network, seed)
            trial = Trial(
                network, configuration.recipe, batches, counts, val, compute=compute, seed=seed, device=self._device
            )
            trial.measure()
            share = trial.run(self._config["deadline"])
            return {**facts, **trial.score(), "share": share, "seconds": time.time() - began, "done": True}
        except (FerScaleError, RuntimeError, MemoryError, ValueError) as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0][:300]
            return {"reason": reason, "done": True, **facts, **(trial.facts() if trial else {})}

    def _data(
        self, configuration: Configuration, network: Network, seed: int
    ) -> tuple[Network, Feed, Callable[[], Iterable[Faces]]]:
        """What is fitted, batches of train, and val's faces: shared with all trials, or read as the fit goes.

        Where the head alone is trained, it is fitted on features that all such trials share.
        """
        inputs, size, classes = configuration.preprocessing, configuration.recipe.batch_size, len(self._store.classes)
        if decoded_bytes(self._store, inputs) > self._memory_limit:
            windows = Windows(self._store, "train", inputs, batch_size=size, seed=seed)
            return network, StreamedBatches(windows, classes, self._device), lambda: self._store.parts("val", inputs)
        train, val = (self._faces(split, inputs) for split in ("train", "val"))
        if head_alone(network, configuration.recipe):
            name = backbone(configuration, network)
            known = self._features(("train", name), network, train)
            if known is not None:
                train, val = known, features(network, val, self._device)
                network = head_of(network)
        return network, Batches(train, classes, size, seed, self._device), lambda: [val]

    def _features(self, key: tuple[str, str], network: Network, faces: Faces) -> Faces | None:
        """A split's features, computed where no trial has yet; None where that would take too much of the search."""
        found = ray.get(self._pictures.features.remote(key))
        if found:
            shared: Faces = ray.get(found[0])
            return shared
        few = faces.rows(slice(0, BATCH))
        features(network, few, self._device)  # the first pass also allocates
        began = time.time()
        features(network, few, self._device)
        cost = (time.time() - began) / len(few) * len(faces)
        if cost > FEATURES_SHARE * (self._config["deadline"] - time.time()):
            return None
        made = features(network, faces, self._device)
        self._pictures.keep.remote(key, made)
        return made

    def _faces(self, split: str, preprocessing: Preprocessing) -> Faces:
        (ref,) = ray.get(self._pictures.faces.remote(split, preprocessing))
        faces: Faces = ray.get(ref)
        return faces
