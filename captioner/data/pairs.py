"""Pictures with a file of their name beside them: `photo.jpg` and `photo.txt`, as taggers leave them.

In: a folder. Out: the captions of its pictures, added to a `Listing`; what has no picture, or cannot be
read, is noted there. A caption may stand in

    photo.txt or photo.jpg.txt     a line a caption
    photo.xmp or photo.jpg.xmp     the description, as photo programs write it
    photo.json or photo.jpg.json   under a key such as "caption"

and `captioner caption --write` writes all of these. Folders within the folder count, too; one that is named
train, dev or test says so of its pictures.
"""

from __future__ import annotations

import json
import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from captioner.data.image_files import is_foreign_folder, is_picture_name
from captioner.data.listings import SPLIT_NAMES, CaptionsFile, Listing, read_text
from captioner.data.xmp import read_xmp
from captioner.errors import DataError, MissingExtra

CAPTION_KEYS = ("caption", "captions", "text", "comment", "sentence", "sentences", "description")


class CaptionFile(NamedTuple):
    """A file beside a picture."""

    picture: str  # its name below the folder, with / between folders
    name: str  # of the file in the picture's folder
    kind: str  # txt, xmp or json


def find_pairs(root: Path) -> list[CaptionsFile]:
    """The folder itself, if it holds a picture with a caption beside it."""
    return [CaptionsFile(root)] if any(True for _ in caption_files(root, Listing([]))) else []


def parse_pairs(listing: Listing, source: CaptionsFile, split: str) -> None:
    """Adds what the files beside the pictures say; `split` is not asked for, the folders are read once."""
    root = source.path if source.path.is_dir() else source.path.parent
    said: dict[str, list[Any]] = {}
    for file in caption_files(root, listing):
        path = root / os.path.dirname(file.picture) / file.name
        captions = said.setdefault(file.picture, [])
        try:
            found = READERS[file.kind](path)
        except MissingExtra as error:
            listing.problems.note(f"descriptions not read: {error}", file.picture)
        except DataError as error:
            listing.problems.note("caption files that cannot be read", _reason(path, root, error))
        else:
            # photo.txt and photo.xmp may say the same.
            captions += [caption for caption in found if caption not in captions]
    for picture, captions in said.items():
        listing.add(picture, captions, SPLIT_NAMES.get(picture.partition("/")[0].lower()))


def caption_files(root: Path, listing: Listing) -> Iterator[CaptionFile]:
    """The files beside pictures, in order of their names; those without a picture are noted."""

    def note(error: OSError) -> None:
        listing.problems.note("folders that cannot be listed", f"{error.filename}: {error.strerror}")

    for parent, folders, names in os.walk(root, onerror=note):
        folders[:] = sorted(name for name in folders if not is_foreign_folder(parent, name))
        inner = Path(parent).relative_to(root).as_posix()
        prefix = "" if inner == "." else inner + "/"
        pictures = sorted(name for name in names if is_picture_name(name))
        stems = Counter(os.path.splitext(name)[0] for name in pictures)
        by_name = {name: name for name in pictures}
        by_name |= {os.path.splitext(name)[0]: name for name in reversed(pictures)}
        folded: dict[str, list[str]] = {}  # in another case or Unicode form
        for known in by_name:
            folded.setdefault(_folded(known), []).append(known)
        for name in sorted(names):
            stem, suffix = os.path.splitext(name)
            kind = suffix[1:].lower()
            if name.startswith(".") or kind not in READERS:
                continue
            near = folded.get(_folded(stem), [])
            if stem not in by_name and len(near) == 1:
                stem = near[0]
            if stem in by_name and (stems[stem] < 2 or stem in pictures):
                yield CaptionFile(prefix + by_name[stem], name, kind)
            elif stem in by_name:
                listing.problems.note("captions of several pictures of one name", prefix + name)
            elif kind != "json" and pictures:
                listing.problems.note("captions whose picture is gone", prefix + name)


def _lines(path: Path) -> list[str]:
    return [line.strip() for line in read_text(path).splitlines() if line.strip()]


def _description(path: Path) -> list[str]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot read it ({error.strerror})") from error
    return [line.strip() for line in (read_xmp(content) or "").splitlines() if line.strip()]


def _object(path: Path) -> list[Any]:
    try:
        known = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {error.lineno}: not JSON ({error.msg})") from error
    found: Any = None
    if isinstance(known, dict):
        found = next((known[key] for key in CAPTION_KEYS if known.get(key)), None)
    texts = found if isinstance(found, list) else [] if found is None else [found]
    # What is no text is left to the listing, which notes it.
    lines = [text.splitlines() if isinstance(text, str) else [text] for text in texts]
    return [line.strip() if isinstance(line, str) else line for each in lines for line in each if line]


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _reason(path: Path, root: Path, error: DataError) -> str:
    name = path.relative_to(root).as_posix()
    return f"{name}: {str(error).removeprefix(str(path)).lstrip(':, ')}"


READERS: dict[str, Callable[[Path], list[Any]]] = {"txt": _lines, "xmp": _description, "json": _object}
