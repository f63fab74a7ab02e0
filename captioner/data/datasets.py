"""Captioned pictures: strings and paths, nothing else.

In: the folder (or captions file) of a data set in any form of `formats.DATASETS`. Out: one split of it as
`CaptionedImage` records, with what was wrong counted and named. Reads captions files, split lists and folder
listings; opens no picture, writes nothing.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
import unicodedata
from bisect import bisect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from itertools import islice, zip_longest
from pathlib import Path
from typing import NamedTuple

from captioner.data.formats import DATASETS, header_of
from captioner.data.image_files import existing_form, is_foreign_folder, is_picture_name, missing_hint
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
from captioner.data.vocabulary import LANGUAGE_CODE, words_of
from captioner.errors import CaptionerError, DataError, MissingSplit, load_object, unknown_name

__all__ = [
    "DATASETS",
    "CaptionedImage",
    "DataFolder",
    "DataSet",
    "PictureFinder",
    "Problems",
    "Split",
    "draw_splits",
    "languages_of",
    "load_folders",
    "load_split",
    "load_splits",
    "open_dataset",
    "training_captions",
]

LONGEST_LINK = 1024  # bytes of a file that stands for a folder
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
    name = _split_name(split)
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
    names = [_split_name(split) for split in splits]
    dataset = open_dataset(root, *names, format=format)
    return {
        split: dataset.split(name, seed=seed, made=made) for split, name in zip(splits, names, strict=True)
    }


@dataclass(frozen=True)
class DataFolder:
    """A folder of captioned pictures as `--data` names it: `[LANGUAGE=]FOLDER[*TIMES]`.

    >>> DataFolder.of("de=flickr8k-de"), DataFolder.of("everyday*5").times
    (DataFolder(path='flickr8k-de', language='de', times=1), 5)
    """

    path: str
    language: str = ""  # of captions that tell none
    times: int = 1  # how often an epoch looks at its pictures

    @classmethod
    def of(cls, text: str | Path, language: str | None = None) -> DataFolder:
        """As typed; `language` is for folders that name none."""
        found = _DATA_FOLDER.fullmatch(str(text))
        own, path, times = found.groups() if found and not Path(text).exists() else (None, str(text), None)
        return cls(path, own or language or "", int(times or 1))


_DATA_FOLDER = re.compile(rf"(?:({LANGUAGE_CODE.pattern})=)?(.*?)(?:\*([1-9]\d?))?", re.DOTALL)


def load_folders(
    folders: Sequence[DataFolder],
    splits: Sequence[str],
    *,
    format: str = "auto",
    seed: int = 0,
    made: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, Split]:
    """Splits of several folders together; a picture that stands in several has the captions of all.

    Two files are the same picture where their resolved paths are. Folders that have splits, but not the one
    that is read, are passed over. Arguments as in `load_splits`.

    Raises:
        DataError: as `load_splits`; some captions carry a language and others none.
    """
    named = [_split_name(split) for split in splits]
    opened = [(folder, open_dataset(folder.path, *named, format=format)) for folder in folders]
    found = {}
    for split in splits:
        parts: list[tuple[DataFolder, Split]] = []
        lacking: MissingSplit | None = None
        for folder, dataset in opened:
            try:
                parts.append((folder, dataset.split(_split_name(split), seed=seed, made=made)))
            except MissingSplit as error:
                lacking = error
        if lacking is not None and not parts:
            raise lacking
        found[split] = _merged(parts)
    return found


def _merged(parts: Sequence[tuple[DataFolder, Split]]) -> Split:
    if len(parts) == 1 and not parts[0][0].language and parts[0][0].times == 1:
        _check_languages(parts[0][1].records)
        return parts[0][1]
    pictures: dict[Path, CaptionedImage] = {}
    names: set[str] = set()
    problems = Problems()
    made: dict[str, list[str]] | None = None
    for folder, part in parts:
        problems.add(part.problems)
        if part.made:
            made = {name: [*(made or {}).get(name, ()), *part.made[name]] for name in part.made}
        for record in part.records:
            path = record.path.resolve()
            told = record.languages or ("",) * len(record.captions)
            languages = tuple(language or folder.language for language in told)
            known = pictures.get(path)
            if known is not None:
                pictures[path] = dataclasses.replace(
                    known,
                    captions=known.captions + record.captions,
                    languages=known.languages + languages,
                    times=max(known.times, folder.times),
                )
                continue
            name = record.id if record.id not in names else f"{Path(folder.path).name}/{record.id}"
            names.add(name)
            pictures[path] = CaptionedImage(name, record.path, record.captions, languages, folder.times)
    records = tuple(
        record if any(record.languages) else dataclasses.replace(record, languages=())
        for record in pictures.values()
    )
    _check_languages(records)
    files = " and ".join(dict.fromkeys(part.files for _, part in parts))
    return Split(parts[0][1].name, records, problems, made, files=files)


def languages_of(records: Iterable[CaptionedImage]) -> tuple[str, ...]:
    """The languages of captions, in the order in which they are first met."""
    return tuple(dict.fromkeys(language for record in records for language in record.languages if language))


def _check_languages(records: Sequence[CaptionedImage]) -> None:
    if not languages_of(records):
        return
    for record in records:
        if not record.languages or "" in record.languages:
            raise DataError(
                f"{record.path}: has a caption without a language, while others carry one; name it in a "
                "column `language`, or before the folder: --data en=FOLDER"
            )


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


def _split_name(split: str) -> str:
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
            elif _composed(path.name) != _composed(os.path.basename(name)):
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
        """What captioner wrote in the folder of pictures, and in that of a name below the captions files."""
        read = cache(lambda folder: written_in(Path(folder)))

        @cache
        def journals(inner: str, folder: str) -> list[dict[str, frozenset[str]]]:
            below = [source.path.parent / inner for source in self.sources if source.path != self.root]
            folders = dict.fromkeys([*([folder] if folder else []), *map(os.fspath, below)])
            return [found for found in map(read, folders) if found]

        return journals


_LETTER = re.compile(r"[^\W_]")


class PictureFinder:
    """Where a data set's pictures are: one listing a folder, not one question a picture.

    Looks in `folders`, then in their sub-folders with a customary name (and in those of these). If a set has
    no picture there at all, every sub-folder counts, but for those of other programs. Names are found in any
    Unicode form, and in another case where that leads to one file only.
    """

    def __init__(self, folders: Sequence[Path], names: Iterable[str]) -> None:
        self._listings: dict[str, _Names] = {}
        self._found: dict[str, Path | None] = {}
        self.unlisted: dict[str, str] = {}  # folders that are there and cannot be listed, and why
        self.folders = [os.fspath(folder) for folder in folders]
        near = [inner for folder in self.folders for inner in self._customary(folder)]
        self.folders += [*near, *(inner for folder in near for inner in self._customary(folder))]
        if not any(map(self._find, islice(names, 1000))):
            self.folders += [inner for folder in self.folders for inner in self._below(folder)]

    def find(self, name: str) -> Path | None:
        """The path of the picture with this name in the data set."""
        if name not in self._found:
            self._found[name] = self._find(name)
        return self._found[name]

    def uncaptioned(self, captioned: Iterable[str]) -> list[str]:
        """Pictures in the folders in use that no caption names, in order of name."""
        known = {_composed(os.path.basename(self.find(name) or name)) for name in captioned}
        in_use = {
            name for folder in self.folders for name in self._listing(folder).exact if is_picture_name(name)
        }
        return sorted(in_use - known)

    def _find(self, name: str) -> Path | None:
        inner, base = os.path.split(name)
        base = _composed(base)
        near = [self._listing(os.path.join(folder, inner) if inner else folder) for folder in self.folders]
        for listing in near:
            if base in listing.exact:
                return Path(listing.folder, listing.exact[base])
        folded = base.casefold()
        for listing in near:
            if len(listing.folded.get(folded, ())) == 1:
                return Path(listing.folder, listing.folded[folded][0])
        return None

    def _listing(self, folder: str) -> _Names:
        if folder not in self._listings:
            there = os.fspath(existing_form(Path(_linked(folder))))
            exact: dict[str, str] = {}
            folded: dict[str, list[str]] = {}
            for name in self._names(there):
                # Composed: macOS stores names like "사진.jpg" decomposed.
                exact[_composed(name)] = name
                folded.setdefault(_composed(name).casefold(), []).append(name)
            self._listings[folder] = _Names(there, exact, folded)
        return self._listings[folder]

    def _names(self, folder: str) -> list[str]:
        try:
            return os.listdir(folder)
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return []
        except OSError as error:
            if os.path.dirname(folder) not in self.unlisted:
                self.unlisted[folder] = error.strerror or str(error)
            return []

    def _below(self, folder: str) -> list[str]:
        names = (name for name in sorted(self._listing(folder).exact.values()) if "." not in name)
        inner = (os.path.join(folder, name) for name in names if not is_foreign_folder(folder, name))
        return [path for path in inner if os.path.isdir(path) and path not in self.folders]

    def _customary(self, folder: str) -> list[str]:
        return [path for path in self._below(folder) if os.path.basename(path).lower() in _PICTURE_FOLDERS]


class _Names(NamedTuple):
    """What is in a folder: names by their composed form, and by that in lower case."""

    folder: str  # as it is on the disk
    exact: dict[str, str]
    folded: dict[str, list[str]]


def _composed(name: str) -> str:
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def _linked(folder: str) -> str:
    """The folder; or the one that a file in its place names, as git leaves a link where there are none."""
    if os.path.isdir(folder) or not os.path.isfile(folder) or os.path.getsize(folder) > LONGEST_LINK:
        return folder
    try:
        text = Path(folder).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return folder
    target = os.path.join(os.path.dirname(folder), text.strip())
    return os.path.normpath(target) if os.path.isdir(target) else folder


_PICTURE_FOLDERS = frozenset(
    ("images", "image", "img", "pictures", "photos")
    + ("flicker8k_dataset", "flickr8k_dataset", "flickr8k")
    + ("flickr30k_images", "flickr30k-images", "flickr30k")
    + ("train2014", "val2014", "test2014", "train2017", "val2017", "test2017")
)


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
