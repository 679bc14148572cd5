"""`fer-scale label` against a bare ONNX Runtime loop: the same bundle, the same stored pictures, one run.

    python benchmarks/labelling.py BUNDLE --images 100000 [--layout parquet|files] [--first SMALL --tolerance 0.02]

The loop (labelling_loop.py) is what one would write for this machine alone; it runs before and after `label`, and its
mean counts. Pieces: ``plain`` (with the start of Python and of the cluster; on a running cluster; the dry run's quote
of that) and, with --first, ``first``: the cascade, on a running cluster. A piece that
benchmarks/results/labelling-<layout>-<images>.json has is not measured again without --again.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from labelling_loop import PROCESSES, ROOT, make, run_bare, timed

os.environ["RAY_ADDRESS"] = "local"


def main() -> None:
    """Measure, print, and write the JSON and beside it a page."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("bundle")
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--layout", choices=("parquet", "files"), default="parquet")
    parser.add_argument("--first", help="the small model of a cascade; both with a calib split")
    parser.add_argument("--tolerance", type=float, default=0.02)
    parser.add_argument("--again", action="store_true", help="also what was measured before")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    options = parser.parse_args()
    target = options.out / f"labelling-{options.layout}-{options.images}.json"
    found = json.loads(target.read_text()) if target.exists() and not options.again else {}
    for piece in ("plain", *(["first"] if options.first else [])):
        if piece in found:
            continue
        work = Path(tempfile.mkdtemp(prefix="labelling-"))
        try:
            print(f"{piece}: making {options.images:,} pictures", flush=True)
            make(work / "faces", options.images, options.layout)
            found[piece] = {**measure(options, work, piece == "first"), **about(options)}
        finally:
            shutil.rmtree(work)
        options.out.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(found, indent=2) + "\n")
    target.with_suffix(".md").write_text(text(found))
    print(text(found))


def about(options: argparse.Namespace) -> dict[str, Any]:
    """Where, when and by what a piece was measured."""
    first = f" --first SMALL --tolerance {options.tolerance:g}" if options.first else ""
    return {
        "images": options.images,
        "layout": options.layout,
        "machine": f"{os.cpu_count()} CPUs, {platform.machine()}, {platform.system()}",
        "versions": {name: version(name) for name in ("ray", "onnxruntime", "pyarrow", "pillow", "numpy")},
        "load_average": os.getloadavg(),
        "date": time.strftime("%Y-%m-%d"),
        "command": f"python benchmarks/labelling.py BUNDLE --images {options.images} --layout {options.layout}{first}",
    }


def measure(options: argparse.Namespace, work: Path, cascade: bool) -> dict[str, Any]:
    """Loop, `label`, loop again."""
    folder, images = str(work / "faces"), options.images
    before, loop, _ = timed(lambda: run_bare(options.bundle, folder, options.layout, work / "bare-1", images))
    found = with_first(options, work) if cascade else alone(options, work)
    after, _, _ = timed(lambda: run_bare(options.bundle, folder, options.layout, work / "bare-2", images))
    rate = 2 * images / (before + after)
    for side in ("label", "label_and_cluster_start"):
        if side in found:
            found[side]["images_per_second"] = images / found[side]["seconds"]
            found[side]["of_bare"] = found[side]["images_per_second"] / rate
    bare = {
        "images_per_second": rate,
        "seconds": [before, after],
        "cpu_seconds": loop.cpu_seconds(),
        "peak_mib": loop.largest(),
    }
    return {"bare_loop": bare, **found}


def alone(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    """`label` as a command, and in a process whose cluster is running, after its dry run."""
    folder = str(work / "faces")
    ids = "id" if options.layout == "parquet" else None
    command = [sys.executable, "-m", "fer_scale", "label", options.bundle, folder, str(work / "out-1")]
    command += ["--id-column", ids] if ids else []
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    whole, cold, _ = timed(lambda: subprocess.run(command, check=True, env=environment))

    from fer_scale.cluster import connected
    from fer_scale.verbs.label import label

    with connected():
        quoted = label(options.bundle, folder, work / "out-2", id_column=ids, dry_run=True)["seconds"]
        warm, use, summary = timed(lambda: label(options.bundle, folder, work / "out-2", id_column=ids))
    check(summary, options.images)
    return {
        "model_id": summary["model_id"],
        "label": {"seconds": warm, "cpu_seconds": use.cpu_seconds()},
        "dry_run": {"seconds": quoted, "of_the_run": quoted / summary["seconds"]},
        "label_and_cluster_start": {"seconds": whole, "cpu_seconds": cold.cpu_seconds(), "peak_mib": cold.largest()},
    }


def with_first(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    """`label` with a small model first."""
    from fer_scale.cluster import connected
    from fer_scale.verbs.label import label

    ids = "id" if options.layout == "parquet" else None
    choice = {"id_column": ids, "first": options.first, "tolerance": options.tolerance}
    with connected():
        warm, use, summary = timed(lambda: label(options.bundle, work / "faces", work / "out", **choice))
    check(summary, options.images)
    small, large = (json.loads((Path(path) / "config.json").read_text()) for path in (options.first, options.bundle))
    return {
        "model_id": summary["model_id"],
        "first": small["configuration"],
        "second": large["configuration"],
        "tolerance": options.tolerance,
        "answered_by_first": summary["answered_by_first"] / options.images,
        "label": {"seconds": warm, "cpu_seconds": use.cpu_seconds()},
    }


def check(summary: dict[str, Any], images: int) -> None:
    """Every picture was inferred, none reused."""
    if summary["labelled"] != images or summary["duplicates"]:
        raise SystemExit(f"not all pictures were inferred: {summary}")


def row(name: str, side: dict[str, Any], images: int) -> str:
    """Of the table."""
    both = side["seconds"] if isinstance(side["seconds"], list) else [side["seconds"]]
    cpu = 1e6 * side["cpu_seconds"] / images
    seconds = ", ".join(f"{seconds:.1f}" for seconds in both)
    return f"| {name} | {side['images_per_second']:,.0f} | {seconds} | {cpu:,.0f} | {side.get('of_bare', 1):.2f} |"


def text(found: dict[str, Any]) -> str:
    """The result as a Markdown page."""
    head = "| | images/s | seconds | CPU microseconds an image | of the bare loop |\n|---|---|---|---|---|"
    lines = []
    for piece, one in found.items():
        loop = row(f"bare loop, {PROCESSES} processes, before and after", one["bare_loop"], one["images"])
        lines += [f"# Labelling {one['images']:,} pictures ({one['layout']}), {piece}", "", head, loop]
        lines.append(row("`fer-scale label`, cluster running", one["label"], one["images"]))
        if piece == "plain":
            cold = one["label_and_cluster_start"]
            biggest = ", ".join(f"{name}: {size:,.0f}" for name, size in list(cold["peak_mib"].items())[:8])
            lines.append(row("`fer-scale label`, start of Python and cluster counted", cold, one["images"]))
            lines += ["", f"`--dry-run` had quoted {one['dry_run']['of_the_run']:.2f} of the run's seconds."]
            lines += ["", f"Peak resident memory by process, MiB: {biggest}."]
        else:
            share = 100 * one["answered_by_first"]
            lines += ["", f"First model: {one['first']['family']}, which answered {share:.0f} % of the pictures."]
        versions = ", ".join(f"{name} {number}" for name, number in one["versions"].items())
        load = ", ".join(f"{number:.1f}" for number in one["load_average"])
        lines += ["", f"{one['machine']}; {versions}; load average {load}; {one['date']}. `{one['command']}`", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
