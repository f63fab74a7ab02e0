"""What was done in a folder: `.captioner.jsonl`, a line a picture, on the disk before the sidecars are.

In: entries. Out: the last entry of a picture. An entry says what was seen in which version of the picture,
and what its sidecars are to say; whether they do is seen in them. So whoever comes after a crash, however
hard, needs no other evidence, and no picture is captioned twice.

Workers that each do a part of a folder write journals of their own, `.captioner-2-of-8.jsonl`, and read all;
whoever works on the whole folder next adds them to the one.
"""

from __future__ import annotations

import json
import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from captioner.apps.sidecars.file_kinds import json_bytes
from captioner.data.own_captions import JOURNAL, JOURNAL_OF_PART
from captioner.errors import CaptionerError, RunError
from captioner.system.files import append_line, storing
from captioner.system.shard_spec import WHOLE, ShardSpec

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None  # type: ignore[assignment]

_LEFTOVER = re.compile(r"\.tmp-\d+-[0-9a-f]{8}(\.[a-z]+)?")  # as `files.replacing` names them


class Journal:
    """The entries of one folder; in memory are only the offsets at which they stand in the files.

    Args:
        folder: of the journal.
        part: which of several workers writes.

    Example:
        >>> import tempfile
        >>> journal = Journal(Path(tempfile.mkdtemp()))
        >>> journal.add([{"picture": "a.jpg", "caption": "ein Hund"}])
        >>> journal.entry("a.jpg")["caption"], journal.entry("b.jpg")
        ('ein Hund', {})
    """

    def __init__(self, folder: Path, part: ShardSpec = WHOLE) -> None:
        self.path = _journal(folder, part)
        self._offsets: dict[str, tuple[Path, int]] = {}  # picture → where its last line begins
        self._read = 0
        self._others = [path for path in _parts_in(folder) if path != self.path]
        for path in (folder / JOURNAL, *self._others):
            if path != self.path:
                self._index(path, 0)
        self._read = self._index(self.path, 0)

    @property
    def in_parts(self) -> bool:
        """Whether there are journals of other workers."""
        return bool(self._others)

    def __iter__(self) -> Iterator[str]:
        """The names of the pictures that have an entry."""
        return iter(self._offsets)

    def entry(self, picture: str) -> dict[str, Any]:
        """The last entry of a picture, under any Unicode form of its name; empty if there is none."""
        if picture not in self._offsets:
            # A disk that keeps names in another form (HFS+) changes them when a folder is copied.
            forms = (unicodedata.normalize(form, picture) for form in ("NFC", "NFD"))
            picture = next((form for form in forms if form in self._offsets), "")
        if not picture:
            return {}
        path, offset = self._offsets[picture]
        with open(path, "rb") as file:
            file.seek(offset)
            found: dict[str, Any] = json.loads(file.readline())
        return found

    def add(self, entries: Sequence[dict[str, Any]]) -> None:
        """Adds entries, each with a key `picture`, and waits until they are on the disk.

        Raises:
            CaptionerError: the disk is full, the folder cannot be written, …
        """
        if entries:
            append_line(self.path, "\n".join(json_bytes(entry).decode("utf-8") for entry in entries))
            self._read = self._index(self.path, self._read)

    def merge_journals(self) -> None:
        """Appends the journals of other workers to this one and removes them; needs `folder_lock`."""
        for path in self._others:
            lines = [line for line in path.read_bytes().splitlines() if _is_entry(line)]
            if lines:
                append_line(self.path, b"\n".join(lines).decode("utf-8"))
            with storing(path):
                path.unlink(missing_ok=True)
        self._others = []
        self._read = self._index(self.path, self._read)

    def _index(self, path: Path, start: int) -> int:
        """Indexes the entries of a file from an offset on; gives the offset after the last."""
        try:
            with open(path, "rb") as file:
                file.seek(start)
                for line in file:
                    if not line.endswith(b"\n"):
                        break  # torn by a crash; ended when the next one is added
                    with suppress(ValueError, TypeError, KeyError):
                        self._offsets[json.loads(line)["picture"]] = (path, start)
                    start += len(line)
        except (FileNotFoundError, NotADirectoryError):
            pass
        except OSError as error:
            raise CaptionerError(f"{path}: the journal cannot be read ({error.strerror})") from error
        return start


def picture_stamp(path: str | Path) -> str:
    """A picture's size in bytes and modification time in ns, as text; empty if the file is missing."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return ""
    return f"{status.st_size}-{status.st_mtime_ns}"


def same_stamp(one: str, other: str) -> bool:
    """Whether two stamps are of the same picture, perhaps copied to a disk with coarser times.

    FAT keeps times to 2 s, exFAT to 10 ms, NTFS to 100 ns; the coarser of the two times counts.

    >>> same_stamp("9-1700000001123456789", "9-1700000000000000000")  # copied to a memory stick
    True
    >>> same_stamp("9-1700000001123456789", "9-1700000001123456788")  # written anew
    False
    """
    if one == other:
        return True
    (size, _, time), (other_size, _, other_time) = one.partition("-"), other.partition("-")
    if not size or size != other_size:
        return False
    try:
        times = int(time), int(other_time)
    except ValueError:
        return False
    steps = ((10**9, 2 * 10**9), (10**7, 10**7), (1000, 1000), (100, 100))  # a time is n of these; kept to
    exact = (next((kept for step, kept in steps if each % step == 0), 0) for each in times)
    return abs(times[0] - times[1]) <= max(exact)


@contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Locks a file, waiting for other processes; creates it if it is missing."""
    with storing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        if fcntl is not None:
            with suppress(OSError):  # a file system without locks
                fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def folder_lock(folder: Path, part: ShardSpec = WHOLE) -> Iterator[None]:
    """Locks a folder, or one worker's part of it, for this process.

    Who holds the whole folder clears away what a killed process left half-written in it.

    Raises:
        RunError: another process holds the folder, or this part of it.
        CaptionerError: it cannot be made.
    """
    with storing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        _take(stack, folder, os.O_RDONLY, shared=not part.whole)
        if part.whole:
            for name in os.listdir(folder):
                if _LEFTOVER.fullmatch(name):
                    with suppress(OSError):
                        os.unlink(folder / name)
        else:
            _take(stack, _journal(folder, part), os.O_RDWR | os.O_CREAT)
        yield


def _journal(folder: Path, part: ShardSpec) -> Path:
    return folder / (JOURNAL if part.whole else f".captioner-{part.name}.jsonl")


def _parts_in(folder: Path) -> list[Path]:
    """The journals of several workers in a folder, oldest first: later entries win."""
    found = []
    with suppress(OSError), os.scandir(folder) as listed:
        found = [Path(entry.path) for entry in listed if JOURNAL_OF_PART.fullmatch(entry.name)]
    return sorted(found, key=lambda path: (path.stat().st_mtime_ns, path.name))


def _is_entry(line: bytes) -> bool:
    with suppress(ValueError):
        return isinstance(json.loads(line), dict)
    return False


def _take(stack: ExitStack, path: Path, flags: int, *, shared: bool = False) -> None:
    # The folder itself is locked: no file has to be left in it for that.
    try:
        descriptor = os.open(path, flags, 0o666)
    except OSError:  # folders cannot be opened everywhere
        return
    stack.callback(os.close, descriptor)
    try:
        if fcntl is not None:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise RunError(f"{path}: another captioner is at work here; wait for it, or stop it") from error
    except OSError:
        return  # a file system without locks: unguarded is better than not at all
