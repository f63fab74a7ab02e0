"""Captions that some other program wrote: read from its file, and found for the pictures of a data set.

In: a file in one of three forms,

    COCO results   [{"image_id": 42, "caption": "a dog runs"}, …]
    JSON lines     {"image": "dog.jpg", "caption": "a dog runs"} on each line, as `captioner caption --json`
    CSV, TSV       a table with a header: image,caption

Out: captions by the names of the data set's pictures. Also writes the first form. Opens no picture.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from captioner.data.listings import read_text
from captioner.errors import DataError
from captioner.system.files import atomic_write, json_text

PICTURE_KEYS = ("image_id", "image", "id", "file_name", "filename", "path", "file", "name")
CAPTION_KEYS = ("caption", "text", "prediction", "hypothesis")
_FORMS = (
    '[{"image_id": 42, "caption": "…"}], a line {"image": "a.jpg", "caption": "…"} for each picture, '
    "or a table headed image,caption"
)


def read_captions(path: str | Path) -> dict[str, str]:
    """The caption of each picture that a file names, as the file names it.

    Raises:
        DataError: the file cannot be read, has another form, or gives one picture two captions.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "results.json"
    >>> _ = file.write_text('[{"image_id": 42, "caption": "a dog"}]')
    >>> read_captions(file)
    {'42': 'a dog'}
    """
    path = Path(path)
    text = read_text(path)
    found: dict[str, str] = {}
    for where, row in _rows(path, text):
        if "error" in row and not any(key in row for key in CAPTION_KEYS):
            continue  # a picture that could not be captioned
        picture, caption = _value(row, PICTURE_KEYS), _value(row, CAPTION_KEYS)
        if picture is None or caption is None:
            raise DataError(f"{where}: names no picture or no caption; expected {_FORMS}")
        if found.setdefault(str(picture), str(caption)) != str(caption):
            raise DataError(f'{where}: "{picture}" has a caption already; expected one for each picture')
    if not found:
        raise DataError(f"{path}: has no captions; expected {_FORMS}")
    return found


def match_captions(
    captions: Mapping[str, str], names: Iterable[str], numbers: Mapping[str, str] | None = None
) -> dict[str, str]:
    """The captions by the names of a data set's pictures; what concerns other pictures is left out.

    A file may call `images/dog.jpg` by that name, by its end (`dog.jpg`) or its stem (`dog`), by a path that
    is longer (`/data/images/dog.jpg`), or by its number: the one that the data set gives it, else the one
    that its name ends with, as in `COCO_val2014_000000000042.jpg`.

    Args:
        captions: as `read_captions` gives them.
        names: of the pictures.
        numbers: names by number, where the data set numbers its pictures.

    >>> match_captions({"42": "a dog", "/x/b.png": "a cat"}, ["val_00042.jpg", "b.png", "c.png"])
    {'val_00042.jpg': 'a dog', 'b.png': 'a cat'}
    """
    aliases = _aliases(names, numbers or {})
    found: dict[str, str] = {}
    for called, caption in captions.items():
        name = next((aliases[alias] for alias in _spellings(called) if aliases.get(alias)), None)
        if name is not None:
            found[name] = caption
    return found


def write_coco_results(
    path: str | Path, captions: Mapping[str, str], numbers: Mapping[str, str] | None = None
) -> None:
    """Writes captions by name of picture in the form that the COCO server takes.

    Args:
        path: of the file.
        captions: by the names of the data set's pictures.
        numbers: names by number, where the data set numbers its pictures; else `image_id` is the number
            that a name ends with, as in COCO's own, and the name itself where two pictures would share one.
    """
    own = {name: number for number, name in (numbers or {}).items()}
    ends = {name: _number_in(name) for name in captions}
    unique = None not in ends.values() and len(set(ends.values())) == len(ends)
    rows = []
    for name, caption in captions.items():
        number = own.get(name) or (ends[name] if unique and not own else None)
        rows.append({"image_id": int(number) if number and number.isdecimal() else name, "caption": caption})
    atomic_write(path, (json_text(rows) + "\n").encode("utf-8", "backslashreplace"))


def _rows(path: Path, text: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The rows of a file, each with where it stands, for messages."""
    start = text.lstrip()[:1]
    if start == "[":
        rows = _parsed(str(path), text)
        for number, row in enumerate(rows, start=1):
            yield f"{path}, entry {number}", _mapping(f"{path}, entry {number}", row)
    elif start == "{":
        for number, line in enumerate(text.splitlines(), start=1):
            if line.strip():
                where = f"{path}, line {number}"
                yield where, _mapping(where, _parsed(where, line))
    else:
        head = text.split("\n", 1)[0]
        delimiter = max(",;\t", key=head.count)
        table = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
        columns = {column: (column or "").strip().lower() for column in table.fieldnames or ()}
        if not {*columns.values()} & {*PICTURE_KEYS} or not {*columns.values()} & {*CAPTION_KEYS}:
            raise DataError(f"{path}: expected {_FORMS}; it begins {text[:60]!r}")
        for row in table:
            yield f"{path}, line {table.line_num}", {columns[name]: row[name] for name in columns}


def _parsed(where: str, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: not JSON ({error.msg}); expected {_FORMS}") from error


def _mapping(where: str, row: Any) -> Mapping[str, Any]:
    if not isinstance(row, Mapping):
        raise DataError(f"{where}: expected {_FORMS}; found {row!r}")
    return row


def _value(row: Mapping[str, Any], keys: Iterable[str]) -> Any:
    return next((row[key] for key in keys if row.get(key) is not None), None)


def _aliases(names: Iterable[str], numbers: Mapping[str, str]) -> dict[str, str]:
    """All that a picture may be called -> its name; "" where two pictures could be meant."""
    aliases: dict[str, str] = {}
    whole = {unicodedata.normalize("NFC", name): name for name in names}
    for name in whole.values():
        number = None if numbers else _number_in(name)
        for alias in {*_spellings(name), *([number] if number is not None else [])}:
            aliases[alias] = name if alias not in aliases else ""
    aliases |= {str(number): name for number, name in numbers.items() if name in whole.values()}
    return aliases | whole


def _spellings(name: str) -> Iterator[str]:
    """A path, its ends from the longest to the file's name, and that without its suffix.

    >>> list(_spellings("a/b.jpg"))
    ['a/b.jpg', 'b.jpg', 'b']
    """
    parts = unicodedata.normalize("NFC", name).replace("\\", "/").split("/")
    for start in range(len(parts)):
        yield "/".join(parts[start:])
    yield os.path.splitext(parts[-1])[0]
    if name.isdecimal():
        yield str(int(name))


def _number_in(name: str) -> str | None:
    """The number that a picture's name ends with, without leading zeros."""
    found = re.search(r"(\d+)$", os.path.splitext(os.path.basename(name))[0])
    return str(int(found[1])) if found else None
