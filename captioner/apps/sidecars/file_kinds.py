"""Files that carry a caption: one row for each kind in `WRITERS`, saying how it is read and written.

In: the content that a file has, a caption. Out: the content with that caption, all else in it kept. Nothing
here touches a file.

What is written is a mapping as `Caption.to_dict` makes it (caption, score, alternatives, …), beside the text
that the file is to say: the caption, or what the file said before and the caption below it.
"""

from __future__ import annotations

import codecs
import json
import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from captioner.apps.sidecars.csv_table import Table
from captioner.data.xmp import embedded_xmp, read_xmp, write_xmp
from captioner.errors import DataError
from captioner.system.files import json_text
from captioner.system.shard_spec import ShardSpec

CaptionRecord = Mapping[str, Any]  # what was found out about a picture: caption, score, perhaps alternatives


@dataclass(frozen=True)
class Sidecar:
    """A kind of file written once for each picture."""

    suffix: str
    # The caption in a file's content, or None. Raises DataError for what is no such file.
    read: Callable[[bytes], str | None]
    # The content (b"": none yet) with this text in place of the caption in it.
    write: Callable[[bytes, str, CaptionRecord], bytes]
    # Content for a new file, taken from the picture itself; None: a new file begins with nothing.
    begin: Callable[[Path], bytes] | None = None


@dataclass(frozen=True)
class Sheet:
    """A kind of file that holds the captions of all pictures."""

    file_name: str
    open: Callable[[Path], Table]

    def name_of(self, part: ShardSpec) -> str:
        """The file's name; each of several workers writes a sheet of its own."""
        stem, suffix = os.path.splitext(self.file_name)
        return self.file_name if part.whole else f"{stem}.{part.name}{suffix}"


def sheets_of_parts(sheet: Path) -> list[Path]:
    """The sheets of several workers in the folder of the common sheet."""
    return sorted(sheet.parent.glob(f"{sheet.stem}.*-of-*{sheet.suffix}"))


def append_caption(old: str, new: str) -> str:
    """Appends a caption on a line of its own unless the text holds it already.

    >>> append_caption("ein Hund", "ein Hund im Gras"), append_caption("a\\nb", "b")
    ('ein Hund\\nein Hund im Gras', 'a\\nb')
    """
    return old if new in old.split("\n") else f"{old}\n{new}"


def names_needing_suffix(pictures: Collection[str]) -> set[str]:
    """Names of pictures in one folder whose sidecars must keep the picture's suffix to be told apart.

    Letters count as equal if some file system holds them for equal: in either case, in either composition.

    >>> sorted(names_needing_suffix(["cat.jpg", "dog.jpg", "Dog.png"]))
    ['Dog.png', 'dog.jpg']
    """
    names = {name: casefold_name(name) for name in pictures}
    stems = {name: casefold_name(os.path.splitext(name)[0]) for name in pictures}
    count, taken = Counter(stems.values()), set(names.values())
    # photo.jpg.png may not have photo.jpg.txt where photo.jpg might need it.
    return {name for name, stem in stems.items() if count[stem] > 1 or stem in taken}


def casefold_name(name: str) -> str:
    """A name in the form in which no file system distinguishes it: case-folded, composed.

    >>> casefold_name("A.JPG") == casefold_name("a.jpg")
    True
    """
    return unicodedata.normalize("NFC", name.casefold())


def json_bytes(obj: Any, *, indent: int | None = None) -> bytes:
    """Strict JSON in UTF-8; escaped where a file name is not Unicode."""
    text = json_text(obj, indent=indent)
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:
        return json.dumps(json.loads(text), indent=indent).encode("ascii")


def _read_text(content: bytes) -> str | None:
    utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    # Bytes that are no UTF-8 go through unharmed.
    text = content.decode("utf-16", "replace") if utf16 else content.decode("utf-8-sig", "surrogateescape")
    return text.replace("\r\n", "\n").strip() or None


def _write_text(content: bytes, text: str, found: CaptionRecord) -> bytes:
    return f"{text}\n".encode("utf-8", "surrogateescape")


def _read_json(content: bytes) -> str | None:
    captions = _object(content).get("caption")
    if isinstance(captions, list):
        captions = "\n".join(map(str, captions))
    return str(captions) if captions else None


def _write_json(content: bytes, text: str, found: CaptionRecord) -> bytes:
    return json_bytes({**_object(content), **found, "caption": text}, indent=2) + b"\n"


def _object(content: bytes) -> dict[str, Any]:
    try:
        known = json.loads(content.decode("utf-8-sig")) if content.strip() else {}
    except ValueError as error:
        raise DataError(f"is not JSON ({error}): move it away, or mend it") from error
    if not isinstance(known, dict):
        raise DataError("is JSON, but no object to add a caption to: move it away")
    if isinstance(known.get("images"), list):
        raise DataError("holds the captions of a data set (COCO's or Karpathy's form): use --names full")
    return known


WRITERS: dict[str, Sidecar | Sheet] = {
    "txt": Sidecar(".txt", _read_text, _write_text),
    "json": Sidecar(".json", _read_json, _write_json),
    "xmp": Sidecar(".xmp", read_xmp, write_xmp, embedded_xmp),
    "csv": Sheet("captions.csv", Table),
}
