"""The promise of `label --max-error`: how often it holds over random splits, and how much it accepts.

    python benchmarks/promise.py BUNDLE STORE [--splits 200] [--seed 0]

The rows that nothing was fitted on (test and calib) are cut at random, again and again: as many as calib has prove a
threshold, and on the rest the errors of what it accepts are counted; val orders the thresholds, as it does in `label`.
A count on so many rows is not the true error: beside the share of splits in which it is within the bound stands the
share in which it does not exceed the bound significantly (one-sided binomial test at 5 %).
"""

import argparse
import json
import os
import platform
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import binom

from fer_scale.bundle import Bundle
from fer_scale.faces.store import Store
from fer_scale.learning.acceptance import LEVEL, Outcomes, accept
from fer_scale.predictor import Predictor

BOUNDS = (0.02, 0.05, 0.10)
RESULTS = Path(__file__).parent / "results"


def known(bundle: Bundle, store: Store) -> tuple[Outcomes, Outcomes, int]:
    """What the bundle answers on val, on test and calib together, and the rows of calib."""
    faces = store.faces("test", bundle.preprocessing)
    found = Predictor.load(bundle, "onnx").probabilities(faces.images)
    rows = pd.DataFrame({f"prob_{name}": found[:, at] for at, name in enumerate(bundle.classes)})
    rows["label"] = [bundle.classes[at] for at in faces.labels]
    kept = bundle.calibration()
    val, calib = kept[kept["split"] == "val"], kept[kept["split"] == "calib"]
    return Outcomes.of(val, bundle.classes), Outcomes.of(pd.concat([rows, calib]), bundle.classes), len(calib)


def part(outcomes: Outcomes, rows: np.ndarray[Any, Any]) -> Outcomes:
    """Some rows of the outcomes."""
    return Outcomes(outcomes.confidence[rows], outcomes.correct[rows])


def measure(val: Outcomes, outcomes: Outcomes, size: int, bound: float, given: argparse.Namespace) -> dict[str, float]:
    """One row of the table; ``size`` rows prove the threshold."""
    rng, splits = np.random.default_rng(given.seed), given.splits
    shares, within, not_beyond, nothing = [], 0, 0, 0
    for _ in range(splits):
        order = rng.permutation(len(outcomes.confidence))
        calib, rest = part(outcomes, order[:size]), part(outcomes, order[size:])
        found = accept(val, calib, bound)
        if found.threshold is None:
            nothing += 1
        accepted, wrong = (0, 0) if found.threshold is None else rest.above(found.threshold)
        shares.append(accepted / len(rest.confidence))
        within += wrong <= bound * accepted
        not_beyond += accepted == 0 or bool(binom.sf(wrong - 1, accepted, bound) > 0.05)
    return {
        "max_error": bound,
        "level": LEVEL,
        "calib_rows": size,
        "within": within / splits,
        "not_significantly_beyond": not_beyond / splits,
        "accepted_share": round(float(np.mean(shares)), 4),
        "splits_that_accept_nothing": nothing / splits,
    }


def main() -> None:
    """Print the table and write it to benchmarks/results/."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("bundle")
    parser.add_argument("store")
    parser.add_argument("--splits", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    bundle, store = Bundle.load(given.bundle), Store.open(given.store)
    val, outcomes, size = known(bundle, store)
    table = [measure(val, outcomes, size, bound, given) for bound in BOUNDS]
    print(pd.DataFrame(table).to_string(index=False))
    facts = {
        "rows": len(outcomes.confidence),
        "accuracy": round(float(outcomes.correct.mean()), 4),
        "splits": given.splits,
        "model_id": bundle.model_id,
        "fingerprint": store.fingerprint,
        "commit": bundle.config.get("commit"),
        "date": str(date.today()),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "versions": {name: version(name) for name in ("numpy", "scipy", "onnxruntime")},
    }
    (RESULTS / f"promise_{date.today()}.json").write_text(json.dumps({**facts, "table": table}, indent=2) + "\n")


if __name__ == "__main__":
    main()
