"""Drawings for people: how a training went, where a model looked, what a data set is like.

In: history entries, pixels and attention, records. Out: picture files (PNG, SVG, PDF, …: the suffix decides),
written atomically. Works without a display.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from captioner.data.datasets import CaptionedImage
from captioner.data.images import read_image
from captioner.data.vocabulary import join_words
from captioner.errors import CaptionerError, ImageError
from captioner.system.files import replacing
from captioner.visualization.attention_overlay import lit
from captioner.visualization.fonts import fonts_for, wrapped
from captioner.visualization.history import LABELS, LOSSES, SCORES, best_epoch, curves, phases

PAPER, INK, PALE, BAND = "#ffffff", "#22262b", "#7a828c", "#f3f5f7"
COLORS = {
    "train_loss": "#9aa5b1",
    "dev_loss": "#1f6feb",
    "cider": "#d1495b",
    "bleu4": "#1f6feb",
    "rouge_l": "#2a9d6f",
    "meteor": "#8e5cd9",
    "reward": "#9aa5b1",
}
_DPI = 144
# What drawings say of their origin, by which the command line knows that it may write one anew.
_MARKS: dict[str, dict[str, Any]] = {
    "png": {"metadata": {"Software": "captioner"}},
    **dict.fromkeys(("svg", "pdf", "ps", "eps"), {"metadata": {"Creator": "captioner"}}),
    **dict.fromkeys(("jpg", "jpeg"), {"pil_kwargs": {"comment": "captioner"}}),
}
_SHOWN_PIXELS = 512  # longer side of a picture in a drawing


def plot_history(history: Sequence[Mapping[str, Any]], path: str | Path, *, select: str = "cider") -> None:
    """Losses and dev scores of a training over its epochs; phases are bands, the best epoch is ringed.

    Args:
        history: one entry an epoch, as `Run.history()` gives them; what is missing is left out.
        path: of the drawing.
        select: the score that decides which epoch is best.
    """
    figure = Figure(figsize=(11, 4.3), facecolor=PAPER)
    left, right = figure.subplots(1, 2)
    best = best_epoch(history, select)
    _draw_curves(left, history, LOSSES, "loss, nats per word", best)
    _draw_curves(right, history, SCORES, "dev scores, per cent", best)
    if best is not None:
        entry = history[best]
        key = "dev_loss" if select == "loss" else select
        name = f"{entry.get('phase', '')} epoch {entry.get('epoch', best + 1)}".strip()
        title = f"best: {name}, {LABELS.get(key, key)} {entry[key]:.{2 if key in LOSSES else 1}f}"
        right.set_title(title, loc="right", fontsize=9.5, color=PALE, pad=18)
    figure.subplots_adjust(left=0.045, right=0.885, top=0.86, bottom=0.12, wspace=0.32)
    _save(figure, path)


def plot_attention(
    pixels: np.ndarray, words: Sequence[str], attention: np.ndarray, *, path: str | Path
) -> None:
    """A picture, and again for each word of its caption, lit where the model looked when it wrote the word.

    The brightest place of each panel is where that word looked most; what is dark got next to nothing.

    Args:
        pixels: (H, W, 3) uint8.
        words: T of them.
        attention: (T, h, w).
        path: of the drawing.

    Raises:
        CaptionerError: not as many words as maps.
    """
    if len(words) != len(attention):
        raise CaptionerError(
            f"{len(words)} words, but attention for {len(attention)}: expected as many of each"
        )
    picture = _shown(pixels)
    ratio = picture.shape[0] / picture.shape[1]
    text = join_words(words) or "(no words)"
    fonts = fonts_for(text)
    panels = [picture, *(lit(picture, weights) for weights in attention)]
    columns = _columns(len(panels), ratio)
    across = 2.1 / math.sqrt(ratio)  # inches; panels have the same area whatever their shape
    down, gap, above = across * ratio, 0.12, 0.36  # the word stands above its panel
    title = wrapped(text, int(columns * (across + gap) * 8.2))
    head = 0.12 + 0.3 * len(title)
    rows = math.ceil(len(panels) / columns)
    width = columns * (across + gap) + gap
    height = head + rows * (down + above) + gap
    figure = Figure(figsize=(width, height), facecolor=PAPER)
    style: dict[str, Any] = {"color": INK, "fontfamily": fonts, "parse_math": False}
    figure.text(0.5, 1 - 0.17 / height, "\n".join(title), fontsize=15, ha="center", va="top", **style)
    for place, (shown, word) in enumerate(zip(panels, ["", *words], strict=True)):
        row, column = divmod(place, columns)
        x, y = gap + column * (across + gap), height - head - (row + 1) * (down + above)
        axes = figure.add_axes((x / width, y / height, across / width, down / height))
        axes.imshow(shown, interpolation="antialiased", aspect="auto")
        axes.set_axis_off()
        axes.set_title(word, fontsize=11.5, pad=4, **style)
    _save(figure, path)


def plot_records(records: Sequence[CaptionedImage], path: str | Path, *, captions: int = 3) -> None:
    """A sheet of pictures with the captions that people gave them; one that cannot be read says why.

    Args:
        records: as many as should be on the sheet.
        path: of the drawing.
        captions: at most so many a picture.
    """
    columns = min(4, max(1, len(records)))
    rows = [records[start : start + columns] for start in range(0, len(records), columns)]
    texts = {record.id: _sheet_lines(record, captions) for record in records}
    side, gap, line = 2.6, 0.28, 0.172  # inches
    heights = [side + 0.4 + line * max(texts[record.id][-1].place for record in row) + gap for row in rows]
    figure = Figure(figsize=(columns * (side + gap) + gap, sum(heights) + gap), facecolor=PAPER)
    fonts = fonts_for("".join(caption for record in records for caption in record.captions))
    width, height = figure.get_size_inches()
    style: dict[str, Any] = {"fontsize": 8.8, "va": "top", "fontfamily": fonts, "parse_math": False}
    bottom = height - gap - side
    for row, tall in zip(rows, heights, strict=True):
        for column, record in enumerate(row):
            x = gap + column * (side + gap)
            _framed(figure.add_axes((x / width, bottom / height, side / width, side / height)), record)
            for text in texts[record.id]:
                y = bottom - 0.1 - text.place * line
                figure.text(x / width, y / height, text.text, color=text.color, **style)
        bottom -= tall
    _save(figure, path)


def _draw_curves(
    axes: Axes, history: Sequence[Mapping[str, Any]], keys: Sequence[str], title: str, best: int | None
) -> None:
    """The lines of one panel, each named at its end; a ring where the best epoch is."""
    _phase_bands(axes, history)
    epochs = np.arange(1, len(history) + 1)
    ends: list[tuple[float, str]] = []
    for key, values in curves(history, keys).items():
        style = ":" if key == "reward" else "-"
        heights = np.array(values, float)  # None: not a number, a gap
        axes.plot(epochs, heights, style, color=COLORS[key], lw=2, marker="o", ms=3.2, solid_capstyle="round")
        ends.append((next(value for value in reversed(values) if value is not None), key))
        if best is not None and key != "train_loss":
            axes.plot([best + 1], heights[[best]], "o", ms=9, mfc="none", mec=COLORS[key], mew=1.6)
    axes.set_title(title, loc="left", fontsize=11, color=INK, pad=18)
    axes.set_xlabel("epoch", fontsize=9.5, color=PALE)
    axes.set_xlim(0.5, max(1, len(history)) + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=12, min_n_ticks=1))
    axes.grid(axis="y", color="#e3e7eb", lw=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=PALE, labelsize=9, length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color("#c9d0d7")
    _name_ends(axes, ends)


def _name_ends(axes: Axes, ends: list[tuple[float, str]]) -> None:
    """The name and last value of each line, right of the panel, kept apart where lines end close together."""
    low, high = axes.get_ylim()
    last = -math.inf
    for value, key in sorted(ends):
        place = max((value - low) / (high - low), last + 0.062)
        last = place
        label = f" {LABELS[key]} {value:.2f}" if key in LOSSES else f" {LABELS[key]} {value:.1f}"
        axes.text(1.0, place, label, transform=axes.transAxes, color=COLORS[key], fontsize=9.5, va="center")


def _phase_bands(axes: Axes, history: Sequence[Mapping[str, Any]]) -> None:
    text: dict[str, Any] = {"ha": "center", "va": "bottom", "fontsize": 9, "color": PALE}
    for number, (phase, start, end) in enumerate(phases(history)):
        if number % 2 == 0:
            axes.axvspan(start + 0.5, end + 0.5, color=BAND, lw=0, zorder=0)
        axes.text((start + end + 1) / 2, 1.02, phase, transform=axes.get_xaxis_transform(), **text)


def _shown(pixels: np.ndarray) -> np.ndarray:
    """A picture at the size of a drawing, longer side 512 pixels: larger ones weigh, smaller ones blur."""
    picture = Image.fromarray(pixels)
    scale = _SHOWN_PIXELS / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return np.asarray(picture.resize(size, Image.Resampling.LANCZOS))


def _columns(panels: int, ratio: float) -> int:
    """As many as make the sheet wider than it is high, and the last row full or nearly so."""
    if panels <= 5:
        return panels
    wide = max(2, min(panels, round(math.sqrt(panels * 2.2 * ratio))))
    return math.ceil(panels / math.ceil(panels / wide))


def _framed(axes: Axes, record: CaptionedImage) -> None:
    """One picture of a sheet, whole, in the middle of a square."""
    axes.set_axis_off()
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    try:
        picture = _shown(read_image(record.path))
    except ImageError as error:
        axes.set_facecolor(BAND)
        axes.patch.set_visible(True)
        text = "\n".join(wrapped(f"{record.id}: {error.reason}", 30))
        axes.text(0.5, 0.5, text, ha="center", va="center", fontsize=8, color=PALE, parse_math=False)
        return
    height, width = picture.shape[:2]
    across, down = min(1, width / height), min(1, height / width)
    axes.imshow(picture, extent=(0, across, 1 - down, 1), aspect="auto", interpolation="antialiased")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)


class _Line(NamedTuple):
    place: float  # in lines below the picture
    text: str
    color: str


def _sheet_lines(record: CaptionedImage, captions: int) -> list[_Line]:
    """The text below a picture: the first captions, each a little apart from the one before."""
    lines, place = [], 0.0
    for number, caption in enumerate(record.captions[:captions]):
        for text in wrapped(caption, 40):
            lines.append(_Line(place, text, PALE if number else INK))
            place += 1
        place += 0.3
    more = len(record.captions) - captions
    return lines + ([_Line(place, f"and {more} more", "#b3bac2")] if more > 0 else [])


def _save(figure: Figure, path: str | Path) -> None:
    suffix = Path(path).suffix.lower().lstrip(".") or "png"
    known = FigureCanvasAgg(figure).get_supported_filetypes()
    if suffix not in known:
        raise CaptionerError(
            f"{path}: drawings cannot be .{suffix}; expected .png, or one of {', '.join(known)}"
        )
    with replacing(path) as temporary, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # said once, by `fonts_for`
        figure.savefig(temporary, format=suffix, dpi=_DPI, **_MARKS.get(suffix, {}))
