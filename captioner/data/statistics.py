"""What a data set is like: sizes, lengths, vocabulary, and what is wrong with it.

In: the folder (or captions file) of a data set. Out: a `Summary`. Reads what `datasets` reads, no picture.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from captioner.config import DataConfig
from captioner.data.datasets import CaptionedImage, DataSet, Problems, Split, draw_splits, open_dataset
from captioner.data.listings import SPLITS
from captioner.errors import DataError

MIN_COUNTS = (1, 2, 3, 4, 5)


@dataclass(frozen=True)
class Summary:
    """A data set in figures.

    Vocabulary figures are of the training captions, or of all captions where there is no training split.
    """

    root: Path
    format: str  # row of DATASETS
    files: str  # captions files that were read, and those passed over for them
    splits: dict[str, int]  # pictures of each split that there is
    made: bool  # the splits were drawn from the seed
    pictures: int  # usable, in any split or none
    captions: int
    captions_per_picture: dict[int, int]  # captions → pictures that have so many
    words_per_caption: dict[int, int]  # words → captions that have so many
    growth: list[tuple[int, int]]  # after so many captions, so many different words
    coverage: dict[int, tuple[int, float]]  # min_count → words kept, share of running words that they are
    problems: Problems
    warnings: list[str]  # what a training with the default settings would suffer from
    records: tuple[CaptionedImage, ...] = field(repr=False)  # all usable pictures

    def lines(self) -> list[str]:
        """The summary for people."""
        origin = " (drawn from the seed)" if self.made else ""
        sizes = ", ".join(f"{name} {count:,}" for name, count in self.splits.items()) or "none"
        lines = [
            f"{self.root}: {self.format}, {self.pictures:,} pictures, {self.captions:,} captions",
            f"captions from {self.files}",
            f"splits{origin}: {sizes}",
            f"captions a picture: {_spread(Counter(self.captions_per_picture))}",
            f"words a caption: {_spread(Counter(self.words_per_caption))}",
            f"words after captions: {', '.join(f'{words:,} after {read:,}' for read, words in self.growth)}",
        ]
        for min_count, (size, share) in self.coverage.items():
            lines.append(f"min_count {min_count}: {size:,} words, {100 * share:.1f} % of what is written")
        return lines + self.problems.lines() + self.warnings


def summarize(root: str | Path, format: str = "auto", seed: int = 0) -> Summary:
    """Reads a whole data set, every split of it, and sums it up.

    Raises:
        DataError: no such set or format, or not one usable picture.
    """
    dataset = open_dataset(root, format=format)
    records = dataset.usable
    if not records:
        raise DataError(dataset.nothing_left("the set"))
    made = not dataset.listing.splits
    if made:
        members = draw_splits((record.id for record in records), seed=seed)
    else:
        members = {split: list(dataset.listing.splits.get(split, ())) for split in SPLITS}
        _note_split_problems(dataset, members)
    usable = {record.id: record for record in records}
    splits = {
        split: [usable[name] for name in members[split] if name in usable]
        for split in SPLITS
        if made or split in dataset.listing.splits
    }
    for name in dataset.pictures.uncaptioned(dataset.listing.captions):
        dataset.listing.problems.note("picture files without a caption", name)
    return _summary(dataset, records, splits, made)


def facts(roots: Sequence[str | Path], splits: Mapping[str, Split]) -> dict[str, Any]:
    """What a run remembers of the data it was trained on: their names, and for each split its size.

    Its place is left out: a run is given away, and points to nothing outside.
    """
    return {
        "name": " + ".join(Path(root).resolve().name for root in roots),
        "pictures": {name: len(split.records) for name, split in splits.items()},
        "captions": {name: sum(len(r.captions) for r in split.records) for name, split in splits.items()},
    }


def _note_split_problems(dataset: DataSet, members: dict[str, list[str]]) -> None:
    problems, captions = dataset.listing.problems, dataset.listing.captions
    split_of: dict[str, str] = {}
    for split, names in members.items():
        for name in names:
            if name not in captions:
                problems.note("listed pictures without a caption", f"{name} ({split})")
            if split_of.setdefault(name, split) != split:
                problems.note("pictures in two splits", f"{name} ({split_of[name]}, {split})")
    for name in captions:
        if name not in split_of:
            problems.note("captioned pictures in no split", name)


def training_warnings(
    train: Sequence[CaptionedImage], dev: Sequence[CaptionedImage], settings: DataConfig
) -> list[str]:
    """What would make a training with these settings worse than it could be, with example and remedy.

    Raises:
        DataError: no word occurs often enough to be learned.
    """
    _check_words(train, settings.min_count)
    lines = []
    longer = [
        (len(words), record.id, caption)
        for record in train
        for caption, words in zip(record.captions, record.words, strict=True)
        if len(words) > settings.max_words
    ]
    if longer:
        count, name, caption = longer[0]
        example = f"{name}, {count} words: {caption[:40]} …"
        lines.append(
            f"captions longer than data.max_words = {settings.max_words}: {len(longer)}, cut there "
            f"({example}); --set data.max_words={max(longer)[0]} takes them whole"
        )
    if len(dev) == 1:
        lines.append(
            "dev has one picture: CIDEr, which compares pictures with each other, is 0 there by definition; "
            "100 pictures and more tell epochs apart"
        )
    return lines


def _check_words(train: Sequence[CaptionedImage], min_count: int) -> None:
    counts = Counter(word for record in train for words in record.words for word in words)
    ((word, times),) = counts.most_common(1) or [("", 0)]
    if times < min_count:
        raise DataError(
            f"no word occurs data.min_count = {min_count} times in the training captions, so there is "
            f'nothing to learn (the most frequent, "{word}", occurs {times} times); '
            "--set data.min_count=1, or more captions"
        )


def _summary(
    dataset: DataSet, records: Sequence[CaptionedImage], splits: dict[str, list[CaptionedImage]], made: bool
) -> Summary:
    lengths = Counter(len(words) for record in records for words in record.words)
    per_picture = Counter(len(record.captions) for record in records)
    learned = splits.get("train") or records
    growth, counts = _growth([words for record in learned for words in record.words])
    try:
        warnings = training_warnings(learned, splits.get("dev", ()), DataConfig())
    except DataError as error:
        warnings = [str(error)]
    return Summary(
        root=dataset.root,
        format=dataset.format,
        files=dataset.files,
        splits={split: len(members) for split, members in splits.items()},
        made=made,
        pictures=len(records),
        captions=sum(lengths.values()),
        captions_per_picture=dict(sorted(per_picture.items())),
        words_per_caption=dict(sorted(lengths.items())),
        growth=growth,
        coverage={min_count: _coverage(counts, min_count) for min_count in MIN_COUNTS},
        problems=dataset.listing.problems,
        warnings=warnings,
        records=tuple(records),
    )


def _growth(captions: Sequence[Sequence[str]]) -> tuple[list[tuple[int, int]], Counter[str]]:
    """Different words after 1/8, 1/4, 1/2 and all of the captions, and how often each word occurs."""
    counts: Counter[str] = Counter()
    marks = {max(1, len(captions) * share // 8) for share in (1, 2, 4, 8)}
    growth = []
    for read, words in enumerate(captions, start=1):
        counts.update(words)
        if read in marks:
            growth.append((read, len(counts)))
    return growth, counts


def _coverage(counts: Counter[str], min_count: int) -> tuple[int, float]:
    kept = [count for count in counts.values() if count >= min_count]
    return len(kept), sum(kept) / max(1, counts.total())


def _spread(counts: Counter[int]) -> str:
    """Least, median, mean and most of a distribution."""
    values = sorted(counts.elements())
    mean = sum(values) / len(values)
    return f"{values[0]} to {values[-1]}, median {values[len(values) // 2]}, mean {mean:.1f}"
