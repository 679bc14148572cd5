"""The rules that keep the package a house, checked."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "fer_scale"
VERBS = ("ingest", "tune", "train", "evaluate", "label", "certify", "serve", "doctor")


def imported(path: Path) -> Iterator[str]:
    """The modules that a file imports anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_ray_stays_in_its_rooms(path: Path) -> None:
    inner = path.relative_to(PACKAGE)
    if inner.parts[0] == "verbs" or str(inner) == "cluster.py":
        return
    assert not [name for name in imported(path) if name.split(".")[0] == "ray"]


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_is_unpickled(path: Path) -> None:
    assert not {"pickle", "cloudpickle", "joblib", "dill"} & {name.split(".")[0] for name in imported(path)}
    assert not re.search(r"weights_only\s*=\s*False|allow_pickle\s*=\s*True", path.read_text())


def test_one_ray_init() -> None:
    assert [path.name for path in modules() if "ray.init(" in path.read_text().replace("`ray.init(", "")] == [
        "cluster.py"
    ]


def test_the_command_line_is_light() -> None:
    code = """
import sys
import fer_scale
from fer_scale.cli import run
run(["--help"])
run(["tune", "--help"])
heavy = {"torch", "ray", "pandas", "pyarrow", "boto3", "matplotlib"} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True, timeout=60)


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_is_a_module_and_a_job(verb: str) -> None:
    assert (PACKAGE / f"verbs/{verb}.py").exists() or (PACKAGE / f"verbs/{verb}/__init__.py").exists()
    job = (ROOT / f"jobs/{verb}.py").read_text()
    assert f'job("{verb}")' in job
    assert len(job.splitlines()) < 20
