"""Files and folders that a command is to write: nothing that the user has there is written over.

In: where an output is to go, before anything is computed. Out: nothing, or a ConfigError that names the
file. What captioner wrote itself is known by its content, and may be written again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from captioner.errors import ConfigError

_ENDS_BYTES = 1 << 16  # read at either end of a file
# What drawings and pages of ours say of their origin: in PNG, SVG, PDF, PostScript, HTML and JPEG.
_MARKS = (
    b"Software\x00captioner",
    b"<dc:title>captioner",
    b"/Creator (captioner",
    b"%%Creator: captioner",
    b'<meta name="generator" content="captioner',
    b'<p class="mark">captioner <i></i></p>',
    b"\xff\xfe\x00\x0bcaptioner",
)
# Beginnings of what people keep: which of these a refused file is, for the sentence.
_KINDS = (
    (b"\xff\xd8\xff", "a picture"),
    (b"\x89PNG", "a picture"),
    (b"GIF8", "a picture"),
    (b"RIFF", "a picture"),
    (b"II*\x00", "a picture"),
    (b"MM\x00*", "a picture"),
    (b"BM", "a picture"),
)


def force_argument(add: Any) -> None:
    """Adds `--force`: outputs may replace files of the user."""
    add("--force", action="store_true", help="write even where there is a file that captioner did not write")


def check_files(
    files: Iterable[str | Path],
    option: str,
    *,
    force: bool = False,
    ours: Callable[[bytes], bool] | None = None,
) -> None:
    """Refuses outputs that would replace a file that captioner did not write.

    Args:
        files: that are to be written.
        option: how they were asked for, for the sentence.
        force: the user wants it all the same.
        ours: tells from both ends of a file's content whether captioner wrote it; default: by our marks.

    Raises:
        ConfigError: a file is not captioner's, is a folder, or cannot be made there.
    """
    for path in map(Path, files):
        if os.path.isdir(path):
            raise ConfigError(f"{option} {path}: is a folder; give the name of a file in it")
        _check_folder(path, option)
        # Devices and pipes take anything; an empty file is nothing to lose.
        if force or not os.path.isfile(path) or not os.path.getsize(path):
            continue
        try:
            with open(path, "rb") as file:
                content = file.read(_ENDS_BYTES)
                file.seek(max(file.tell(), os.path.getsize(path) - _ENDS_BYTES))
                content += file.read()  # PDF tells its origin last
        except OSError as error:
            raise ConfigError(f"{option} {path}: cannot be read ({error.strerror}): is it yours?") from error
        if not (ours or is_marked)(content):
            raise ConfigError(
                f"{option} {path}: is {_kind(content)} that captioner did not write, and would be written "
                "over; give another name, or --force"
            )


def check_run_folder(folder: str | Path, names: Iterable[str]) -> None:
    """Refuses a folder for a new run in which files of the user are called like those of a run.

    Raises:
        ConfigError: there are such files.
    """
    from captioner.system.files import LOCK_FILE

    folder = Path(folder)
    if os.path.lexists(folder) and not folder.is_dir():
        raise ConfigError(f"--run {folder}: is a file; a training needs a folder, a new one or an empty one")
    # A run, and the lock of one that began here: to resume or refuse them is the training's own business.
    if not folder.is_dir() or (folder / "config.json").exists() or (folder / LOCK_FILE).exists():
        return
    there = [name for name in names if os.path.lexists(folder / name)]
    if there:
        raise ConfigError(
            f"--run {folder}: would be written over there: {', '.join(there)}, not from a training; "
            "choose a new folder"
        )


def is_marked(content: bytes) -> bool:
    """Whether a file's content says that captioner wrote it.

    >>> is_marked(b'<meta name="generator" content="captioner 1.0">'), is_marked(b"dear diary")
    (True, False)
    """
    return any(mark in content for mark in _MARKS)


def _kind(content: bytes) -> str:
    known = (kind for start, kind in _KINDS if content.startswith(start))
    return next(known, "a picture" if content[4:8] == b"ftyp" else "a file")


def _check_folder(path: Path, option: str) -> None:
    """Raises ConfigError unless a file can be made there: better now than after hours of computing."""
    folder = path.parent
    while not os.path.lexists(folder) and folder != folder.parent:
        folder = folder.parent
    if not folder.is_dir():
        raise ConfigError(f"{option} {path}: {folder} is a file and not a folder; choose another path")
    size = len(os.fsencode(path.name))
    try:
        most = os.pathconf(folder, "PC_NAME_MAX")
    except (OSError, ValueError, AttributeError):
        most = 255
    if size > most:
        raise ConfigError(f"{option} {path}: the name is too long ({size} bytes, {most} are possible here)")
    # What is special, like /dev/stdout, is written to as it is; else a temporary file is made beside it.
    if (not os.path.exists(path) or os.path.isfile(path)) and not os.access(
        os.path.realpath(folder), os.W_OK | os.X_OK
    ):
        raise ConfigError(
            f"{option} {path}: {folder} cannot be written; choose a folder you may write to, or change its "
            "rights"
        )
