"""What was done in a folder: `.captioner.jsonl`, a line a picture, on the disk before the sidecars are.

In: entries. Out: the last entry of a picture. An entry says what was seen in which version of the picture,
and what its sidecars are to say; whether they do is seen in them. So whoever comes after a crash, however
hard, needs no other evidence, and no picture is captioned twice.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from captioner.errors import CaptionerError, RunError
from captioner.files import append_line, storing
from captioner.sidecars import json_bytes

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None  # type: ignore[assignment]

JOURNAL = ".captioner.jsonl"
_LEFTOVER = re.compile(r"\.tmp-\d+-[0-9a-f]{8}(\.[a-z]+)?")  # as `files.replacing` names them


class Journal:
    """The entries of one folder; in memory are only the places where they stand in the file.

    Example:
        >>> import tempfile
        >>> journal = Journal(Path(tempfile.mkdtemp()))
        >>> journal.add([{"picture": "a.jpg", "caption": "ein Hund"}])
        >>> journal.entry("a.jpg")["caption"], journal.entry("b.jpg")
        ('ein Hund', {})
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / JOURNAL
        self._places: dict[str, int] = {}  # picture → where its last line begins
        self._read = 0
        self._look_on()

    def entry(self, picture: str) -> dict[str, Any]:
        """What was last noted of a picture; empty: nothing."""
        if picture not in self._places:
            return {}
        with open(self.path, "rb") as file:
            file.seek(self._places[picture])
            found: dict[str, Any] = json.loads(file.readline())
        return found

    def add(self, entries: Sequence[dict[str, Any]]) -> None:
        """Adds entries, each with a key `picture`, and waits until they are on the disk.

        Raises:
            CaptionerError: the disk is full, the folder cannot be written, …
        """
        if entries:
            append_line(self.path, "\n".join(json_bytes(entry).decode("utf-8") for entry in entries))
            self._look_on()

    def _look_on(self) -> None:
        try:
            with open(self.path, "rb") as file:
                file.seek(self._read)
                for line in file:
                    if not line.endswith(b"\n"):
                        break  # torn by a crash; ended when the next one is added
                    with suppress(ValueError, TypeError, KeyError):
                        self._places[json.loads(line)["picture"]] = self._read
                    self._read += len(line)
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            raise CaptionerError(f"{self.path}: the journal cannot be read ({error.strerror})") from error


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keeps a folder for this process, and clears away what a killed one left half-written in it.

    Raises:
        RunError: another process holds the folder.
        CaptionerError: it cannot be made.
    """
    with storing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    descriptor = None
    with suppress(OSError):  # folders cannot be opened everywhere
        descriptor = os.open(folder, os.O_RDONLY)
    try:
        if fcntl is not None and descriptor is not None:
            _take(descriptor, folder)
        for name in os.listdir(folder):
            if _LEFTOVER.fullmatch(name):
                with suppress(OSError):
                    os.unlink(folder / name)
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _take(descriptor: int, folder: Path) -> None:
    # The folder itself is locked: no file has to be left in it for that.
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise RunError(
            f"{folder}: another captioner is at work in this folder; wait for it, or stop it"
        ) from error
    except OSError:
        return  # a file system without locks: unguarded is better than not at all
