"""Which pictures are meant: paths, folders, lists of paths, standard input.

In: what was typed, and list files. Out: paths, or the pictures folder by folder as names, so that a million
of them take little memory. Opens no picture.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from captioner.data.images import IMAGE_SUFFIXES
from captioner.errors import CaptionerError, DataError
from captioner.system.shard_spec import ShardSpec

STANDARD_INPUT = "-"


@dataclass
class Pictures:
    """Pictures by folder, each once."""

    base: Path  # absolute: the folder that holds them all
    folders: dict[Path, list[str]] = field(default_factory=dict)  # as named → names of pictures, sorted
    problems: list[tuple[str, str]] = field(default_factory=list)  # folders that cannot be listed, and why

    def __len__(self) -> int:
        return sum(map(len, self.folders.values()))

    def part(self, part: ShardSpec) -> Pictures:
        """One worker's share of the pictures; the first tells of the problems."""
        folders, before = {}, 0
        mine = part.of(range(len(self)))
        for folder, names in self.folders.items():
            names_mine = [name for at, name in enumerate(names, start=before) if at in mine]
            before += len(names)
            if names_mine:
                folders[folder] = names_mine
        return Pictures(self.base, folders, self.problems if part.number == 1 else [])


def named_paths(paths: Sequence[str], listing: str | None = None) -> Iterator[str]:
    """The paths typed, with `-` replaced by those on standard input, then those in the file `listing`.

    One a line, or ended by NUL as `find -print0` does; relative ones count from the current folder.

    Raises:
        DataError: the list cannot be read.
    """
    for path in (*paths, *([] if listing is None else [listing])):
        if path == STANDARD_INPUT:
            yield from _listed(sys.stdin.buffer.read())
        elif path is listing:
            try:
                yield from _listed(Path(path).read_bytes())
            except OSError as error:
                raise DataError(f"{path}: the list cannot be read ({error.strerror})") from error
        else:
            yield path


def gather(paths: Iterable[str], *, recursive: bool = False) -> Pictures:
    """The pictures that paths stand for: files as named, even if they are not there, and what folders hold.

    Hidden files and folders are left out, and symbolic links to folders.

    Raises:
        CaptionerError: nothing was named, or a folder holds no picture.
    """
    found = Pictures(Path())
    keys: dict[str, tuple[Path, dict[str, None]]] = {}  # absolute path → folder as named, its pictures

    def add(folder: Path, names: Iterable[str]) -> None:
        keys.setdefault(os.path.abspath(folder), (folder, {}))[1].update(dict.fromkeys(names))

    roots: set[str] = set()
    for path in map(Path, paths):
        if not os.path.isdir(path):
            roots.add(os.path.abspath(path.parent))
            add(path.parent, [path.name])
            continue
        roots.add(os.path.abspath(path))
        inside = list(_walk(path, recursive, found.problems))
        if not inside and not found.problems:
            raise CaptionerError(no_picture_in(path, recursive))
        for folder, names in inside:
            add(folder, names)
    if not roots:
        raise CaptionerError("no picture was named: the list is empty")
    found.base = _common(roots)
    found.folders = {folder: sorted(names) for folder, names in keys.values()}
    return found


def no_picture_in(folder: Path, recursive: bool) -> str:
    """What to say of a folder without pictures."""
    deeper = "" if recursive else "; --recursive looks into folders within it, too"
    return f"{folder}: no picture in this folder ({', '.join(sorted(IMAGE_SUFFIXES))}){deeper}"


def is_picture_name(name: str) -> bool:
    """Whether a file of this name is taken for a picture when a folder is looked through.

    >>> is_picture_name("IMG_1.JPG"), is_picture_name(".hidden.jpg"), is_picture_name("notes.txt")
    (True, False, False)
    """
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def _walk(root: Path, recursive: bool, problems: list[tuple[str, str]]) -> Iterator[tuple[Path, list[str]]]:
    def note(error: OSError) -> None:
        problems.append((str(error.filename), f"cannot be listed ({error.strerror})"))

    for parent, folders, files in os.walk(root, onerror=note):
        folders[:] = sorted(name for name in folders if recursive and not name.startswith("."))
        # A dangling link or a pipe named like a picture counts, too: better reported than left out.
        names = [name for name in files if is_picture_name(name)]
        if names:
            yield Path(parent), names


def _listed(content: bytes) -> Iterator[str]:
    content = content.removeprefix(b"\xef\xbb\xbf")
    lines = content.split(b"\0") if b"\0" in content else content.splitlines()
    yield from (os.fsdecode(line) for line in lines if line.strip())


def _common(roots: set[str]) -> Path:
    try:
        return Path(os.path.commonpath(roots))
    except ValueError as error:  # on several drives
        raise CaptionerError("these pictures are on several drives: caption each drive by itself") from error
