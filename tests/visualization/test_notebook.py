"""Captions in notebooks and tables."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from captioner.inference.caption import Alternative, Caption, captions_to_records

EVIL = "<script>alert('x')</script>\" onload=\"y"


class Reader(HTMLParser):
    """Notes tags and text; complains of what is not closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag != "img":
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "큰 그림.jpg"
    Image.new("RGB", (900, 600), "teal").save(path)
    return path


def caption(path: Any, **more: Any) -> Caption:
    others = (Alternative("ein Bild", -1.2, -3.0, ("ein", "Bild")), Alternative(EVIL, -2.0, -5.0, (EVIL,)))
    facts = {"text": "큰 그림", "score": -0.5, "log_probability": -1.0, "words": ("큰", "그림")}
    return Caption(str(path), **{**facts, "alternatives": others, **more})


def test_a_notebook_shows_picture_caption_and_alternatives(picture: Path) -> None:
    shown = Reader(caption(picture)._repr_html_())
    assert {"큰 그림", "ein Bild", EVIL, str(picture)} <= set(shown.text)
    source = next(attributes for tag, attributes in shown.tags if tag == "img")["src"] or ""
    image = Image.open(io.BytesIO(base64.b64decode(source.removeprefix("data:image/jpeg;base64,"))))
    assert image.size == (320, 213)
    assert caption(picture)._repr_png_() is None


def test_a_notebook_shows_where_the_model_looked(picture: Path) -> None:
    looks = np.zeros((2, 4, 5), np.float32)
    looks[0, 0, 0] = looks[1, 3, 4] = 1
    found = caption(picture, attention=looks, text="große Bilder", words=("große", "Bilder"))
    shown = Reader(found._repr_html_())
    assert sum(tag == "img" for tag, _ in shown.tags) == 3
    assert [text for text in shown.text if text in found.words] == ["große", "Bilder"]
    png = found._repr_png_()
    assert png is not None and Image.open(io.BytesIO(png)).format == "PNG"


@pytest.mark.parametrize("field", ["path", "text", "error"])
def test_nothing_from_outside_becomes_markup(field: str) -> None:
    html = caption("<bytes>") if field == "path" else caption("a", **{field: EVIL})
    shown = Reader(html._repr_html_())
    tags = {tag for tag, _ in shown.tags}
    assert tags <= {"div", "table", "tr", "td", "b", "img"}
    assert not re.search(r"<script|<bytes", html._repr_html_())
    assert all(set(attributes) <= {"style", "src", "alt"} for _, attributes in shown.tags)


def test_without_the_picture_the_words_are_shown() -> None:
    for path in ("<array>", "gone.jpg", "\0"):
        looks = np.ones((2, 2, 2), np.float32)
        shown = Reader(caption(path, attention=looks)._repr_html_())
        assert "큰 그림" in shown.text and "img" not in dict(shown.tags)
        assert caption(path, attention=looks)._repr_png_() is None
    failed = Reader(Caption("a.jpg", error="is an empty file")._repr_html_())
    assert " is an empty file" in failed.text and "no caption:" in failed.text


def test_captions_become_a_table(picture: Path) -> None:
    records = captions_to_records([caption(picture), Caption("b.jpg", error="is an empty file")])
    assert records[0] == {
        "path": str(picture),
        "caption": "큰 그림",
        "score": -0.5,
        "probability": pytest.approx(np.exp(-1.0)),
        "words": 2,
        "alternatives": ["ein Bild", EVIL],
        "language": None,
        "error": None,
    }
    assert records[0].keys() == records[1].keys() and records[1]["caption"] is None
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(records)
    assert list(frame["caption"].dropna()) == ["큰 그림"]
