"""Maps folders of pictures to folders below `--out`, the same way in every later command.

In: the folder given with --out, pictures. Out: for each folder of pictures one folder of sidecars that no
other folder of pictures shares. What was decided stands in `.captioner-roots.jsonl` there, a line a root:

    {"prefix": "", "folder": "/home/me/photos/2023", "from_out": "../photos/2023"}

Pictures below the root go to `out/prefix`, in the same tree. So two folders captioned one after the other
into one --out keep their captions apart, even if their pictures are called alike.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from captioner.apps.sidecars.file_kinds import json_bytes
from captioner.apps.sidecars.journal import Journal, file_lock, picture_stamp, same_stamp
from captioner.data.image_files import Pictures, is_picture_name
from captioner.errors import RunError
from captioner.system.files import append_line, read_json_lines

ROOTS = ".captioner-roots.jsonl"
_COMPARED = 200  # pictures looked at to find out whether a journal speaks of them


class Root(NamedTuple):
    """A folder of pictures, and where below `out` the sidecars of its tree go."""

    prefix: str  # "" or a relative path with /
    folder: str  # absolute; empty: not known, only that the prefix is taken
    from_out: str = ""  # the same, relative to `out`: found again where both were copied to another disk


class OutTree:
    """The folders of sidecars for some pictures.

    Args:
        out: the folder given with --out; need not be there.
        pictures: all that one command captions.
    """

    def __init__(self, out: Path, pictures: Pictures) -> None:
        self._out, self._pictures = out, pictures
        self._known = _read(out)
        self._roots = list(self._known)
        self._folders: dict[str, Path] = {}

    def sidecar_folder(self, folder: Path) -> Path:
        """Where the sidecars of a folder's pictures go."""
        key = os.path.abspath(folder)
        if key not in self._folders:
            base = str(self._pictures.base)
            if self._holder(key) is None:
                self._roots.append(self._found_again(base) or self._new_root(base))
            path = self._inside(key)
            if path is None:  # its place in the tree is another root's
                self._roots.append(self._new_root(key))
                path = self._inside(key)
            self._folders[key] = self._out / (path or "")
        return self._folders[key]

    def save(self) -> None:
        """Records new roots in the file.

        Raises:
            RunError: another command has begun to caption other folders into this one meanwhile.
        """
        new = self._roots[len(self._known) :]
        if not new:
            return
        with file_lock(self._out / ROOTS):
            now = _read(self._out)[len(self._known) :]
            if now and now != new:
                raise RunError(
                    f"{self._out}: another captioner has begun to write captions of other pictures here; "
                    "give the command again"
                )
            for root in () if now else new:
                append_line(self._out / ROOTS, json_bytes(root._asdict()).decode("utf-8"))
        self._known = list(self._roots)

    def _holder(self, folder: str) -> tuple[Root, str] | None:
        """The innermost root above a folder, and the path from the root to the folder."""
        found: tuple[int, Root, str] | None = None
        for root in self._in_force():
            for place in self._places(root):
                below = _below(folder, place)
                if below is not None and (found is None or len(place) >= found[0]):
                    found = len(place), root, below
        return found and found[1:]

    def _inside(self, folder: str) -> str | None:
        """The path of a folder's sidecars below `out`; None if another root occupies it."""
        held = self._holder(folder)
        if held is None:
            return None
        root, below = held
        path = "/".join(filter(None, (root.prefix, below)))
        others = (each.prefix for each in self._in_force() if len(each.prefix) > len(root.prefix))
        return None if any(path == other or path.startswith(f"{other}/") for other in others) else path

    def _in_force(self) -> list[Root]:
        """The valid roots: of several with one prefix the last."""
        return list({root.prefix: root for root in self._roots}.values())

    def _places(self, root: Root) -> Iterator[str]:
        """The folders that stand for a root: as recorded, or relative to a copy of `out`."""
        if not root.folder:
            return
        yield root.folder
        if os.path.realpath(root.folder) != root.folder:
            yield os.path.realpath(root.folder)
        beside = os.path.normpath(os.path.join(os.path.abspath(self._out), root.from_out))
        if root.from_out and beside != root.folder and self._speaks_of(beside, root.prefix) is not False:
            yield beside

    def _found_again(self, base: str) -> Root | None:
        """The root whose folder was moved to `base`: gone where it was, and its journals match."""
        for root in self._in_force():
            gone = root.folder and not any(map(os.path.isdir, self._places(root)))
            if gone and self._speaks_of(base, root.prefix):
                return self._root(root.prefix, base)
        return None

    def _new_root(self, folder: str) -> Root:
        out = os.path.abspath(self._out)
        if not self._roots:
            if _below(folder, out) and any(map(is_picture_name, _names(self._out))):
                return self._root("", out)  # pictures are in `out` itself: each gets its captions beside it
            if self._speaks_of(folder, "") is not False:
                return self._root("", folder)
            self._roots.append(Root("", ""))  # written by an earlier version, for other pictures
        name = os.path.basename(folder) or "root"
        wanted = name
        count = 1
        while not self._is_free(wanted):
            count += 1
            wanted = f"{name}-{count}"
        return self._root(wanted, folder)

    def _root(self, prefix: str, folder: str) -> Root:
        try:
            from_out = os.path.relpath(folder, os.path.abspath(self._out))
        except ValueError:  # on another drive
            from_out = ""
        return Root(prefix, folder, from_out)

    def _is_free(self, prefix: str) -> bool:
        heads = {root.prefix.partition("/")[0] for root in self._roots}
        return prefix not in heads and not _names(self._out / prefix) and not (self._out / prefix).is_file()

    def _speaks_of(self, base: str, prefix: str) -> bool | None:
        """Whether the journals below a prefix are of the pictures in `base`; None if no name matches."""
        alike, compared = None, 0
        for folder, names in self._pictures.folders.items():
            below = _below(os.path.abspath(folder), base)
            if below is None or not (self._out / prefix / below).is_dir():
                continue
            journal = Journal(self._out / prefix / below)
            for name in names[: _COMPARED - compared]:
                compared += 1
                entry = journal.entry(name)
                if entry and same_stamp(entry.get("stamp", ""), picture_stamp(Path(base, below, name))):
                    return True
                alike = False if entry else alike
        return alike


def _read(out: Path) -> list[Root]:
    found = []
    for line in read_json_lines(out / ROOTS):
        values = [line.get(name, "") for name in Root._fields]
        if all(isinstance(value, str) for value in values):
            found.append(Root(*values))
    return found


def _below(folder: str, root: str) -> str | None:
    """The path from `root` to a folder within it, with /; None if it is not within it.

    >>> _below("/a/b/c", "/a"), _below("/a", "/a"), _below("/ab", "/a")
    ('b/c', '', None)
    """
    if folder == root:
        return ""
    head = root.rstrip(os.sep) + os.sep
    return folder[len(head) :].replace(os.sep, "/") if folder.startswith(head) else None


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []
