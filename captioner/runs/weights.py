"""The weights that captioning uses: `best/weights.safetensors`, vouched for by `best/best.json`.

In: arrays by name and what is known of the epoch they come from. Out: the two files; the arrays again. Plain
arrays, readable without TensorFlow; nothing is pickled.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from captioner.errors import RunError
from captioner.system.files import atomic_write, digest_bytes, flush_folder, storing
from captioner.system.manifest import REMEDY, read_checked, read_manifest, write_manifest

WEIGHTS, INFO, PENDING_MANIFEST = "weights.safetensors", "best.json", "next.json"


def save_best(
    folder: Path, arrays: Mapping[str, np.ndarray], info: Mapping[str, Any], *, half: bool = False
) -> None:
    """Replaces the weights in `folder`; a crash leaves the old ones or the new ones, whole.

    Args:
        folder: `best/` of a run.
        arrays: by name; floating ones are kept as float32.
        info: what `read_info` should say of them.
        half: keep float16 instead, but for arrays with numbers that it cannot hold.
    """
    stored = {name: _stored(array, half) for name, array in arrays.items()}
    content = safetensors.numpy.save(stored, metadata={"format": "captioner"})
    weights = {"bytes": len(content), "digest": digest_bytes(content)}
    # Two files cannot be renamed at once: between the renames next.json vouches for the new weights.
    _finish_interrupted_save(folder)
    try:
        write_manifest(folder / PENDING_MANIFEST, {**info, "weights": weights})
        atomic_write(folder / WEIGHTS, content)
        with storing(folder / INFO):
            os.replace(folder / PENDING_MANIFEST, folder / INFO)
            flush_folder(folder)
    except Exception:
        _finish_interrupted_save(folder)
        raise


def read_info(folder: Path) -> dict[str, Any] | None:
    """What `save_best` was told of the weights there now; None where there are none.

    Raises:
        RunError: weights or manifest are missing, damaged, or not each other's.
    """
    return _verified(folder)[1] if _begun(folder) else None


def file_stamps(folder: Path) -> tuple[Any, ...]:
    """What tells whether the files in `folder` are still those that were checked."""
    found = []
    for name in (WEIGHTS, INFO, PENDING_MANIFEST):
        try:
            status = (folder / name).stat()
            found.append((status.st_ino, status.st_size, status.st_mtime_ns))
        except OSError:
            found.append((0, 0, 0))
    return tuple(found)


def read_best(folder: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
    """The arrays by name, floating ones as float32, and what is known of them; else as `read_info`."""
    if not _begun(folder):
        return None
    content, info, _ = _verified(folder)
    return floats(arrays_in(content, folder / WEIGHTS)), info


def arrays_in(content: bytes, path: Path) -> dict[str, np.ndarray]:
    """The arrays of a weights file, as stored.

    Raises:
        RunError: it is something else; `path` is named.
    """
    try:
        return safetensors.numpy.load(content)
    except safetensors.SafetensorError as error:
        raise RunError(f"{path}: not a weights file ({error}); {REMEDY}") from error


def select_prefix(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """The arrays whose names start with `prefix`, named without it."""
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def floats(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays, floating-point ones as float32."""
    return {name: _floats(array, np.float32) for name, array in arrays.items()}


def _begun(folder: Path) -> bool:
    # Not next.json: alone it is from a first save that was killed before its weights were there.
    return (folder / WEIGHTS).exists() or (folder / INFO).exists()


def _verified(folder: Path) -> tuple[bytes, dict[str, Any], str]:
    """The content of the weights file, the manifest whose digest it has, and the name of that manifest."""
    problem: RunError | None = None
    # Once more at the end: a training may be renaming next.json while we look.
    for name in (INFO, PENDING_MANIFEST, INFO):
        try:
            info = read_manifest(folder / name)
            return read_checked(folder / WEIGHTS, info.pop("weights")), info, name
        except RunError as error:
            problem = problem or error
    raise problem or RunError(f"{folder}: empty")


def _finish_interrupted_save(folder: Path) -> None:
    """Completes or undoes an interrupted `save_best`: next.json becomes best.json, or is removed."""
    if not (folder / PENDING_MANIFEST).exists():
        return
    with suppress(RunError):
        if _verified(folder)[2] == PENDING_MANIFEST:
            os.replace(folder / PENDING_MANIFEST, folder / INFO)
    (folder / PENDING_MANIFEST).unlink(missing_ok=True)


def _stored(array: np.ndarray, half: bool) -> np.ndarray:
    array = np.ascontiguousarray(array)
    if half and array.dtype.kind == "f":
        with np.errstate(over="ignore"):
            small = array.astype(np.float16)
        if np.isfinite(small).all():
            return small
    return _floats(array, np.float32)


def _floats(array: np.ndarray, kind: Any) -> np.ndarray:
    return array.astype(kind, copy=False) if array.dtype.kind == "f" else array
