"""Draws docs/architecture.svg: from a folder of pictures to a sentence, a box a file, shapes between them.

    python scripts/draw_architecture.py

In: the stations below; a file that is not there is an error. Out: the drawing.
"""

from __future__ import annotations

import sys
from html import escape
from pathlib import Path
from typing import NamedTuple

from captioner.system.files import atomic_write

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "docs" / "architecture.svg"
WIDTH, BOX, TOP, STEP = 980, 300, 44, 122


class Station(NamedTuple):
    """A box: the file, what it does, and what leaves it."""

    file: str
    does: str
    leaves: str


LEARN = (
    Station("data/datasets.py", "captions files → records", "CaptionedImage(id, path, captions)"),
    Station("models/feature_extraction.py", "each picture once through the CNN", "grids (P, C) on disk"),
    Station("training/input_pipeline.py", "records + grids → batches", "(B, P, C), words (B, R, T)"),
    Station("models/decoder.py", "attention + GRU, teacher forced", "logits (M, V) of the real words"),
    Station("training/train_step.py", "loss, gradients, optimizer", "StepStats: nats per word"),
    Station("training/train_loop.py", "epochs, dev captions, best weights", "run folder"),
)
USE = (
    Station("runs/run_folder.py", "all that captioning needs", "config, words, weights"),
    Station("data/images.py", "any picture, upright, 8 bit", "(H, W, 3) uint8"),
    Station("models/encoder.py", "CNN", "grid (B, P, C)"),
    Station("inference/beam_search.py", "calls decoder.step word by word", "ids (B, K, T), scores (B, K)"),
    Station("inference/captioner.py", "words put together", "Caption(text, score, words, attention)"),
    Station("evaluation/metrics.py", "captions + references → scores", "BLEU, ROUGE-L, CIDEr-D"),
)


def main() -> int:
    """Writes the drawing."""
    for station in (*LEARN, *USE):
        if not (ROOT / "captioner" / station.file).is_file():
            print(f"error: captioner/{station.file}: no such file; the stations name it", file=sys.stderr)
            return 2
    height = TOP + STEP * len(LEARN) + 8
    left, right = 90, WIDTH - 90 - BOX
    body = [_heading("Learn", left), _heading("Use", right)]
    for column, stations in ((left, LEARN), (right, USE)):
        for row, station in enumerate(stations):
            body.append(_station(station, column, TOP + STEP * row, last=row == len(stations) - 1))
    # What training leaves behind is what captioning begins with.
    bottom, beside = TOP + STEP * (len(LEARN) - 1) + 36, TOP + 36
    middle = (left + BOX + right) / 2
    body.append(
        f'<path class="arrow" d="M{left + BOX} {bottom} H{middle} V{beside} H{right - 8}" '
        'marker-end="url(#tip)"/>'
    )
    text = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        'aria-label="From a folder of captioned pictures to a run folder, and from a picture to a sentence">'
        "<style>text{font:15px system-ui,sans-serif;fill:#221e19}.file{font:600 15px ui-monospace,monospace}"
        ".does{fill:#756c60}.leaves{font:13.5px ui-monospace,monospace;fill:#a35a0c}"
        ".box{fill:#fffdf9;stroke:#d9cfbe}.arrow{fill:none;stroke:#c8741a;stroke-width:2}.head{font:600 20px "
        "Georgia,serif}.ground{fill:#faf7f1}</style>"
        '<defs><marker id="tip" markerWidth="9" markerHeight="9" refX="7" refY="4" orient="auto">'
        '<path d="M0 0 L8 4 L0 8 z" fill="#c8741a"/></marker></defs>'
        f'<rect class="ground" width="{WIDTH}" height="{height}"/>{"".join(body)}</svg>\n'
    )
    atomic_write(TARGET, text.encode())
    print(f"{TARGET.relative_to(ROOT)}: {len(text) / 1000:.0f} kB")
    return 0


def _heading(text: str, x: int) -> str:
    return f'<text class="head" x="{x}" y="28">{text}</text>'


def _station(station: Station, x: int, y: int, *, last: bool) -> str:
    middle, under = x + 26, y + 72
    arrow = (
        ""
        if last
        else f'<path class="arrow" d="M{middle} {under} V{y + STEP - 8}" marker-end="url(#tip)"/>'
    )
    return (
        f'<rect class="box" x="{x}" y="{y}" width="{BOX}" height="72" rx="12"/>'
        f'<text class="file" x="{x + 16}" y="{y + 30}">{escape(station.file)}</text>'
        f'<text class="does" x="{x + 16}" y="{y + 54}">{escape(station.does)}</text>{arrow}'
        f'<text class="leaves" x="{middle + 14}" y="{under + 24}">{escape(station.leaves)}</text>'
    )


if __name__ == "__main__":
    sys.exit(main())
