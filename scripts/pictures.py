"""Make every picture of the documentation again: ``python scripts/pictures.py``, about ten minutes on two cores.

The commands run for real and Chromium looks at the pages that they leave; a terminal is drawn from what its command
said. The faces are drawn ones: pictures of people are not ours to publish. What a step has left in the work folder is
not made again; remove that folder to begin anew.
"""

import argparse
import io
import itertools
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright
from rich.console import Console
from rich.terminal_theme import TerminalTheme
from rich.text import Text

from fer_scale.faces.detection import Detection, Detector
from fer_scale.faces.sample import CLASSES, face

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT / "docs/images"
MOST_BYTES = 200_000
COLUMNS = 104
"""Width of a terminal, letters."""
HOME = "/home/you"
"""What stands in a picture for the work folder, which is nobody's business."""
RED, GREEN, YELLOW, BLUE = (240, 135, 124), (92, 201, 160), (232, 192, 106), (109, 184, 232)
PAPER, INK = (20, 23, 28), (228, 230, 234)
THEME = TerminalTheme(PAPER, INK, [PAPER, RED, GREEN, YELLOW, BLUE, INK, INK, INK])
SHADES = {
    r"^\$ .*": "bold blue",
    r"^warning:.*": "yellow",
    r"(?m)^\w[\w ]*? {2,}ok\b": "green",
    r"(?m)^\w[\w ]*? {2,}problem\b": "red",
}
LINE = {  # name: command; in the order in which they run
    "faces": "python -m fer_scale.faces.sample faces --count 2000",
    "unlabelled": "python -m fer_scale.faces.sample unlabelled --count 400 --seed 1",
    "ingest": "fer-scale ingest faces store",
    "tune": "fer-scale tune store --out search --time-budget {search}",
    "train": "fer-scale train store {fit} --out bundle",
    "evaluate": "fer-scale evaluate bundle store --out report",
    "label": "fer-scale label bundle unlabelled labels --include '*.png' --max-error 0.15",
    "certify": "fer-scale certify labels --sample 40",
    "doctor": "fer-scale doctor --storage . --cpus 64",
}
TERMINALS = ("ingest", "train", "doctor")
PAGES = {  # name: page, width and height of what is shown of it
    "tune": ("search/report.html", 1000, 980),
    "evaluate": ("report/report.html", 1000, 1120),
    "label": ("labels/report.html", 1000, 1000),
    "certify": ("labels/certificate/sheet.html", 1000, 700),
}


def said(work: Path, name: str, command: str) -> str:
    """What a command of the line says; it runs in the work folder unless it has before."""
    log = work / f"{name}.txt"
    if not log.exists():
        words = shlex.split(command)
        program = ["-m", "fer_scale", *words[1:]] if words[0] == "fer-scale" else words[1:]
        done = subprocess.run(
            [sys.executable, *program], cwd=work, env=environment(), text=True, capture_output=True, check=False
        )
        if done.returncode != (2 if name == "doctor" else 0):  # 64 CPUs are not there: its picture is of that
            sys.exit(f"{command}\n{done.stderr}")
        log.write_text(f"{done.stderr}{done.stdout}".replace(str(work), HOME))
    return f"$ {command}\n{log.read_text()}".rstrip()


def environment() -> dict[str, str]:
    """Of this checkout's fer_scale, on a cluster of its own."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "RAY_ADDRESS": "local", "COLUMNS": str(COLUMNS)}


def terminal(name: str, text: str) -> None:
    """Draw a terminal with this text as docs/images/NAME.svg, in a font that the reader has."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO())
    shown = Text(text)
    for pattern, style in SHADES.items():
        shown.highlight_regex(pattern if pattern.startswith("(?m)") else f"(?m){pattern}", style)
    console.print(shown)
    drawn = console.export_svg(title="fer-scale", theme=THEME, unique_id=name)
    drawn = re.sub(r"@font-face \{.*?\}\s*", "", drawn, flags=re.S)  # rich's would be fetched from another host
    drawn = re.sub(r"font-family: (?:Fira Code|arial)[^;]*;", "font-family: ui-monospace, Menlo, monospace;", drawn)
    (IMAGES / f"{name}.svg").write_text(re.sub(r"[ \t]+$", "", drawn, flags=re.M))


@contextmanager
def opened(browser: Browser, width: int, height: int, colours: Literal["light", "dark"] = "light") -> Iterator[Page]:
    """A page, as fine as on a good screen."""
    context = browser.new_context(
        viewport={"width": width, "height": height},
        device_scale_factor=2,
        color_scheme=colours,
        reduced_motion="reduce",
    )
    yield context.new_page()
    context.close()


def keep(name: str, page: Page) -> None:
    """Save what a page shows as docs/images/NAME.webp."""
    path = IMAGES / f"{name}.webp"
    Image.open(io.BytesIO(page.screenshot())).convert("RGB").save(path, quality=84, method=6)
    if path.stat().st_size > MOST_BYTES:
        sys.exit(f"{path} has {path.stat().st_size:,} bytes, more than {MOST_BYTES:,}")


def report(browser: Browser, work: Path, name: str) -> None:
    """The top of a page that a verb left."""
    path, width, height = PAGES[name]
    with opened(browser, width, height) as page:
        page.set_content((work / path).read_text().replace(str(work), HOME))
        keep(name, page)


def group() -> bytes:
    """Four drawn faces as a photograph: of each class the first one that the detector takes for a face."""
    detector, photograph = Detector(Detection()), Image.new("RGB", (480, 480))
    for at, label in enumerate(CLASSES):
        drawn = (face(label, np.random.default_rng(seed), 240).convert("RGB") for seed in itertools.count(100 * at))
        found = next(one for one in drawn if any(found.score > 0.95 for found in detector.faces(one)))
        photograph.paste(found, (240 * (at % 2), 240 * (at // 2)))
    buffer = io.BytesIO()
    photograph.save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


def endpoint(work: Path) -> None:
    """The endpoint's page: a photograph on a desktop, the camera on a phone."""
    photograph, film = group(), work / "camera.mjpeg"
    film.write_bytes(photograph * 10)
    camera = ["device-for-media-stream", "ui-for-media-stream"]
    arguments = ["--no-sandbox", *(f"--use-fake-{one}" for one in camera), f"--use-file-for-fake-video-capture={film}"]
    command = [sys.executable, "-m", "fer_scale", "serve", "bundle", "--port", "0", "--max-error", "0.15"]
    with (
        sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=shutil.which("chromium"), args=arguments) as browser,
        subprocess.Popen(command, cwd=work, env=environment(), stderr=subprocess.PIPE, text=True) as serving,
    ):
        try:
            address = next(found[0] for line in serving.stderr or () if (found := re.search(r"http://[\d.:]+", line)))
            with opened(browser, 1080, 800) as page:
                page.goto(address)
                page.set_input_files("#file", {"name": "group.jpg", "mimeType": "image/jpeg", "buffer": photograph})
                page.locator("#faces button").last.click()
                page.locator("h1").click()
                page.wait_for_timeout(1500)  # until the bars stand still
                keep("serve", page)
            with opened(browser, 400, 820, "dark") as page:
                page.goto(address)
                page.get_by_role("button", name="Use the camera").click()
                page.get_by_role("button", name="Read live").click()
                page.locator(".box").last.wait_for()
                page.locator("#stage").scroll_into_view_if_needed()
                page.evaluate("scrollTo(0, 0)")
                page.wait_for_timeout(1500)
                keep("serve-phone", page)
        finally:
            serving.terminate()


def main() -> None:
    """Make every picture, or those that are named."""
    parser = argparse.ArgumentParser(description=__doc__)
    every = sorted({*TERMINALS, *PAGES, "serve"})
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"only these of {', '.join(every)}")
    parser.add_argument("--work", type=Path, default=ROOT / "build/pictures", help="folder for what the commands make")
    parser.add_argument("--search", default="6m", help="time budget of the search")
    parser.add_argument("--fit", default="--from search --epochs 8", help="what is fitted, and for how long")
    given = parser.parse_args()
    if unknown := set(given.names) - set(every):
        parser.error(f"{', '.join(unknown)}: choose from {', '.join(every)}")
    names, work = given.names or every, given.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    line = {name: command.format(search=given.search, fit=given.fit) for name, command in LINE.items()}
    last = max(list(line).index(name) if name in line else len(line) for name in names)
    texts = {name: said(work, name, line[name]) for name in list(line)[: last + 1]}
    for name in (name for name in TERMINALS if name in names):
        terminal(name, texts[name])
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for name in (name for name in PAGES if name in names):
            report(browser, work, name)
        browser.close()
    if "serve" in names:
        endpoint(work)


if __name__ == "__main__":
    main()
