"""The state of one folder: what each of its pictures still needs, and how captions are written.

In: names of pictures, captions. Out: the journal's line, then the sidecars. The line reaches the disk first,
so each sidecar is at any moment either as it was before, or as the line says, or as somebody made it since:
`Version` tells which, and so what is still to do.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from captioner.apps.sidecars.file_kinds import CaptionRecord, append_caption
from captioner.apps.sidecars.journal import Journal, folder_lock, picture_stamp, same_stamp
from captioner.apps.sidecars.plan import FolderPlan
from captioner.apps.sidecars.targets import ExistingCaption, Target
from captioner.data.images import read_image
from captioner.errors import CaptionerError, ImageError
from captioner.system.files import digest_bytes

NO_WORDS = "the model found no words for it"


@dataclass(frozen=True)
class Version:
    """What a caption depends on, and what may happen to an existing one."""

    job: str  # stands for the model and its settings
    stamp: str  # of the picture, see `journal.picture_stamp`
    if_exists: str  # row of `plan.IF_EXISTS`

    def is_of(self, note: Mapping[str, Any]) -> bool:
        """Whether a journal entry, or its note on one sidecar, was made by this model for this picture."""
        return bool(note.get("job") == self.job and same_stamp(note.get("stamp", ""), self.stamp))

    def decide(self, existing: ExistingCaption, note: Mapping[str, Any], accepted: str = "") -> str:
        """Decides what happens to one sidecar.

        Returns:
            "write"; "renew" (replace a caption of ours); "done"; or "keep" (leave another's caption alone).

        `note` holds the version a sidecar was written for, digests of its text before and after that, and
        whether the text was all ours; `accepted` is the digest of a text that a person found right.
        """
        current = text_digest(existing.text) if existing.there and existing.text else None
        if note and self.is_of(note):
            arrived = current is not None and current != note["before"]
            more = self.if_exists == "overwrite" and not note["ours"] and current == note["after"]
            return "done" if arrived and not more else "write"
        if existing.text is None:
            return "write"
        # Ours to the letter, of an earlier version of the picture: nobody's work is lost.
        untouched = bool(note) and note["ours"] and current == note["after"]
        if untouched and not same_stamp(note["stamp"], self.stamp):
            return "renew"
        # Ours, of another model or setting.
        if self.if_exists == "renew" and untouched and current != accepted:
            return "renew"
        return "write" if self.if_exists in ("overwrite", "append") else "keep"

    def text(self, decision: str, existing: ExistingCaption, caption: str) -> str:
        """The text that the sidecar gets."""
        adds = decision == "write" and self.if_exists == "append" and existing.text is not None
        return append_caption(existing.text or "", caption) if adds else caption


class Result(NamedTuple):
    """A picture, its stamp from before it was read, and its caption or the reason why there is none."""

    name: str
    stamp: str
    found: CaptionRecord | str  # or why nothing was


class _Writing(NamedTuple):
    name: str  # of the picture
    target: Target
    existing: ExistingCaption
    content: bytes
    found: CaptionRecord

    def store(self) -> str | None:
        """Writes the sidecar and returns the reason if that fails."""
        try:
            self.target.store(self.existing, self.content, self.found)
        except CaptionerError as error:
            _stop_if_full(error)
            return str(error)
        return None


class Folder:
    """A folder of pictures, the folder of their sidecars, and the journal in the latter.

    Args:
        path: of the pictures.
        sidecar_folder: of journal and sidecars.
        targets: by kind.
        plan: of the job: which model, what happens to captions that exist already, which shard is ours.
    """

    def __init__(
        self, path: Path, sidecar_folder: Path, targets: Mapping[str, Target], plan: FolderPlan
    ) -> None:
        self.path, self.sidecar_folder, self.targets = path, sidecar_folder, targets
        self._job, self._if_exists, self._part = plan.job, plan.if_exists, plan.part
        self._journal = Journal(sidecar_folder, plan.part)
        self._lock = ExitStack()

    def lock(self) -> None:
        """Locks the folder of the sidecars, see `journal.folder_lock`."""
        self._lock.enter_context(folder_lock(self.sidecar_folder, self._part))

    def merge_journals(self) -> None:
        """Merges the journals of several workers into one; the folder must be locked."""
        self._journal.merge_journals()

    @property
    def in_parts(self) -> bool:
        """Whether there are journals of several workers to merge."""
        return self._part.whole and self._journal.in_parts

    def release(self) -> None:
        """Releases the lock."""
        self._lock.close()

    def stamp(self, name: str) -> str:
        """The stamp of a picture, see `journal.picture_stamp`."""
        return picture_stamp(os.path.join(self.path, name))

    def status(self, name: str) -> tuple[str, str]:
        """What a picture needs.

        Returns:
            "caption", "known" (its caption is in the journal and has to be written), "done", "keep", or
            "failed"; and in that case why.
        """
        entry = self._journal.entry(name)
        accepted = entry.get("accepted", "")
        version = self._version(self.stamp(name))
        decisions, problem = set(), ""
        for kind, target in self.targets.items():
            note = _note(entry, kind)
            try:
                existing = target.existing(name, note.get("name"))
            except CaptionerError as error:
                problem = problem or str(error)
            else:
                decisions.add("write" if existing.moves_from else version.decide(existing, note, accepted))
        if decisions & {"write", "renew"}:
            problem = self._fails_still(name, entry) if version.is_of(entry) else ""
            if problem:
                return "failed", problem
            return ("known" if version.is_of(entry) and "found" in entry else "caption"), ""
        return ("failed", problem) if problem else ("keep" if "keep" in decisions else "done", "")

    def _fails_still(self, name: str, entry: Mapping[str, Any]) -> str:
        """The reason why a picture that failed before would fail again, found without a model; else empty."""
        if "error" not in entry:
            return ""
        try:
            read_image(self.path / name)
        except ImageError as error:
            return error.reason
        return NO_WORDS if entry["error"] == NO_WORDS else ""

    def recorded(self, name: str) -> Result:
        """The result that the journal holds for a picture."""
        entry = self._journal.entry(name)
        return Result(name, entry["stamp"], entry["found"])

    def commit(self, results: Sequence[Result], threads: ThreadPoolExecutor) -> Iterator[tuple[str, str]]:
        """Writes journal and sidecars for these results; yields the names that failed, each with the reason.

        Raises:
            CaptionerError: the disk is full.
        """
        lines: list[dict[str, Any]] = []
        writings: list[_Writing] = []
        failures: dict[str, str] = {}  # one a picture
        for result in results:
            line, problem = self._line(result, writings)
            if line != self._journal.entry(result.name):
                lines.append(line)
            if problem:
                failures[result.name] = problem
        try:
            self._journal.add(lines)
        except CaptionerError as error:
            _stop_if_full(error)
            yield from ((result.name, str(error)) for result in results)
            return
        for writing, said in zip(writings, threads.map(_Writing.store, writings), strict=True):
            if said:
                failures.setdefault(writing.name, said)
        yield from failures.items()

    def _line(self, result: Result, writings: list[_Writing]) -> tuple[dict[str, Any], str]:
        """The journal line for a result and the reason of a failure; appends the writes it announces."""
        entry = self._journal.entry(result.name)
        line = {"picture": result.name, "job": self._job, "stamp": result.stamp}
        if "accepted" in entry and self._version(result.stamp).is_of(entry):
            line["accepted"] = entry["accepted"]  # see `origins.accept`
        notes = dict(entry.get("sidecars", {}))
        if isinstance(result.found, str):
            return {**line, "error": result.found, "sidecars": notes}, result.found
        problem = ""
        for kind in self.targets:
            try:
                notes[kind] = self._plan_write(kind, result, entry, writings)
            except CaptionerError as error:
                problem = problem or str(error)
        notes = {kind: note for kind, note in notes.items() if note}
        return {**line, "found": dict(result.found), "sidecars": notes}, problem

    def _plan_write(
        self, kind: str, result: Result, entry: Mapping[str, Any], writings: list[_Writing]
    ) -> dict[str, Any]:
        """Plans the write of one sidecar and returns the journal's note on it."""
        note = _note(entry, kind)
        assert not isinstance(result.found, str)
        target, version = self.targets[kind], self._version(result.stamp)
        existing = target.existing(result.name, note.get("name"))
        if existing.moves_from:
            target.move(existing)
            existing = existing._replace(moves_from=None)
            note = {**note, "name": existing.name}
        decision = version.decide(existing, note, entry.get("accepted", ""))
        if decision not in ("write", "renew"):
            return note
        caption = result.found["caption"]
        text = version.text(decision, existing, caption)
        content, after = target.compose(existing, text, result.found)
        writings.append(_Writing(result.name, target, existing, content, result.found))
        return {
            "name": existing.name,
            "job": self._job,
            "stamp": result.stamp,
            "before": None if existing.text is None else text_digest(existing.text),
            "after": text_digest(after),
            "ours": text == caption,
        }

    def _version(self, stamp: str) -> Version:
        return Version(self._job, stamp, self._if_exists)


def _note(entry: Mapping[str, Any], kind: str) -> dict[str, Any]:
    note: dict[str, Any] = entry.get("sidecars", {}).get(kind, {})
    return note


def text_digest(text: str) -> str:
    """The digest by which the journal recognizes a text."""
    return digest_bytes(text.encode("utf-8", "surrogatepass"))[:16]


def _stop_if_full(error: CaptionerError) -> None:
    cause = error.__cause__
    if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", None)):
        raise error
