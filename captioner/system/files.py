"""Files that are either whole or not there: writing, reading and digesting them.

In: text, bytes, JSON-able objects. Out: files at the paths given; every write goes to a temporary file in
the same folder, reaches the disk, and is renamed over the old one, so that a crash or a full disk leaves the
previous file. Trouble with the disk becomes a CaptionerError that names the file and the remedy.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from captioner.errors import CaptionerError, RunError

try:
    import fcntl
except ImportError:  # not a POSIX system: there `lock` has nothing to lock with
    fcntl = None  # type: ignore[assignment]

TEMPORARY_PREFIX = ".tmp-"
LOCK_FILE = ".lock"
_BLOCK_BYTES = 1 << 20


@contextmanager
def storing(path: str | Path) -> Iterator[None]:
    """Turns an OSError about `path` into a CaptionerError with what to do; others pass as they are."""
    try:
        yield
    except OSError as error:
        if not _concerns(error, Path(os.path.realpath(path))):
            raise
        raise CaptionerError(_explain(error, path)) from error


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary path to write; when the block ends well it becomes `path`, else it is removed.

    The temporary name keeps the suffix of `path`, for writers that choose the format by it. Missing parent
    folders are made. A symbolic link is written through; a device or a pipe (`/dev/stdout`) is handed over
    as it is.

    Raises:
        CaptionerError: the disk is full, the folder cannot be written, …

    Example:
        >>> import tempfile
        >>> scores = Path(tempfile.mkdtemp()) / "scores.json"
        >>> with replacing(scores) as temporary:
        ...     _ = temporary.write_text("{}", encoding="utf-8")
        >>> scores.read_text(encoding="utf-8")
        '{}'
    """
    target = Path(os.path.realpath(path))
    with storing(path):
        if target.exists() and not target.is_file() and not target.is_dir():
            yield target
            return
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        target.parent.mkdir(parents=True, exist_ok=True)
        # A short name: the target's own may already be as long as the file system allows.
        temporary = target.with_name(f"{TEMPORARY_PREFIX}{os.getpid()}-{secrets.token_hex(4)}{target.suffix}")
        try:
            yield temporary
            flush_file(temporary)
            os.replace(temporary, target)
        except BaseException:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        flush_folder(target.parent)


def atomic_write(path: str | Path, data: bytes | str) -> None:
    """Writes a whole file, or leaves the previous one as it was. Text is UTF-8, line ends as given."""
    content = data.encode("utf-8") if isinstance(data, str) else data
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def json_text(obj: Any, *, indent: int | None = None) -> str:
    """`obj` as strict JSON: numbers that are not finite become null, NumPy scalars numbers, paths strings."""
    return json.dumps(_plain(obj), ensure_ascii=False, indent=indent, allow_nan=False)


def write_json(path: str | Path, obj: Any) -> None:
    """Writes `obj` as indented UTF-8 JSON, atomically."""
    atomic_write(path, json_text(obj, indent=2) + "\n")


def read_json(path: str | Path, *, error: type[CaptionerError] = CaptionerError) -> Any:
    """The object in a JSON file.

    Raises:
        error: the file is missing, unreadable or not JSON (the class is the caller's choice).
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as cause:
        raise error(f"{path}: missing") from cause
    except OSError as cause:
        raise error(f"{path}: cannot be read ({cause.strerror})") from cause
    except ValueError as cause:  # JSONDecodeError and UnicodeDecodeError
        raise error(f"{path}: damaged, not JSON ({cause})") from cause


def digest_bytes(data: bytes) -> str:
    """BLAKE2b of `data`, 16 bytes in hex."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def digest_file(path: str | Path) -> str:
    """BLAKE2b of a file's bytes, 16 bytes in hex, read a block at a time. OSError as `open` raises it."""
    digest = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def append_line(path: str | Path, text: str) -> None:
    """Adds one line to a text file and waits until it is on the disk.

    A line torn by an earlier crash is ended first, so that it cannot spoil the new one; when the disk is
    full, what was written of the new line is taken back.
    """
    with storing(path):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab+", buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(size - 1, 0))
            torn = file.read(1) not in (b"", b"\n")
            line = memoryview(b"\n" * torn + text.encode("utf-8") + b"\n")
            try:
                while line:
                    line = line[file.write(line) or 0 :]
                os.fsync(file.fileno())
            except OSError:
                with suppress(OSError):
                    file.truncate(size)
                raise


def read_json_lines(path: str | Path) -> list[dict[str, Any]]:
    """The JSON objects that `append_line` wrote, one a line; a line torn by a crash is left out."""
    found = []
    for line in Path(path).read_bytes().splitlines() if Path(path).exists() else ():
        with suppress(ValueError):
            found.append(json.loads(line))
    return [entry for entry in found if isinstance(entry, dict)]


@contextmanager
def lock(folder: str | Path, *, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Keeps a folder for this process; the lock goes with the process, however it ends.

    Args:
        folder: made if it is not there.
        waiting: called once where another process holds the folder; then this waits for it. None: an error.

    Raises:
        RunError: another process holds the folder.
    """
    path = Path(folder) / LOCK_FILE
    with storing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        if fcntl is not None:
            try:
                _take(descriptor, folder)
            except RunError:
                if waiting is None:
                    raise
                waiting()
                fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def remove_leftovers(folder: str | Path) -> list[Path]:
    """Removes temporary files that a killed process left in `folder`; for the holder of the folder's lock."""
    leftovers = sorted(path for path in Path(folder).glob(f"{TEMPORARY_PREFIX}*") if path.is_file())
    for path in leftovers:
        with storing(path):
            path.unlink(missing_ok=True)
    return leftovers


def flush_file(path: Path) -> None:
    """Waits until a file's content is on the disk."""
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def flush_folder(folder: Path) -> None:
    """Waits until the names in a folder are on the disk: a power cut may else bring a replaced file back."""
    with suppress(OSError):  # folders cannot be opened everywhere
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _take(descriptor: int, folder: str | Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.read(descriptor, 32).decode("ascii", "replace").strip() or "unknown"
        raise RunError(
            f"{folder}: in use by another process ({holder}); wait for it, stop it, or choose another folder"
        ) from error
    except OSError:
        return  # a file system without locks (some network mounts): unguarded is better than not at all
    with suppress(OSError):  # a full disk: the lock holds, only its holder's name is not told
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"pid {os.getpid()}\n".encode("ascii"))


def _concerns(error: OSError, target: Path) -> bool:
    # A full disk names no file; all else that is about the target names it, its temporary or its parents.
    if not isinstance(error.filename, str):
        return True
    named = Path(os.path.realpath(error.filename))
    return target.is_relative_to(named) or named.parent == target.parent


def _explain(error: OSError, path: str | Path) -> str:
    reason = error.strerror or str(error)
    full = error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", None))
    if full or (error.errno is None and "requested and" in reason):  # NumPy: "9 requested and 4 written"
        return (
            f"{path}: cannot be written, the disk is full ({reason}); what was there before is untouched: "
            "make room and run again"
        )
    remedies = {
        (errno.EACCES, errno.EPERM, errno.EROFS): "choose a folder you may write to, or change its rights",
        (errno.ENOTDIR, errno.EEXIST): "a part of this path is a file and not a folder: choose another path",
        (errno.EISDIR,): "it is a folder: give the name of a file",
        (errno.ENAMETOOLONG,): "choose a shorter name",
        (errno.EFBIG,): "files may not be so large here: raise the limit (ulimit -f), or use another disk",
    }
    known = (text for codes, text in remedies.items() if error.errno in codes)
    remedy = next(known, "check the disk and the path")
    return f"{path}: cannot be written ({reason}); {remedy}"


def _plain(obj: Any) -> Any:
    if isinstance(obj, Mapping):
        return {str(key): _plain(value) for key, value in obj.items()}
    if isinstance(obj, (list, tuple)):
        return [_plain(value) for value in obj]
    if isinstance(obj, Path):
        return str(obj)
    if isinstance(obj, float):
        return float(obj) if math.isfinite(obj) else None
    if hasattr(obj, "tolist"):  # NumPy arrays and scalars, without importing NumPy
        return _plain(obj.tolist())
    return obj


def is_url(text: Any) -> bool:
    """Whether an argument names a place in an object store.

    >>> is_url("s3://bucket/photos"), is_url("photos"), is_url("http://example.org")
    (True, False, False)
    """
    return isinstance(text, str) and "://" in text and not text.startswith(("ray://", "http://", "https://"))
