"""The page in a real browser: headless Chromium, a camera that is fed by the browser itself."""

import re
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from fer_scale.learning.acceptance import Acceptance
from fer_scale.predictor import Predictor
from fer_scale.verbs.serve.limits import Limits
from fer_scale.verbs.serve.service import Service
from fer_scale.verbs.serve.token import read_token
from tests import photographs
from tests.bundles import write_bundle
from tests.serving import listening, picture

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
Browser, Page, expect = sync_api.Browser, sync_api.Page, sync_api.expect
expect.set_options(timeout=30_000)  # the first photograph waits for the detector to be loaded

CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
TOKEN = "correct-horse-battery"

needs_mtcnn = pytest.mark.skipif(find_spec("mtcnn") is None, reason="the extra `detect` is not installed")
pytestmark = pytest.mark.skipif(not Path(CHROMIUM).exists(), reason="chromium is not installed")


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    return Predictor.load(write_bundle(tmp_path_factory.mktemp("page") / "bundle"), threads=1)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Chromium, whose camera shows two faces for ever."""
    film = tmp_path_factory.mktemp("camera") / "faces.mjpeg"
    film.write_bytes(photographs.encoded(photographs.group().crop((0, 0, 700, 427)).resize((640, 390)), "JPEG") * 10)
    camera = [
        "--use-fake-device-for-media-stream",
        "--use-fake-ui-for-media-stream",
        f"--use-file-for-fake-video-capture={film}",
    ]
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", *camera])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def url(predictor: Predictor) -> Iterator[str]:
    acceptance = Acceptance(0.05, 0.95, 0.0, rows=100, accepted=100, wrong=1)
    with listening(Service(predictor, Limits(max_bytes=200_000), acceptance=acceptance)) as url:
        yield url


@pytest.fixture
def page(browser: Browser, url: str) -> Iterator[Page]:
    """A page in which nothing may go wrong unseen, and which may speak to the endpoint alone."""
    context = browser.new_context()
    page = context.new_page()
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda message: faults.append(message.text) if "Content Security" in message.text else None)
    page.on("request", lambda request: faults.append(request.url) if not _ours(request.url, url) else None)
    page.goto(url)
    expect(page.locator("#bars li")).to_have_count(4)
    yield page
    context.close()
    assert faults == []


def _ours(address: str, url: str) -> bool:
    return address.startswith((url, f"blob:{url}"))


def upload(page: Page, *images: bytes) -> None:
    files = [{"name": f"{at}.png", "mimeType": "image/png", "buffer": data} for at, data in enumerate(images)]
    page.set_input_files("#file", files)


def test_a_picture_gets_its_answer(page: Page, predictor: Predictor) -> None:
    upload(page, picture(0))
    label = page.locator("#label")
    expect(label).to_have_text(label_of(predictor, picture(0)))
    expect(page.locator("#live-region")).to_contain_text("percent")
    expect(page.locator("#bars li.top .value")).to_have_text(page.locator("#confidence").inner_text().split("of ")[1])
    expect(page.locator("#seen")).to_be_visible()
    expect(page.locator("#busy")).to_be_hidden()
    expect(page.locator("#model")).to_contain_text(predictor.model_id)


def label_of(predictor: Predictor, data: bytes) -> str:
    from fer_scale.faces.images import prepare

    row = predictor.probabilities(prepare(data, predictor.preprocessing)[None])[0]
    return predictor.classes[int(row.argmax())]


@needs_mtcnn
def test_the_faces_of_a_photograph_are_boxed_and_each_has_its_bars(page: Page) -> None:
    upload(page, photographs.encoded(photographs.group(), "JPEG"))
    faces, boxes = page.locator("#faces button"), page.locator("#boxes .box")
    expect(faces).to_have_count(3)
    expect(boxes).to_have_count(3)
    expect(page.locator("#judged")).to_contain_text("at most 5 % should be wrong")
    expect(page.locator("#strip button")).to_contain_text("3 faces")
    picture = page.locator("#picture").bounding_box()
    astronaut, scale = boxes.nth(1).bounding_box(), picture["width"] / 1000  # it is as wide as the stage
    assert abs((astronaut["x"] - picture["x"]) / scale - 120) < 20
    assert abs(astronaut["width"] / scale - 86) < 30

    faces.nth(1).focus()
    page.keyboard.press("Enter")
    expect(page.locator("#kicker")).to_have_text("face 2 of 3")
    expect(faces.nth(1)).to_be_focused()
    expect(faces.nth(1)).to_have_attribute("aria-pressed", "true")
    expect(boxes.nth(1)).to_have_class("box chosen")
    expect(faces.nth(1)).to_have_accessible_name(re.compile(r"^Face 2 of 3: \w+, \d+ percent, sure$"))
    boxes.nth(2).click()
    expect(page.locator("#kicker")).to_have_text("face 3 of 3")

    page.get_by_role("radio", name="It is one face").check(force=True)
    expect(faces.first).to_be_hidden()
    expect(boxes.first).to_be_hidden()
    expect(page.locator("#frame")).to_be_visible()
    page.reload()
    expect(page.get_by_role("radio", name="It is one face")).to_be_checked()


@needs_mtcnn
def test_where_nobody_is_it_says_so_and_may_be_read_whole(page: Page) -> None:
    upload(page, photographs.encoded(photographs.scenery(), "JPEG"))
    expect(page.locator("#none")).to_contain_text("None was found")
    expect(page.locator("#live-region")).to_have_text("No face found")
    expect(page.locator("#strip button")).to_contain_text("no face")
    page.get_by_role("button", name="Read the whole picture").click()
    expect(page.locator("#none")).to_be_hidden()
    expect(page.locator("#label")).not_to_be_empty()


def test_a_bad_picture_is_told_kindly_and_costs_the_others_nothing(page: Page) -> None:
    upload(page, b"this is no picture", picture(1))
    expect(page.get_by_role("alert")).to_contain_text("not a picture the model can read")
    expect(page.locator("#strip button")).to_have_count(2)
    page.locator("#strip button").filter(has_text="%").click()
    expect(page.get_by_role("alert")).to_be_hidden()
    expect(page.locator("#label")).not_to_be_empty()
    upload(page, b"x" * 300_000)
    expect(page.get_by_role("alert")).to_contain_text("A smaller copy of it will do")


def test_the_keyboard_alone_is_enough(page: Page) -> None:
    upload(page, picture(0), picture(1))
    expect(page.locator("#strip i").filter(has_text="%")).to_have_count(2)
    page.locator("#strip button").first.focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#strip button").nth(1)).to_have_attribute("aria-current", "true")
    page.locator("#clear").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#history")).to_be_hidden()
    expect(page.locator("#stage")).to_have_attribute("data-state", "empty")
    expect(page.locator("#choose")).to_be_focused()


def test_a_dropped_picture_is_read(page: Page) -> None:
    transfer = page.evaluate_handle(
        """async () => {
            const canvas = document.createElement("canvas");
            canvas.width = canvas.height = 48; // no photograph, so it is read as one face
            const blob = await new Promise((done) => canvas.toBlob(done));
            const transfer = new DataTransfer();
            transfer.items.add(new File([blob], "drawn.png", { type: "image/png" }));
            return transfer;
        }"""
    )
    page.dispatch_event("body", "dragenter", {"dataTransfer": transfer})
    expect(page.locator("#veil")).to_be_visible()
    page.dispatch_event("body", "drop", {"dataTransfer": transfer})
    expect(page.locator("#veil")).to_be_hidden()
    expect(page.locator("#label")).not_to_be_empty()


def test_the_camera_is_read_live_and_gives_a_picture(page: Page) -> None:
    page.get_by_role("button", name="Use the camera").click()
    page.get_by_role("button", name="Read live").click()
    detecting = find_spec("mtcnn") is not None
    expect(page.locator("#kicker")).to_have_text("right now, 2 faces" if detecting else "right now")
    expect(page.locator("#boxes .box")).to_have_count(2 if detecting else 0)
    expect(page.locator("#strip button")).to_have_count(0)
    page.get_by_role("button", name="Take the picture").click()
    expect(page.locator("#strip button")).to_have_count(1)
    expect(page.locator("#video")).to_be_hidden()
    expect(page.locator("#kicker")).not_to_have_text(re.compile("right now"))
    page.get_by_role("button", name="Use the camera").click()
    expect(page.locator("#video")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#video")).to_be_hidden()


def test_dark_and_light(page: Page) -> None:
    root = page.locator("html")
    expect(root).to_have_attribute("data-theme", "light")
    page.get_by_role("button", name="Dark colours").click()
    expect(root).to_have_attribute("data-theme", "dark")
    page.reload()
    expect(root).to_have_attribute("data-theme", "dark")


def test_a_phone_has_room_for_all_of_it(browser: Browser, url: str) -> None:
    context = browser.new_context(viewport={"width": 360, "height": 740}, is_mobile=True, has_touch=True)
    page = context.new_page()
    page.goto(url)
    upload(page, picture(0), picture(1), picture(2))
    expect(page.locator("#strip i").filter(has_text="%")).to_have_count(3)
    widths = page.evaluate("() => [document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    assert widths[0] <= widths[1]
    context.close()


def test_a_token_is_asked_for_and_kept_in_the_tab(browser: Browser, predictor: Predictor, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(TOKEN)
    with listening(Service(predictor, Limits(), read_token(tmp_path / "token"))) as url:
        context = browser.new_context()
        page = context.new_page()
        page.goto(url)
        page.get_by_role("textbox", name="Token").fill(TOKEN)
        page.get_by_role("button", name="Use it").click()
        expect(page.locator("#bars li")).to_have_count(4)
        upload(page, picture(0))
        expect(page.locator("#label")).not_to_be_empty()
        context.close()
