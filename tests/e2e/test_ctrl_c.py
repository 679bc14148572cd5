"""Ctrl-C on a terminal, to the whole process group: one line says how to go on, and the same command does."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import fer_scale
from fer_scale.cli import HOW_TO_GO_ON
from fer_scale.faces.sample import draw
from tests.bundles import write_bundle

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("ctrl-c")
    draw(work / "faces", 160, seed=0)
    draw(work / "many", 6000, seed=1)
    fer_scale.ingest(work / "faces", work / "store", quiet=True)
    write_bundle(work / "bundle")
    return work


CNN1 = ["--families", "cnn1", "--fix", "cnn1.width=0.25", "--fix", "size=48"]
COMMANDS = {  # verb: its words, what is there once it can go on, words to go on with
    "label": (["bundle", "many", "labels", "--include", "*.png", "--workers", "1"], "labels/run.json", []),
    "train": (["store", "--out", "fit", "--family", "cnn1", "--epochs", "6"], "fit/fit/state.json", ["--resume"]),
    "tune": (["store", "--out", "search", *CNN1, "--time-budget", "60s"], "search/trials.parquet", ["--resume"]),
}
TOLD = {"label": "inputs", "train": "epochs", "tune": "best"}
"""What each tells at its end."""


@pytest.mark.parametrize("verb", COMMANDS)
def test_ctrl_c_says_how_to_go_on(verb: str, work: Path) -> None:
    words, begun, more = COMMANDS[verb]
    command = [sys.executable, "-m", "fer_scale", verb, *words, "--json"]
    environment = {**os.environ, "RAY_ADDRESS": "local", "PYTHONPATH": str(ROOT)}
    running = subprocess.Popen(
        command, cwd=work, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    until = time.monotonic() + 120
    while not (work / begun).exists():
        assert running.poll() is None
        assert time.monotonic() < until
        time.sleep(0.05)
    os.killpg(running.pid, signal.SIGINT)
    _, said = running.communicate(timeout=60)
    assert running.returncode == 130
    assert said.splitlines()[-1] == f"fer-scale: {HOW_TO_GO_ON[verb]}"
    assert "Traceback" not in said
    done = subprocess.run([*command, *more], cwd=work, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert TOLD[verb] in json.loads(done.stdout.splitlines()[-1])
