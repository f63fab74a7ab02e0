"""Which pictures are meant: paths, folders, lists of paths, standard input. The one lister of pictures.

In: what was typed, and list files. Out: the pictures folder by folder as names, so that a million of them
take little memory. Opens no picture.
"""

from __future__ import annotations

import fnmatch
import os
import re
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cached_property
from itertools import chain
from pathlib import Path

from captioner.errors import CaptionerError, DataError
from captioner.system.shard_spec import ShardSpec

FORMATS = {  # all that is decoded, each with the suffixes by which it is found in folders
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "AVIF": (".avif",),
    "GIF": (".gif",),
    "BMP": (".bmp", ".dib"),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
}
# HEIC is among them: better reported than silently left out.
IMAGE_SUFFIXES = frozenset(chain([".heic", ".heif"], *FORMATS.values()))
# Folders that other programs keep beside people's pictures: thumbnails, recycle bins, snapshots, previews,
# packages of photo libraries. In any case; hidden folders and those with a CACHEDIR.TAG
# (https://bford.info/cachedir/) too.
FOREIGN_FOLDERS = (
    *("@eaDir", "#recycle", "#snapshot", "@Recycle", "@Recently-Snapshot", "@tmp", "@__thumb"),
    *("$RECYCLE.BIN", "RECYCLER", "System Volume Information", "lost+found", "__MACOSX", "__pycache__"),
    *("*.photoslibrary", "*.photolibrary", "*.migratedphotolibrary", "*.aplibrary", "*.theater"),
    *("*.lrdata", "*.lrlibrary", "*.lrcat-data", "*.cocatalog", "CaptureOne", "cache", "caches", "appdata_*"),
)
STANDARD_INPUT = "-"


@dataclass
class Pictures:
    """The pictures that were named, each once, by folder."""

    base: Path  # absolute: the folder that holds them all
    runs: list[tuple[Path, list[str]]] = field(
        default_factory=list
    )  # folder, its pictures: in the order named
    problems: list[tuple[str, str]] = field(default_factory=list)  # folders that cannot be listed, and why
    left_out: list[str] = field(default_factory=list)  # folders of other programs, and what --exclude names

    def __len__(self) -> int:
        return sum(len(names) for _, names in self.runs)

    def paths(self) -> Iterator[Path]:
        """The pictures in the order in which they were named, those of a folder in order of name."""
        return (folder / name for folder, names in self.runs for name in names)

    @cached_property
    def folders(self) -> dict[Path, list[str]]:
        """Folder as first named → names of its pictures, sorted."""
        named: dict[str, Path] = {}
        found: dict[Path, list[str]] = {}
        for folder, names in self.runs:
            first = named.setdefault(os.path.abspath(folder), folder)
            found.setdefault(first, []).extend(names)
        return {folder: sorted(names) for folder, names in found.items()}

    def part(self, part: ShardSpec) -> Pictures:
        """One worker's share of the pictures; the first tells of the problems."""
        if part.whole:
            return self
        runs, before = [], 0
        mine = part.of(range(len(self)))
        for folder, names in self.folders.items():
            names_mine = [name for at, name in enumerate(names, start=before) if at in mine]
            before += len(names)
            if names_mine:
                runs.append((folder, names_mine))
        first = part.number == 1
        return Pictures(self.base, runs, self.problems if first else [], self.left_out if first else [])


def named_paths(paths: Sequence[str], listing: str | None = None) -> Iterator[str]:
    """The paths typed, with `-` replaced by those on standard input, then those in the file `listing`.

    One a line, or ended by NUL as `find -print0` does; relative ones count from the current folder. UTF-8,
    UTF-16 (as PowerShell writes it) or the bytes of the file system, with a byte-order mark or without.

    Raises:
        DataError: a list cannot be read, is no list of paths, or names nothing that is there.
    """
    for path in (*paths, *([] if listing is None else [listing])):
        if path == STANDARD_INPUT:
            yield from _listed(sys.stdin.buffer.read(), "standard input")
        elif path is listing:
            try:
                content = Path(path).read_bytes()
            except (OSError, ValueError) as error:
                reason = getattr(error, "strerror", None) or error
                raise DataError(f"{path}: the list cannot be read ({reason}){missing_hint(path)}") from error
            yield from _listed(content, path)
        else:
            yield path


def gather(paths: Iterable[str | Path], *, recursive: bool = False, exclude: Sequence[str] = ()) -> Pictures:
    """The pictures that paths stand for: files as named, even if they are not there, and what folders hold.

    Hidden files and folders are left out, folders of other programs (`FOREIGN_FOLDERS`), and symbolic links
    to folders; one that is named itself is looked through.

    Args:
        paths: pictures and folders of pictures; a file counts whatever its suffix.
        recursive: folders within folders too.
        exclude: patterns (`*`, `?`, `[…]`) of names, or of paths below a folder, that are left out.

    Raises:
        CaptionerError: nothing was named, or a folder holds no picture.
    """
    found = Pictures(Path())
    seen: dict[str, set[str]] = {}  # absolute folder → names that are in already
    roots: set[str] = set()
    for path in map(Path, paths):
        path = existing_form(path)
        if not os.path.isdir(path):
            if exclude and _excluded(path, path.parent, exclude):
                found.left_out.append(str(path))
                continue
            roots.add(os.path.abspath(path.parent))
            inside = [(path.parent, [path.name])]
        else:
            roots.add(os.path.abspath(path))
            before = len(found.left_out)
            inside = list(_walk(path, recursive, exclude, found))
            if not inside and not found.problems:
                raise CaptionerError(no_picture_in(path, recursive, found.left_out[before:]))
        for folder, names in inside:
            known = seen.setdefault(os.path.abspath(folder), set())
            new = [name for name in names if name not in known]
            known.update(new)
            if new:
                found.runs.append((folder, new))
    if not roots:
        why = "--exclude leaves all of them out" if found.left_out else "the list is empty"
        raise CaptionerError(f"no picture was named: {why}")
    found.base = _common(roots)
    return found


def no_picture_in(folder: Path, recursive: bool, left_out: Sequence[str] = ()) -> str:
    """What to say of a folder without pictures."""
    deeper = "" if recursive else "; --recursive looks into folders within it, too"
    if left_out:
        deeper += f"; left out: {', '.join(left_out[:3])}{', …' if len(left_out) > 3 else ''}"
    return f"{folder}: no picture in this folder ({', '.join(sorted(IMAGE_SUFFIXES))}){deeper}"


def is_picture_name(name: str) -> bool:
    """Whether a file of this name is taken for a picture when a folder is looked through.

    >>> is_picture_name("IMG_1.JPG"), is_picture_name(".hidden.jpg"), is_picture_name("notes.txt")
    (True, False, False)
    """
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def is_foreign_folder(parent: str, name: str) -> bool:
    """Whether a folder is hidden, or another program's: not a place where people keep pictures.

    >>> is_foreign_folder("photos", "@eaDir"), is_foreign_folder("photos", "2024")
    (True, False)
    """
    if name.startswith(".") or _FOREIGN.match(name.lower()):
        return True
    try:
        with open(os.path.join(parent, name, "CACHEDIR.TAG"), "rb") as file:
            return file.read(len(_CACHE_TAG)) == _CACHE_TAG
    except OSError:
        return False


def existing_form(path: Path) -> Path:
    """The path as it is on the disk, where a part of it differs in its Unicode form only; else as given.

    macOS stores names decomposed, what is typed and written in lists is composed.
    """
    if str(path).isascii() or os.path.lexists(path):
        return path
    found = Path(path.anchor)
    for part in path.parts[len(found.parts) :]:
        if not os.path.lexists(found / part):
            composed = unicodedata.normalize("NFC", part)
            same = (name for name in _names_in(found) if unicodedata.normalize("NFC", name) == composed)
            part = next(same, "")
            if not part:
                return path
        found /= part
    return found


def missing_hint(path: str | Path) -> str:
    """What to add where a path is not there: the nearest that is; empty where none is near.

    >>> missing_hint("/no/such/folder/at/all.jpg")
    ''
    """
    text = str(path)
    if re.match(r"[A-Za-z]:[\\/]", text) and os.sep == "/":
        inside = f"/mnt/{text[0].lower()}/" + text[3:].replace("\\", "/")
        if os.path.lexists(inside):
            return f'; did you mean "{inside}"?'
        return "; this is a path of Windows, here paths are written with / and have no drive"
    if "\\" in text and os.path.lexists(text.replace("\\", "/")):
        return f'; did you mean "{text.replace(chr(92), "/")}"?'
    found = Path(Path(text).anchor)
    parts = Path(text).parts[len(found.parts) :]
    for number, part in enumerate(parts):
        if os.path.lexists(found / part):
            found /= part
            continue
        names = sorted(_names_in(found))
        folded = {_folded(name): name for name in names}
        near = [folded[key] for key in get_close_matches(_folded(part), folded, n=1, cutoff=0.8)]
        if not near:
            return ""
        whole = Path(found, near[0], *parts[number + 1 :])
        return f'; did you mean "{whole if os.path.lexists(whole) else found / near[0]}"?'
    return ""


_FOREIGN = re.compile("|".join(fnmatch.translate(pattern.lower()) for pattern in FOREIGN_FOLDERS))
_CACHE_TAG = b"Signature: 8a477f597d28d172789f06886806bc55"
# How files begin that may be given for a list by mistake.
_NO_LISTS = (
    b"\xff\xd8\xff",
    b"\x89PNG",
    b"GIF8",
    b"RIFF",
    b"II*\0",
    b"MM\0*",
    b"PK\x03\x04",
    b"%PDF",
    b"\x1f\x8b",
)


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _names_in(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _walk(
    root: Path, recursive: bool, exclude: Sequence[str], found: Pictures
) -> Iterator[tuple[Path, list[str]]]:
    """Folders and the names of their pictures; what is left out, or cannot be listed, is added to `found`."""

    def note(error: OSError) -> None:
        found.problems.append((str(error.filename), f"cannot be listed ({error.strerror})"))

    for parent, folders, files in os.walk(root, onerror=note):
        kept = []
        for name in sorted(folders) if recursive else []:
            if _excluded(Path(parent, name), root, exclude) or is_foreign_folder(parent, name):
                if not name.startswith("."):
                    found.left_out.append(os.path.join(parent, name))
            else:
                kept.append(name)
        folders[:] = kept
        # A dangling link or a pipe named like a picture counts, too: better reported than left out.
        names = sorted(filter(is_picture_name, files))
        if exclude:
            names = [name for name in names if not _excluded(Path(parent, name), root, exclude)]
        if names:
            yield Path(parent), names


def _excluded(path: Path, root: Path, patterns: Sequence[str]) -> bool:
    """Whether a pattern names a file or folder: by name, by path below `root`, or by path as named."""
    known = (path.name, os.path.relpath(path, root), str(path))
    return any(fnmatch.fnmatchcase(name, each.rstrip("/")) for each in patterns for name in known)


def _listed(content: bytes, source: str) -> Iterator[str]:
    """The paths in the content of a list."""
    paths = _split_list(content, source)
    if paths and not any(os.path.lexists(existing_form(Path(path))) for path in paths):
        raise DataError(
            f"{source}: none of its {len(paths):,} paths is there, the first is {paths[0][:200]!r}"
            f"{missing_hint(paths[0])}; relative paths count from {os.path.abspath('.')}"
        )
    yield from paths


def _split_list(content: bytes, source: str) -> list[str]:
    if content.startswith(_NO_LISTS):
        raise DataError(f"{source}: not a list of paths: it begins {content[:8]!r}; expected one path a line")
    coding = _utf16(content)
    if coding:
        try:
            text = content.decode(coding).removeprefix("\ufeff")
        except UnicodeDecodeError as error:
            raise DataError(f"{source}: not a list of paths: damaged UTF-16 text ({error.reason})") from error
        return [line for line in re.split(r"[\0\r\n]+", text) if line.strip()]
    content = content.removeprefix(b"\xef\xbb\xbf")
    lines = content.split(b"\0") if b"\0" in content else content.splitlines()
    return [os.fsdecode(line) for line in lines if line.strip()]


def _utf16(content: bytes) -> str:
    """The coding of a list in UTF-16, told by its mark or by where its NUL bytes stand; else an empty string.

    >>> _utf16("a.jpg".encode("utf-16-le")), _utf16(b"a.jpg\\0b.jpg\\0"), _utf16(b"a.jpg")
    ('utf-16-le', '', '')
    """
    if content[:4] in (b"\xff\xfe\0\0", b"\0\0\xfe\xff"):
        return "utf-32"
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return "utf-16"
    if b"\0" not in content or not content.strip(b"\0"):
        return ""
    # In a list that NUL bytes divide, what stands between two of them is a path. The line ends, dots and
    # slashes of UTF-16 text leave pieces of one byte, or two NULs that are not at its end.
    pieces = content.rstrip(b"\0").split(b"\0")
    if all(len(piece) > 1 or os.path.lexists(piece or b"\n") for piece in pieces):
        return ""
    return "utf-16-le" if content[1::2].count(0) >= content[::2].count(0) else "utf-16-be"


def _common(roots: set[str]) -> Path:
    try:
        return Path(os.path.commonpath(roots))
    except ValueError as error:  # on several drives
        raise CaptionerError("these pictures are on several drives: caption each drive by itself") from error
