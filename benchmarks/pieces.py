"""What benchmarks of many pieces share: each piece is stored as it ends, and a second call goes on with the next."""

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
from torch.cpu import get_capabilities

ROOT = Path(__file__).resolve().parents[1]
SPLITS = ["--id-column", "name", "--split-column", "usage", "--split-map", "Training=train,PublicTest=test"]
RENAMED = ["--rename", "surprise=surprised"]


class Pieces:
    """``benchmarks/results/<name>.json``: a dict of pieces, each with the day, the commit and the machine it ran on."""

    def __init__(self, name: str) -> None:
        self.path = ROOT / "benchmarks/results" / f"{name}.json"
        self.found: dict[str, Any] = json.loads(self.path.read_text()) if self.path.exists() else {}

    def piece(self, key: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The figures of a piece: those that are stored, or else what ``measure`` gives now."""
        if key not in self.found:
            self.found[key] = {**measure(), "run": machine()}
            aside = self.path.with_suffix(".part")
            aside.write_text(json.dumps(self.found, indent=1) + "\n")
            aside.replace(self.path)
        figures: dict[str, Any] = self.found[key]
        print(key, {name: value for name, value in figures.items() if name != "run"}, flush=True)
        return figures


def machine() -> dict[str, Any]:
    """When, where and with what."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout
    versions = {name: version(name) for name in ("ray", "torch", "timm", "optuna", "onnxruntime")}
    has = get_capabilities()
    best = next((unit for unit in ("amx_bf16", "avx512_bf16", "avx512_f", "avx2") if has.get(unit)), platform.machine())
    hardware = f"{has.get('cpu_name', platform.processor())} ({best}), {os.cpu_count()} cores"
    return {"date": date.today().isoformat(), "commit": commit.strip(), "hardware": hardware, "versions": versions}


def fer_scale(*arguments: object) -> dict[str, Any]:
    """Run one command as a user does; its result."""
    words = [str(word) for word in arguments]
    print("fer-scale", " ".join(words), flush=True)
    call = [sys.executable, "-m", "fer_scale", *words, "--json"]
    done = subprocess.run(call, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def watched(arguments: Sequence[object], role: Callable[[str], str | None]) -> tuple[dict[str, Any], dict[str, int]]:
    """One command's result, and its peak memory in MiB, looked at four times a second.

    It is the proportional set size (PSS), which counts shared pages once: of ``all``, of the ``driver``, and of the
    largest process of each role, of which also what is no file or object store (``<role>_heap``).

    Args:
        role: of a process by its title; None where it only counts among all.
    """
    call = [sys.executable, "-m", "fer_scale", *(str(word) for word in arguments), "--json", "--quiet"]
    process = subprocess.Popen(call, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    family, peaks = psutil.Process(process.pid), dict[str, int]()
    while process.poll() is None:
        now = {"all": 0}
        for one in (family, *family.children(recursive=True)):
            try:
                memory, title = one.memory_full_info(), " ".join(one.cmdline())
            except psutil.Error:
                continue
            now["all"] += memory.pss
            if (name := "driver" if one == family else role(title)) is not None:
                now[name] = max(now.get(name, 0), memory.pss)
                now[f"{name}_heap"] = max(now.get(f"{name}_heap", 0), memory.rss - memory.shared)
        peaks |= {name: max(size, peaks.get(name, 0)) for name, size in now.items()}
        time.sleep(0.25)
    if process.returncode:
        raise SystemExit(f"{' '.join(call)} ended with {process.returncode}")
    result = json.loads((process.stdout.read() if process.stdout else "").splitlines()[-1])
    return result, {name: round(size / 2**20) for name, size in peaks.items()}


def fer2013() -> Path:
    """The folder with FER2013's files, which FER_SCALE_DATA names."""
    return Path(os.environ.get("FER_SCALE_DATA", ROOT.parent / "shared/data/fer2013"))


def store(work: Path, *more: object, name: str = "store") -> Path:
    """FER2013's four classes as a face store: Training is train, PublicTest is test. Made where it is not there.

    ``more`` are options of `ingest` in place of those that rename FER2013's labels.
    """
    made, source = work / name, work / "source"
    if not made.exists():
        source.mkdir(parents=True, exist_ok=True)
        for file in ("training.parquet", "publictest.parquet"):
            link = source / file
            link.unlink(missing_ok=True)
            link.symlink_to((fer2013() / file).resolve())
        fer_scale("ingest", source, made, *SPLITS, *(more or RENAMED))
    return made
