"""Captioned pictures: strings and paths, nothing else.

In: the folder (or captions file) of a data set in any form of `formats.DATASETS`. Out: one split of it as
`CaptionedImage` records, with what was wrong counted and named. Reads captions files, split lists and folder
listings; opens no picture, writes nothing.
"""

from __future__ import annotations

import hashlib
import os
import re
from bisect import bisect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from itertools import zip_longest
from pathlib import Path

from captioner.data.formats import DATASETS, header_of
from captioner.data.image_files import missing_hint
from captioner.data.listings import (
    SPLIT_NAMES,
    SPLITS,
    CaptionsFile,
    Listing,
    Problems,
    Reader,
    head_of,
    named_split,
    plain_name,
)
from captioner.data.own_captions import written_in
from captioner.data.picture_finder import PictureFinder, composed
from captioner.data.vocabulary import words_of
from captioner.errors import CaptionerError, DataError, MissingSplit, load_object, unknown_name

__all__ = [
    "DATASETS",
    "CaptionedImage",
    "DataSet",
    "Problems",
    "Split",
    "draw_splits",
    "languages_of",
    "load_split",
    "load_splits",
    "open_dataset",
    "training_captions",
]

DEV_SHARE, TEST_SHARE = 0.1, 0.1  # of a set that has no split of its own


@dataclass(frozen=True)
class CaptionedImage:
    """One picture and what people said of it. `id` is its name in the data set.

    `languages` says in what language each caption is, such as en; it is empty where the set does not tell.
    `times` is how often an epoch of training looks at the picture.
    """

    id: str
    path: Path
    captions: tuple[str, ...]
    languages: tuple[str, ...] = ()
    times: int = 1

    def in_language(self, language: str | None) -> tuple[str, ...]:
        """Its captions in a language; all of them where no language is asked for or told.

        >>> picture = CaptionedImage("1", Path("1.jpg"), ("a dog", "ein Hund"), ("en", "de"))
        >>> picture.in_language("de"), len(picture.in_language(None))
        (('ein Hund',), 2)
        """
        if not self.languages or not language:
            return self.captions
        both = zip(self.captions, self.languages, strict=True)
        return tuple(caption for caption, own in both if own == language)

    @cached_property
    def words(self) -> tuple[tuple[str, ...], ...]:
        """The words of each caption, cut once for all who need them."""
        return tuple(tuple(words_of(caption)) for caption in self.captions)


@dataclass(frozen=True)
class Split:
    """One split. `made` lists the ids of every split if they were drawn from the seed, else it is None."""

    name: str
    records: tuple[CaptionedImage, ...]
    problems: Problems
    made: dict[str, list[str]] | None
    files: str = ""  # captions files that were read, and those passed over for them
    numbers: Mapping[str, str] = field(default_factory=dict)  # number -> id, if the set numbers its pictures


def load_split(
    root: str | Path,
    split: str,
    *,
    format: str = "auto",
    seed: int = 0,
    made: Mapping[str, Sequence[str]] | None = None,
    pictures: bool = True,
) -> Split:
    """The pictures of one split that are there and have a caption.

    A set without splits of its own gets them from the seed, a tenth dev, a tenth test; a picture keeps its
    split when others are added. `made`, the splits of an earlier call, is kept to where it names a picture.

    Args:
        root: folder of the data set, or its captions file.
        split: train, dev, test or all.
        format: a row of DATASETS, `package.module:name` of a Reader, or auto.
        pictures: False also takes pictures whose file is not there, where captions are all that is needed.

    Raises:
        DataError: no such set, format or split, or not one usable picture.
    """
    name = split_name(split)
    return open_dataset(root, name, format=format, pictures=pictures).split(name, seed=seed, made=made)


def load_splits(
    root: str | Path,
    splits: Sequence[str],
    *,
    format: str = "auto",
    seed: int = 0,
    made: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, Split]:
    """Several splits of a data set, as `load_split` gives them; its files are read once."""
    names = [split_name(split) for split in splits]
    dataset = open_dataset(root, *names, format=format)
    return {
        split: dataset.split(name, seed=seed, made=made) for split, name in zip(splits, names, strict=True)
    }


def languages_of(records: Iterable[CaptionedImage]) -> tuple[str, ...]:
    """The languages of captions, in the order in which they are first met."""
    return tuple(dict.fromkeys(language for record in records for language in record.languages if language))


def open_dataset(root: str | Path, *splits: str, format: str = "auto", pictures: bool = True) -> DataSet:
    """Finds the captions files of a data set and reads what concerns `splits`; none named: all of it."""
    root = Path(root)
    if not root.exists():
        raise DataError(
            f"{root}: no such folder or file{missing_hint(root)}; a data set's folder was expected"
        )
    try:
        name, sources = _recognize(root, format)
    except OSError as error:
        raise DataError(f"{error.filename or root}: cannot read it ({error.strerror})") from error
    reader = _reader(name)
    listing = reader.read(sources, *(splits or ("all",)))
    finder = PictureFinder(listing.folders, listing.captions)
    dataset = DataSet(root, name, reader, sources, listing, finder, pictures)
    dataset.unite_names()
    kind = "folders that cannot be listed"
    told = listing.problems.names.get(kind, ())
    for line in [f"{folder}: {reason}" for folder, reason in finder.unlisted.items()]:
        if line not in told:
            listing.problems.note(kind, line)
    return dataset


def split_name(split: str) -> str:
    """The name under which a split is known here: dev for val, say.

    Raises:
        DataError: no split is called so.
    """
    name = "all" if split == "all" else SPLIT_NAMES.get(split)
    if name is None:
        raise DataError(unknown_name("split", split, (*SPLITS, "all")))
    return name


def training_captions(
    data: str | Path,
    *,
    format: str = "auto",
    made: Mapping[str, Sequence[str]] | None = None,
    language: str = "",
) -> list[str]:
    """The captions of the training split of a data set, with or without its pictures; [] where none is known.

    Args:
        data: folder of the data set.
        format: of the data set.
        made: the splits that the training drew, where the set has none of its own.
        language: only captions in this one, where captions carry languages.
    """
    try:
        listing = open_dataset(data, "train", format=format).listing
    except CaptionerError:  # a folder that holds one split only is none the worse for it
        return []
    names = listing.splits.get("train") or map(plain_name, (made or {}).get("train", ()))
    return [
        caption
        for name in names
        for caption, own in zip_longest(
            listing.captions.get(name, ()), listing.languages.get(name, ()), fillvalue=""
        )
        if not (language and own) or own == language
    ]


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
    """An opened data set: which form, what its files say, and where its pictures are looked for."""

    root: Path
    format: str
    reader: Reader
    sources: Sequence[CaptionsFile]
    listing: Listing
    pictures: PictureFinder
    needs_pictures: bool = True  # False: captions are all that is needed, and a file may be missing

    @cached_property
    def files(self) -> str:
        """Which captions files were read, and which were passed over for them."""
        if self.sources[0].path == self.root:
            return str(self.root)
        read = [os.path.relpath(source.path, self.root) for source in self.sources]
        beside = dict.fromkeys(name for source in self.sources for name in source.beside)
        for reader in dict.fromkeys(DATASETS.values()):
            found = [source.path for source in reader.find(self.root) if source.certain]
            others = [os.path.relpath(path, self.root) for path in found]
            beside.update(dict.fromkeys(name for name in others if name not in read and name != "."))
        return ", ".join(read) + (f"; not read: {', '.join(beside)}" if beside else "")

    def split(self, name: str, *, seed: int = 0, made: Mapping[str, Sequence[str]] | None = None) -> Split:
        """One of train, dev, test, all; see `load_split`."""
        listing, drawn = self.listing, None
        if name == "all":
            records = list(self.usable)
        elif listing.splits:
            if name not in listing.splits:
                has = ", ".join(known for known in SPLITS if known in listing.splits)
                hint = self.reader.split_hint
                told = f"no {name} split: the set has {has}; {name} would be told by {hint}"
                raise MissingSplit(f"{self.root}: {told}")
            records = self.records(listing.splits[name])
        else:
            pinned = {split: list(map(plain_name, ids)) for split, ids in (made or {}).items()}
            drawn = draw_splits((record.id for record in self.usable), seed=seed, pinned=pinned)
            if 0 < len(self.usable) < 3 and not drawn[name]:
                raise DataError(
                    f"{self.root}: has no splits of its own, and too few usable pictures to draw some: "
                    f"{len(self.usable)}, at least 3 are needed"
                )
            members = set(drawn[name])
            records = [record for record in self.usable if record.id in members]
        if not records:
            raise DataError(self.nothing_left(name))
        return Split(name, tuple(records), listing.problems, drawn, self.files, listing.numbers)

    @cached_property
    def usable(self) -> tuple[CaptionedImage, ...]:
        """All pictures that exist and have a caption."""
        return tuple(self.records(self.listing.captions))

    def records(self, names: Iterable[str]) -> list[CaptionedImage]:
        """The named pictures that exist and have a caption; notes the others among the problems."""
        note = self.listing.problems.note
        records = []
        for name in names:
            path = self.pictures.find(name)
            captions, languages = self._captions(name, path)
            if path is None:
                note("missing pictures", name)
                path = None if self.needs_pictures else Path(name)
            elif composed(path.name) != composed(os.path.basename(name)):
                note("picture names in another case", f"{name}: {path.name}")
            if not captions:
                note("pictures without a caption", name)
            if path is not None and captions:
                records.append(CaptionedImage(name, path, captions, languages))
        return records

    def unite_names(self) -> None:
        """Makes one picture of several names that lead to the same file."""
        listing, first_name = self.listing, dict[str, str]()
        for name in list(listing.captions):
            path = self.pictures.find(name)
            first = first_name.setdefault(os.path.abspath(path), name) if path else name
            if first != name:
                listing.captions[first] += listing.captions.pop(name)
                listing.languages.setdefault(first, []).extend(listing.languages.pop(name, ()))
                listing.scored.setdefault(first, set()).update(listing.scored.pop(name, ()))
                listing.problems.note("pictures under two names", f"{name}: {first}")
                for members in listing.splits.values():
                    if name in members:
                        del members[name]
                        members[first] = None

    def nothing_left(self, split: str) -> str:
        """The sentence for a split without one usable picture."""
        problems = "".join(f"\n  {line}" for line in self.listing.problems.lines())
        looked = ", ".join(self.pictures.folders[:6])
        what = f"no usable picture in {split} ({self.format} form)"
        return f"{self.root}: {what}{problems}\n  looked in {looked}"

    def _captions(self, name: str, path: Path | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
        note = self.listing.problems.note
        captions: list[str] = []
        languages: list[str] = []
        ours = self._written_by_captioner(name, path)
        told = self.listing.languages.get(name, ())
        for caption, language in zip_longest(self.listing.captions.get(name, ()), told, fillvalue=""):
            caption = " ".join(caption.split())
            if not _LETTER.search(caption) and not words_of(caption):
                note("empty captions", name)
                continue
            if caption in ours:
                note("captions that captioner wrote", f"{name}: {caption[:40]}")
                continue
            if caption in captions:  # kept: published scores count it, too
                note("captions twice at one picture", f"{name}: {caption[:40]}")
            captions.append(caption)
            languages.append(language)
        return tuple(captions), tuple(languages) if any(languages) else ()

    def _written_by_captioner(self, name: str, path: Path | None) -> frozenset[str]:
        """What captioner wrote: by journals beside the picture or the captions file, else by its score."""
        inner, base = os.path.split(name)
        journals = self._journals(inner, os.path.dirname(path) if path else "")
        known = [journal[base] for journal in journals if base in journal]
        return frozenset().union(*known) if known else frozenset(self.listing.scored.get(name, ()))

    @cached_property
    def _journals(self) -> Callable[[str, str], list[dict[str, frozenset[str]]]]:
        """What captioner wrote, by the journals in a folder of pictures and below the captions files."""
        read = cache(lambda folder: written_in(Path(folder)))

        @cache
        def journals(inner: str, folder: str) -> list[dict[str, frozenset[str]]]:
            below = [source.path.parent / inner for source in self.sources if source.path != self.root]
            folders = dict.fromkeys([*([folder] if folder else []), *map(os.fspath, below)])
            return [found for found in map(read, folders) if found]

        return journals


_LETTER = re.compile(r"[^\W_]")


def _recognize(root: Path, format: str) -> tuple[str, list[CaptionsFile]]:
    """The form's name and its captions files."""
    if root.is_file():
        name = format if format != "auto" else _form_of_file(root)
        return name, [CaptionsFile(root, named_split(root))]
    names = list(DATASETS) if format == "auto" else [format]
    by_name_only = None
    for name in names:
        sources = _reader(name).find(root)
        if sources and sources[0].certain:
            return name, sources
        by_name_only = by_name_only or (sources and (name, sources))
    if by_name_only:
        return by_name_only
    readers = {_reader(name).looks_for: name for name in reversed(names)}
    looked_for = "\n".join(f"  {name}: {form}" for form, name in reversed(readers.items()))
    there = sorted(os.listdir(root))
    shown = ", ".join(there[:8]) + (", …" if len(there) > 8 else "") if there else "nothing"
    raise DataError(
        f"{root}: no captions found; there is {shown}; looked for\n{looked_for}\n"
        f"  give the captions file itself, or name its form with --format{_unread(there)}"
    )


def _unread(names: Sequence[str]) -> str:
    """What to say of files that hold captions in a way that is not read."""
    hints = {
        (".parquet", ".arrow"): "export its rows with their pictures first: metadata.jsonl and image files",
        (".zip", ".tar", ".gz", ".tgz", ".7z", ".rar"): "unpack it first",
        (".xlsx", ".ods", ".xls"): "save it as CSV first",
    }
    found = [
        f"{name}: {hint}"
        for suffixes, hint in hints.items()
        for name in [name for name in names if name.lower().endswith(suffixes)][:1]
    ]
    return "".join(f"\n  {line}" for line in found)


def _form_of_file(file: Path) -> str:
    """The form of a captions file, by what is in it."""
    head = head_of(file)
    suffix = file.suffix.lower()
    if suffix == ".json":
        return "coco" if b'"annotations"' in file.read_bytes() else "karpathy"
    if suffix == ".jsonl" or head.lstrip().startswith("{"):
        return "jsonl"
    return "csv" if suffix in (".csv", ".tsv") or header_of(file) else "flickr8k"


def _reader(name: str) -> Reader:
    if ":" in name:
        reader = load_object(name, "data set format")
        if not isinstance(reader, Reader):
            found = type(reader).__name__
            raise DataError(f'data set format "{name}": expected a Reader, found {found}; docs/extending.md')
        return reader
    if name not in DATASETS:
        raise DataError(unknown_name("data set format", name, (*DATASETS, "auto")))
    return DATASETS[name]
