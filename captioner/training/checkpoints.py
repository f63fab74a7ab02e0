"""The checkpoints a training goes on from: `latest/ckpt-N.*`, each with a manifest `ckpt-N.json`.

`tf.train.CheckpointManager` writes them; the manifest, written after the files are on the disk, makes damage
known before anything is restored, and older checkpoints go only once the new one is complete. In: trackable
objects (decoder, optimizer, counters). Out: files; the same objects with their saved values.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tensorflow as tf

from captioner.errors import CaptionerError, RunError
from captioner.system import console
from captioner.system.files import flush_file, flush_folder, remove_leftovers, storing
from captioner.system.manifest import check, entries, read_manifest, write_manifest

_NAME = re.compile(r"ckpt-(\d+)(\..*|_temp.*)")


class CheckpointManager:
    """The newest few checkpoints of one set of objects.

    Args:
        folder: `latest/` of a run, or a part of it.
        trackables: name to object; models and optimizers already built, so that every value has its place.
        max_to_keep: complete checkpoints that stay.

    >>> import tempfile
    >>> step = tf.Variable(7)
    >>> latest = CheckpointManager(Path(tempfile.mkdtemp()), {"step": step})
    >>> latest.save().name, int(step.assign(0)), latest.restore().name, int(step)
    ('ckpt-1', 0, 'ckpt-1', 7)
    """

    def __init__(self, folder: Path, trackables: Mapping[str, Any], max_to_keep: int = 2) -> None:
        self.folder, self.max_to_keep = folder, max_to_keep
        self._checkpoint = tf.train.Checkpoint(**trackables)
        self._damaged: set[int] = set()
        with storing(folder):
            folder.mkdir(parents=True, exist_ok=True)

    def save(self) -> Path:
        """Writes a new checkpoint; once that is complete, removes the oldest beyond `max_to_keep`.

        Raises:
            CaptionerError: the disk is full, …; what was complete before still is.
        """
        number = max(self._numbers(), default=0) + 1
        prefix = self.folder / f"ckpt-{number}"
        try:
            self._manager().save(checkpoint_number=number)
            names = [path.name for path in self._files(number)]
            for name in names:
                flush_file(self.folder / name)
            flush_folder(self.folder)
            write_manifest(self.folder / f"{prefix.name}.json", {"files": entries(self.folder, names)})
        except (tf.errors.OpError, OSError, CaptionerError) as error:
            self._remove(number)
            if isinstance(error, CaptionerError):
                raise
            # TensorFlow's begins with names of its own: only "…; No space left on device" helps.
            reason = (getattr(error, "message", None) or str(error)).split("; ")[-1].split(" [Op:")[0]
            raise CaptionerError(
                f"{prefix}: cannot be written ({reason}); earlier checkpoints are untouched: "
                "make room on the disk and go on with --resume"
            ) from error
        self._prune()
        return prefix

    def restore(self) -> Path | None:
        """Restores the newest complete checkpoint, and reports the damaged ones that it skipped.

        Returns:
            The checkpoint's prefix; None where nothing was ever saved.

        Raises:
            RunError: every checkpoint is damaged, or they belong to objects of another shape.
        """
        numbers = self._numbers(finished=True)
        for number in numbers:
            prefix = self.folder / f"ckpt-{number}"
            problem = self._problem(number)
            if problem is None:
                self._restore(prefix)
                return prefix
            self._damaged.add(number)
            console.info(f"{prefix}: not usable, going back to the one before ({problem})")
        if numbers:
            raise RunError(
                f"{self.folder}: no checkpoint is whole; restore the folder from a copy, or remove it"
                " to begin again"
            )
        return None

    def _manager(self) -> Any:
        # One more than is kept: the manager removes the oldest before the manifest of the newest is written.
        # A new manager a save: it must not hold on to what another process or `_prune` has removed.
        try:
            tf.train.get_checkpoint_state(str(self.folder))
        except ValueError:  # damaged; nothing here is restored by it, and it is written anew with each save
            (self.folder / "checkpoint").unlink()
        return tf.train.CheckpointManager(
            self._checkpoint, str(self.folder), max_to_keep=self.max_to_keep + 1, checkpoint_name="ckpt"
        )

    def _restore(self, prefix: Path) -> None:
        try:
            status = self._checkpoint.restore(str(prefix))
            status.assert_existing_objects_matched().assert_consumed()
        except (AssertionError, ValueError) as error:
            raise RunError(
                f"{prefix}: was saved by a training of another shape ({str(error).splitlines()[0]}); resume "
                "with the configuration that began it, or choose another run folder"
            ) from error

    def _problem(self, number: int) -> str | None:
        """What is wrong with a checkpoint; None if it is complete."""
        manifest = self.folder / f"ckpt-{number}.json"
        try:
            if manifest.exists():
                check(self.folder, read_manifest(manifest)["files"])
                return None
            # Killed between the files and the manifest: TensorFlow's own checksum of every tensor decides.
            reader = tf.train.load_checkpoint(str(self.folder / f"ckpt-{number}"))
            for name in reader.get_variable_to_shape_map():
                reader.get_tensor(name)
        except RunError as error:
            return str(error).split(";")[0]
        except (tf.errors.OpError, ValueError, LookupError, RuntimeError) as error:  # all of them from damage
            return str(error).splitlines()[0]
        return None

    def _numbers(self, finished: bool = False) -> list[int]:
        """Numbers of the checkpoints on the disk, newest first; `finished`: of those with an index."""
        matches = [_NAME.fullmatch(path.name) for path in self.folder.iterdir()]
        endings = {".index"} if finished else {match[2] for match in matches if match}
        return sorted({int(match[1]) for match in matches if match and match[2] in endings}, reverse=True)

    def _files(self, number: int) -> list[Path]:
        return sorted(self.folder.glob(f"ckpt-{number}.*"))

    def _prune(self) -> None:
        whole = [number for number in self._numbers(finished=True) if number not in self._damaged]
        for number in self._numbers():
            if number not in whole[: self.max_to_keep]:
                self._remove(number)
        self._damaged.clear()
        remove_leftovers(self.folder)

    def _remove(self, number: int) -> None:
        # The index goes first: what has none counts as never finished, should we be killed in between.
        for path in sorted(self._files(number), key=lambda path: path.suffix != ".index"):
            path.unlink(missing_ok=True)
        for folder in self.folder.glob(f"ckpt-{number}_temp*"):
            shutil.rmtree(folder, ignore_errors=True)
