"""What the files of a data set say, and the shape of a reader of them.

A reader gets the folder (or captions file) of a data set and gives a `Listing`: names, captions, splits and
what was odd, before anybody has looked for the pictures.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from captioner.data.vocabulary import LANGUAGE_CODE
from captioner.errors import DataError

SPLITS = ("train", "dev", "test")
SPLIT_NAMES = {
    **dict.fromkeys(("train", "training", "restval"), "train"),
    **dict.fromkeys(("dev", "val", "valid", "validation", "development"), "dev"),
    **dict.fromkeys(("test", "testing"), "test"),
}
NAMES_KEPT = 5
# What to do about it, for the kinds of problems where that is not plain.
REMEDIES = {
    "quotation marks left open": "taken for a part of the caption; close or double them",
    "delimiters in captions without quotes": "taken for a part of the caption; quote the caption",
    "captions that are no text": "left out; a caption is a sentence, or a list of sentences",
    "captions that stand for nothing (null, NaN)": "left out; write one, or take the row out",
    "captions with marker words": "the markers are left out; take them out of the file",
    "captions with <unk>": "left out, for a word is missing; use the captions as people wrote them",
    "captions that captioner wrote": "left out; one changed by a person counts (in a table: without a score)",
    "pictures under two names": "taken for one; write one name",
    "picture names in another case": "found all the same; other systems may not",
}


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

    def add(self, others: Problems) -> None:
        """Counts those of another set, too."""
        for kind, count in others.counts.items():
            self.counts[kind] = self.counts.get(kind, 0) + count
            names = self.names.setdefault(kind, [])
            names += others.names[kind][: NAMES_KEPT - len(names)]

    def __bool__(self) -> bool:
        return bool(self.counts)

    def lines(self) -> list[str]:
        """One line a kind, for people, with what to do about it."""
        return [
            f"{kind}: {count} ({', '.join(self.names[kind])}{', …' if count > NAMES_KEPT else ''})"
            + (f"; {REMEDIES[kind]}" if kind in REMEDIES else "")
            for kind, count in self.counts.items()
        ]


@dataclass(frozen=True)
class CaptionsFile:
    """A captions file (or the folder of many), the split that its name or its folder's tells, and what goes
    before picture names."""

    path: Path
    split: str | None = None
    prefix: str = ""
    beside: tuple[str, ...] = ()  # files of the same form that were passed over for this one
    certain: bool = True  # False: its name says so, but what is in it does not

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
    captions as written; `languages` to the language of each, "" where none is told. `splits` maps train, dev,
    test to names and is empty when the set has none.
    """

    folders: list[Path]
    captions: dict[str, list[str]] = field(default_factory=dict)
    languages: dict[str, list[str]] = field(default_factory=dict)
    splits: dict[str, dict[str, None]] = field(default_factory=dict)  # dict as ordered set
    problems: Problems = field(default_factory=Problems)
    scored: dict[str, set[str]] = field(default_factory=dict)  # captions beside a score of ours, by picture
    numbers: dict[str, str] = field(default_factory=dict)  # number -> name, if the set numbers its pictures

    def add(
        self, name: str, captions: Iterable[Any], split: str | None = None, *, language: Any = None
    ) -> None:
        """Adds captions of one language to a picture, and the picture to a split; notes what is no text."""
        name = plain_name(name)
        known, spoken = self.captions.setdefault(name, []), self.languages.setdefault(name, [])
        code = language_code(str(language or ""))
        if code is None:
            self.problems.note("captions with no language code, such as en", f"{name}: {language!r}")
        for value in captions:
            text = self._text(value, name)
            if text is not None:
                known.append(text)
                spoken.append(code or "")
        if split is not None:
            self.splits.setdefault(split, {})[name] = None

    def _text(self, value: Any, name: str) -> str | None:
        """A caption as it is written, or None."""
        if isinstance(value, str) and not _ODD.search(value):
            return value
        if isinstance(value, Mapping):  # {"raw": "A dog ."}, as Karpathy's form has it
            texts = [value[key] for key in _TEXT_KEYS if isinstance(value.get(key), str)]
            value = texts[0] if len(texts) == 1 else value
        if value is None or value != value or (isinstance(value, str) and value.strip().lower() in _NOTHING):
            self.problems.note("captions that stand for nothing (null, NaN)", f"{name}: {value}")
            return None
        if not isinstance(value, str) or _NUMBER.fullmatch(value.strip()):
            self.problems.note("captions that are no text", f"{name}: {str(value)[:40]}")
            return None
        if "unk" in value.lower() and _UNKNOWN.search(value):
            self.problems.note("captions with <unk>", f"{name}: {value.strip()[:40]}")
            return None
        text = without_markers(value)
        if text != value:
            self.problems.note("captions with marker words", f"{name}: {value.strip()[:40]}")
        return text

    def split_of(self, value: Any, name: str) -> str | None:
        """The split that a row tells; what it tells badly is noted."""
        split = SPLIT_NAMES.get(str(value or "").strip().lower())
        if split is None and value is not None:
            self.problems.note("pictures with an unknown split", f"{name}: {value!r}")
        return split


@dataclass(frozen=True)
class Reader:
    """How one form of data set is found and read.

    `find` gives the captions files in a folder (none: not this format). `parse(listing, source, split)` adds
    what one of them says to the listing; it may leave out what belongs to other splits than `split`.
    """

    looks_for: str  # files and form expected, for people
    split_hint: str  # what names a split
    find: Callable[[Path], list[CaptionsFile]]
    parse: Callable[[Listing, CaptionsFile, str], None]

    def read(self, sources: list[CaptionsFile], *splits: str) -> Listing:
        """Reads those files that concern `splits` (of train, dev, test; or all).

        Raises:
            DataError: a file is not of this form; names the file and the line.
        """
        listing = Listing([])
        for source in sources:
            listing.folders += [folder for folder in source.folders() if folder not in listing.folders]
            if source.split is not None:
                listing.splits.setdefault(source.split, {})
            if source.split is None or source.split in splits or "all" in splits:
                self.parse(listing, source, splits[0] if len(splits) == 1 else "all")
        return listing


def plain_name(name: str) -> str:
    """A picture's name without detours, so that one picture has one name.

    >>> plain_name("./a.jpg"), plain_name("x//y/../a.jpg"), plain_name("a.jpg")
    ('a.jpg', 'x/a.jpg', 'a.jpg')
    """
    return posixpath.normpath(name) if "/" in name and "://" not in name else name


def without_markers(text: str) -> str:
    """A caption without the words that other programs put around it to mark its beginning and its end.

    >>> without_markers("<start> a dog runs <end>"), without_markers("startseq a dog endseq")
    ('a dog runs', 'a dog')
    """
    folded = text.lower()
    if not any(hint in folded for hint in ("<", "[", "seq", "start", "os ")):
        return text
    found = _MARKER.sub(" ", text)
    pair = _MARKER_PAIR.fullmatch(found.strip())
    found = pair[2] if pair else found
    return text if found == text else " ".join(found.split())


_MARKS = "s|start|end|sos|eos|bos|pad|go|sep|cls|mask|begin|stop|startseq|endseq"
_MARKER = re.compile(
    rf"<\s*/?\s*({_MARKS})\s*>|\[({_MARKS})\]|<\|\w+\|>|\b(startseq|endseq)\b", re.IGNORECASE
)
_MARKER_PAIR = re.compile(r"(start|sos|bos)\s(.*)\s(end|eos)", re.IGNORECASE | re.DOTALL)
_UNKNOWN = re.compile(r"<\s*unk(nown)?\s*>|\[unk(nown)?\]", re.IGNORECASE)
_NOTHING = frozenset(("nan", "null", "none", "n/a", "#n/a", "<na>", "undefined"))
_NUMBER = re.compile(r"[-+]?\d[\d.,]*(e[-+]?\d+)?", re.IGNORECASE)
# What any of the above may find something in: most captions need no closer look.
_ODD = re.compile(
    r"[<\[]|seq\b|unk|^\s*(?:[-+]?\d|start\b|[sb]os\b|(?:nan|null|none|#?n/a|undefined)\s*$)", re.IGNORECASE
)
_TEXT_KEYS = ("raw", "caption", "text", "sentence")


def language_code(text: str) -> str | None:
    """A language as it is written everywhere here: BCP 47 in lower case; None: it is none.

    >>> language_code("de"), language_code("zh_Hans"), language_code("English please")
    ('de', 'zh-hans', None)
    """
    code = text.strip().lower().replace("_", "-")
    return code if not code or LANGUAGE_CODE.fullmatch(code) else None


def named_split(path: Path) -> str | None:
    """The split in a file's name: `val.jsonl`, `captions_train2014.json`; None where it tells none."""
    words = re.split(r"[^a-z]+", path.stem.lower())
    return next((SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES), None)


def read_text(path: Path) -> str:
    """The text of a file: UTF-8, UTF-16 or UTF-32, with a byte-order mark or without; lines end in a newline.

    Raises:
        DataError: it cannot be read or is not text; names the line.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot read it ({error.strerror})") from error
    try:
        text = data.decode(_coding(data))
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise DataError(
            f"{path}, line {line}: not UTF-8 text; if it is text, convert it: iconv -f latin1 -t utf-8"
        ) from error
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def head_of(path: Path) -> str:
    """How a text file begins, some thousand characters; of what is no text: nonsense, not an error."""
    try:
        with path.open("rb") as file:
            data = file.read(_HEAD_BYTES)
    except OSError:
        return ""
    text = data.decode(_coding(data), "replace").removeprefix("\ufeff")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _coding(data: bytes) -> str:
    if data[:4] in (b"\xff\xfe\0\0", b"\0\0\xfe\xff"):
        return "utf-32"
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return "utf-16"
    if b"\0" in data[:_HEAD_BYTES]:  # no text has NUL bytes, but every second byte of UTF-16 may be one
        return "utf-16-le" if data[1:_HEAD_BYTES:2].count(0) >= data[:_HEAD_BYTES:2].count(0) else "utf-16-be"
    return "utf-8-sig"


_HEAD_BYTES = 1 << 16
_TEXT_FOLDERS = frozenset(("annotations", "captions", "text", "flickr8k_text", "caption_datasets", "data"))


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
    """Raises the DataError for a file of another form, or with nothing in it."""
    begins = f"it begins {found[:60]!r}" if found.strip() else "it is empty"
    raise DataError(f"{source.path}: expected {expected}; {begins}")
