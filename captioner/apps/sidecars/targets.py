"""Where the caption of a picture goes: which file, what is in it already, how it gets there.

In: a picture's name, a caption. Out: the sidecar file, or the row of the sheet; whole or not at all. Never
writes to a picture.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple, Protocol

from captioner.apps.sidecars.csv_table import Table
from captioner.apps.sidecars.formats import CaptionRecord, Sidecar, casefold_name, names_needing_suffix
from captioner.data.image_files import is_picture_name
from captioner.errors import CaptionerError, DataError
from captioner.system.files import atomic_write, flush_folder, storing


class ExistingCaption(NamedTuple):
    """What is found where a caption is to go."""

    name: str  # of the sidecar, or of the picture in the sheet
    content: bytes  # what the new content will be made from
    text: str | None  # the caption in that content
    there: bool  # the caption stands in the sidecar, not only in what a new one would begin with
    moves_from: str | None = None  # the sidecar's name until now, which another picture lays claim to, too


class Target(Protocol):
    """A kind of file for the pictures of one folder."""

    def existing(self, picture: str, known_as: str | None) -> ExistingCaption:
        """What is there for a picture, under whatever name; `known_as`: the name that we gave it.

        Raises:
            DataError: something is there that must not be touched.
        """

    def compose(self, existing: ExistingCaption, text: str, found: CaptionRecord) -> tuple[bytes, str]:
        """The new content, and the caption as it will be read from it."""

    def move(self, existing: ExistingCaption) -> None:
        """Gives the sidecar its new name."""

    def store(self, existing: ExistingCaption, content: bytes, found: CaptionRecord) -> None:
        """Puts the content in its place; may be called from several threads."""


class Neighbours:
    """The pictures of a folder, as far as they matter to the names of sidecars.

    Args:
        names: of all pictures in it.
    """

    def __init__(self, names: Collection[str]) -> None:
        self.crowded = names_needing_suffix(names)  # need full names
        self.taken = {casefold_name(name) for name in names}


class SidecarTarget:
    """Sidecars of one kind.

    Args:
        kind: row of `WRITERS`.
        pictures: their folder.
        neighbours: the pictures in it.
        sidecar_folder: where the sidecars go.
        naming: one of `NAMES`.
    """

    def __init__(
        self, kind: Sidecar, pictures: Path, neighbours: Neighbours, *, sidecar_folder: Path, naming: str
    ) -> None:
        self._kind, self._pictures, self._neighbours, self._sidecar_folder = (
            kind,
            pictures,
            neighbours,
            sidecar_folder,
        )
        self._full = naming == "full"
        self._beside = os.path.abspath(sidecar_folder) == os.path.abspath(pictures)

    def existing(self, picture: str, known_as: str | None) -> ExistingCaption:
        """See `Target`."""
        full, short = self._names(picture)
        crowded = picture in self._neighbours.crowded
        name, moves_from = short, None
        if self._full or crowded:
            name = full
            if known_as == short and not self._full and self._is(short) and not self._is(full):
                moves_from = short
        elif self._is(full) and not self._is(short):
            name = full
        path = self._sidecar_folder / name
        self._spare_pictures(path)
        content = _content(self._sidecar_folder / (moves_from or name))
        there = bool(content)
        if not content and self._kind.begin:
            others = [short] if name == full and not crowded else []
            content = self._beginning(picture, others, full, [] if crowded else [short])
        text = self._read(path, content)
        return ExistingCaption(name, content, text, there and text is not None, moves_from)

    def compose(self, existing: ExistingCaption, text: str, found: CaptionRecord) -> tuple[bytes, str]:
        """See `Target`."""
        content = self._kind.write(existing.content, text, found)
        return content, self._read(self._sidecar_folder / existing.name, content) or ""

    def move(self, existing: ExistingCaption) -> None:
        """See `Target`."""
        if existing.moves_from:
            with storing(self._sidecar_folder / existing.name):
                os.rename(self._sidecar_folder / existing.moves_from, self._sidecar_folder / existing.name)
            flush_folder(self._sidecar_folder)

    def store(self, existing: ExistingCaption, content: bytes, found: CaptionRecord) -> None:
        """See `Target`."""
        atomic_write(self._sidecar_folder / existing.name, content)

    def _names(self, picture: str) -> tuple[str, str]:
        return picture + self._kind.suffix, os.path.splitext(picture)[0] + self._kind.suffix

    def _is(self, name: str) -> bool:
        return (self._sidecar_folder / name).exists()

    def _read(self, path: Path, content: bytes) -> str | None:
        try:
            return self._kind.read(content)
        except DataError as error:
            raise DataError(f"{path.name} {error}") from error

    def _beginning(self, picture: str, others: list[str], full: str, short: list[str]) -> bytes:
        """What a new sidecar begins with: one of the other habit, one beside the picture, the picture's."""
        candidates = [self._sidecar_folder / name for name in others]
        if not self._beside:
            candidates += [self._pictures / name for name in (full, *short)]
        for path in candidates:
            content = _content(path)
            if content:
                self._read(path, content)  # a damaged one is not passed over: it may hold what matters
                return content
        return self._kind.begin(self._pictures / picture) if self._kind.begin else b""

    def _spare_pictures(self, path: Path) -> None:
        """Refuses to write over a picture, be it called like a sidecar or be the sidecar a link to it."""
        linked = path.is_symlink() and is_picture_name(os.path.basename(os.path.realpath(path)))
        if linked or (self._beside and casefold_name(path.name) in self._neighbours.taken):
            raise DataError(f"{path.name} is itself a picture; use --names full, or another folder: --out")


class CsvRowTarget:
    """Rows of the sheet.

    Args:
        table: the sheet.
        prefix: path of the pictures' folder, from that of the sheet.
    """

    _lock = threading.Lock()

    def __init__(self, table: Table, prefix: Path) -> None:
        self._table, self._prefix = table, prefix

    def existing(self, picture: str, known_as: str | None) -> ExistingCaption:
        """See `Target`."""
        name = (self._prefix / picture).as_posix()
        text = self._table.text(name)
        return ExistingCaption(name, b"", text, text is not None)

    def compose(self, existing: ExistingCaption, text: str, found: CaptionRecord) -> tuple[bytes, str]:
        """See `Target`."""
        return text.encode("utf-8", "surrogateescape"), text

    def move(self, existing: ExistingCaption) -> None:
        """See `Target`."""

    def store(self, existing: ExistingCaption, content: bytes, found: CaptionRecord) -> None:
        """See `Target`."""
        with self._lock:
            self._table.put(existing.name, content.decode("utf-8", "surrogateescape"), found)


def writable(folder: Path) -> bool:
    """Whether files can be made in a folder, which itself need not be there yet."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return b""
    except OSError as error:
        raise CaptionerError(f"{path.name} cannot be read ({error.strerror})") from error
