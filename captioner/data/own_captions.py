"""Captions that captioner wrote, told from people's: they never become training captions.

In: a folder of pictures or of sidecars. Out: what the journals there (`.captioner.jsonl`, see
`apps.sidecars.journal`) say was written for a picture, whatever became of it since. A caption that differs
from all of that is a person's, and so is every caption where there is no journal.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from captioner.system.files import read_json_lines

JOURNAL = ".captioner.jsonl"
JOURNAL_OF_PART = re.compile(r"\.captioner-\d+-of-\d+\.jsonl")


def written_in(folder: Path) -> dict[str, frozenset[str]]:
    """Picture → captions that captioner wrote for it, by the journals in a folder; empty: there is none."""
    try:
        names = os.listdir(folder)
    except OSError:
        return {}
    found: dict[str, set[str]] = {}
    for name in names:
        if name == JOURNAL or JOURNAL_OF_PART.fullmatch(name):
            for entry in _entries(folder / name):
                caption = entry.get("found", {}).get("caption")
                if isinstance(entry.get("picture"), str) and isinstance(caption, str):
                    captions = found.setdefault(entry["picture"], set())
                    # A caption that a person found right, see `origins.accept`, is as good as a person's.
                    (captions.discard if "accepted" in entry else captions.add)(" ".join(caption.split()))
    return {picture: frozenset(captions) for picture, captions in found.items()}


def is_own_row(row: Mapping[str, Any]) -> bool:
    """Whether a row is one of ours by its form: a caption with the score that only captioner gives.

    >>> is_own_row({"path": "a.jpg", "caption": "a dog", "score": -0.4}), is_own_row({"caption": "a dog"})
    (True, False)
    """
    score = row.get("score")
    if isinstance(score, str):
        return bool(re.fullmatch(r"-\d+(\.\d+)?(e-?\d+)?", score.strip()))
    return isinstance(score, float) and score < 0


def _entries(path: Path) -> list[dict[str, Any]]:
    try:
        return [entry for entry in read_json_lines(path) if isinstance(entry.get("found", {}), dict)]
    except OSError:
        return []
