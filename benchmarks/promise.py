"""The promise of `label --max-error` on pictures like calib and on others, and the certificate that needs no promise.

    python benchmarks/promise.py BUNDLE WITH_OTHER STORE [--splits 200] [--seed 0]

STORE was ingested with ``--others other``; WITH_OTHER is a bundle that was trained on it, BUNDLE one of the same source
without the class (another store of the same seed has the same pictures in each split). What is measured, each time over
random cuts of the rows that nothing was fitted on (test and calib) into as many as calib has, which prove a threshold,
and the rest, on which it is used:

- The promise on pictures drawn like calib. The guarantee is about the true error of what a threshold accepts, and a
  count on some hundreds of rows is not that: it lies beyond the bound by chance, and, worse, the rest of a cut is the
  unluckier the luckier its calib part was. So beside the cuts stand draws with replacement, of which all rows together
  are the population: there the true error of a threshold is known, and the theorem's assumption holds to the letter.
- The same threshold on a bucket of which 30 % are angry, fearful and disgusted faces, with and without the class other.
- Certificates on that bucket: how often the interval of 200 judged labels covers the true error of all.

The figures go to benchmarks/results/promise_DATE.json and docs/images/promise.svg. It takes a minute or two.
"""

import argparse
import json
import os
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.stats import binom

from fer_scale.bundle import Bundle
from fer_scale.faces.labels import OTHER
from fer_scale.faces.store import Store
from fer_scale.learning import drift
from fer_scale.learning.acceptance import LEVEL, Outcomes, accept
from fer_scale.learning.certificate import estimate
from fer_scale.predictor import Predictor

BOUNDS = (0.02, 0.05, 0.10)
OTHERS = 0.3
"""Share of the bucket that is of no class."""
JUDGED = 200
ROOT = Path(__file__).resolve().parents[1]
Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Answers:
    """What one bundle answers on every row that is held out."""

    val: Outcomes
    held: Outcomes
    """Of test and calib."""
    said: npt.NDArray[np.object_]
    other: npt.NDArray[np.bool_]
    """Which of the held-out faces are of no class."""
    calib_rows: int
    knows_other: bool

    @classmethod
    def of(cls, bundle: Bundle, store: Store) -> "Answers":
        """Infer the store's test split, and take val and calib from the bundle."""
        faces = store.faces("test", bundle.preprocessing)
        found = Predictor.load(bundle, "onnx").probabilities(faces.images)
        test = pd.DataFrame({f"prob_{name}": found[:, at] for at, name in enumerate(bundle.classes)})
        test["label"] = [store.classes[at] for at in faces.labels]
        kept = bundle.calibration()
        calib = kept[kept["split"] == "calib"]
        held = pd.concat([test, calib])
        named = held[[f"prob_{name}" for name in bundle.classes]].to_numpy()
        return cls(
            Outcomes.of(kept[kept["split"] == "val"], bundle.classes),
            Outcomes.of(held, bundle.classes),
            np.array(bundle.classes, dtype=object)[named.argmax(axis=1)],
            (held["label"] == OTHER).to_numpy(),
            len(calib),
            OTHER in bundle.classes,
        )

    @property
    def own(self) -> Rows:
        """Rows drawn like the bundle's calib split."""
        return np.flatnonzero(~self.other | self.knows_other)


def part(outcomes: Outcomes, rows: Rows) -> Outcomes:
    """Some rows of the outcomes."""
    return Outcomes(outcomes.confidence[rows], outcomes.correct[rows])


def bucket(answers: Answers, rest: Rows, rng: np.random.Generator) -> Rows:
    """As many faces of the classes and of none as there are at `OTHERS`, from rows that proved nothing."""
    ours, others = rest[~answers.other[rest]], rest[answers.other[rest]]
    size = min(len(ours) / (1 - OTHERS), len(others) / OTHERS)
    return np.concatenate(
        [rng.permutation(ours)[: int(size * (1 - OTHERS))], rng.permutation(others)[: int(size * OTHERS)]]
    )


def splits(answers: Answers, given: argparse.Namespace) -> Iterator[tuple[Rows, Rows, np.random.Generator]]:
    """Cuts of the held-out rows: those that prove, and all others, faces of no class among them."""
    rng, everything = np.random.default_rng(given.seed), np.arange(len(answers.other))
    for _ in range(given.splits):
        proving = rng.permutation(answers.own)[: answers.calib_rows]
        yield proving, np.setdiff1d(everything, proving), rng


def on_cuts(answers: Answers, bound: float, given: argparse.Namespace, shifted: bool) -> dict[str, Any]:
    """Errors of what the proven threshold accepts of the rest of each cut, or of a bucket made of it."""
    counts, sizes, warned = [], [], 0
    for proving, others, rng in splits(answers, given):
        rest = bucket(answers, others, rng) if shifted else np.intersect1d(others, answers.own)
        found = accept(answers.val, part(answers.held, proving), bound)
        counts.append((0, 0) if found.threshold is None else part(answers.held, rest).above(found.threshold))
        sizes.append(len(rest))
        warned += drifted(answers, rest, proving)
    accepted, wrong = np.array(counts).T
    beyond = np.where(accepted > 0, binom.sf(wrong - 1, accepted, bound), 1.0) < 0.05
    errors = wrong[accepted > 0] / accepted[accepted > 0]
    return {
        "max_error": bound,
        "within": share(wrong <= bound * accepted),
        "not_significantly_beyond": share(~beyond),
        "accepted_share": share(accepted / np.array(sizes)),
        "splits_that_accept_nothing": share(accepted == 0),
        "mean_error_of_accepted": share(errors) if len(errors) else None,
        "drift_warned": round(warned / given.splits, 4),
        "errors": [round(float(one), 4) for one in errors],
    }


def drifted(answers: Answers, run: Rows, calib: Rows) -> bool:
    """Whether `label` would warn of drift."""
    # where other is never accepted its confidence is not kept; that is one more label, and what it would add is small
    here, there = (
        drift.answered(np.clip(answers.held.confidence[rows], 0, 1), answers.said[rows]) for rows in (run, calib)
    )
    found = drift.compare(here, there)
    return found is not None and found.found


def on_draws(answers: Answers, bound: float, given: argparse.Namespace) -> dict[str, float]:
    """The true error, where all rows are the population and calib is drawn from it with replacement."""
    rng, world = np.random.default_rng(given.seed), part(answers.held, answers.own)
    true, accepted_shares = [], []
    for _ in range(10 * given.splits):
        found = accept(answers.val, part(world, rng.integers(0, len(answers.own), answers.calib_rows)), bound)
        accepted, wrong = (0, 0) if found.threshold is None else world.above(found.threshold)
        true.append(wrong / max(accepted, 1))
        accepted_shares.append(accepted / len(answers.own))
    above = (world.above(float(threshold)) for threshold in np.unique(world.confidence[world.confidence > 0]))
    oracle = max((accepted for accepted, wrong in above if wrong <= bound * accepted), default=0)
    return {
        "max_error": bound,
        "true_error_within": share(np.array(true) <= bound),
        "accepted_share": share(np.array(accepted_shares)),
        "accepted_share_of_an_oracle": round(oracle / len(answers.own), 4),
    }


def certificates(answers: Answers, given: argparse.Namespace, judged: Callable[[Rows], Rows]) -> dict[str, Any]:
    """Coverage of the interval of `JUDGED` labels drawn from what ``judged`` takes of the bucket."""
    rng = np.random.default_rng(given.seed)
    rows = judged(bucket(answers, np.arange(len(answers.other)), rng))
    wrong, doubt = ~answers.held.correct[rows], 1 - answers.held.confidence[rows].astype(np.float64)
    found, inside = [], 0
    for _ in range(given.splits):
        drawn = rng.choice(len(rows), JUDGED, replace=False)
        found.append(estimate(wrong[drawn], doubt[drawn], float(doubt.mean())))
        inside += found[-1].low <= wrong.mean() <= found[-1].high
    return {
        "labels": len(rows),
        "true_error": share(wrong),
        "coverage": inside / given.splits,
        "mean_width": share(np.array([one.high - one.low for one in found])),
        "methods": {str(name): int(n) for name, n in pd.Series([one.method for one in found]).value_counts().items()},
    }


def share(values: npt.NDArray[Any]) -> float:
    """The mean, rounded."""
    return round(float(np.mean(values)), 4)


def draw(tables: dict[str, list[dict[str, Any]]]) -> None:
    """The errors of every cut beside their bounds."""
    matplotlib.use("svg")
    from matplotlib.figure import Figure

    style: Any = {"svg.fonttype": "path", "svg.hashsalt": "fer_scale", "font.size": 10}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(8.4, 3.6), layout="constrained", facecolor="white")
        panels = figure.subplots(1, len(tables), sharey=True)
        rng = np.random.default_rng(0)
        for axes, (name, table) in zip(panels, tables.items(), strict=True):
            for at, row in enumerate(table):
                errors = np.array(row["errors"])
                spread = rng.uniform(-0.22, 0.22, len(errors))
                colour = "#b3402a" if row["within"] < 0.9 else "#2a6f97"
                axes.scatter(at + spread, 100 * errors, s=6, color=colour, alpha=0.5, linewidths=0)
                axes.plot([at - 0.36, at + 0.36], [100 * row["max_error"]] * 2, color="#222", linewidth=1.4)
            names = [f"{100 * row['max_error']:.0f} %\n({100 * row['accepted_share']:.0f} %)" for row in table]
            axes.set_xticks(range(len(table)), names, fontsize=9)
            axes.set_xlabel("--max-error (share accepted)")
            axes.set_title(name, fontsize=10)
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(axis="y", color="#ddd", linewidth=0.7)
            axes.set_axisbelow(True)
        panels[0].set_ylabel("wrong among the accepted, %")
        panels[0].set_ylim(bottom=0)
        figure.savefig(ROOT / "docs/images/promise.svg", metadata={"Date": None})


def main() -> None:
    """Print the tables, write the JSON and draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("bundle")
    parser.add_argument("with_other")
    parser.add_argument("store")
    parser.add_argument("--splits", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    bundles, store = [Bundle.load(given.bundle), Bundle.load(given.with_other)], Store.open(given.store)
    without, knowing = (Answers.of(bundle, store) for bundle in bundles)
    tables = {
        "pictures like calib": [on_cuts(without, bound, given, shifted=False) for bound in BOUNDS],
        "30 % other faces, without other": [on_cuts(without, bound, given, shifted=True) for bound in BOUNDS],
        "30 % other faces, with other": [on_cuts(knowing, bound, given, shifted=True) for bound in BOUNDS],
    }
    draws = {name: [on_draws(one, bound, given) for bound in BOUNDS] for name, one in
             (("without other", without), ("with other", knowing))}  # fmt: skip
    surest = accept(without.val, part(without.held, without.own), BOUNDS[-1]).threshold
    certified = {
        "all labels": certificates(without, given, lambda rows: rows),
        "labels accepted at 10 %": certificates(
            without, given, lambda rows: rows[without.held.confidence[rows] >= (surest or 0)]
        ),
    }
    draw(tables)
    for table in tables.values():
        for row in table:
            del row["errors"]
    for name, table in {**tables, **{f"true error, {name}": table for name, table in draws.items()}}.items():
        print(f"\n{name}\n{pd.DataFrame(table).to_string(index=False)}")
    print(f"\ncertificates of {JUDGED} labels of the bucket\n{pd.DataFrame(certified).T.to_string()}")
    facts = {
        "level": LEVEL,
        "splits": given.splits,
        "bundles": [
            {"model_id": bundle.model_id, "fitted_at": bundle.config.get("commit"), "calib": one.calib_rows,
             "rows": len(one.own), "accuracy": share(one.held.correct[one.own])}
            for bundle, one in zip(bundles, (without, knowing), strict=True)
        ],
        "fingerprint": store.fingerprint,
        "date": str(date.today()),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "versions": {name: version(name) for name in ("numpy", "scipy", "onnxruntime")},
    }  # fmt: skip
    result = {**facts, "cuts": tables, "draws": draws, "certificates": certified}
    (ROOT / f"benchmarks/results/promise_{date.today()}.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
