"""Drawings: that they are drawn, that light falls where the model looked, and that no script is left out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from captioner.data.datasets import CaptionedImage
from captioner.errors import CaptionerError
from captioner.visualization import fonts as lettering
from captioner.visualization.attention_overlay import lit
from captioner.visualization.fonts import fonts_for, wrapped
from captioner.visualization.history import best_epoch
from captioner.visualization.plots import plot_attention, plot_history, plot_records

GRAY = np.full((60, 90, 3), 160, np.uint8)


def size_of(file: Path) -> tuple[int, int]:
    """Of a drawing that is whole, with nothing left beside it."""
    assert [path.name for path in file.parent.iterdir() if path.name.startswith(".tmp")] == []
    with Image.open(file) as drawing:
        drawing.load()
        assert len(set(drawing.convert("RGB").resize((60, 40)).get_flattened_data())) > 5
        return drawing.size


def entry(phase: str, epoch: int, **figures: Any) -> dict[str, Any]:
    return {"phase": phase, "epoch": epoch, "dev_loss": 3.0 / epoch, "cider": 10.0 * epoch, **figures}


@pytest.mark.parametrize(
    "history",
    [
        [entry("decoder", 1)],
        [
            entry("decoder", 1, train_loss=4.0),
            entry("decoder", 2, train_loss=None),
            entry("reward", 1, reward=60.0),
        ],
        [{"phase": "decoder", "epoch": 1}],
        [],
    ],
    ids=["one epoch", "two phases", "no figures", "nothing"],
)
def test_a_history_is_drawn_however_short(history: list[dict[str, Any]], tmp_path: Path) -> None:
    plot_history(history, tmp_path / "loss.png")
    assert size_of(tmp_path / "loss.png")[0] > 1000


def test_a_drawing_replaces_the_one_before(tmp_path: Path) -> None:
    for count in (1, 2):
        plot_history([entry("decoder", n + 1) for n in range(count)], tmp_path / "loss.png")
    assert [path.name for path in tmp_path.iterdir()] == ["loss.png"]
    plot_history([entry("decoder", 1)], tmp_path / "new" / "loss.svg")
    assert "<svg" in (tmp_path / "new" / "loss.svg").read_text(encoding="utf-8")


def test_the_best_epoch_has_a_ring_on_both_panels(tmp_path: Path) -> None:
    """Where all scores are equal, as CIDEr of one dev picture is, it is the one of the lowest dev loss."""
    flat = [entry("decoder", n, cider=0.0, dev_loss=loss) for n, loss in enumerate((3.0, 2.0, 2.5), start=1)]
    assert best_epoch(flat, "cider") == best_epoch(flat, "loss") == 1
    assert best_epoch([{"phase": "decoder"}], "cider") is None
    for select in ("cider", "loss"):
        plot_history(flat, tmp_path / "with.svg", select=select)
        plot_history(flat, tmp_path / "without.svg", select="no such score")
        rings = [(tmp_path / f"{name}.svg").read_text("utf-8").count("<use") for name in ("with", "without")]
        assert rings[0] > rings[1]


def test_light_falls_where_the_model_looked() -> None:
    weights = np.zeros((3, 3))
    weights[0, 2] = 1  # top right
    light = lit(GRAY, weights).mean(-1)
    assert np.unravel_index(light.argmax(), light.shape)[0] < 20
    assert np.unravel_index(light.argmax(), light.shape)[1] >= 60
    assert light[50, 10] < 60 < 150 < light[5, 85]
    everywhere = lit(GRAY, np.full((3, 3), 1 / 9)).mean(-1)
    assert everywhere.min() > 150  # looking everywhere leaves nothing dark


@pytest.mark.parametrize(
    "words", [["dog"], ["a", "dog", "costs", "$5", "or", "$6"], list("abcdefghijklmnopqrstuvw"), []]
)
def test_every_word_gets_a_panel(words: list[str], tmp_path: Path) -> None:
    plot_attention(GRAY, words, np.ones((len(words), 4, 4)) / 16, path=tmp_path / "looks.png")
    width, height = size_of(tmp_path / "looks.png")
    assert 0.3 < width / height < 6


def test_letters_that_no_font_has_are_not_complained_about_one_by_one(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    lettering._further_fonts.cache_clear()
    plot_attention(np.zeros((8, 8, 3), np.uint8), ["\U000f0000"], np.ones((1, 2, 2)), path=tmp_path / "a.png")
    assert (tmp_path / "a.png").is_file() and not recwarn


def test_words_and_maps_must_match(tmp_path: Path) -> None:
    with pytest.raises(CaptionerError, match="2 words, but attention for 3"):
        plot_attention(GRAY, ["a", "dog"], np.ones((3, 4, 4)), path=tmp_path / "looks.png")


def test_a_sheet_shows_good_pictures_and_says_what_ails_the_bad_ones(tmp_path: Path) -> None:
    Image.fromarray(GRAY).save(tmp_path / "wide.png")
    Image.fromarray(GRAY[:, :10]).save(tmp_path / "tall.png")
    (tmp_path / "bad.png").write_bytes(b"no picture")
    records = [
        CaptionedImage(name, tmp_path / name, ("It costs $3 and $4.", "A gray picture.", "Nothing.", "More."))
        for name in ("wide.png", "tall.png", "bad.png", "gone.png", "wide.png")
    ]
    plot_records(records, tmp_path / "sheet.png")
    plot_records(records[:1], tmp_path / "one.png")
    assert size_of(tmp_path / "sheet.png") > size_of(tmp_path / "one.png")


def test_an_unknown_kind_of_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(CaptionerError, match=r"looks\.doc: drawings cannot be \.doc; expected \.png"):
        plot_attention(GRAY, ["dog"], np.ones((1, 2, 2)), path=tmp_path / "looks.doc")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("Two dogs run in the snow .", ["Two dogs", "run in the", "snow ."]),
        ("", []),
        ("unbreakably long", ["unbreakably", "long"]),
        ("빨간 원이 왼쪽에 있다", ["빨간 원이", "왼쪽에", "있다"]),
        ("赤い円。「青い星」", ["赤い円。", "「青い星」"]),
    ],
)
def test_lines_break_where_a_language_breaks_them(text: str, lines: list[str]) -> None:
    assert wrapped(text, 10) == lines


def test_letters_that_no_font_draws_are_named_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fonts_for("Ein großer Hund, 3 €; Ελλάδα, Киев") == [lettering.BASE]
    monkeypatch.setattr(lettering.font_manager.fontManager, "ttflist", [])
    lettering._further_fonts.cache_clear()
    for _ in range(2):
        assert fonts_for("빨간 원 dog") == [lettering.BASE]
    assert capsys.readouterr().err.count("no installed font draws 간빨원") == 1
    lettering._further_fonts.cache_clear()
