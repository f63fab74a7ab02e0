"""The page in a real Chromium, around really trained models: what a person does with it, and sees."""

from __future__ import annotations

import importlib.util
import io
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.apps.serving.test_server import GERMAN, KOREAN, SPOKEN, running
from tests.live import ask, serving

CHROMIUM = os.environ.get("CAPTIONER_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
WIDTHS = {"phone": 390, "desktop": 1280}
PATIENCE = 300_000  # milliseconds, for machines that have other things to do

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("fastapi") is None,
        reason="the extra is not installed: pip install 'captioner[serve]'",
    ),
    pytest.mark.skipif(
        importlib.util.find_spec("playwright") is None, reason="no browser driver: pip install playwright"
    ),
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium; name one in $CAPTIONER_CHROMIUM"),
]


@pytest.fixture(scope="module")
def address(served_runs: Path) -> Iterator[str]:
    """Of a server of all three."""
    with serving("--run", str(served_runs / "scenes"), "--run", str(served_runs)) as (found, _):
        yield found


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(params=WIDTHS)
def page(request: pytest.FixtureRequest, chromium: Any, address: str) -> Iterator[Any]:
    """The page at a phone's and a desktop's width; whatever it fetches from elsewhere is a failure."""
    context = chromium.new_context(
        viewport={"width": WIDTHS[request.param], "height": 844}, has_touch=request.param == "phone"
    )
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    asked: list[str] = []
    page.on("request", lambda sent: asked.append(sent.url))
    page.goto(address)
    page.wait_for_selector("#drop")
    yield page
    assert [url for url in asked if not url.startswith((address, "blob:", "data:"))] == []
    context.close()


def drop(page: Any, *files: tuple[str, str, bytes]) -> None:
    """Drops files (name, type, content) onto the page, as a hand would."""
    items = [{"name": name, "kind": kind, "data": list(content)} for name, kind, content in files]
    page.evaluate(
        """files => {
            const carried = new DataTransfer();
            for (const {name, kind, data} of files)
                carried.items.add(new File([new Uint8Array(data)], name, {type: kind}));
            const zone = document.querySelector("#drop");
            const details = {dataTransfer: carried, bubbles: true, cancelable: true};
            for (const type of ["dragenter", "dragover", "drop"])
                zone.dispatchEvent(new DragEvent(type, details));
        }""",
        items,
    )


def wait_for(page: Any, condition: str) -> None:
    """Until an expression holds on the page, asked from outside: its policy runs no string as a script."""
    until = time.monotonic() + PATIENCE / 1000
    while not page.evaluate(condition):
        assert time.monotonic() < until, condition
        page.wait_for_timeout(50)


def photograph(size: tuple[int, int] = (640, 400)) -> bytes:
    """A JPEG with a red round thing on the left."""
    y, x = np.mgrid[0 : size[1], 0 : size[0]]
    pixels = np.stack([120 + x % 90, 150 + y % 60, 200 - x % 40], -1).astype(np.uint8)
    pixels[(x - size[0] * 0.3) ** 2 + (y - size[1] * 0.5) ** 2 < (size[1] * 0.25) ** 2] = (210, 40, 50)
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "JPEG")
    return content.getvalue()


def shown(page: Any) -> str:
    page.wait_for_selector("#results .card .caption")
    text: str = page.locator("#results .card .caption").first.inner_text()
    return text


def test_a_dropped_picture_is_described_and_lit_word_by_word(page: Any, tmp_path: Path) -> None:
    with page.expect_response("**/api/caption") as answered:
        drop(page, ("holiday.jpg", "image/jpeg", photograph()))
    caption = shown(page)
    weights = np.array(answered.value.json()["pictures"][0]["attention"][-1])  # of the last word
    words = page.locator("#results .word").all_inner_texts()
    assert words and " ".join(words) == caption
    assert page.locator("#results .frame").count() == len(words)
    assert page.locator("#results .ranking li").count() == 3
    assert re.search(r"%|1 in", page.locator("#results .ranking b").first.inner_text())
    # Touching a word darkens the picture but for where the model looked.
    page.wait_for_timeout(500)
    page.locator("#results .word").last.click()
    page.wait_for_timeout(1500)
    alphas = page.evaluate(
        """() => {
            const canvas = document.querySelector("#results .picture canvas");
            const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
            const alphas = [...data].filter((_, at) => at % 4 === 3);
            return [Math.min(...alphas), Math.max(...alphas), canvas.getBoundingClientRect().width];
        }"""
    )
    assert alphas[0] < 20 and alphas[2] > 200
    darkest = 200 * (1 - (weights.min() / weights.max()) ** 0.8)
    assert abs(alphas[1] - darkest) < 25 and darkest > 25
    page.locator("#results .copy").click()
    assert page.evaluate("navigator.clipboard.readText()") == caption
    # Nothing sticks out at the side.
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.screenshot(path=str(tmp_path / "page.png"), full_page=True)
    keep = os.environ.get("CAPTIONER_SCREENSHOTS")
    if keep:
        shutil.copy(tmp_path / "page.png", Path(keep) / f"page-{page.viewport_size['width']}.png")


def test_several_pictures_examples_and_pasted_ones(page: Any) -> None:
    drop(page, ("a.jpg", "image/jpeg", photograph()), ("b.jpg", "image/jpeg", photograph((300, 500))))
    wait_for(page, "document.querySelectorAll('#results .caption').length === 2")
    names = page.locator("#results .card .name").all_inner_texts()
    assert [name.split(" ")[0] for name in names] == ["a.jpg", "b.jpg"]
    page.locator("[data-example='2']").click()
    wait_for(page, "document.querySelectorAll('#results .caption').length === 3")
    page.evaluate(
        """data => {
            const carried = new DataTransfer();
            carried.items.add(new File([new Uint8Array(data)], "pasted.jpg", {type: "image/jpeg"}));
            document.dispatchEvent(new ClipboardEvent("paste", {clipboardData: carried, bubbles: true}));
        }""",
        list(photograph()),
    )
    wait_for(page, "document.querySelectorAll('#results .caption').length === 4")
    page.locator("#results .close").first.click()
    assert page.locator("#results .card").count() == 3


def test_what_is_no_picture_is_refused_with_a_reason(page: Any) -> None:
    bomb = io.BytesIO()
    Image.new("1", (20_000, 10_000)).save(bomb, "PNG")
    drop(page, ("notes.jpg", "image/jpeg", b"not a picture"), ("bomb.png", "image/png", bomb.getvalue()))
    wait_for(page, "document.querySelectorAll('#results .reason').length === 2")
    notes, bombs = page.locator("#results .reason").all_inner_texts()
    assert notes.startswith("notes.jpg is no picture that can be read")
    assert bombs.startswith("bomb.png has more pixels than the 80,000,000")
    drop(page, ("large.jpg", "image/jpeg", b"x"))  # and the page goes on
    wait_for(page, "document.querySelectorAll('#results .reason').length === 3")
    drop(page, ("good.jpg", "image/jpeg", photograph()))
    assert shown(page)


def test_what_the_browser_cannot_show_the_server_shows(page: Any) -> None:
    content = io.BytesIO()
    Image.open(io.BytesIO(photograph())).save(content, "TIFF")
    drop(page, ("scan.tif", "image/tiff", content.getvalue()))
    assert shown(page)
    assert page.locator("#results .picture img").get_attribute("src").startswith("data:image/jpeg")


def test_settings_and_runs_and_captions_in_two_scripts(page: Any, address: str) -> None:
    drop(page, ("a.jpg", "image/jpeg", photograph()))
    english = shown(page)
    assert english.isascii()
    for run, letters in (("szenen", "[a-zäöüß ]+"), ("장면", "[가-힣 ]+")):
        page.locator("#model").select_option(run)
        wait_for(page, f"document.querySelector('#about').innerText.startsWith('{run}')")
        drop(page, (f"{run}.jpg", "image/jpeg", photograph()))
        # The waiting card has the file's name alone.
        wait_for(page, f"document.querySelector('#results .name').innerText.startsWith('{run}.jpg · {run}')")
        caption = page.locator("#results .card .caption").first.inner_text()
        assert re.fullmatch(letters, caption), caption
        status, answer = ask(f"{address}/api/caption?run={_quoted(run)}", photograph(), "image/jpeg")
        assert (status, answer["pictures"][0]["caption"]) == (200, caption)
    page.get_by_text("Settings", exact=True).click()
    page.get_by_label("Draw words at random").check()
    page.wait_for_selector("#drawing:visible")
    page.evaluate(
        """() => {
            const send = window.fetch;
            window.fetch = (url, options) => {
                window.sent = Object.fromEntries([...options.body].filter(([name]) => name !== "image"));
                return send(url, options);
            };
        }"""
    )
    with page.expect_response("**/api/caption") as answered:
        page.locator("#again").click()
    assert answered.value.json()["pictures"][0]["caption"]
    sent = page.evaluate("window.sent")
    assert (sent["run"], sent["temperature"], "beam" in sent) == ("장면", "0.8", False)


def test_a_language_is_chosen_where_the_model_knows_some(chromium: Any) -> None:
    with running(more=[SPOKEN]) as server:
        page = chromium.new_page()
        page.set_default_timeout(PATIENCE)
        page.goto(f"http://127.0.0.1:{server.port}")
        menu = page.get_by_label("Language of the captions")
        assert not menu.is_visible()  # of the first model
        page.locator("#model").select_option("spoken")
        assert menu.is_visible()
        for language, text in (("de", GERMAN), ("ko", KOREAN)):
            menu.select_option(language)
            drop(page, ("a.jpg", "image/jpeg", photograph()))
            wait_for(page, f"document.querySelector('#results .caption')?.innerText === '{text}'")
            assert page.locator("#results .caption").first.get_attribute("lang") == language
        menu.select_option("all")
        page.get_by_text("Settings", exact=True).click()
        page.locator("#results .close").first.click()
        page.locator("#again").click()
        wait_for(page, "document.querySelectorAll('#results .caption').length === 2")
        assert page.locator("#results .caption").all_inner_texts() == [GERMAN, KOREAN]
        page.locator("#model").select_option("toy")
        assert not menu.is_visible()
        page.close()


def test_a_caption_is_corrected_in_place_and_kept(chromium: Any, tmp_path: Path) -> None:
    with running(corrections=tmp_path / "corrected") as server:
        page = chromium.new_page()
        page.set_default_timeout(PATIENCE)
        page.goto(f"http://127.0.0.1:{server.port}")
        drop(page, ("Bella.jpg", "image/jpeg", photograph()))
        said = shown(page)
        page.get_by_role("button", name="Correct", exact=True).click()
        field = page.get_by_label("The right caption")
        assert field.input_value() == said
        field.fill("   ")
        page.get_by_role("button", name="Save", exact=True).click()
        wait_for(page, "document.querySelector('.editor .reason').innerText.includes('has no words')")
        field.press("Escape")
        assert shown(page) == said
        page.get_by_role("button", name="Correct", exact=True).click()
        page.get_by_label("The right caption").fill("our red ball, Bella's")
        page.get_by_label("The right caption").press("Enter")
        wait_for(page, "document.querySelector('#results .caption')?.innerText === \"our red ball, Bella's\"")
        (picture,) = (tmp_path / "corrected").glob("*.jpg")
        assert picture.read_bytes() == photograph()
        assert picture.with_suffix(".txt").read_text(encoding="utf-8") == "our red ball, Bella's\n"
        # Once more: the same picture has one sentence.
        page.get_by_role("button", name="Kept. Correct again").click()
        page.get_by_label("The right caption").fill("Bella's ball")
        page.get_by_role("button", name="Save", exact=True).click()
        wait_for(page, "document.querySelector('#results .caption')?.innerText === \"Bella's ball\"")
        assert picture.with_suffix(".txt").read_text(encoding="utf-8") == "Bella's ball\n"
        assert len(list((tmp_path / "corrected").iterdir())) == 2
        page.close()


def _quoted(name: str) -> str:
    from urllib.parse import quote

    return quote(name)


def test_a_token_is_asked_for_and_then_remembered(chromium: Any, served_runs: Path) -> None:
    with serving("--run", str(served_runs / "scenes"), "--token", "sesame") as (locked, _):
        page = chromium.new_page()
        page.set_default_timeout(PATIENCE)
        assert page.goto(locked).status == 401
        page.get_by_label("Token").fill("sesame")
        page.get_by_role("button").click()
        page.wait_for_selector("#drop")
        drop(page, ("a.jpg", "image/jpeg", photograph()))
        assert shown(page)
        page.close()
