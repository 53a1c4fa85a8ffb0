"""The page in a real browser, from tab to tab. It needs Gradio, Playwright and a Chromium.

JVAE_BROWSER names the program of the browser; by default it is looked for on the path.
"""

import dataclasses
import importlib.util
import os
import shutil

import pytest

from jvae.demo import state
from tests.tools.letters import Spelt

pytestmark = pytest.mark.slow
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
WIDE, PHONE = 1280, 390
TABS = ("Slide", "Sample", "Move", "Neighbors", "Map", "Log-probabilities")
WAIT_MS = 600_000  # for answers that compile


@pytest.fixture(scope="module")
def browser():
    for package in ("gradio", "playwright"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    from playwright.sync_api import sync_playwright  # pyright: ignore[reportMissingImports]

    program = os.environ.get("JVAE_BROWSER") or next(filter(None, map(shutil.which, BROWSERS)), "")
    with sync_playwright() as playwright:
        program = program or playwright.chromium.executable_path
        if not os.access(program, os.X_OK):
            pytest.skip("no Chromium; install one, or name one in JVAE_BROWSER")
        args = ["--no-sandbox", "--no-zygote", "--disable-gpu", "--disable-dev-shm-usage"]
        browser = playwright.chromium.launch(executable_path=program, args=args, timeout=WAIT_MS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def model():
    return state.load("optimus-tiny")


@pytest.fixture(scope="module")
def address(browser, model):
    from jvae.demo import page

    yield page.serve(model, host="127.0.0.1", port=None, share=False, block=False)
    page.gr.close_all()


class Tabs:
    """An open page, and the addresses it asked for and errors of its scripts."""

    def __init__(self, browser, address, width):
        self.page = browser.new_page(viewport={"width": width, "height": 900})
        self.page.set_default_timeout(WAIT_MS)
        self.asked, self.errors = [], []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.goto(address, wait_until="commit")
        self.rows().first.wait_for()

    def open(self, name):
        """Opens a tab; narrow pages keep some in a menu."""
        tab = self.page.get_by_role("tab", name=name, exact=True)
        if tab.count() and tab.first.is_visible():
            tab.first.click()
            return
        self.page.locator(".overflow-menu button").first.click()
        self.page.locator(".overflow-dropdown button", has_text=name).click()

    def press(self, name, place=0):
        button = self.page.get_by_role("button", name=name, exact=True)
        button.locator("visible=true").nth(place).click()

    def rows(self):
        return self.page.locator(".jv-rows tr").locator("visible=true")

    def row(self, head):
        """The text of the visible row with this head, once it is there."""
        head = self.page.locator(".jv-rows th", has_text=head).locator("visible=true").first
        head.wait_for()
        return head.locator("xpath=../td").inner_text()


@pytest.mark.parametrize("width", [WIDE, PHONE])
def test_every_tab_answers(browser, address, model, width):
    tabs = Tabs(browser, address, width)
    page = tabs.page
    assert tabs.rows().count() == 11
    ends = model.examples.texts[:2]
    assert (tabs.row("0.00"), tabs.row("1.00")) == tuple(model.vae.reconstruct(ends))
    page.get_by_label("number input for Position, 0 to 1").fill("1")
    page.keyboard.press("Tab")
    page.locator(".jv-at th", has_text="1.00").wait_for()
    assert page.locator(".jv-sentence").inner_text() == tabs.row("1.00")

    tabs.open("Sample")
    tabs.press("Sample")
    assert tabs.row("10") == model.vae.sample(10, 0)[9]

    tabs.open("Move")
    tabs.press("Move")
    assert tabs.row("+2 ×")
    tabs.press("Move", 1)
    assert tabs.row("+3 sd")

    tabs.open("Neighbors")
    tabs.press("Find")
    assert tabs.row("0.000") == ends[0]

    tabs.open("Map")
    page.locator('circle[data-place="3"]').wait_for()
    page.locator('circle[data-place="3"]').click(force=True)
    assert tabs.row("sentence") == model.examples.texts[3]
    assert tabs.row("decoded") == model.vae.reconstruct(model.examples.texts[3:4])[0]

    tabs.open("Log-probabilities")
    tabs.press("Score")
    page.locator(".jv-token").first.wait_for()
    words = page.locator(".jv-tokens").first.locator(".jv-token").all_inner_texts()
    assert [word.strip() for word in words[:-1]] == ends[0].split()

    # Gradio clips what is wider than the page, so its scroll width says nothing.
    right = "all => Math.max(...all.map(one => one.getBoundingClientRect().right))"
    assert page.locator(".jv-token, .jv-rows td, .jv-map").evaluate_all(right) <= width
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert not tabs.errors and all(url.startswith(address) for url in tabs.asked)
    page.close()


def test_an_error_is_shown(browser, address):
    tabs = Tabs(browser, address, WIDE)
    tabs.page.get_by_label("From", exact=True).first.fill(" ")
    tabs.press("Interpolate")
    message = tabs.page.locator(".toast-body")
    message.wait_for()
    assert "sentence 1 is empty" in message.inner_text()
    tabs.page.close()


def parts_of(demo):
    """The labels of what is visible on a page, and all that it says."""
    pytest.importorskip("gradio")
    from jvae.demo import page

    parts = [component["props"] for component in page.build(demo).config["components"]]
    labels = {part.get("label") for part in parts if part.get("visible", True)}
    return labels, " ".join(str(part.get("value")) for part in parts)


def test_controls_without_labels_are_left_out(demo):
    labels, text = parts_of(demo)
    assert {*TABS, "Colour"} <= labels and "no labels" not in text
    examples = demo.examples._replace(labels={})
    labels, text = parts_of(dataclasses.replace(demo, examples=examples))
    assert set(TABS) <= labels and "Colour" not in labels
    assert "no labels to compute attribute vectors from" in text


def test_a_language_model_has_the_tabs_that_need_no_latent(demo):
    labels, text = parts_of(dataclasses.replace(demo, vae=Spelt(groups=0)))
    assert labels & set(TABS) == {"Sample", "Log-probabilities"}
    assert "no latent to slide" in text
