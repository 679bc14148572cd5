"""A trial of `tune` on Ray Tune: one fit on an actor, and the pictures that all of them share."""

import math
import time
from collections.abc import Callable, Iterable
from typing import Any

import ray
import ray.tune
import torch
from ray.exceptions import RayError, RayTaskError

from fer_scale.bundle import build
from fer_scale.faces.images import Preprocessing
from fer_scale.faces.store import Faces, Store
from fer_scale.faces.windows import Windows, decoded_bytes
from fer_scale.families.network import Network
from fer_scale.learning.batches import Batches, Feed
from fer_scale.learning.configuration import Configuration
from fer_scale.learning.stream import StreamedBatches
from fer_scale.search.features import BATCH, backbone, features, head_alone, head_of
from fer_scale.search.trial import Trial, clock

FEATURES_SHARE = 0.5
"""Most of a fit's compute that its backbone's features may take; beyond it the backbone runs in every step."""
HEAD_EPOCHS = 40
"""Most epochs of a head on features: a step of it takes about a millisecond, and a rung would be hundreds of epochs."""


@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)
class Pictures:
    """Decodes a split once for each input size and lays it into the object store, where trials share it.

    Killed, as for want of memory, it begins anew with nothing, and decodes again what it is asked for.
    """

    def __init__(self, store: str, features_limit: float = math.inf) -> None:
        self._store = Store.open(store)
        self._limit = features_limit
        self._refs: dict[tuple[str, Preprocessing], list[Any]] = {}
        self._features: dict[str, tuple[list[Any], int]] = {}

    def faces(self, split: str, preprocessing: Preprocessing) -> list[Any]:
        """The reference to one split's :class:`Faces`, in a list so that Ray does not resolve it on the way."""
        key = (split, preprocessing)
        if key not in self._refs:
            self._refs[key] = [ray.put(self._store.faces(split, preprocessing))]
        return self._refs[key]

    def features(self, key: str) -> list[Any]:
        """The reference to one split's features of a backbone, in a list; empty where there are none yet."""
        return self._features.get(key, ([], 0))[0]

    def keep(self, key: str, features: Faces) -> None:
        """Share what a trial has computed; beyond the limit what came first goes."""
        if key in self._features:  # two trials were at it at once
            return
        self._features[key] = ([ray.put(features)], features.images.nbytes)
        while sum(size for _, size in self._features.values()) > self._limit:
            del self._features[next(iter(self._features))]


class Climber(ray.tune.Trainable):
    """A Ray Tune trial is one fit, in one step. The actor is kept from one fit to the next, with its imports."""

    def setup(
        self,
        config: dict[str, Any],
        pictures: Any = None,
        store: str = "",
        memory_limit: float = 0,
        cpus: float = 1,
        gpu: bool = False,
    ) -> None:
        """Called once an actor."""
        torch.set_num_threads(max(int(cpus), 1))
        self._device = torch.device("cuda" if gpu else "cpu")
        self._cpus = cpus
        self._pictures = pictures
        self._store = Store.open(store)
        self._memory_limit = memory_limit
        self._config = config
        self._spent = 0.0
        self._broken = False

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Called for every further fit on the same actor."""
        if self._broken:
            # the fit begins once more on a new one; after a False Tune would keep this one
            ray.actor.exit_actor()  # type: ignore[no-untyped-call]
        self._config = new_config
        return True

    def step(self) -> dict[str, Any]:
        """The fit; whatever goes wrong becomes the reason in the trial's row."""
        facts: dict[str, Any] = {}
        trial: Trial | None = None
        self._spent = 0.0
        try:
            configuration = Configuration.from_dict(self._config["configuration"])
            compute, seed = self._config["compute"], self._config["seed"]
            counts = self._store.class_counts("train")
            torch.manual_seed(seed)
            network = whole = build(configuration, len(counts))
            facts["parameters"] = sum(parameter.numel() for parameter in network.parameters())
            facts["weights"] = network.weights
            network, batches, val = self._data(configuration, network, seed)
            trial = Trial(
                network,
                configuration.recipe,
                batches,
                counts,
                val,
                compute=compute - self._spent,
                seed=seed,
                device=self._device,
                most_epochs=None if network is whole else HEAD_EPOCHS,
                cpus=self._cpus,
            )
            trial.compute_seconds = self._spent
            began = time.time()  # all before this, and none of the steps and the scoring, is lost between two fits
            trial.measure()
            share = trial.run(self._config["deadline"])
            facts |= {**trial.score(), "share": share, "capped": trial.capped}
            return {**facts, "seconds": time.time() - began, "done": True}
        except Exception as error:  # nothing that a fit may raise is worth the search, or its true reason
            cause = error.cause if isinstance(error, RayTaskError) else error
            # a CUDA error stays with its process, and all that comes after it there fails
            self._broken = isinstance(cause, torch.AcceleratorError)
            reason = f"{type(cause).__name__}: {cause}".splitlines()[0][:300]
            passing = isinstance(cause, OSError | RayError)  # of the machine or of its store: begun once more
            return {"reason": reason, "died": passing, "done": True, **facts, **(trial.facts() if trial else {})}

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
            if self._affordable(f"train {name}", network, train):
                train = self._features(f"train {name}", network, train)
                mirrored = network.mirrored
                val = self._features(f"val {'mirrored ' * mirrored}{name}", network, val, mirrored=mirrored)
                network = head_of(network)
        return network, Batches(train, classes, size, seed, self._device), lambda: [val]

    def _affordable(self, key: str, network: Network, faces: Faces) -> bool:
        """Whether a trial has computed these features, or this one can within what it is given."""
        if ray.get(self._pictures.features.remote(key)):
            return True
        few, seconds = faces.rows(slice(0, BATCH)), clock(self._device, self._cpus)
        features(network, few, self._device)  # the first pass also allocates
        began = seconds()
        features(network, few, self._device)
        cost = (seconds() - began) / len(few) * len(faces)
        given: float = min(self._config["compute"], self._config["deadline"] - time.time())
        return cost <= FEATURES_SHARE * given

    def _features(self, key: str, network: Network, faces: Faces, *, mirrored: bool = False) -> Faces:
        """A split's features, computed where no trial has yet; that is part of this fit's compute."""
        if found := ray.get(self._pictures.features.remote(key)):
            shared: Faces = ray.get(found[0])
            return shared
        seconds = clock(self._device, self._cpus)
        began = seconds()
        made = features(network, faces, self._device, mirrored=mirrored)
        self._spent += seconds() - began
        self._pictures.keep.remote(key, made)
        return made

    def _faces(self, split: str, preprocessing: Preprocessing) -> Faces:
        (ref,) = ray.get(self._pictures.faces.remote(split, preprocessing))
        faces: Faces = ray.get(ref)
        return faces
