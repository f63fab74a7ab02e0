"""One captioned picture as a piece of a page: the picture, what was said of it, and where the model looked.

In: a record, its caption with attention. Out: HTML that needs no other file; everything from outside is
escaped. Reads the picture. A picture is in the page once, however often it is shown: small maps lie over it.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from html import escape

import numpy as np
from PIL import Image

from captioner.data.datasets import CaptionedImage
from captioner.data.images import read_image
from captioner.data.vocabulary import join_words, words_of
from captioner.errors import ImageError
from captioner.inference.caption import Caption

PICTURE_PIXELS, THUMB_PIXELS = 480, 132  # longest sides
_MAP_PIXELS = 28  # longer side of a map of attention; the browser makes it as large as the picture


def exhibit(record: CaptionedImage, caption: Caption, score: str) -> str:
    """The picture beside its caption, the references, and a strip of the places that each word looked at."""
    picture = _picture(record)
    if picture is None:
        return ""
    ratio = picture.width / picture.height
    lit = "" if caption.attention is None else "".join(_strip(caption.words, caption.attention))
    strip = f'<div class="strip">{lit}</div>' if lit else ""
    return (
        f'<article class="exhibit" style="--p:url({_uri(picture, "JPEG")});--ratio:{ratio:.4f}">'
        f'<div class="look" role="img" aria-label="{escape(record.id)}"><i></i><b></b></div>'
        f'<div class="said"><p class="caption" dir="auto">{"".join(_said(record, caption))}</p>'
        f'<ul class="told" dir="auto">{"".join(_told(record, caption))}</ul>'
        f'<p class="name"><span>{escape(record.id)}</span> <span>{escape(score)}</span></p>'
        f"</div>{strip}</article>"
    )


def thumbnail(record: CaptionedImage, title: str) -> str:
    """A small picture with a tooltip; "" where it cannot be read."""
    picture = _picture(record, THUMB_PIXELS)
    if picture is None:
        return ""
    said = escape(title)
    return f'<img src="{_uri(picture, "JPEG")}" alt="{said}" title="{said}">'


def _said(record: CaptionedImage, caption: Caption) -> Iterator[str]:
    """The caption, with the words marked that nobody else said."""
    known = {word for text in record.captions for word in words_of(text)}
    before = ""
    for word in caption.words:
        if before:
            yield join_words([before, word])[len(before) : -len(word)]
        yield escape(word) if word in known else f"<u>{escape(word)}</u>"
        before = word
    if not caption.words:
        yield "<em>no words</em>"


def _told(record: CaptionedImage, caption: Caption) -> Iterator[str]:
    """The references, with the words marked that the caption has, too."""
    own = set(caption.words)
    for text in record.captions:
        line = ""
        for piece in text.split():
            words = words_of(piece)
            said = f"<mark>{escape(piece)}</mark>" if words and own.issuperset(words) else escape(piece)
            line += f" {said}" if words and line else said  # a full stop stands close, not as in "field ."
        yield f"<li>{line}</li>"


def _strip(words: Sequence[str], attention: np.ndarray) -> Iterator[str]:
    for word, weights in zip(words, attention, strict=True):
        style = f'style="--m:url({_uri(_map(weights), "PNG")})"'
        yield f'<button type="button" class="tile" {style}><i></i><b></b><span>{escape(word)}</span></button>'


def _map(weights: np.ndarray) -> Image.Image:
    """Weights (h, w) as an opacity: full where they are highest, smooth between."""
    height, width = weights.shape
    scale = _MAP_PIXELS / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    soft = Image.fromarray(np.asarray(weights, np.float32)).resize(size, Image.Resampling.BICUBIC)
    light = np.clip(np.asarray(soft), 0, None)
    light = (light / max(float(light.max()), 1e-9)) ** 0.8
    alpha = (255 * light).astype(np.uint8)
    return Image.merge("LA", [Image.new("L", size), Image.fromarray(alpha)])


def _picture(record: CaptionedImage, most: int = PICTURE_PIXELS) -> Image.Image | None:
    try:
        picture = Image.fromarray(read_image(record.path))
    except ImageError:  # gone since it was captioned
        return None
    picture.thumbnail((most, most))
    return picture


def _uri(picture: Image.Image, format: str) -> str:
    file = io.BytesIO()
    picture.save(file, format, **({"quality": 82} if format == "JPEG" else {"optimize": True}))
    data = base64.b64encode(file.getvalue()).decode("ascii")
    return f"data:image/{format.lower()};base64,{data}"
