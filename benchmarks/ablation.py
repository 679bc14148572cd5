"""What each part of the recipe is worth: one fit a part, all else equal, scored on faces held out of Training.

    OMP_NUM_THREADS=1 python benchmarks/ablation.py [--only NAME ...] [--seed 0] [--table]

A long fit on all faces sees each of them some dozens of times. So that parts which only help there are not judged by
their first epochs, a piece fits few faces for as many epochs: 4,000 of Training for 10, which takes about six minutes
of one core. 4,000 others are scored (an accuracy of 0.7 is known within 0.014); PublicTest is never read. Each piece is
stored as it ends, and a second call goes on with the next. Pieces of another input size see as many fewer faces
as each costs more. FER_SCALE_DATA names the folder with training.parquet.
"""

import argparse
import contextlib
import json
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from scipy.special import log_softmax

from fer_scale import bundle
from fer_scale.faces.store import Faces, Store
from fer_scale.learning import augment
from fer_scale.learning.batches import Batches
from fer_scale.learning.configuration import Configuration
from fer_scale.learning.loop import Learner, fit

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "benchmarks/results/ablation.json"
FITTED, HELD_OUT, SEEN = 4000, 4000, 40_000
SEVEN = ["angry", "disgust", "fear", "happy", "neutral", "sad", "surprise"]
VOTED = ["neutral", "happy", "surprised", "sad", "angry", "disgust", "fear", "contempt", "unknown", "not-a-face"]


@dataclass(frozen=True, kw_only=True)
class Piece:
    """What differs from the base."""

    recipe: dict[str, Any] = field(default_factory=dict)
    network: dict[str, Any] = field(default_factory=dict)
    size: int = 64
    cost: float = 1.0
    """Of a face, against the base's."""
    constants: dict[str, float] = field(default_factory=dict)
    """Of fer_scale.learning.augment."""
    kernel: Image.Resampling | None = None
    votes: bool = False
    seven_first: bool = False
    """Fit the backbone on all seven classes for the first half of the faces seen."""


PIECES = {
    "base": Piece(),
    "mixup 0.2": Piece(recipe={"mixup": 0.2}),
    "cutmix 1": Piece(recipe={"cutmix": 1.0}),
    "augmentation at 1.5": Piece(recipe={"augmentation": 1.5}),
    "layer decay 0.7": Piece(recipe={"layer_decay": 0.7}),
    "half the rate": Piece(recipe={"lr": 5e-4}),
    "twice the rate": Piece(recipe={"lr": 2e-3}),
    "seven classes first": Piece(seven_first=True),
    "96x96 at equal compute": Piece(size=96, cost=2.1),
    "48x48 at equal compute": Piece(size=48, cost=0.75),
    "no augmentation": Piece(recipe={"augmentation": 0.0}),
    "no label smoothing": Piece(recipe={"label_smoothing": 0.0}),
    "no EMA": Piece(recipe={"ema": 0.0}),
    "warm-up over 5 %": Piece(recipe={"warmup": 0.05}),
    "head dropout 0.5": Piece(network={"dropout": 0.5}),
    "no dense layer": Piece(network={"dense": "none"}),
    "votes as targets": Piece(votes=True),
    "no cutout": Piece(constants={"CUTOUT": 0.0}),
    "no rotation, scale, shear": Piece(constants={"ROTATION": 0.0, "SCALE": 0.0, "SHEAR": 0.0}),
    "no shift": Piece(constants={"SHIFT": 0.0}),
    "no contrast, brightness": Piece(constants={"CONTRAST": 0.0, "BRIGHTNESS": 0.0}),
    "no flip": Piece(constants={"FLIPPED": 0.0}),
    "class weights 1": Piece(recipe={"class_weighting": 1.0}),
    "unfrozen over 30 %": Piece(recipe={"thaw": 0.3}),
    "weight decay 0.1": Piece(recipe={"weight_decay": 0.1}),
    "SGD": Piece(recipe={"optimizer": "sgd", "lr": 0.05, "weight_decay": 5e-4}),
    "no clipping": Piece(recipe={"clip": 1000.0}),
    "bicubic": Piece(kernel=Image.Resampling.BICUBIC),
    "mixup and cutmix": Piece(recipe={"mixup": 0.2, "cutmix": 1.0}),
    "from scratch": Piece(network={"weights": "none"}),
}


def main() -> None:
    """Fit what is not in the results yet; draw the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="*", choices=list(PIECES))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--table", action="store_true", help="only draw what is there")
    given = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, Any] = json.loads(OUT.read_text()) if OUT.exists() else {}
    if not given.table:
        with tempfile.TemporaryDirectory(prefix="fer_scale-ablation-") as folder:
            for name in given.only or PIECES:
                key = f"{name} #{given.seed}"
                if key in results:
                    continue
                results[key] = {"part": name, "seed": given.seed, **run(PIECES[name], folder, given.seed)}
                OUT.write_text(json.dumps(results, indent=1) + "\n")
                print(key, {k: v for k, v in results[key].items() if k != "right"}, flush=True)
    print(table(results))


def run(piece: Piece, folder: str, seed: int) -> dict[str, Any]:
    """One fit and its scores."""
    with changed(piece):
        configuration = Configuration.from_dict(
            {
                "family": "efficientnet",
                "network": {"stem": 2, "weights": "imagenet", **piece.network},
                "preprocessing": {"size": piece.size, "channels": 1},
                "recipe": piece.recipe,
            }
        )
        began = time.process_time()
        faces, classes = load(configuration, folder, piece, seven=False)
        order = np.random.default_rng(0).permutation(len(faces))  # the same faces whatever the seed
        val, train = part(faces, order[:HELD_OUT]), part(faces, order[HELD_OUT : HELD_OUT + FITTED])
        torch.manual_seed(seed)
        network = bundle.build(configuration, len(classes))
        seen = SEEN / piece.cost
        if piece.seven_first:
            seen /= 2
            more, names = load(configuration, folder, piece, seven=True)
            known = set(val.ids)
            rows = [at for at, face in enumerate(more.ids) if face not in known]
            few = np.random.default_rng(0).permutation(rows)[: FITTED * 3 // 2]
            first = learn(configuration, part(more, few), len(names), seen, seed)
            network.backbone.load_state_dict(first.best.backbone.state_dict())
        loading = time.process_time() - began
        learner = learn(configuration, train, len(classes), seen, seed, network)
    logits = learner.logits(val.images)
    both = (logits + learner.logits(val.images[..., ::-1].copy())) / 2
    right = logits.argmax(1) == val.labels
    likelihood = log_softmax(logits.astype(np.float64), axis=1)[np.arange(len(val)), val.labels]
    return {
        "accuracy": round(float(right.mean()), 4),
        "accuracy_with_mirror": round(float((both.argmax(1) == val.labels).mean()), 4),
        "loss": round(float(-likelihood.mean()), 4),
        "faces_seen": round(SEEN / piece.cost),
        "core_seconds": round(time.process_time() - began - (0 if piece.seven_first else loading)),
        "right": np.packbits(right).tobytes().hex(),
    }


def learn(
    configuration: Configuration, train: Faces, classes: int, seen: float, seed: int, network: Any = None
) -> Learner:
    """One anneal over ``seen`` faces."""
    network = network or bundle.build(configuration, classes)
    counts = np.bincount(train.labels, minlength=classes).tolist()
    device = torch.device("cpu")
    learner = Learner(network, configuration.recipe, class_counts=counts, seed=seed, device=device)
    batches = Batches(train, classes, configuration.recipe.batch_size, seed, device)
    steps = round(seen / batches.size)
    fit(learner, batches, steps, lambda step: step / steps)
    return learner


def load(configuration: Configuration, folder: str, piece: Piece, *, seven: bool) -> tuple[Faces, list[str]]:
    """Training's faces but those kept for calib, and the classes."""
    import fer_scale

    store = Path(folder) / ("seven" if seven else "votes" if piece.votes else "four")
    if not store.exists():
        data = Path(os.environ.get("FER_SCALE_DATA", ROOT.parent / "shared/data/fer2013"))
        options: dict[str, Any] = {"split_column": "usage", "split_map": {"Training": "train"}, "id_column": "name"}
        if seven:
            options["classes"] = SEVEN
        else:
            options["rename"] = {"surprise": "surprised"}
        if piece.votes:
            options |= {"votes": str(data / "training_ferplus_votes.parquet"), "votes_classes": VOTED}
        fer_scale.ingest(str(data / "training.parquet"), str(store), quiet=True, **options)
    opened = Store.open(str(store))
    return opened.faces("train", configuration.preprocessing), opened.classes


def part(faces: Faces, rows: npt.NDArray[np.int64]) -> Faces:
    """Some of the faces."""
    votes = None if faces.votes is None else faces.votes[rows]
    return Faces(faces.images[rows], faces.labels[rows], [faces.ids[at] for at in rows], votes)


@contextlib.contextmanager
def changed(piece: Piece) -> Iterator[None]:
    """The piece's constants and resize kernel in place of the module's."""
    before = {name: getattr(augment, name) for name in piece.constants}
    resize = Image.Image.resize
    try:
        for name, value in piece.constants.items():
            setattr(augment, name, value)
        if piece.kernel is not None:
            kernel = piece.kernel
            Image.Image.resize = lambda self, size, _=None: resize(self, size, kernel)  # type: ignore[method-assign]
        yield
    finally:
        for name, value in before.items():
            setattr(augment, name, value)
        Image.Image.resize = resize  # type: ignore[method-assign]


def table(results: dict[str, Any]) -> str:
    """The results as Markdown; differences to the base of the same seed, with the interval of paired faces."""
    lines = ["| part | seed | accuracy | against base | with mirror | loss | core-seconds |", "|" + "---|" * 7]
    for row in results.values():
        base = results.get(f"base #{row['seed']}")
        differs = ""
        if base is not None and row is not base:
            mine, theirs = (
                np.unpackbits(np.frombuffer(bytes.fromhex(each["right"]), np.uint8)).astype(int)[:HELD_OUT]
                for each in (row, base)
            )
            step = mine - theirs
            differs = f"{step.mean():+.4f} ± {1.96 * step.std() / HELD_OUT**0.5:.4f}"
        figures = (f"{row[key]:.4f}" for key in ("accuracy", "accuracy_with_mirror", "loss"))
        accuracy, mirrored, loss = figures
        lines.append(
            f"| {row['part']} | {row['seed']} | {accuracy} | {differs} | {mirrored} | {loss} | {row['core_seconds']} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
