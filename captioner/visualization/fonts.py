"""Text on drawings in any script: which installed fonts can draw it, and where its lines break."""

from __future__ import annotations

import re
import unicodedata
from functools import cache

from matplotlib import font_manager

from captioner.system import console

BASE = "DejaVu Sans"  # comes with matplotlib: Latin, Greek, Cyrillic, and more
# Good-looking fonts with many letters, tried before any other that is installed.
PREFERRED = (
    *("Noto Sans CJK", "Noto Sans KR", "Noto Sans JP", "Noto Sans", "Source Han Sans"),
    *("NanumGothic", "Apple SD Gothic Neo", "Hiragino Sans", "Malgun Gothic", "Yu Gothic"),
    *("Microsoft YaHei", "Arial Unicode MS"),
)


def fonts_for(text: str) -> list[str]:
    """Names of fonts that together can draw `text`, the base font first; says so on stderr where none can."""
    missing = frozenset(text) - _letters(_base_file())
    missing = frozenset(letter for letter in missing if not letter.isspace())
    return [BASE, *_further_fonts(missing)] if missing else [BASE]


def wrapped(text: str, width: int) -> list[str]:
    """Lines of at most `width` columns; Han, Kana and Hangul take two, Han and Kana may break anywhere.

    >>> wrapped("a dog runs on the beach", 10)
    ['a dog runs', 'on the', 'beach']
    >>> wrapped("赤い円が左にある", 8)
    ['赤い円が', '左にある']
    """
    lines: list[str] = []
    for piece in _PIECE.findall(text):
        if lines and _columns(lines[-1] + piece) <= width:
            lines[-1] += piece
        else:
            lines.append(piece.lstrip())
    return lines


_WIDE = r"\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"  # Kana and Han
_OPENING = r"「『（"  # ends no line
_CLOSING = r".,;:!?…)\]}»”’、。，．！？」』）"  # begins no line, even where it stands alone
_PIECE = re.compile(
    rf"\s*[{_OPENING}]*(?:[{_WIDE}]|[^\s{_WIDE}{_OPENING}]+)(?:\s*[{_CLOSING}]+(?=\s|$|[{_WIDE}{_OPENING}]))*"
)


def _columns(text: str) -> int:
    return sum(
        0 if unicodedata.combining(letter) else 1 + (unicodedata.east_asian_width(letter) in "WF")
        for letter in text
    )


@cache
def _further_fonts(missing: frozenset[str]) -> tuple[str, ...]:
    """Fonts that draw these letters, as few as come first; says which letters no font can draw."""
    found: list[str] = []
    for entry in sorted(font_manager.fontManager.ttflist, key=_preference):
        if entry.name in ("Last Resort High-Efficiency", BASE) or not missing:
            continue
        drawn = missing & _letters(entry.fname)
        if drawn:
            found.append(entry.name)
            missing -= drawn
    if missing:
        shown = "".join(sorted(missing)[:12])
        remedy = "they appear as boxes; install one, such as Noto Sans CJK"
        console.info(f"no installed font draws {shown} …: {remedy}")
    return tuple(found)


def _preference(entry: font_manager.FontEntry) -> tuple[int, bool, str]:
    rank = next((i for i, name in enumerate(PREFERRED) if entry.name.startswith(name)), len(PREFERRED))
    return rank, entry.style != "normal" or str(entry.weight) not in ("400", "normal", "regular"), entry.fname


def _base_file() -> str:
    return font_manager.findfont(BASE)


@cache
def _letters(file: str) -> frozenset[str]:
    try:
        return frozenset(map(chr, font_manager.get_font(file).get_charmap()))
    except (OSError, RuntimeError):  # a damaged or unknown font file is no reason not to draw
        return frozenset()
