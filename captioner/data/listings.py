"""What the files of a data set say, and the shape of a reader of them.

A reader gets the folder (or captions file) of a data set and gives a `Listing`: names, captions, splits and
what was odd, before anybody has looked for the pictures.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from captioner.errors import DataError

SPLITS = ("train", "dev", "test")
SPLIT_NAMES = {
    **dict.fromkeys(("train", "training", "restval"), "train"),
    **dict.fromkeys(("dev", "val", "valid", "validation", "development"), "dev"),
    **dict.fromkeys(("test", "testing"), "test"),
}
NAMES_KEPT = 5


class Problems:
    """What is wrong with a data set: a count and the first few names of each kind; nothing of it is fatal.

    >>> problems = Problems()
    >>> problems.note("missing pictures", "a.jpg")
    >>> problems.lines()
    ['missing pictures: 1 (a.jpg)']
    """

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.names: dict[str, list[str]] = {}

    def note(self, kind: str, name: str) -> None:
        """Counts one more of `kind`; `name` is kept if it is among the first few."""
        self.counts[kind] = self.counts.get(kind, 0) + 1
        names = self.names.setdefault(kind, [])
        if len(names) < NAMES_KEPT:
            names.append(name)

    def __bool__(self) -> bool:
        return bool(self.counts)

    def lines(self) -> list[str]:
        """One line a kind, for people."""
        return [
            f"{kind}: {count} ({', '.join(self.names[kind])}{', …' if count > NAMES_KEPT else ''})"
            for kind, count in self.counts.items()
        ]


@dataclass(frozen=True)
class CaptionsFile:
    """A captions file (or the folder of many), the split that its name or its folder's tells, and what goes
    before picture names."""

    path: Path
    split: str | None = None
    prefix: str = ""

    def folders(self) -> list[Path]:
        """Where its picture names are relative to, nearest first."""
        if self.path.is_dir():  # its files are the captions files
            return [self.path]
        folder = self.path.parent
        if self.prefix:
            return [folder.parent]
        return [folder, folder.parent] if folder.name.lower() in _TEXT_FOLDERS else [folder]


@dataclass
class Listing:
    """What the files of a data set say.

    `captions` maps a picture's name (a path relative to one of `folders` or to a customary sub-folder) to its
    captions as written; `splits` maps train, dev, test to names and is empty when the set has none.
    """

    folders: list[Path]
    captions: dict[str, list[str]] = field(default_factory=dict)
    splits: dict[str, dict[str, None]] = field(default_factory=dict)  # dict as ordered set
    problems: Problems = field(default_factory=Problems)

    def add(self, name: str, captions: Iterable[str], split: str | None = None) -> None:
        """Adds captions to a picture, and the picture to a split."""
        self.captions.setdefault(name, []).extend(captions)
        if split is not None:
            self.splits.setdefault(split, {})[name] = None

    def split_of(self, value: Any, name: str) -> str | None:
        """The split that a row tells; what it tells badly is noted."""
        split = SPLIT_NAMES.get(str(value or "").strip().lower())
        if split is None and value is not None:
            self.problems.note("pictures with an unknown split", f"{name}: {value!r}")
        return split


@dataclass(frozen=True)
class Reader:
    """One format.

    `find` gives the captions files in a folder (none: not this format). `parse(listing, source, split)` adds
    what one of them says to the listing; it may leave out what belongs to other splits than `split`.
    """

    looks_for: str  # files and form expected, for people
    split_hint: str  # what names a split
    find: Callable[[Path], list[CaptionsFile]]
    parse: Callable[[Listing, CaptionsFile, str], None]

    def read(self, sources: list[CaptionsFile], split: str) -> Listing:
        """Reads those files that concern `split` (train, dev, test, all).

        Raises:
            DataError: a file is not of this format; names the file and the line.
        """
        listing = Listing([])
        for source in sources:
            listing.folders += [folder for folder in source.folders() if folder not in listing.folders]
            if source.split is not None:
                listing.splits.setdefault(source.split, {})
            if source.split is None or split in (source.split, "all"):
                self.parse(listing, source, split)
        return listing


def named_split(path: Path) -> str | None:
    """The split in a file's name: `val.jsonl`, `captions_train2014.json`; None where it tells none."""
    words = re.split(r"[^a-z]+", path.stem.lower())
    return next((SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES), None)


def read_text(path: Path) -> str:
    """The text of a file: UTF-8, or UTF-16 with its mark, as spreadsheets write it.

    Raises:
        DataError: it cannot be read or is not text; names the line.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot read it ({error.strerror})") from error
    try:
        return data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise DataError(
            f"{path}, line {line}: not UTF-8 text; if it is text, convert it: iconv -f latin1 -t utf-8"
        ) from error


_TEXT_FOLDERS = frozenset(("annotations", "captions", "text", "flickr8k_text", "caption_datasets"))


def files_of(root: Path, *endings: str) -> list[Path]:
    """Files in `root`, then in its sub-folders that customarily hold captions; by ending, then by name."""
    names = sorted(os.listdir(root))
    inside = [root / name for name in names if name.lower() in _TEXT_FOLDERS]
    folders = [root, *(folder for folder in inside if folder.is_dir())]
    return [
        folder / name
        for folder in folders
        for ending in endings
        for name in sorted(os.listdir(folder))
        if name.lower().endswith(ending) and not name.startswith(".")
    ]


def refuse(source: CaptionsFile, expected: str, found: str) -> NoReturn:
    """Raises the DataError for a file of another form."""
    raise DataError(f"{source.path}: expected {expected}; it begins {found[:60]!r}")
