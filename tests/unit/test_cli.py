"""The command line as users and scripts meet it: real processes, real exit codes."""

import inspect
import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import fer_scale
from fer_scale import cli
from fer_scale.arguments import pairs, settings, words
from fer_scale.errors import InputError
from fer_scale.outcome import own_error

ROOT = Path(__file__).parents[2]
SHORTEST = {
    "ingest": ["ingest", "faces", "store"],
    "tune": ["tune", "store", "--out", "search"],
    "train": ["train", "store", "--out", "bundle"],
    "evaluate": ["evaluate", "bundle", "store", "--out", "report"],
    "label": ["label", "bundle", "faces", "labels"],
    "certify": ["certify", "labels"],
    "serve": ["serve", "bundle"],
    "doctor": ["doctor"],
}
VERBS = tuple(SHORTEST)


def command(*arguments: str, module: str = "fer_scale") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", module, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120
    )


def parsed(*arguments: str) -> cli.Call:
    call = cli.app(list(arguments), standalone_mode=False)
    assert isinstance(call, cli.Call)
    return call


def test_help_names_every_verb() -> None:
    done = command("--help")
    assert done.returncode == 0
    assert all(verb in done.stdout for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_each_command_shows_an_example_and_the_common_options(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([verb, "--help"]) == 0
    shown = capsys.readouterr().out
    for text in ("Example: fer-scale", "--seed", "--quiet", "--json", "--debug"):
        assert text in shown


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    done = command("--version")
    assert (done.returncode, done.stdout) == (0, f"fer-scale {fer_scale.__version__}\n")
    assert cli.run(["tune", "--version"]) == 0
    assert capsys.readouterr().out == done.stdout


def test_completion_is_offered() -> None:
    assert "--install-completion" in command("--help").stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nonsense",), "No such command"),
        (("ingest",), "Missing argument"),
        (("tune", "store"), "--out"),
        (("tune", "store", "--out", "search", "--max-trials", "none"), "--max-trials"),
        (("serve", "bundle", "--port", "99999"), "--port"),
        (("evaluate", "only-one", "--out", "report"), "one or more bundles"),
        (("ingest", "a", "b", "--rename", "x"), "--rename 'x'"),
        (("ingest", "no/such/folder", "store"), "no/such/folder"),
        (("ingest", "gs://bucket/faces", "store"), "gs://"),
        (("ingest", str(ROOT / "tests"), "store", "--label-from-votes"), "--label-from-votes without votes"),
        (("tune", "no/such/store", "--out", "search"), "no/such/store"),
        (("tune", "no/such/store", "--out", "search", "--time-budget", "soon"), "'soon'"),
        (("train", "no/such/store", "--out", "bundle", "--family", "resnet"), "no/such/store"),
        (
            ("train", "store", "--out", "bundle", "--family", "resnet", "--seed", "-1"),
            "seed -1; expected a whole number",
        ),
        (("tune", "store", "--out", "search", "--seed", "4294967296"), "seed 4294967296"),
        (("tune", "store", "--out", "search", "--gpus-per-trial", "1.5"), "gpus-per-trial 1.5"),
        (("tune", "store", "--out", "search", "--gpus-per-trial", "0.00001"), "gpus-per-trial 1e-05"),
        (("tune", "store", "--out", "search", "--cpus-per-trial", "0.00001"), "cpus-per-trial 1e-05"),
        (("ingest", "faces", "store", "--seed", "-1"), "seed -1"),
        (("evaluate", "no/such/bundle", "no/such/store", "--out", "report"), "no/such"),
        (("label", "no/such/bundle", "no/such/folder", "out"), "no/such"),
        (("serve", "no/such/bundle"), "no/such/bundle"),
        (("serve", "no/such/bundle", "--max-error", "0"), "a share between 0 and 1"),
    ],
)
def test_wrong_input_is_one_line_and_2(
    arguments: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(list(arguments)) == 2
    done = capsys.readouterr()
    assert said in done.err
    assert len(done.err.splitlines()) == 1, done.err
    assert done.out == ""


def test_wrong_input_in_a_process_of_its_own() -> None:
    done = command("ingest", "no/such/folder", "store")
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["ingest", "no/such/folder", "store", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_a_fault_of_ours_is_one_line_and_1(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def broken(**_: object) -> None:
        raise RuntimeError("the wheel\ncame off")

    monkeypatch.setattr(fer_scale, "serve", broken, raising=False)
    assert cli.run(["serve", "bundle"]) == 1
    said = capsys.readouterr()
    assert said.err == "fer-scale: RuntimeError: the wheel came off (run again with --debug for the traceback)\n"
    assert said.out == ""
    assert cli.run(["serve", "bundle", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_what_ray_wrapped_is_still_the_users_error() -> None:
    inner = InputError("a", "b", "c")
    assert own_error(inner) is inner
    outer = RuntimeError("a task failed")
    outer.__cause__ = inner
    assert own_error(outer) is inner
    assert own_error(RuntimeError("ours")) is None


@pytest.mark.parametrize("verb", VERBS)
def test_stopped_is_130_and_says_how_to_go_on(
    verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(**_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(fer_scale, verb, stopped, raising=False)
    arguments = {
        "serve": ["b"],
        "certify": ["o"],
        "label": ["b", "s", "o"],
        "evaluate": ["b", "s", "--out", "o"],
        "ingest": ["s", "o"],
        "doctor": [],
    }
    assert cli.run([verb, *arguments.get(verb, ["s", "--out", "o"])]) == 130
    assert capsys.readouterr().err.startswith("fer-scale: stopped")


def test_what_ctrl_c_breaks_on_its_way_is_no_fault(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(**_: object) -> None:
        try:
            raise KeyboardInterrupt
        finally:
            threading.Lock().release()  # as a wait that Ctrl-C hits before it has its lock back

    monkeypatch.setattr(fer_scale, "label", stopped, raising=False)
    assert cli.run(["label", "b", "s", "o"]) == 130
    assert capsys.readouterr().err == "fer-scale: stopped; the same command goes on\n"


def test_the_result_on_stdout(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import numpy as np

    result = {
        "store": "faces",
        "rows": 12,
        "accuracy": np.float32(0.5),
        "ece": float("nan"),
        "counts": {"train": np.int64(3)},
        "path": Path("a"),
        "interval": (0.25, 0.75),
    }
    monkeypatch.setattr(fer_scale, "serve", lambda **_: result, raising=False)
    assert cli.run(["serve", "bundle", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {
        "store": "faces",
        "rows": 12,
        "accuracy": 0.5,
        "ece": None,
        "counts": {"train": 3},
        "path": "a",
        "interval": [0.25, 0.75],
    }
    assert cli.run(["serve", "bundle"]) == 0
    shown = capsys.readouterr().out
    assert "store  " in shown
    assert "0.25, 0.75" in shown
    assert "counts" not in shown


def test_lists_and_pairs() -> None:
    assert words(["a,b", " c "]) == ["a", "b", "c"]
    assert words(None) is None
    assert pairs(["a=b,c=d", "e=f"], "--rename") == {"a": "b", "c": "d", "e": "f"}
    assert settings(["a=1", "b=x=[1, 2]"]) == {"a": "1", "b": "x=[1, 2]"}
    with pytest.raises(InputError, match="key=value"):
        settings(["a"])


def test_arguments_reach_the_verbs() -> None:
    call = parsed(
        "ingest",
        "f",
        "s",
        "--classes",
        "a,b",
        "--rename",
        "x=a",
        "--rename",
        "y=b",
        "--split-map",
        "T=train",
    )
    assert call.arguments["classes"] == ["a", "b"]
    assert call.arguments["rename"] == {"x": "a", "y": "b"}
    assert call.arguments["split_map"] == {"T": "train"}
    call = parsed("tune", "s", "--out", "o", "--families", "cnn1,resnet", "--fix", "cnn1.dropout=0.2")
    assert call.arguments["families"] == ["cnn1", "resnet"]
    assert call.arguments["fix"] == {"cnn1.dropout": "0.2"}
    assert call.arguments["time_budget"] == "40m"
    assert parsed("tune", "s", "--out", "o", "--max-trials", "2").arguments["time_budget"] == "40m"
    assert parsed("train", "s", "--out", "o", "--from", "q").arguments["from_search"] == "q"
    call = parsed("evaluate", "b1", "b2", "s", "--out", "o")
    assert (call.arguments["bundles"], call.arguments["store"]) == (["b1", "b2"], "s")


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_is_an_argument_of_the_function(verb: str) -> None:
    call = parsed(*SHORTEST[verb])
    function = getattr(fer_scale, call.verb)
    known = inspect.signature(function).parameters
    inspect.signature(function).bind(**call.arguments)
    assert set(known) == set(call.arguments), "the command line and Python offer the same"
    for name, parameter in known.items():
        if parameter.default is not parameter.empty and name not in ("time_budget", "classes"):
            default = parameter.default or None
            assert (call.arguments[name] or None) in (default, str(default)), name  # 1 worker is the text "1"


def test_the_functions_stay_functions() -> None:
    code = """
import fer_scale
from fer_scale.verbs import certify, doctor, evaluate, ingest, label, serve, train, tune
for verb in ("certify", "doctor", "evaluate", "ingest", "label", "serve", "train", "tune"):
    assert callable(getattr(fer_scale, verb)), verb
    assert verb in dir(fer_scale)
from fer_scale import Bundle, Predictor, Store
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=120)
