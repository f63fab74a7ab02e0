"""Which files belong together, and whether they are still what was written.

A manifest is a JSON file that is written last: it holds sizes and digests of the files it vouches for, and a
digest of itself. In: paths. Out: `{"bytes", "digest"}` entries, manifests; a RunError that names the file
which is missing, cut short or changed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from captioner.errors import RunError
from captioner.system.files import digest_bytes, digest_file, json_text, read_json, storing, write_json

REMEDY = "restore it from a copy of the run, or train again"


def entries(folder: Path, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Size and digest of each named file of a folder, as a manifest holds them."""
    found = {}
    for name in names:
        with storing(folder / name):
            found[name] = {"bytes": (folder / name).stat().st_size, "digest": digest_file(folder / name)}
    return found


def check(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> None:
    """Compares the files of a folder with a manifest's entries.

    Raises:
        RunError: the first one that is missing, cut short or changed.
    """
    for name, entry in files.items():
        with _reading(folder / name):
            _check_size(folder / name, entry)
            _check_digest(folder / name, entry, digest_file(folder / name))


def read_checked(path: Path, entry: Mapping[str, Any]) -> bytes:
    """The content of a file, read once and compared with its entry; errors as in `check`."""
    with _reading(path):
        _check_size(path, entry)
        content = path.read_bytes()
    _check_digest(path, entry, digest_bytes(content))
    return content


def write_manifest(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON object with its own digest, atomically."""
    plain = json.loads(json_text(content))
    write_json(path, {**plain, "digest": _digest(plain)})


def read_manifest(path: Path) -> dict[str, Any]:
    """The object that `write_manifest` wrote, without its digest.

    Raises:
        RunError: the file is missing, damaged or edited.
    """
    try:
        content = read_json(path, error=RunError)
    except RunError as error:
        raise RunError(f"{error}; {REMEDY}") from error
    digest = content.pop("digest", None) if isinstance(content, dict) else None
    if digest is None or digest != _digest(content):
        raise RunError(f"{path}: damaged, or changed since it was written; {REMEDY}")
    return content


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise RunError(f"{path}: missing; {REMEDY}") from error
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error.strerror}); {REMEDY}") from error


def _check_size(path: Path, entry: Mapping[str, Any]) -> None:
    size, expected = path.stat().st_size, entry["bytes"]
    if size != expected:
        word = "cut short" if size < expected else "changed"
        raise RunError(f"{path}: {word}, {size} bytes instead of {expected}; {REMEDY}")


def _check_digest(path: Path, entry: Mapping[str, Any], digest: str) -> None:
    if digest != entry["digest"]:
        raise RunError(f"{path}: damaged, not the {entry['bytes']} bytes that were written; {REMEDY}")


def _digest(content: Mapping[str, Any]) -> str:
    return digest_bytes(json.dumps(content, sort_keys=True).encode("utf-8"))
