"""Captioned pictures: strings and paths, nothing else.

In: the folder (or captions file) of a data set in any form of `formats.DATASETS`. Out: one split of it as
`CaptionedImage` records, with what was wrong counted and named. Reads captions files, split lists and folder
listings; opens no picture, writes nothing.
"""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from bisect import bisect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from captioner.data.formats import DATASETS
from captioner.data.image_files import is_picture_name
from captioner.data.listings import SPLIT_NAMES, SPLITS, CaptionsFile, Listing, Problems, Reader, named_split
from captioner.data.vocabulary import words_of
from captioner.errors import CaptionerError, DataError, load_object, unknown_name

__all__ = [
    "DATASETS",
    "CaptionedImage",
    "DataSet",
    "PictureFinder",
    "Problems",
    "Split",
    "draw_splits",
    "load_split",
    "open_dataset",
    "training_captions",
]

DEV_SHARE, TEST_SHARE = 0.1, 0.1  # of a set that has no split of its own


@dataclass(frozen=True)
class CaptionedImage:
    """One picture and what people said of it. `id` is its name in the data set."""

    id: str
    path: Path
    captions: tuple[str, ...]


@dataclass(frozen=True)
class Split:
    """One split. `made` lists the ids of every split if they were drawn from the seed, else it is None."""

    name: str
    records: tuple[CaptionedImage, ...]
    problems: Problems
    made: dict[str, list[str]] | None


def load_split(
    root: str | Path,
    split: str,
    *,
    format: str = "auto",
    seed: int = 0,
    made: Mapping[str, Sequence[str]] | None = None,
) -> Split:
    """The pictures of one split that are there and have a caption.

    A set without splits of its own gets them from the seed, a tenth dev, a tenth test; a picture keeps its
    split when others are added. `made`, the splits of an earlier call, is kept to where it names a picture.

    Args:
        root: folder of the data set, or its captions file.
        split: train, dev, test or all.
        format: a row of DATASETS, `package.module:name` of a Reader, or auto.

    Raises:
        DataError: no such set, format or split, or not one usable picture.
    """
    name = "all" if split == "all" else SPLIT_NAMES.get(split)
    if name is None:
        raise DataError(unknown_name("split", split, (*SPLITS, "all")))
    dataset = open_dataset(root, name, format=format)
    listing = dataset.listing
    drawn: dict[str, list[str]] | None = None
    if name == "all":
        records = dataset.records(listing.captions)
    elif listing.splits:
        if name not in listing.splits:
            has = ", ".join(known for known in SPLITS if known in listing.splits)
            hint = dataset.reader.split_hint
            raise DataError(f"{root}: no {name} split: the set has {has}; {name} would be told by {hint}")
        records = dataset.records(listing.splits[name])
    else:
        everything = dataset.records(listing.captions)
        drawn = draw_splits((record.id for record in everything), seed=seed, pinned=made)
        if 0 < len(everything) < 3 and not drawn[name]:
            raise DataError(
                f"{root}: has no splits of its own, and too few usable pictures to draw some: "
                f"{len(everything)}, at least 3 are needed"
            )
        members = set(drawn[name])
        records = [record for record in everything if record.id in members]
    if not records:
        raise DataError(dataset.nothing_left(name))
    return Split(name, tuple(records), listing.problems, drawn)


def open_dataset(root: str | Path, split: str = "all", *, format: str = "auto") -> DataSet:
    """Finds the captions files of a data set and reads what concerns `split`."""
    root = Path(root)
    if not root.exists():
        raise DataError(f"{root}: no such folder or file; a data set's folder was expected")
    try:
        name, sources = _recognise(root, format)
    except OSError as error:
        raise DataError(f"{error.filename or root}: cannot read it ({error.strerror})") from error
    reader = _reader(name)
    listing = reader.read(sources, split)
    return DataSet(root, name, reader, listing, PictureFinder(listing.folders, listing.captions))


def training_captions(
    data: str | Path, *, format: str = "auto", made: Mapping[str, Sequence[str]] | None = None
) -> list[str]:
    """The captions of the training split of a data set, with or without its pictures; [] where none is known.

    Args:
        data: folder of the data set.
        format: of the data set.
        made: the splits that the training drew, where the set has none of its own.
    """
    try:
        listing = open_dataset(data, "train", format=format).listing
    except CaptionerError:  # a folder that holds one split only is none the worse for it
        return []
    names = listing.splits.get("train") or (made or {}).get("train", ())
    return [caption for name in names for caption in listing.captions.get(name, ())]


def draw_splits(
    ids: Iterable[str], *, seed: int, pinned: Mapping[str, Sequence[str]] | None = None
) -> dict[str, list[str]]:
    """Splits by a hash of (seed, id), so that adding pictures moves none of those already there.

    Ids that `pinned` names stay in the split it names. From three pictures on no split is empty: a set too
    small for its shares gives dev and test the pictures whose hash is nearest.
    """
    fixed = {picture: split for split, names in (pinned or {}).items() for picture in names}
    ids = list(ids)
    free = sorted((_hash_share(seed, picture), picture) for picture in ids if picture not in fixed)
    shares = [share for share, _ in free]
    tests = bisect(shares, TEST_SHARE)
    devs = bisect(shares, TEST_SHARE + DEV_SHARE) - tests
    if not fixed and len(free) >= 3:
        tests = min(max(tests, 1), len(free) - 2)
        devs = min(max(devs, 1), len(free) - 1 - tests)
    drawn = dict.fromkeys((picture for _, picture in free), "train")
    drawn.update((picture, "test") for _, picture in free[:tests])
    drawn.update((picture, "dev") for _, picture in free[tests : tests + devs])
    drawn.update(fixed)
    splits: dict[str, list[str]] = {split: [] for split in SPLITS}
    for picture in ids:
        splits[drawn[picture]].append(picture)
    return splits


def _hash_share(seed: int, picture: str) -> float:
    digest = hashlib.blake2b(f"{seed} {picture}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


@dataclass(frozen=True)
class DataSet:
    """An opened data set: which format, what its files say, and where its pictures are looked for."""

    root: Path
    format: str
    reader: Reader
    listing: Listing
    pictures: PictureFinder

    def records(self, names: Iterable[str]) -> list[CaptionedImage]:
        """The named pictures that exist and have a caption; notes the others among the problems."""
        note = self.listing.problems.note
        records = []
        for name in names:
            captions = self._captions(name)
            path = self.pictures.find(name)
            if path is None:
                note("missing pictures", name)
            if not captions:
                note("pictures without a caption", name)
            if path is not None and captions:
                records.append(CaptionedImage(name, path, captions))
        return records

    def nothing_left(self, split: str) -> str:
        """The sentence for a split without one usable picture."""
        problems = "".join(f"\n  {line}" for line in self.listing.problems.lines())
        looked = ", ".join(self.pictures.folders[:6])
        what = f"no usable picture in {split} ({self.format} form)"
        return f"{self.root}: {what}{problems}\n  looked in {looked}"

    def _captions(self, name: str) -> tuple[str, ...]:
        note = self.listing.problems.note
        captions = []
        for caption in self.listing.captions.get(name, ()):
            caption = " ".join(caption.split())
            if not _LETTER.search(caption) and not words_of(caption):
                note("empty captions", name)
                continue
            if caption in captions:  # kept: published scores count it, too
                note("captions twice at one picture", f"{name}: {caption[:40]}")
            captions.append(caption)
        return tuple(captions)


_LETTER = re.compile(r"[^\W_]")


class PictureFinder:
    """Where a data set's pictures are: one listing a folder, not one question a picture.

    Looks in `folders`, then in their sub-folders with a customary name (and in those of these). If a set has
    no picture there at all, every sub-folder counts.
    """

    def __init__(self, folders: Sequence[Path], names: Iterable[str]) -> None:
        self._listings: dict[str, dict[str, str]] = {}
        self.folders = [os.fspath(folder) for folder in folders]
        near = [inner for folder in self.folders for inner in self._customary(folder)]
        self.folders += [*near, *(inner for folder in near for inner in self._customary(folder))]
        if not any(map(self.find, islice(names, 1000))):
            self.folders += [inner for folder in self.folders for inner in self._below(folder)]

    def find(self, name: str) -> Path | None:
        """The path of the picture with this name in the data set."""
        inner, base = os.path.split(name)
        for folder in self.folders:
            folder = os.path.join(folder, inner) if inner else folder
            # Composed form: macOS stores names like "사진.jpg" decomposed.
            found = self._listing(folder).get(unicodedata.normalize("NFC", base))
            if found is not None:
                return Path(folder, found)
        return None

    def uncaptioned(self, captioned: Iterable[str]) -> list[str]:
        """Pictures in the folders in use that no caption names, in order of name."""
        known = {unicodedata.normalize("NFC", os.path.basename(name)) for name in captioned}
        in_use = {name for folder in self.folders for name in self._listing(folder) if is_picture_name(name)}
        return sorted(in_use - known)

    def _listing(self, folder: str) -> dict[str, str]:
        if folder not in self._listings:
            try:
                names = os.listdir(folder)
            except OSError:
                names = []
            self._listings[folder] = {unicodedata.normalize("NFC", name): name for name in names}
        return self._listings[folder]

    def _below(self, folder: str) -> list[str]:
        inner = (os.path.join(folder, name) for name in sorted(self._listing(folder)) if "." not in name)
        return [path for path in inner if os.path.isdir(path) and path not in self.folders]

    def _customary(self, folder: str) -> list[str]:
        return [path for path in self._below(folder) if os.path.basename(path).lower() in _PICTURE_FOLDERS]


_PICTURE_FOLDERS = frozenset(
    ("images", "image", "img", "pictures", "photos")
    + ("flicker8k_dataset", "flickr8k_dataset", "flickr8k")
    + ("flickr30k_images", "flickr30k-images", "flickr30k")
    + ("train2014", "val2014", "test2014", "train2017", "val2017", "test2017")
)


def _recognise(root: Path, format: str) -> tuple[str, list[CaptionsFile]]:
    """The format's name and its captions files."""
    if root.is_file():
        return (format if format != "auto" else _format_of_file(root)), [
            CaptionsFile(root, named_split(root))
        ]
    names = list(DATASETS) if format == "auto" else [format]
    for name in names:
        sources = _reader(name).find(root)
        if sources:
            return name, sources
    readers = {_reader(name).looks_for: name for name in reversed(names)}
    looked_for = "\n".join(f"  {name}: {form}" for form, name in reversed(readers.items()))
    there = sorted(os.listdir(root))
    shown = ", ".join(there[:8]) + (", …" if len(there) > 8 else "") if there else "nothing"
    raise DataError(
        f"{root}: no captions found; there is {shown}; looked for\n{looked_for}\n"
        "  give the captions file itself, or name its form with --format"
    )


def _format_of_file(file: Path) -> str:
    suffix = file.suffix.lower()
    if suffix == ".json":
        return "coco" if b'"annotations"' in file.read_bytes() else "karpathy"
    return {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl"}.get(suffix, "flickr8k")


def _reader(name: str) -> Reader:
    if ":" in name:
        reader: Reader = load_object(name, "data set format")
        return reader
    if name not in DATASETS:
        raise DataError(unknown_name("data set format", name, (*DATASETS, "auto")))
    return DATASETS[name]
