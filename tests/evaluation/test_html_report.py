"""The report of an evaluation: what it finds out, and that it is one page which needs nothing else."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from captioner.cli.main import main
from captioner.data.datasets import CaptionedImage
from captioner.evaluation.error_analysis import content_words, find_mistakes, word_shares
from captioner.evaluation.html_report import ranked, write_review
from captioner.evaluation.metrics import per_caption
from captioner.evaluation.scoring import Evaluation, score_with_chance
from captioner.inference.caption import Caption
from captioner.visualization.svg_charts import bar_chart, line_chart

CHROMIUM = os.environ.get("CAPTIONER_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")


def test_mistakes_name_what_people_said_in_the_same_place() -> None:
    references = [["a boy runs", "the boy runs fast"]] * 3 + [["a girl runs", "a girl is running"]] * 3
    captions = ["a girl runs"] * 2 + ["a boy runs"] + ["a girl runs"] * 2 + ["a a man sits"]
    found = find_mistakes(references, captions)
    confusions = [(one.hypothesis, one.reference, one.pictures) for one in found.confusions]
    assert confusions == [("girl", "boy", (0, 1))]
    assert [(count.text, count.times, count.of) for count in found.invented] == [("girl", 2, 4)]
    assert [(count.text, count.times, count.of) for count in found.missed] == [("boy", 2, 3)]
    assert [(count.text, count.times) for count in found.repeated] == [("a girl runs", 4)]
    assert found.repetitive == [5]


def test_content_words_are_those_people_agree_on_in_any_language() -> None:
    told = [[{"ein", name}, {"das", name}, {"ein", "ist", name}] for name in ("hund", "haus", "开", "집")]
    found = content_words([[frozenset(words) for words in texts] for texts in told])
    assert found == {"hund", "haus", "开", "집"}
    # With one reference each nobody can agree: rare words it is.
    alone = [[frozenset({"a", f"thing{number}"})] for number in range(10)]
    assert content_words(alone) == {f"thing{number}" for number in range(10)}


def test_words_are_counted_for_people_and_model() -> None:
    rows = word_shares([["a dog", "the dog"], ["a cat", "the cat"]], ["a cat", "a cat"], most=5)
    assert rows == [("cat", 0.5, 1.0), ("dog", 0.5, 0.0)]


def test_charts_hold_every_value_and_leave_gaps() -> None:
    history = [{"phase": "one", "a": 1.0}, {"phase": "one", "a": None}, {"phase": "<two>", "a": 3.0, "b": 2}]
    chart = line_chart(history, {"a": "A", "b": "B", "c": "C"}, title="t")
    assert chart.count("<circle") == 3 and "line-c" not in chart
    assert "&lt;two&gt;" in chart and "<two>" not in chart
    assert (
        line_chart([], {"a": "A"}, title="t")
        == line_chart([{"a": float("nan")}], {"a": "A"}, title="t")
        == ""
    )
    bars = bar_chart(["1", "2"], {"x": [0, 4], "y": [1, 2]}, title="t")
    assert [float(tall) for tall in re.findall(r'<rect.*?height="([\d.]+)"', bars)][1:3] == pytest.approx(
        [48.5, 194.0]
    )


@pytest.fixture
def found(tmp_path: Path) -> Evaluation:
    """Twelve pictures, some described well; names and captions that would be markup if nobody took care."""
    records, captions = [], []
    for number in range(12):
        path = tmp_path / f"<b>{number}.png"
        Image.new("RGB", (40, 30), (20 * number, 90, 90)).save(path)
        color = ("red", "blue", "green")[number % 3]
        records.append(
            CaptionedImage(path.name, path, (f"a {color} thing & <i>more</i>", f"one {color} thing"))
        )
        text = f"a {color} thing" if number < 8 else "<script> alert"
        captions.append(Caption(path.name, text, -number / 10, -1.0, tuple(text.split())))
    scores = score_with_chance(
        [record.captions for record in records], [caption.text for caption in captions]
    )
    rule = {"split": "test", "run": "<run>", "epoch": "scratch 3", "beam": 3, "encoder": "small_cnn"}

    def look(ids: Any) -> list[Caption]:
        again = {caption.path: caption for caption in captions}
        maps = np.random.default_rng(0).random((9, 3, 4))
        return [
            Caption(name, again[name].text, 0, 0, again[name].words, maps[: len(again[name].words)])
            for name in ids
        ]

    content = {**scores, "images": 12, "protocol": rule}
    return Evaluation(content, captions, records, [("/x/<bad>.jpg", "not a picture")], look)


def test_best_typical_and_worst_share_no_picture_and_no_caption(found: Evaluation) -> None:
    scores = [100 - 10 * number for number in range(12)]
    chosen = ranked(found, scores, count=3)
    assert list(chosen) == ["best", "typical", "worst"]
    assert chosen["best"] == [0, 1, 2]
    assert chosen["worst"][0] == 11
    places = [place for members in chosen.values() for place in members]
    assert len(places) == len(set(places))
    for members in chosen.values():
        texts = [found.captions[place].text for place in members]
        assert len(texts) == len(set(texts))


def ranked_places(found: Evaluation) -> list[int]:
    references = [record.captions for record in found.records]
    scores = per_caption(references, [caption.text for caption in found.captions], metrics=["cider"])["cider"]
    return [place for members in ranked(found, scores, count=6).values() for place in members]


def test_the_page_escapes_everything_and_asks_for_nothing(
    found: Evaluation, untrained_run: Path, tmp_path: Path
) -> None:
    write_review(found, untrained_run, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert [text for text in ("<script> alert", "<i>more", "<b>1.png", "<bad>") if text in page] == []
    assert "&lt;script&gt;" in page and "&lt;run&gt;" in page
    addresses = re.findall(r"""(?:src|href)=["']?([^"'\s>]+)|url\(([^)]+)\)""", page)
    assert addresses and all((a or b).startswith("data:image/") for a, b in addresses)
    assert page.count('class="exhibit"') == len(ranked_places(found))
    assert 'class="line line-cider"' in page and "not a picture" in page


def test_the_command_writes_the_page_beside_the_scores(
    untrained_run: Path, scenes_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [
        "evaluate",
        "--run",
        str(untrained_run),
        "--data",
        str(scenes_folder),
        "--quiet",
        "--out",
        str(tmp_path / "o"),
    ]
    assert main([*command, "--report"]) == 0
    assert str(tmp_path / "o" / "report.html") in capsys.readouterr().out
    assert main([*command, "--report", str(tmp_path / "other.html")]) == 0
    assert (tmp_path / "other.html").read_text() == (tmp_path / "o" / "report.html").read_text()


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("playwright") is None, reason="no browser driver: pip install playwright"
)
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium; name one in $CAPTIONER_CHROMIUM")
@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1280, "light")])
def test_in_a_browser_a_touched_word_lights_the_picture(
    found: Evaluation, untrained_run: Path, tmp_path: Path, width: int, scheme: Any
) -> None:
    from playwright.sync_api import sync_playwright

    write_review(found, untrained_run, tmp_path / "report.html")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
        asked: list[str] = []
        page.on("request", lambda sent: asked.append(sent.url))
        page.goto((tmp_path / "report.html").as_uri())
        page.locator(".tile").nth(1).click()
        look = page.locator(".exhibit .look").first
        assert "lit" in str(look.get_attribute("class"))
        tile = page.locator(".tile").nth(1).evaluate("tile => tile.style.getPropertyValue('--m')")
        assert look.evaluate("look => look.style.getPropertyValue('--m')") == tile != ""
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert all(url.startswith(("file:", "data:")) for url in asked)
        browser.close()
