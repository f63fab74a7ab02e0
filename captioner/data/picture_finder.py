"""Where the pictures of a data set are, by the names that its captions file has for them.

In: folders, names. Out: paths. Lists folders, a listing each; opens no picture.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from captioner.data.image_files import existing_form, is_foreign_folder, is_picture_name

LONGEST_LINK = 1024  # bytes of a file that stands for a folder
_PICTURE_FOLDERS = frozenset(
    ("images", "image", "img", "pictures", "photos")
    + ("flicker8k_dataset", "flickr8k_dataset", "flickr8k")
    + ("flickr30k_images", "flickr30k-images", "flickr30k")
    + ("train2014", "val2014", "test2014", "train2017", "val2017", "test2017")
)


class PictureFinder:
    """Where a data set's pictures are: one listing a folder, not one question a picture.

    Looks in `folders`, then in their sub-folders with a customary name (and in those of these). If a set has
    no picture there at all, every sub-folder counts, but for those of other programs. Names are found in any
    Unicode form, and in another case where that leads to one file only.
    """

    def __init__(self, folders: Sequence[Path], names: Iterable[str]) -> None:
        self._listings: dict[str, _Names] = {}
        self._found: dict[str, Path | None] = {}
        self.unlisted: dict[str, str] = {}  # folders that are there and cannot be listed, and why
        self.folders = [os.fspath(folder) for folder in folders]
        near = [inner for folder in self.folders for inner in self._customary(folder)]
        self.folders += [*near, *(inner for folder in near for inner in self._customary(folder))]
        if not any(map(self._find, islice(names, 1000))):
            self.folders += [inner for folder in self.folders for inner in self._below(folder)]

    def find(self, name: str) -> Path | None:
        """The path of the picture with this name in the data set."""
        if name not in self._found:
            self._found[name] = self._find(name)
        return self._found[name]

    def uncaptioned(self, captioned: Iterable[str]) -> list[str]:
        """Pictures in the folders in use that no caption names, in order of name."""
        known = {composed(os.path.basename(self.find(name) or name)) for name in captioned}
        in_use = {
            name for folder in self.folders for name in self._listing(folder).exact if is_picture_name(name)
        }
        return sorted(in_use - known)

    def _find(self, name: str) -> Path | None:
        inner, base = os.path.split(name)
        base = composed(base)
        near = [self._listing(os.path.join(folder, inner) if inner else folder) for folder in self.folders]
        for listing in near:
            if base in listing.exact:
                return Path(listing.folder, listing.exact[base])
        folded = base.casefold()
        for listing in near:
            if len(listing.folded.get(folded, ())) == 1:
                return Path(listing.folder, listing.folded[folded][0])
        return None

    def _listing(self, folder: str) -> _Names:
        if folder not in self._listings:
            there = os.fspath(existing_form(Path(_linked(folder))))
            exact: dict[str, str] = {}
            folded: dict[str, list[str]] = {}
            for name in self._names(there):
                # Composed: macOS stores names like "사진.jpg" decomposed.
                exact[composed(name)] = name
                folded.setdefault(composed(name).casefold(), []).append(name)
            self._listings[folder] = _Names(there, exact, folded)
        return self._listings[folder]

    def _names(self, folder: str) -> list[str]:
        try:
            return os.listdir(folder)
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return []
        except OSError as error:
            if os.path.dirname(folder) not in self.unlisted:
                self.unlisted[folder] = error.strerror or str(error)
            return []

    def _below(self, folder: str) -> list[str]:
        names = (name for name in sorted(self._listing(folder).exact.values()) if "." not in name)
        inner = (os.path.join(folder, name) for name in names if not is_foreign_folder(folder, name))
        return [path for path in inner if os.path.isdir(path) and path not in self.folders]

    def _customary(self, folder: str) -> list[str]:
        return [path for path in self._below(folder) if os.path.basename(path).lower() in _PICTURE_FOLDERS]


class _Names(NamedTuple):
    """What is in a folder: names by their composed form, and by that in lower case."""

    folder: str  # as it is on the disk
    exact: dict[str, str]
    folded: dict[str, list[str]]


def composed(name: str) -> str:
    """A name with its letters and accents composed (Unicode NFC): macOS stores them decomposed."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def _linked(folder: str) -> str:
    """The folder; or the one that a file in its place names, as git leaves a link where there are none."""
    if os.path.isdir(folder) or not os.path.isfile(folder) or os.path.getsize(folder) > LONGEST_LINK:
        return folder
    try:
        text = Path(folder).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return folder
    target = os.path.join(os.path.dirname(folder), text.strip())
    return os.path.normpath(target) if os.path.isdir(target) else folder
