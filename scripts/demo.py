"""The whole line on drawn faces, or on a folder of your own: ``make demo`` or ``make demo DATA=folder``.

Each step is a command that you could type; it is printed before it runs. What they make lies in
build/demo, and a second demo starts anew.
"""

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

from fer_scale.faces.folders import Layout
from fer_scale.faces.records import Columns

ROOT = Path(__file__).resolve().parents[1]
OUT = Path("build/demo")
FACES = 2000
"""Drawn faces that are labelled."""
UNLABELLED = 300
"""Drawn faces in the folder that is labelled at the end."""
SEARCH, FIT = "70s", "90s"
"""Wall time of the search and of the fit."""


def show(command: list[str]) -> None:
    print(f"\n$ {shlex.join(command)}", flush=True)


def fer_scale(*arguments: str) -> None:
    """Run one command of fer-scale, and leave with its exit code where it fails."""
    show(["fer-scale", *arguments])
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "fer_scale", *arguments], cwd=ROOT, check=False)
    if done.returncode:
        sys.exit(done.returncode)
    print(f"({time.monotonic() - began:.0f} s)", flush=True)


def draw(out: Path, count: int, seed: int) -> None:
    """Draw a folder of synthetic faces."""
    module = ["-m", "fer_scale.faces.sample", str(out), "--count", str(count), "--seed", str(seed)]
    show(["python", *module])
    subprocess.run([sys.executable, *module], cwd=ROOT, check=True)


def classes_of(data: Path) -> str:
    """The class folders of a user's own data, as ingest finds them."""
    names = [path.relative_to(data).as_posix() for path in data.rglob("*") if path.is_file()]
    layout = Layout({name.rpartition("/")[0] for name in names}, Columns(), ())
    return ",".join(sorted({layout.of(name)[1] for name in names if layout.is_input(name)} - {""}))


def main() -> None:
    """Run the line and name the reports."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="folder with one folder of images a class")
    data: Path | None = parser.parse_args().data
    began = time.monotonic()
    shutil.rmtree(ROOT / OUT, ignore_errors=True)
    faces, unlabelled = (OUT / "faces", OUT / "unlabelled") if data is None else (data, data)
    store, search, bundle, report, labels = (
        str(OUT / name) for name in ("store", "search", "bundle", "report", "labels")
    )
    wanted: list[str] = []
    if data is None:
        draw(faces, FACES, seed=0)
        draw(unlabelled, UNLABELLED, seed=1)
    else:
        if not data.is_dir():
            sys.exit(f"there is no folder {data}; expected one with a folder of images a class; check DATA")
        faces = unlabelled = data.resolve()
        if found := classes_of(faces):
            wanted = ["--classes", found]
    fer_scale("ingest", str(faces), store, *wanted)
    fer_scale("tune", store, "--out", search, "--time-budget", SEARCH)
    fer_scale("train", store, "--from", search, "--out", bundle, "--time-budget", FIT)
    fer_scale("evaluate", bundle, store, "--out", report)
    fer_scale("label", bundle, str(unlabelled), labels, *([] if data else ["--include", "*.png"]))
    metrics = json.loads((ROOT / report / "metrics.json").read_text())
    low, high = metrics["accuracy_interval"]
    print(f"\ntest accuracy {metrics['accuracy']:.3f} [{low:.3f}, {high:.3f}] on {metrics['n']} faces")
    print(f"the whole line took {time.monotonic() - began:.0f} s; to open in a browser:")
    for page in (f"{search}/report.html", f"{report}/report.html", f"{labels}/report.html"):
        print(f"  {(ROOT / page).as_uri()}")
    print(f"to serve the model: {os.path.relpath(Path(sys.executable).parent)}/fer-scale serve {bundle}")


if __name__ == "__main__":
    main()
