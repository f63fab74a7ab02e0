"""Whose captions stand in a folder: people's, corrected ones, or those that captioner wrote, untouched.

In: a folder of pictures, its sidecars (txt, json, xmp), sheets and journals. Out: a `KnownCaption` a picture.
The journal holds what captioner wrote; where there is no journal, all captions are people's.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from captioner.apps.sidecars.csv_table import Table
from captioner.apps.sidecars.file_kinds import WRITERS, Sheet, Sidecar
from captioner.apps.sidecars.folder_state import text_digest
from captioner.apps.sidecars.journal import Journal, folder_lock
from captioner.apps.sidecars.out_tree import OutTree
from captioner.apps.sidecars.targets import (
    CsvRowTarget,
    ExistingCaption,
    Neighbours,
    SidecarTarget,
    Target,
    names_by_fold,
)
from captioner.data.image_files import Pictures, gather, is_picture_name
from captioner.errors import CaptionerError

ORIGINS = {  # the first that a picture has, in whatever file, counts
    "corrected": "captioner wrote it, a person changed it",
    "person": "a person or another program wrote it",
    "accepted": "captioner wrote it, a person found it right",
    "untouched": "captioner wrote it, nobody has changed it",
}


@dataclass(frozen=True)
class KnownCaption:
    """The caption of a picture and its origin."""

    picture: Path
    captions: tuple[str, ...]  # as they stand there now; without captioner's where a person's stand beside it
    origin: str  # one of ORIGINS
    file: Path  # where they stand: a sidecar, a sheet, the picture itself
    written: str = ""  # what captioner wrote for this picture; empty: nothing is known
    log_probability: float | None = None  # of that
    score: float | None = None  # of that: the mean log probability of a word


@dataclass
class FolderCaptions:
    """The captions of a folder."""

    known: list[KnownCaption] = field(default_factory=list)  # one a picture, in order of path
    without: list[Path] = field(default_factory=list)  # pictures that have no caption
    problems: list[tuple[str, str]] = field(default_factory=list)  # files that cannot be read, and why

    def of(self, *origins: str) -> list[KnownCaption]:
        """The captions of these origins."""
        return [each for each in self.known if each.origin in origins]

    @property
    def counts(self) -> dict[str, int]:
        """How many captions are of each origin."""
        counted = Counter(each.origin for each in self.known)
        return {origin: counted[origin] for origin in ORIGINS}


def captions_in(
    folder: Path, *, out: Path | None = None, recursive: bool = True, exclude: Sequence[str] = ()
) -> FolderCaptions:
    """The captions of the pictures in a folder, each with its origin.

    Args:
        folder: of the pictures.
        out: where the sidecars are, as given to `captioner caption --out`; None: beside the pictures.
        recursive: pictures in folders within the folder, too.
        exclude: patterns of names that are left out.

    Raises:
        CaptionerError: the folder holds no picture.
    """
    found = FolderCaptions()
    pictures = gather([folder], recursive=recursive, exclude=exclude)
    found.problems += pictures.problems
    for path, place, names in _places(pictures, out):
        journal = Journal(place)
        targets = _targets(path, place, names, out or folder, found.problems)
        for name in names:
            entry = journal.entry(name)
            best = None
            for kind, target, file in targets:
                note = entry.get("sidecars", {}).get(kind, {})
                try:
                    existing = target.existing(name, note.get("name"))
                except CaptionerError as error:
                    found.problems.append((str(path / name), str(error)))
                    continue
                best = _preferred(best, _known(path / name, existing, note, entry, file or place))
            if best is None:
                found.without.append(path / name)
            else:
                found.known.append(best)
    return found


def accept(folder: Path, pictures: Iterable[Path], *, out: Path | None = None) -> int:
    """Marks untouched captions as accepted by a person; returns how many were marked.

    Raises:
        RunError: another process is at work there.
        CaptionerError: the journal cannot be written.
    """
    wanted = {os.path.abspath(path) for path in pictures}
    gathered = gather([folder], recursive=True)
    untouched = {os.path.abspath(each.picture): each for each in captions_in(folder, out=out).of("untouched")}
    count = 0
    for path, place, names in _places(gathered, out):
        keys = {name: os.path.abspath(path / name) for name in names}
        mine = [name for name, key in keys.items() if key in wanted and key in untouched]
        if not mine:
            continue
        with folder_lock(place):
            journal = Journal(place)
            marks = {name: text_digest("\n".join(untouched[keys[name]].captions)) for name in mine}
            journal.add([{**journal.entry(name), "accepted": marks[name]} for name in mine])
        count += len(mine)
    return count


def _places(pictures: Pictures, out: Path | None) -> Iterator[tuple[Path, Path, list[str]]]:
    """Folders of pictures, the folders of their sidecars, the names of the pictures."""
    tree = None if out is None else OutTree(out, pictures)
    for path, names in sorted(pictures.folders.items()):
        yield path, path if tree is None else tree.sidecar_folder(path), names


def _targets(
    path: Path, place: Path, names: Collection[str], top: Path, problems: list[tuple[str, str]]
) -> list[tuple[str, Target, Path | None]]:
    """All files that may hold captions of these pictures: kind, target and, for sheets, the path."""
    neighbours = Neighbours({*names, *filter(is_picture_name, os.listdir(path) if path.is_dir() else ())})
    targets: list[tuple[str, Target, Path | None]] = []
    for kind, row in WRITERS.items():
        if isinstance(row, Sidecar):
            sidecars = SidecarTarget(
                row, path, neighbours, sidecar_folder=place, naming="short", for_reading=True
            )
            targets.append((kind, sidecars, None))
            continue
        for sheet in dict.fromkeys((place, top)):
            for file in _sheet_files(row, sheet):
                prefix = Path(os.path.relpath(os.path.abspath(place), os.path.abspath(sheet)))
                try:
                    targets.append((kind, CsvRowTarget(Table(file), prefix), file))
                except CaptionerError as error:
                    if (str(file), str(error)) not in problems:
                        problems.append((str(file), str(error)))
    return targets


def _sheet_files(row: Sheet, folder: Path) -> list[Path]:
    return [folder / name for name in names_by_fold(folder).get(row.file_name, ())[:1]]


def _known(
    picture: Path, existing: ExistingCaption, note: Mapping[str, Any], entry: Mapping[str, Any], place: Path
) -> KnownCaption | None:
    """The caption in one file and its origin; None if the file has none."""
    if existing.text is None:
        return None
    record = entry.get("found", {})
    written = str(record.get("caption", ""))
    lines = [line.strip() for line in existing.text.split("\n") if line.strip()]
    theirs = [line for line in lines if line != written]
    digest = text_digest(existing.text)
    if not theirs or (note and digest == note.get("after") and note.get("ours")):
        accepted = entry.get("accepted") == digest
        origin, captions = "accepted" if accepted else "untouched", lines
    else:
        mixed = note and not note.get("ours") and digest == note.get("after")
        before = note and digest == note.get("before")  # what we were to write never arrived
        changed = note and existing.there and not mixed and not before
        origin, captions = "corrected" if changed else "person", theirs
    file = place / existing.name if existing.there and place.is_dir() else place
    return KnownCaption(
        picture,
        tuple(captions),
        origin,
        file if existing.there else picture,
        written,
        record.get("log_probability"),
        record.get("score"),
    )


def _preferred(one: KnownCaption | None, other: KnownCaption | None) -> KnownCaption | None:
    """Chooses between the captions of one picture in two files; of two corrected ones the later wins."""
    if one is None or other is None:
        return one or other
    ranks = [list(ORIGINS).index(each.origin) for each in (one, other)]
    if ranks[0] != ranks[1]:
        return one if ranks[0] < ranks[1] else other
    return other if one.origin == "corrected" and _time(other.file) > _time(one.file) else one


def _time(path: Path) -> int:
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return 0
