"""The page in a real browser, headless: from upload to a visible result, and no request leaves.

Needs Playwright (`pip install -e ".[browser]"`) and a Chromium of the system (Debian:
`apt-get install chromium`); without them it is skipped. CI installs both. With
UNIT_JAX_SCREENSHOT=FILE.png it writes the picture that the README shows.
"""

import os
import shutil
import urllib.parse

import pytest

from tests.page.test_app import serve
from unit_jax.page import app

playwright = pytest.importorskip(
    "playwright.sync_api", reason='the browser test needs pip install -e ".[browser]"'
)
NAMES = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next(filter(None, map(shutil.which, NAMES)), "")
pytestmark = [
    pytest.mark.skipif(not BROWSER, reason="no Chromium here: apt-get install chromium"),
]


@pytest.fixture(scope="module")
def address():
    import unit_jax

    model = unit_jax.load("demo", batch_size=1)
    base, stop = serve(app.make_app(model, app.Limits(per_minute=6000)))
    yield base
    stop()


@pytest.fixture
def page(address):
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1240, "height": 860}, device_scale_factor=1.5)
        page.asked, page.wrong = [], []
        page.on("request", lambda request: page.asked.append(request.url))
        page.on("pageerror", lambda error: page.wrong.append(str(error)))
        page.on("console", lambda m: page.wrong.append(m.text) if m.type == "error" else None)
        page.set_default_timeout(90_000)
        page.goto(address)
        yield page
        browser.close()


def test_from_upload_to_boxes_and_answers(page, address, tmp_path):
    page.set_input_files("#file", str(app._folder("pictures") / "scene-5.png"))
    page.wait_for_selector("#answers .answer.box")
    assert page.is_visible("#canvas")
    found = page.locator("#answers .answer.box")
    few = found.count()
    page.locator("#threshold").fill("0.05")
    assert found.count() >= few > 0
    page.locator("#threshold").fill("0.5")
    page.evaluate("scrollTo(0, 0)")
    page.screenshot(path=tmp_path / "boxes.png")
    found.first.click()  # what that box looks at
    page.wait_for_selector("#clear:visible")

    page.get_by_role("tab", name="vqa2").click()
    page.locator("#text").fill("what shape is purple?")
    page.get_by_role("button", name="Ask").click()
    page.wait_for_selector("#words button")
    assert page.locator("#answers .answer").count() > 2
    before = page.locator("#answers").inner_text()
    page.get_by_role("button", name="shape", exact=True).click()  # without that word
    page.wait_for_function("before => document.querySelector('#answers').innerText != before",
                           arg=before)  # fmt: skip
    page.get_by_role("button", name="shape", exact=True).click()
    page.wait_for_function("before => document.querySelector('#answers').innerText == before",
                           arg=before)  # fmt: skip
    page.wait_for_selector("#ask:enabled")
    page.evaluate("scrollTo(0, 0)")
    page.screenshot(path=tmp_path / "answers.png")
    if wanted := os.environ.get("UNIT_JAX_SCREENSHOT"):
        shutil.copy(tmp_path / "boxes.png", wanted)
        shutil.copy(tmp_path / "answers.png", wanted.replace(".png", "-answers.png"))

    hosts = {urllib.parse.urlsplit(url).netloc for url in page.asked if url.startswith("http")}
    assert hosts == {urllib.parse.urlsplit(address).netloc}
    assert not page.wrong


def test_texts_need_no_picture_and_bad_files_are_told(page, tmp_path):
    page.get_by_role("tab", name="qqp").click()
    assert not page.is_visible("#canvas")
    page.get_by_role("button", name="Ask").click()
    page.wait_for_selector("#answers .answer")
    page.get_by_role("tab", name="coco").click()
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    page.set_input_files("#file", str(broken))
    page.wait_for_selector("#error:visible")
    assert "cannot be read" in page.locator("#error").inner_text()
