"""Captions of captioner's own are told from people's: by the journal, word for word, or by their form."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from captioner.data.own_captions import is_own_row, written_in


def note(folder: Path, picture: str, caption: str, journal: str = ".captioner.jsonl") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / journal).open("a", encoding="utf-8") as file:
        file.write(json.dumps({"picture": picture, "found": {"caption": caption, "score": -0.5}}) + "\n")


def test_all_that_was_ever_written_for_a_picture_counts(tmp_path: Path) -> None:
    note(tmp_path, "a.jpg", "a dog")
    note(tmp_path, "a.jpg", "a cat", ".captioner-2-of-3.jsonl")
    note(tmp_path, "b.jpg", "a  cow")
    with (tmp_path / ".captioner.jsonl").open("a") as file:
        file.write('{"picture": "c.jpg", "error": "damaged"}\n[1]\n{"picture": "d.j')  # torn by a crash
    assert written_in(tmp_path) == {"a.jpg": {"a dog", "a cat"}, "b.jpg": {"a cow"}}
    assert written_in(tmp_path / "none") == {}


@pytest.mark.parametrize(
    ("row", "own"),
    [
        ({"caption": "a dog", "score": "-0.41234"}, True),
        ({"caption": "a dog", "score": "-1.2e-05"}, True),
        ({"caption": "a dog", "score": -0.4}, True),
        ({"caption": "a dog", "score": ""}, False),
        ({"caption": "a dog", "score": "5"}, False),  # a rating that somebody gave
        ({"caption": "a dog", "score": 4.5}, False),
        ({"caption": "a dog", "score": None}, False),
        ({"caption": "a dog"}, False),
    ],
)
def test_rows_with_our_score_are_ours(row: dict[str, object], own: bool) -> None:
    assert is_own_row(row) == own
