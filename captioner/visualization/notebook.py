"""A caption as a notebook shows it: the picture, what is said of it, and where the model looked for that.

In: a `caption.Caption`; the picture is read again from its path, if it is still there. Out: HTML that needs
no other file and in which everything from outside is escaped; or a drawing of the attention as PNG.
"""

from __future__ import annotations

import base64
import io
import tempfile
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from captioner.data.images import read_image
from captioner.errors import ImageError
from captioner.visualization.attention_overlay import lit

PICTURE_PIXELS, TILE_PIXELS = 320, 96  # longest sides
_FAINT = "opacity:.65;font-size:.85em"


def caption_html(caption: Any) -> str:
    """A `Caption` as a piece of a page, light or dark as its surroundings are."""
    picture = _picture(caption)
    shown = ""
    if picture is not None:
        shown = _image(_fitted(picture, PICTURE_PIXELS), caption.text, "border-radius:6px")
    said = "".join(_said(caption) if caption.error is None else _failed(caption))
    looks = "" if picture is None or caption.attention is None else "".join(_looks(caption, picture))
    return (
        '<div style="display:flex;flex-wrap:wrap;gap:1em;align-items:flex-start;font-family:sans-serif">'
        f'{shown}<div style="flex:1;min-width:15em">{said}{looks}</div></div>'
    )


def caption_png(caption: Any) -> bytes | None:
    """Where the model looked at each word; None if it was not noted, or the picture is gone."""
    picture = None if caption.attention is None else _picture(caption)
    if picture is None:
        return None
    from captioner.visualization.plots import plot_attention  # loads matplotlib

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "attention.png")
        plot_attention(picture, caption.words, caption.attention, path=path)
        return path.read_bytes()


def _said(caption: Any) -> Iterator[str]:
    yield f'<div style="font-size:1.25em;line-height:1.4">{escape(caption.text) or "<i>no words</i>"}</div>'
    yield f'<div style="{_FAINT}">{escape(caption.path)}</div>'
    if not caption.alternatives:
        return
    ranked = [caption, *caption.alternatives]
    most = max(one.probability for one in ranked) or 1.0
    yield '<table style="margin-top:.6em;border-collapse:collapse">'
    for one in ranked:
        bar = f"width:{5 * one.probability / most:.2f}em;height:.7em;background:#4c78a8;border-radius:2px"
        yield (
            f'<tr><td style="text-align:right">{100 * one.probability:.3g}\u202f%</td>'
            f'<td><div style="{bar}"></div></td>'
            f'<td style="text-align:left;padding-left:.5em">{escape(one.text)}</td></tr>'
        )
    yield "</table>"


def _failed(caption: Any) -> Iterator[str]:
    yield f'<div style="color:#c0392b"><b>no caption:</b> {escape(caption.error)}</div>'
    yield f'<div style="{_FAINT}">{escape(caption.path)}</div>'


def _looks(caption: Any, picture: np.ndarray) -> Iterator[str]:
    tile = _fitted(picture, TILE_PIXELS)
    yield '<div style="display:flex;flex-wrap:wrap;gap:6px;margin-top:.8em">'
    for word, weights in zip(caption.words, caption.attention, strict=True):
        seen = Image.fromarray(lit(np.asarray(tile), weights))
        shown = _image(seen, word, "border-radius:3px;display:block")
        yield f'<div style="text-align:center;font-size:.85em">{escape(word)}{shown}</div>'
    yield "</div>"


def _picture(caption: Any) -> np.ndarray | None:
    try:
        return read_image(caption.path)
    except ImageError:
        return None


def _fitted(pixels: np.ndarray, most: int) -> Image.Image:
    picture = Image.fromarray(pixels)
    picture.thumbnail((most, most))
    return picture


def _image(picture: Image.Image, title: str, style: str) -> str:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=88)
    data = base64.b64encode(file.getvalue()).decode("ascii")
    return f'<img src="data:image/jpeg;base64,{data}" alt="{escape(title)}" style="{style}">'
