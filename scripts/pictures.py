"""Make the pictures of the documentation again, on drawn faces: ``python scripts/pictures.py``.

The commands run for real, and Chromium looks at the pages that they leave; a step whose output is in the work folder
is not run again. A terminal is drawn from what its command said. Takes about twelve minutes on two cores.
"""

import argparse
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright
from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.terminal_theme import TerminalTheme
from rich.text import Text

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT / "docs/images"
CHROMIUM = shutil.which("chromium")
INK, PAPER = (228, 230, 234), (20, 23, 28)
THEME = TerminalTheme(
    PAPER, INK, [PAPER, (240, 135, 124), (92, 201, 160), (232, 192, 106), (109, 184, 232)] + [INK] * 3
)
SVG = re.sub(r"@font-face \{\{.*?\}\}", "", CONSOLE_SVG_FORMAT, flags=re.S)
"""rich's terminal, but in a font of the reader's: its own would be fetched from another host."""


def session(work: Path, *commands: str, keep: int = 60) -> str:
    """Run commands of fer-scale in the work folder; what they said, the last lines of each."""
    shown = []
    for command in commands:
        program = [sys.executable, "-m", "fer_scale", *shlex.split(command)[1:]]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            program, cwd=work, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        if done.returncode not in (0, 2):
            sys.exit(done.stdout)
        shown += [f"$ {command}", *done.stdout.rstrip().splitlines()[-keep:], ""]
    return "\n".join(shown[:-1])


def terminal(name: str, text: str, title: str) -> None:
    """Draw a terminal with this text as docs/images/NAME.svg."""
    console = Console(record=True, width=100, file=io.StringIO())
    for line in text.splitlines():
        console.print(Text(line, style="bold" if line.startswith("$ ") else ""), soft_wrap=False)
    (IMAGES / f"{name}.svg").write_text(console.export_svg(title=title, theme=THEME, code_format=SVG, unique_id=name))


@contextmanager
def page(browser: Browser, width: int = 900, height: int = 760) -> Iterator[Page]:
    """A page in light colours, twice as fine as a screen's."""
    context = browser.new_context(
        viewport={"width": width, "height": height},
        device_scale_factor=1.5,
        color_scheme="light",
        reduced_motion="reduce",
    )
    yield context.new_page()
    context.close()


def store(name: str, opened: Page, whole: bool = False) -> None:
    """Save what a page shows as docs/images/NAME.png, in 128 colours: a fifth of the size."""
    shot = Image.open(io.BytesIO(opened.screenshot(full_page=whole))).convert("RGB")
    shot.quantize(128, dither=Image.Dither.NONE).save(IMAGES / f"{name}.png", optimize=True)


def report(browser: Browser, name: str, path: Path, height: int) -> None:
    """The top of a report."""
    with page(browser, height=height) as opened:
        opened.goto(path.as_uri())
        store(name, opened)


def endpoint(browser: Browser, work: Path) -> None:
    """The endpoint's page, with its answer for one drawn face."""
    face = sorted((work / "unlabelled/happy").glob("*.png"))[1]
    command = [sys.executable, "-m", "fer_scale", "serve", "bundle", "--port", "0"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, cwd=work, env=environment, stderr=subprocess.PIPE, text=True) as serving:
        assert serving.stderr
        address = next(found[0] for line in serving.stderr if (found := re.search(r"http://[\d.:]+", line)))
        with page(browser, width=1040, height=640) as opened:
            opened.goto(address)
            opened.set_input_files("#file", face)
            opened.locator("#bars li.top").wait_for()
            opened.wait_for_timeout(1500)
            store("serve", opened)
        serving.terminate()
        serving.stderr.read()


def run_once(work: Path, out: str, *command: str) -> None:
    """Run a step of the line, unless it was run before."""
    if not (work / out).exists():
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        subprocess.run([sys.executable, "-m", *command], cwd=work, env=environment, check=True)


def main() -> None:
    """Make every picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=ROOT / "build/pictures", help="folder for what the commands make")
    parser.add_argument("--search", default="5m", help="time budget of the search")
    given = parser.parse_args()
    work: Path = given.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    run_once(work, "faces", "fer_scale.faces.sample", "faces", "--count", "2000")
    run_once(work, "unlabelled", "fer_scale.faces.sample", "unlabelled", "--count", "400", "--seed", "1")
    terminal("ingest", session(work, "fer-scale ingest faces store --overwrite"), "ingest")
    run_once(work, "search", "fer_scale", "tune", "store", "--out", "search", "--time-budget", given.search)
    fit = "fer-scale train store --from search --out bundle --epochs 6 --overwrite"
    terminal("train", session(work, fit), "train")
    run_once(work, "report", "fer_scale", "evaluate", "bundle", "store", "--out", "report")
    run_once(work, "labels", "fer_scale", "label", "bundle", "unlabelled", "labels", "--include", "*.png")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        report(browser, "tune", work / "search/report.html", 900)
        report(browser, "report", work / "report/report.html", 900)
        report(browser, "label", work / "labels/report.html", 900)
        endpoint(browser, work)
        browser.close()


if __name__ == "__main__":
    main()
