"""What README and docs tell people to type: every command is parsed, and the quickstart is run as it stands."""

import ast
import http.client
import inspect
import itertools
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import tomllib
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main
import yaml

import fer_scale
from fer_scale.cli import app

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(\w+)[^\n]*\n(.*?)^```", re.M | re.S)
COMMAND = re.compile(r"^(?:\$ |    )?((?:fer-scale|ray job submit|python jobs/|python -m fer_scale) ?.*)$")
VERBS = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def blocks(page: Path, *languages: str) -> list[str]:
    """The fenced blocks of a page in one of these languages."""
    return [text for language, text in BLOCK.findall(page.read_text()) if language in languages]


def commands(page: Path) -> Iterator[str]:
    """The lines of a page that are commands, and those in its text between backticks."""
    text = page.read_text().replace("\\\n", " ")
    yield from (found[1] for line in text.splitlines() if (found := COMMAND.match(line)))
    yield from (f"{found} ..." for found in re.findall(r"`(fer-scale [a-z]+ [^`\n]+)`", text))  # in part only


def arguments(command: str) -> list[str] | None:
    """What follows ``fer-scale`` in a command, also where it is a job or a module; None where it is another program."""
    words = shlex.split(re.sub(r" +(#|->|&&) .*", "", command))
    if words[0] == "fer-scale":
        return words[1:]
    if words[:3] == ["python", "-m", "fer_scale"]:
        return words[3:]
    scripts = [at for at, word in enumerate(words) if re.fullmatch(r"jobs/\w+\.py", word)]
    return [Path(words[scripts[0]]).stem, *words[scripts[0] + 1 :]] if scripts else None


ALL = sorted({(page.relative_to(ROOT).as_posix(), line) for page in PAGES for line in commands(page)})


def test_there_are_commands_to_look_at() -> None:
    assert len(ALL) > 30
    assert {"README.md", "docs/quickstart.md", "docs/label.md"} <= {page for page, _ in ALL}


@pytest.mark.parametrize(("page", "command"), ALL, ids=lambda text: text[:60])
def test_a_command_is_one_that_exists(page: str, command: str) -> None:
    given = arguments(command)
    if given is None or given[0].startswith("-"):
        return
    verb = VERBS[given[0]]
    known = {name for parameter in verb.params for name in (*parameter.opts, *parameter.secondary_opts)}
    named = {word.partition("=")[0].rstrip("])") for word in re.findall(r"--[\w-]+", command)}
    if "[" in command or "(" in command or "..." in command:  # a synopsis: only its options can be looked at
        outside = {"--working-dir", "--address", "--runtime-env", "--runtime-env-json", "--no-wait", "--submission-id"}
        assert named - outside <= known, sorted(named - outside - known)
    else:
        verb.make_context(given[0], given[1:])  # raises where the command line would refuse


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_calls_what_exists(page: Path) -> None:
    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                owner, name = node.func.value, node.func.attr
                if isinstance(owner, ast.Name) and owner.id == "fer_scale" and name in fer_scale.__all__:
                    given = {word.arg: None for word in node.keywords if word.arg}
                    inspect.signature(getattr(fer_scale, name)).bind(*node.args, **given)
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fer_scale"):
                exec(compile(ast.Module([node], []), page.name, "exec"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_data_can_be_read(page: Path) -> None:
    for text in blocks(page, "json"):
        json.loads(text)
    for text in blocks(page, "yaml"):
        list(yaml.safe_load_all(text))


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md"], ids=str)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
        assert link.startswith("https://") or (ROOT / link).exists(), link


def test_the_messages_of_troubleshooting_are_in_the_code() -> None:
    text = (ROOT / "docs/troubleshooting.md").read_text()
    text = re.sub(r"What Ray itself says.*?(?=^## )", "", text, flags=re.M | re.S)
    code = " ".join(path.read_text() for path in (ROOT / "fer_scale").rglob("*.py"))
    code = re.sub(r'"\s*\n\s*f?"', "", code)  # a text that is written over several lines
    for row in re.findall(r"^\| (`.*?) \|", text, flags=re.M):
        for message in re.findall(r"`([^`]+)`", row):
            missing = [part for part in message.split("…") if part.strip(" ;,:()s=") and part.strip() not in code]
            assert not missing, (message, missing)


def test_extras_that_are_named_exist() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = itertools.chain.from_iterable(
        re.findall(r"(?:'\.|fer_scale)\[([\w,]+)\]", page.read_text()) for page in PAGES
    )
    assert {name for names in named for name in names.split(",")} <= set(extras)


def test_pictures_are_used_and_small() -> None:
    images = {path.name: path.stat().st_size for path in (ROOT / "docs/images").iterdir()}
    shown = {name for page in PAGES for name in re.findall(r"\]\((?:docs/)?images/([^)#]+)", page.read_text())}
    assert shown == set(images), "python scripts/pictures.py makes them"
    assert all(size < 200_000 for size in images.values()), images


def test_the_reference_holds_the_whole_public_api() -> None:
    described = re.findall(r"^::: [\w.]+\.(\w+)$", (ROOT / "docs/api.md").read_text(), flags=re.M)
    assert sorted(described) == sorted(set(fer_scale.__all__) - {"__version__"})


def test_the_tree_of_the_architecture_is_that_of_the_code() -> None:
    text = (ROOT / "docs/architecture.md").read_text()
    tree = "\n".join(re.findall(r"^    .*$", text.partition("## ")[0], flags=re.M))
    for path in (ROOT / "fer_scale").iterdir():
        name = f"{path.name}/" if path.is_dir() else path.name
        assert path.name.startswith("_") or name == "py.typed" or name in tree, f"{name} is not in the tree"
    ours = [path for top in ROOT.iterdir() if not top.name.startswith(".") for path in (top, *top.rglob("*"))]
    named = set(re.findall(r"(\w+(?:\.py|/)) ", tree))
    assert named <= {f"{path.name}/" if path.is_dir() else path.name for path in ours}


def typed(page: Path, *languages: str) -> list[str]:
    """What a page tells people to type, line by line, without prompts and remarks."""
    lines = [line.removeprefix("$ ") for block in blocks(page, *languages) for line in block.splitlines()]
    return [re.sub(r" +# .*", "", line) for line in lines if line.strip() and not line.startswith("#")]


def test_readme_and_quickstart_tell_the_same_session() -> None:
    session = typed(ROOT / "README.md", "bash")
    quickstart = typed(ROOT / "docs/quickstart.md", "bash")
    assert session == quickstart


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_quickstart(tmp_path: Path) -> None:
    """Every command of the page but `pip`, in its order, in an empty folder; the endpoint on a port that is free."""
    lines = typed(ROOT / "docs/quickstart.md", "bash")
    assert lines[0].startswith("pip install")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    serve = lines.index("fer-scale serve bundle")
    for line in lines[1:serve]:
        done = run(line, tmp_path)
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
    for name in ("search/report", "report/report", "labels/report", "labels/certificate/sheet"):
        assert (tmp_path / f"{name}.html").stat().st_size > 10_000
    command = [sys.executable, "-m", *shlex.split(lines[serve].replace("-", "_", 1)), "--port", str(port)]
    serving = subprocess.Popen(command, cwd=tmp_path, env=environment())
    try:
        wait_for(f"http://127.0.0.1:{port}/readyz", seconds=120)
        for line in lines[serve + 1 :]:
            done = run(line.replace(":8000/", f":{port}/"), tmp_path)
            assert json.loads(done.stdout)["results"][0]["label"] in ("happy", "sad", "surprised", "neutral")
    finally:
        serving.send_signal(signal.SIGINT)
        assert serving.wait(60) == 130


def environment() -> dict[str, str]:
    """Of a user who has installed this checkout."""
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": programs, "PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": "1"}


def run(line: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Type a line in a folder."""
    return subprocess.run(
        line, shell=True, cwd=folder, env=environment(), capture_output=True, text=True, timeout=400, check=False
    )


def wait_for(url: str, seconds: float) -> None:
    until = time.monotonic() + seconds
    while True:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except (OSError, http.client.HTTPException):
            if time.monotonic() > until:
                raise
            time.sleep(0.5)
