"""Charts as SVG text: lines over epochs, bars side by side. Numbers in, markup out; no file, no library.

Colors are classes (`line-cider`, `bar-0`, …) which the page around a chart defines, for light and for dark.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from captioner.visualization.history import curves, phases

WIDTH, HEIGHT = 520, 250  # of a chart, in its own units
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 104, 26, 30


def line_chart(history: Sequence[Mapping[str, Any]], labels: Mapping[str, str], *, title: str) -> str:
    """A line for each key of `labels` over the epochs of a history; phases are bands; "" if nothing is known.

    Args:
        history: one entry an epoch, with `phase`; a value may be missing or None.
        labels: key of the entries to what the line is called.
        title: read out by screen readers.
    """
    lines = curves(history, labels)
    if not lines:
        return ""
    known = [value for values in lines.values() for value in values if value is not None]
    ticks = nice_ticks(min(known), max(known))
    across = (WIDTH - _LEFT - _RIGHT) / max(1, len(history))

    def x(place: float) -> float:
        return _LEFT + across * place

    def y(value: float) -> float:
        low, high = ticks[0], ticks[-1]
        return HEIGHT - _BOTTOM - (HEIGHT - _BOTTOM - _TOP) * (value - low) / (high - low)

    parts = [*_bands(history, x), *_grid(ticks, y)]
    step = math.ceil(len(history) / 12)
    for place in range(0, len(history), step):
        parts.append(_text(x(place + 0.5), HEIGHT - 10, str(place + 1), "tick", "middle"))
    for key, values in lines.items():
        dots = [(x(place + 0.5), y(value)) for place, value in enumerate(values) if value is not None]
        path = " ".join(f"{'L' if number else 'M'}{a:.1f} {b:.1f}" for number, (a, b) in enumerate(dots))
        parts.append(f'<path class="line line-{key}" d="{path}"/>')
        for place, value in enumerate(values):
            if value is not None:
                what = f"{labels[key]} {value:.3g}, epoch {place + 1} ({history[place].get('phase', '')})"
                center = f'cx="{x(place + 0.5):.1f}" cy="{y(value):.1f}"'
                parts.append(f'<circle class="dot line-{key}" {center} r="2.6">{_title(what)}</circle>')
    parts += _endings(lines, labels, y)
    return _svg(title, parts)


def bar_chart(
    names: Sequence[str], series: Mapping[str, Sequence[float]], *, title: str, unit: str = ""
) -> str:
    """Bars side by side for each name: one of each series, whose numbers are from 0 on."""
    most = max((value for values in series.values() for value in values), default=0) or 1.0
    ticks = nice_ticks(0, most)
    across = (WIDTH - _LEFT - 12) / max(1, len(names))
    thick = min(26.0, 0.78 * across / len(series))
    scale = (HEIGHT - _BOTTOM - _TOP) / ticks[-1]
    floor = HEIGHT - _BOTTOM
    parts = list(_grid(ticks, lambda value: floor - scale * value, unit, WIDTH - 12))
    step = math.ceil(len(names) / 16)
    for place, name in enumerate(names):
        middle = _LEFT + across * (place + 0.5)
        if place % step == 0:
            parts.append(_text(middle, HEIGHT - 10, name, "tick", "middle"))
        for number, (label, values) in enumerate(series.items()):
            left = middle + thick * (number - len(series) / 2)
            tall = scale * values[place]
            box = (
                f'x="{left:.1f}" y="{floor - tall:.1f}" width="{max(1.0, thick - 1):.1f}" height="{tall:.1f}"'
            )
            what = _title(f"{label}, {name}: {values[place]:.3g}{unit}")
            parts.append(f'<rect class="bar bar-{number}" {box} rx="1.5">{what}</rect>')
    return _svg(title, parts)


def nice_ticks(low: float, high: float) -> list[float]:
    """Round numbers, evenly spaced, that hold the span from `low` to `high`.

    >>> nice_ticks(0, 9.3), nice_ticks(2.94, 4.41)
    ([0.0, 2.0, 4.0, 6.0, 8.0, 10.0], [2.5, 3.0, 3.5, 4.0, 4.5])
    """
    span = (high - low) or abs(high) or 1.0
    rough = span / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * power for unit in (1, 2, 5, 10) if unit * power >= rough * 0.8)
    first, last = math.floor(low / step), max(math.ceil(high / step), math.floor(low / step) + 1)
    return [round(number * step, 10) for number in range(first, last + 1)]


def _bands(history: Sequence[Mapping[str, Any]], x: Any) -> Iterator[str]:
    """The phases, every other one shaded, named above where there is room."""
    for number, (phase, start, end) in enumerate(phases(history)):
        left, right = x(start), x(end)
        kind = "band" if number % 2 == 0 else "band other"
        box = f'x="{left:.1f}" y="{_TOP}" width="{right - left:.1f}" height="{HEIGHT - _TOP - _BOTTOM}"'
        yield f'<rect class="{kind}" {box}>{_title(phase)}</rect>'
        if right - left > 6.5 * len(phase):
            yield _text((left + right) / 2, _TOP - 9, phase, "tick", "middle")


def _grid(ticks: Sequence[float], y: Any, unit: str = "", right: float = WIDTH - _RIGHT) -> Iterator[str]:
    for tick in ticks:
        place = f'y1="{y(tick):.1f}" y2="{y(tick):.1f}"'
        yield f'<line class="grid" x1="{_LEFT}" x2="{right}" {place}/>'
        yield _text(_LEFT - 8, y(tick) + 4, f"{tick:.10g}{unit}", "tick", "end")


def _endings(lines: Mapping[str, Sequence[float | None]], labels: Mapping[str, str], y: Any) -> Iterator[str]:
    """The name and the last value of each line, kept apart where lines end close together."""
    last = {key: [value for value in values if value is not None][-1] for key, values in lines.items()}
    room = -math.inf
    for key in sorted(last, key=lambda key: float(y(last[key]))):
        room = max(y(last[key]), room + 15)
        value = f"{last[key]:.2f}" if abs(last[key]) < 10 else f"{last[key]:.1f}"
        yield _text(WIDTH - _RIGHT + 8, room + 4, f"{labels[key]} {value}", f"end text-{key}", "start")


def _svg(title: str, parts: Sequence[str]) -> str:
    box = f'viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}"'
    return f'<svg class="chart" {box}>{"".join(parts)}</svg>'


def _text(x: float, y: float, text: str, kind: str, anchor: str) -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text class="{kind}" {place}>{escape(text)}</text>'


def _title(text: str) -> str:
    return f"<title>{escape(text)}</title>"
