"""From a clone to the end of `make demo` and of `make test`, in an empty environment: minutes, and megabytes fetched.

    python benchmarks/clone.py [--until install] [--work FOLDER] [--python python3.11]

Clones this checkout's HEAD, makes its environment with pip's cache off, runs the two, each once, and writes
benchmarks/results/clone_<cores>_<date>.json. HOME is a new folder, so that nothing which was set up or cached before
helps. With --work a step that has ended before is not run again.

Megabytes are those of the clone, of every package that pip took (by its log, whether from an index or from a mirror on
disk; the seconds are right for a network only in the first case) and of what the model hub's cache holds at the end.
"""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
STEPS = {"install": ".venv/.ready", "demo": "demo", "test": "test"}
"""Targets of the Makefile; the first is what the others begin with."""
KEPT = ("PATH", "LANG", "CI", "PIP_", "SSL_", "CURL_", "REQUESTS_", "HTTP_", "HTTPS_", "NO_PROXY", "http", "no_proxy")
"""Variables, or their beginnings, that say how this machine reaches others; no other is passed on."""
MB = 1e6
UNITS = {"bytes": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9}
FROM_INDEX = re.compile(r" Downloading (?:https?://)?\S+ \(([\d.]+) (bytes|kB|MB|GB)\)")
FROM_DISK = re.compile(r" Processing (/\S+\.(?:whl|tar\.gz|zip))")


def environment(work: Path) -> dict[str, str]:
    """An empty one: a home without caches, and the way to other machines."""
    home = work / "home"
    home.mkdir(exist_ok=True)
    kept = {name: value for name, value in os.environ.items() if name.startswith(KEPT)}
    return {**kept, "HOME": str(home), "PIP_NO_CACHE_DIR": "1", "PIP_LOG": str(work / "pip.log")}


def size(folder: Path) -> float:
    """Of all files below a folder, MB."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_symlink() and path.is_file()) / MB


def fetched(log: Path) -> dict[str, float]:
    """What pip took, MB, by where from."""
    text = log.read_text() if log.exists() else ""
    index = sum(float(number) * UNITS[unit] for number, unit in FROM_INDEX.findall(text))
    disk = sum(Path(path).stat().st_size for path in set(FROM_DISK.findall(text)))
    return {"packages_from_index": round(index / MB, 1), "packages_from_disk": round(disk / MB, 1)}


def timed(work: Path, name: str, command: list[str], folder: Path) -> dict[str, Any]:
    """Run a step, what it prints going to a file; its seconds and its last lines."""
    began = time.monotonic()
    with (work / f"{name}.log").open("w") as log:
        done = subprocess.run(command, cwd=folder, env=environment(work), stdout=log, stderr=subprocess.STDOUT)
    lines = (work / f"{name}.log").read_text().splitlines()
    if done.returncode:
        sys.exit("\n".join([*lines[-40:], f"{' '.join(command)} ended with {done.returncode}; its log: {log.name}"]))
    # those with ━ are pip's bars
    said = [line for line in lines if line.strip() and "━" not in line]
    return {"seconds": round(time.monotonic() - began, 1), "end": said[-3:]}


def main() -> None:
    """Run the steps, write the result."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--until", choices=[*STEPS], default="test", help="the last step")
    parser.add_argument("--work", type=Path, help="folder for clone, home and logs; an empty one, or to go on")
    parser.add_argument("--python", default=sys._base_executable, help="the Python that the environment is made of")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fer_scale-clone-") as scratch:
        work = (given.work or Path(scratch)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        result = measure(work, given.until, given.python)
    if given.until == "test":
        out = ROOT / "benchmarks/results" / f"clone_{os.cpu_count()}cores_{date.today():%Y%m%d}.json"
        out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


def measure(work: Path, until: str, python: str) -> dict[str, Any]:
    """Clone and run the steps up to one; those that are in the state are not run again."""
    clone, state_file = work / "clone", work / "state.json"
    steps: dict[str, Any] = json.loads(state_file.read_text()) if state_file.exists() else {}
    commands = {"clone": ["git", "clone", "--quiet", "--no-local", "--depth", "1", f"file://{ROOT}", str(clone)]}
    commands |= {name: ["make", f"PYTHON={python}", target] for name, target in STEPS.items()}
    names = list(commands)
    for name in names[: names.index(until) + 1]:
        if name not in steps:
            print(f"{name}: {' '.join(commands[name])}", file=sys.stderr, flush=True)
            steps[name] = timed(work, name, commands[name], work if name == "clone" else clone)
            if name == "clone":
                steps[name]["mb"] = round(size(clone / ".git"), 1)
            state_file.write_text(json.dumps(steps))
    megabytes = {"clone": steps["clone"]["mb"], **fetched(work / "pip.log")}
    megabytes["models"] = round(size(work / "home/.cache/huggingface"), 1)
    begun = sum(steps[name]["seconds"] for name in ("clone", "install"))
    return {
        "date": date.today().isoformat(),
        "commit": subprocess.check_output(["git", "rev-parse", "--short", "HEAD"], cwd=clone, text=True).strip(),
        "hardware": f"{platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "steps": steps,
        "minutes_from_clone_to": {
            name: round((begun + (steps[name]["seconds"] if name != "install" else 0)) / 60, 2)
            for name in STEPS
            if name in steps
        },
        "megabytes": {**megabytes, "all": round(sum(megabytes.values()), 1)},
        "environment_mb": round(size(clone / ".venv"), 1),
    }


if __name__ == "__main__":
    main()
