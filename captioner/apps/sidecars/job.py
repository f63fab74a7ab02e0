"""Captions for whole folders: what is missing is captioned and written, once, whatever happens meanwhile.

In: pictures, what to write, and something that captions. Out: sidecars and sheets; a journal in each folder
of sidecars. Originals are only read.

First all pictures are looked over: what is done, what only has to be written, what needs a caption. So the
time left is known, and where nothing is missing, no model is loaded.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import groupby, islice
from pathlib import Path
from typing import Any, NamedTuple

from captioner.apps.sidecars.csv_table import Table
from captioner.apps.sidecars.file_kinds import WRITERS, CaptionRecord, Sheet, sheets_of_parts
from captioner.apps.sidecars.folder_state import NO_WORDS, Folder, Result
from captioner.apps.sidecars.journal import Journal, folder_lock
from captioner.apps.sidecars.out_tree import OutTree
from captioner.apps.sidecars.plan import FolderPlan
from captioner.apps.sidecars.summary import Outcomes
from captioner.apps.sidecars.targets import (
    CsvRowTarget,
    Neighbours,
    SidecarTarget,
    Target,
    names_by_fold,
    writable,
)
from captioner.data.image_files import Pictures, is_picture_name
from captioner.errors import DataError
from captioner.system import console
from captioner.system.files import storing

CHUNK = 32  # pictures written at a time: a batch of the captioner, for one wait on the disk
_WRITING_THREADS = 8  # which wait for the disk together

CaptionsOf = Callable[[Iterable[Path]], Iterator[Any]]  # paths → a `Caption` each, in order, lazily

_Missing = list[tuple[Path, list[str]]]  # folders, and in each the names of what needs a caption


def caption_folders(
    pictures: Pictures, plan: FolderPlan, captions_of: CaptionsOf, *, quiet: bool = False
) -> Outcomes:
    """Captions the pictures whose captions are missing, and writes the files asked for.

    Args:
        pictures: as `data.image_files.gather` finds them.
        plan: what to write.
        captions_of: as `Captioner.captions_of`; called once, or not at all if no picture needs a caption.
        quiet: no progress bar. Failures are said all the same.

    Raises:
        ConfigError: a plan that cannot be.
        DataError: the sheet there is not from this program.
        RunError: another process is at work in one of the folders.
        CaptionerError: the disk is full, or the sheet cannot be written.

    Example:
        >>> from captioner import Captioner  # doctest: +SKIP
        >>> from captioner.data.image_files import gather  # doctest: +SKIP
        >>> model = Captioner.load("runs/flickr8k")  # doctest: +SKIP
        >>> plan = FolderPlan(("txt", "xmp"), job="flickr8k")  # doctest: +SKIP
        >>> caption_folders(gather(["photos"]), plan, model.captions_of).captioned  # doctest: +SKIP
        2000
    """
    plan.check()
    pictures = pictures.part(plan.part)
    with ExitStack() as stack:
        job = _Job(pictures, plan, stack)
        for path, reason in pictures.problems:
            job.outcomes.fail(path, reason)
        try:
            missing = job.survey(quiet)
            if missing:
                job.caption(missing, captions_of, quiet)
        finally:
            job.save_sheets()
    return job.outcomes


class _Job:
    def __init__(self, pictures: Pictures, plan: FolderPlan, stack: ExitStack) -> None:
        self.plan, self.pictures, self.outcomes = plan, pictures, Outcomes()
        self._threads = stack.enter_context(ThreadPoolExecutor(_WRITING_THREADS))
        self._stack = stack  # of what is held to the end
        self._sheets: dict[str, Table] = {}
        self._held: set[str] = set()
        self._tree = None if plan.out is None else OutTree(plan.out, pictures)
        self._sheet_folder = plan.out or pictures.base
        for kind in plan.write:
            row = WRITERS[kind]
            if isinstance(row, Sheet):
                if os.path.abspath(self._sheet_folder) not in self._held:
                    stack.enter_context(folder_lock(self._sheet_folder, plan.part))
                    self._held.add(os.path.abspath(self._sheet_folder))
                self._sheets[kind] = self._open_sheet(kind, row)

    def survey(self, quiet: bool) -> _Missing:
        """Checks every picture, writes what the journals hold already, and returns what needs a caption."""
        missing: _Missing = []
        with console.progress_bar(len(self.pictures), "pictures", "looking", quiet) as progress:
            for path, names in self.pictures.folders.items():
                folder = self._folder(path, names)
                if folder.in_parts and writable(folder.sidecar_folder):
                    self._lock_folder(folder)
                    folder.merge_journals()
                    folder.release()
                needs = self._needs(folder, names)
                if (needs["known"] or needs["caption"]) and not writable(folder.sidecar_folder):
                    reason = f"{folder.sidecar_folder} cannot be written; name another folder with --out"
                    for name in (*needs["known"], *needs["caption"]):
                        self.outcomes.fail(path / name, reason)
                    continue
                if needs["known"]:
                    self._restore(folder, needs["known"])
                if needs["caption"]:
                    missing.append((path, needs["caption"]))
                progress.update(len(names))
        return missing

    def caption(self, missing: _Missing, captions_of: CaptionsOf, quiet: bool) -> None:
        """Captions pictures and writes the results, a batch at a time."""
        under_way: deque[_UnderWay] = deque()

        def paths() -> Iterator[Path]:
            for path, names in missing:
                folder = self._folder(path, names)
                self._lock_folder(folder)
                for name in names:
                    under_way.append(_UnderWay(folder, name, folder.stamp(name), name == names[-1]))
                    yield path / name

        found = captions_of(paths())  # may load a model first, which should not count
        began = time.monotonic()
        with console.progress_bar(
            sum(len(names) for _, names in missing), "pictures", "captions", quiet
        ) as progress:
            while captions := list(islice(found, CHUNK)):
                finished = [(under_way.popleft(), _found(caption)) for caption in captions]
                for folder, group in groupby(finished, key=lambda each: each[0].folder):
                    mine = list(group)
                    results = [Result(work.name, work.stamp, found) for work, found in mine]
                    self.outcomes.captioned += self._commit(folder, results)
                    self.outcomes.note_captions(result.found for result in results)
                    if mine[-1][0].last:
                        folder.release()
                progress.update(len(captions), failed=self.outcomes.failed)
        self.outcomes.seconds = time.monotonic() - began

    def save_sheets(self) -> None:
        """Writes the sheets as far as they are filled."""
        for table in self._sheets.values():
            table.save()
            if self.plan.part.whole:  # what workers wrote is in the journals, and so in this one
                for path in sheets_of_parts(table.path):
                    with storing(path):
                        path.unlink(missing_ok=True)

    def _needs(self, folder: Folder, names: Sequence[str]) -> dict[str, list[str]]:
        """Groups names by what they need and counts those that need nothing."""
        needs: dict[str, list[str]] = {"known": [], "caption": []}
        for name in names:
            need, problem = folder.status(name)
            if need == "failed":
                self.outcomes.fail(folder.path / name, problem)
            elif need == "done":
                self.outcomes.done += 1
            elif need == "keep":
                self.outcomes.kept += 1
            else:
                needs[need].append(name)
        return needs

    def _restore(self, folder: Folder, names: Sequence[str]) -> None:
        self._lock_folder(folder)
        for start in range(0, len(names), CHUNK):
            results = [folder.recorded(name) for name in names[start : start + CHUNK]]
            self.outcomes.restored += self._commit(folder, results)
        folder.release()

    def _commit(self, folder: Folder, results: Sequence[Result]) -> int:
        """Writes results, counts the failures and returns the number of the others."""
        failures = dict(folder.commit(results, self._threads))
        for name, reason in failures.items():
            self.outcomes.fail(folder.path / name, reason)
        return len(results) - len(failures)

    def _folder(self, path: Path, names: Sequence[str]) -> Folder:
        sidecar_folder = self._sidecar_folder_of(path)
        listed = os.listdir(path) if path.is_dir() else []
        # All that are there, asked for or not: a name is given once.
        neighbours = Neighbours({*names, *filter(is_picture_name, listed)})
        targets: dict[str, Target] = {}
        for kind in self.plan.write:
            row = WRITERS[kind]
            if isinstance(row, Sheet):
                folders = map(os.path.abspath, (sidecar_folder, self._sheet_folder))
                prefix = Path(os.path.relpath(*folders))
                targets[kind] = CsvRowTarget(self._sheets[kind], prefix)
            else:
                targets[kind] = SidecarTarget(
                    row, path, neighbours, sidecar_folder=sidecar_folder, naming=self.plan.names
                )
        return Folder(path, sidecar_folder, targets, self.plan)

    def _sidecar_folder_of(self, folder: Path) -> Path:
        """Where the sidecars of a folder's pictures go."""
        return folder if self._tree is None else self._tree.sidecar_folder(folder)

    def _open_sheet(self, kind: str, row: Sheet) -> Table:
        """Opens the sheet to write, an existing one of ours or a new one.

        Raises:
            DataError: the table there is another's, and captions of the model would be mixed with it.
        """
        known = names_by_fold(self._sheet_folder).get(row.file_name, [])
        table = row.open(self._sheet_folder / (known[0] if known else row.file_name))
        if not (self.plan.force or table.is_ours or self._is_noted(kind)):
            raise DataError(
                f"{table.path}: is a table that captioner did not write, and captions of the model would be "
                "mixed with it: choose another folder with --out, or add to it all the same with --force"
            )
        part = self.plan.part
        return table if part.whole else row.open(self._sheet_folder / row.name_of(part))

    def _is_noted(self, kind: str) -> bool:
        """Whether a journal says that captions were written into the sheet before."""
        for folder in map(self._sidecar_folder_of, self.pictures.folders):
            journal = Journal(folder)
            if any(kind in journal.entry(name).get("sidecars", {}) for name in journal):
                return True
        return False

    def _lock_folder(self, folder: Folder) -> None:
        if self._tree is not None:
            self._tree.save()
        if os.path.abspath(folder.sidecar_folder) not in self._held:
            self._stack.callback(folder.release)
            folder.lock()


class _UnderWay(NamedTuple):
    folder: Folder
    name: str
    stamp: str  # from before the picture is read: if it changes meanwhile, the next run sees that
    last: bool  # of its folder


def _found(caption: Any) -> CaptionRecord | str:
    """The record that is written for a caption, or the reason why there is none."""
    if caption.error is not None:
        return str(caption.error)
    if not caption.text.strip():
        return NO_WORDS
    found = {key: value for key, value in caption.to_dict().items() if key != "path"}
    if caption.by_language:  # a line each, as several captions of a picture are written
        found["caption"] = "\n".join(own.text for own in caption.by_language.values())
    return found
