"""The file that a picture's caption is written to: its name, its content so far, the write itself.

In: a picture's name, a caption. Out: the sidecar file, or the row of the sheet; whole or not at all. Never
writes to a picture.
"""

from __future__ import annotations

import errno
import os
import threading
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple, Protocol

from captioner.apps.sidecars.csv_table import Table
from captioner.apps.sidecars.file_kinds import CaptionRecord, Sidecar, casefold_name, names_needing_suffix
from captioner.data.image_files import is_picture_name
from captioner.errors import CaptionerError, DataError
from captioner.system.files import atomic_write, flush_folder, storing


class ExistingCaption(NamedTuple):
    """The caption file, if any, that already exists for a picture."""

    name: str  # of the sidecar, or of the picture in the sheet
    content: bytes  # what the new content will be made from
    text: str | None  # the caption that is known there, by whomever
    there: bool  # the caption stands in this sidecar, not in another file or in the picture
    moves_from: str | None = None  # the sidecar's name until now, which another picture lays claim to, too


class Target(Protocol):
    """The files of one kind for the pictures of one folder."""

    def existing(self, picture: str, known_as: str | None) -> ExistingCaption:
        """Finds the existing caption of a picture; `known_as` is the file name in the journal, if any.

        Raises:
            DataError: the file there must not be touched, or its name would be too long.
        """

    def compose(self, existing: ExistingCaption, text: str, found: CaptionRecord) -> tuple[bytes, str]:
        """The new content of the file, and the caption as it is read back from that."""

    def move(self, existing: ExistingCaption) -> None:
        """Renames the sidecar if it has to give way to another picture's."""

    def store(self, existing: ExistingCaption, content: bytes, found: CaptionRecord) -> None:
        """Writes the content; may be called from several threads."""


class Neighbours:
    """The names of the pictures in a folder, which decide how sidecars may be named.

    Args:
        names: of all pictures in it.
    """

    def __init__(self, names: Collection[str]) -> None:
        self.crowded = names_needing_suffix(names)  # need full names
        self.taken = {casefold_name(name) for name in names}
        self._names = set(names)
        self._stems = Counter(os.path.splitext(name)[0] for name in names)

    def owns(self, picture: str, sidecar: str) -> bool:
        """Whether a file named like a sidecar of `picture`, but for case, belongs to no other picture.

        >>> pictures = Neighbours(["a.jpg", "A.jpg", "b.jpg"])
        >>> pictures.owns("a.jpg", "A.jpg.txt"), pictures.owns("b.jpg", "B.TXT")
        (False, True)
        """
        stem = os.path.splitext(sidecar)[0]
        mine = (picture, os.path.splitext(picture)[0])
        return stem in mine or not (stem in self._names or self._stems[stem])


class SidecarTarget:
    """Sidecars of one kind.

    Args:
        kind: row of `WRITERS`.
        pictures: their folder.
        neighbours: the pictures in it.
        sidecar_folder: where the sidecars go.
        naming: one of `NAMES`.
        for_reading: nothing will be written: names that no file can have are no problem.
    """

    def __init__(
        self,
        kind: Sidecar,
        pictures: Path,
        neighbours: Neighbours,
        *,
        sidecar_folder: Path,
        naming: str,
        for_reading: bool = False,
    ) -> None:
        self._kind, self._neighbours = kind, neighbours
        self._pictures, self._sidecar_folder = pictures, sidecar_folder
        self._longest_name = 0  # asked for once
        self._full, self._for_reading = naming == "full", for_reading
        self._beside = os.path.abspath(sidecar_folder) == os.path.abspath(pictures)
        self._listings: dict[str, dict[str, list[str]]] = {}

    def existing(self, picture: str, known_as: str | None) -> ExistingCaption:
        """See `Target`."""
        full, short = self._names(picture)
        folder = os.fspath(self._sidecar_folder)
        at_full, at_short = self._find(folder, full, picture), self._find(folder, short, picture)
        crowded = picture in self._neighbours.crowded
        moves_from = None
        if self._full or crowded:
            name = at_full or full
            if known_as and known_as == at_short and not self._full and not at_full:
                moves_from = at_short
        else:
            name = at_short or at_full or short
        if not self._for_reading:
            self._check_name(name, there=name in (at_full, at_short))
        others = [other for other in (at_full, None if crowded else at_short) if other and other != name]
        content = self._content(folder, moves_from or name)
        text = self._read(name, content)
        there = text is not None
        if text is None and others and not self._full and not crowded:
            # The one of the two names that has a caption is the one that counts.
            other = self._content(folder, others[0])
            if self._read(others[0], other) is not None:
                name, others = others[0], [name]
                content, text, there = other, self._read(name, other), True
        if text is None:
            content, text = self._beginning(picture, content, others, [full] if crowded else [full, short])
        return ExistingCaption(name, content, text, there, moves_from)

    def compose(self, existing: ExistingCaption, text: str, found: CaptionRecord) -> tuple[bytes, str]:
        """See `Target`."""
        content = self._kind.write(existing.content, text, found)
        return content, self._read(existing.name, content) or ""

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

    def _find(self, folder: str, name: str, picture: str) -> str | None:
        """The name of the existing file that matches in any case and Unicode form; None if there is none."""
        if os.path.lexists(os.path.join(folder, name)):
            return name
        if folder not in self._listings:
            self._listings[folder] = names_by_fold(folder)
        known = self._listings[folder].get(casefold_name(name), ())
        mine = (other for other in known if self._neighbours.owns(picture, other))
        return next((other for other in mine if os.path.lexists(os.path.join(folder, other))), None)

    def _content(self, folder: str, name: str) -> bytes:
        try:
            with open(os.path.join(folder, name), "rb") as file:
                return file.read()
        except (FileNotFoundError, NotADirectoryError):
            return b""
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                return b""
            raise CaptionerError(f"{name} cannot be read ({error.strerror})") from error

    def _read(self, name: str, content: bytes) -> str | None:
        try:
            return self._kind.read(content)
        except DataError as error:
            raise DataError(f"{name} {error}") from error

    def _beginning(
        self, picture: str, content: bytes, others: list[str], names: list[str]
    ) -> tuple[bytes, str | None]:
        """The content a new sidecar starts from, and the caption found elsewhere.

        Elsewhere is: the sidecar of the other habit, one beside the picture where sidecars go to another
        folder, the notes inside the picture. A damaged one is not passed over: it may hold what matters.
        """
        places = [(os.fspath(self._sidecar_folder), other) for other in others]
        if self._kind.begin is not None and not self._beside:
            pictures = os.fspath(self._pictures)
            beside = (self._find(pictures, name, picture) for name in names)
            places += [(pictures, name) for name in beside if name]
        text = None
        for folder, name in places:
            there = self._content(folder, name)
            text = text or self._read(name, there)
            content = content or there
        if self._kind.begin is not None and text is None:
            inside = self._kind.begin(self._pictures / picture)
            text = self._read(picture, inside) if inside else None
            content = content or inside
        return content, text

    def _check_name(self, name: str, *, there: bool) -> None:
        """Raises DataError if the name is too long, is a picture's, or is a link to a picture."""
        self._longest_name = self._longest_name or _longest_name(self._sidecar_folder)
        size, most = len(os.fsencode(name)), self._longest_name
        if size > most:
            raise DataError(
                f"the name of its sidecar would be too long ({size} bytes, {most} are possible here): "
                "shorten the picture's name, or write captions into a sheet: --write csv"
            )
        path = os.path.join(self._sidecar_folder, name)
        linked = there and os.path.islink(path) and is_picture_name(os.path.basename(os.path.realpath(path)))
        if linked or (self._beside and casefold_name(name) in self._neighbours.taken):
            raise DataError(f"{name} is itself a picture; use --names full, or another folder: --out")


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
    """Whether files can be created in a folder, which need not exist yet."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)


def names_by_fold(folder: str | Path) -> dict[str, list[str]]:
    """The names in a folder by `casefold_name`; empty if the folder cannot be listed."""
    found: dict[str, list[str]] = {}
    try:
        for name in sorted(os.listdir(folder)):
            found.setdefault(casefold_name(name), []).append(name)
    except OSError:
        pass
    return found


def _longest_name(folder: Path) -> int:
    """The longest file name in bytes that a folder allows; the folder need not exist yet."""
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    try:
        return os.pathconf(folder, "PC_NAME_MAX")
    except (OSError, ValueError, AttributeError):  # not told here
        return 255
