"""The same faces, as files, through `fer-scale label` and through the endpoint: the same answers?

    python benchmarks/serving_parity.py BUNDLE publictest.parquet

The table has columns name, label and image (FER2013's); the four classes are taken. Every file goes to the endpoint in
two ways: alone as a raw body, and in a form with 63 others.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import httpx
import numpy as np
import pandas as pd

import fer_scale
from fer_scale.verbs.serve import endpoint

CLASSES = ("happy", "sad", "surprised", "surprise", "neutral")
IMAGES = 64


def write_files(table: Path, folder: Path, limit: int | None) -> list[str]:
    """One file a row; their names, which are the ids that `label` gives."""
    rows = pd.read_parquet(table)
    rows = rows[rows["label"].isin(CLASSES)].head(limit) if limit else rows[rows["label"].isin(CLASSES)]
    names = [f"{at:05d}.png" for at in range(len(rows))]
    for name, data in zip(names, rows["image"], strict=True):
        (folder / name).write_bytes(data)
    return names


def ask(url: str, folder: Path, names: list[str]) -> tuple[list[dict], list[dict]]:
    """The answers to each file alone, and to forms of 64."""
    with httpx.Client(base_url=url, timeout=120) as client, ThreadPoolExecutor(8) as pool:

        def post(**body: object) -> list[dict]:
            response = client.post("/v1/predict", **body)  # type: ignore[arg-type]
            return list(response.raise_for_status().json()["results"])

        alone = [found for [found] in pool.map(lambda name: post(content=(folder / name).read_bytes()), names)]
        groups = [names[at : at + IMAGES] for at in range(0, len(names), IMAGES)]
        forms = ([("images", (name, (folder / name).read_bytes())) for name in group] for group in groups)
        together = [found for results in pool.map(lambda form: post(files=form), forms) for found in results]
    return alone, together


def compare(rows: pd.DataFrame, answers: list[dict], classes: list[str]) -> dict[str, float]:
    """How far the endpoint's answers are from the rows that `label` wrote, in the same order."""
    said = rows["label"].to_numpy(object)
    apart = sum(label != answer["label"] for label, answer in zip(said, answers, strict=True))
    ours = np.array([[answer["probabilities"][name] for name in classes] for answer in answers])
    theirs = rows[[f"prob_{name}" for name in classes]].to_numpy(np.float64)
    return {"labels_apart": apart, "largest_difference": float(np.abs(ours - theirs).max())}


def main() -> None:
    """Print what was found and write it to benchmarks/results/."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("bundle")
    parser.add_argument("table", type=Path)
    parser.add_argument("--limit", type=int, help="faces, for a trial")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results/serving_parity.json")
    given = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "faces"
        folder.mkdir()
        names = write_files(given.table, folder, given.limit)
        summary = fer_scale.label(given.bundle, str(folder), str(Path(scratch) / "out"), quiet=True)
        rows = pd.read_parquet(Path(scratch) / "out/labels").set_index("id").loc[names]
        classes = [name.removeprefix("prob_") for name in rows.columns if name.startswith("prob_")]
        with endpoint(given.bundle, port=0, replicas=2) as running:
            alone, together = ask(running.url, folder, names)
    found = {
        "faces": len(names),
        "model_id": summary["model_id"],
        "same_model": summary["model_id"] == running.model_id,
        "haproxy": running.haproxy,
        "raw_body": compare(rows, alone, classes),
        "forms_of_64": compare(rows, together, classes),
        "seconds": round(time.monotonic() - began, 1),
        "date": str(date.today()),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "versions": {name: version(name) for name in ("ray", "onnxruntime", "numpy", "pillow")},
    }
    given.out.write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
