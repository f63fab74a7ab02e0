"""What people wrote in a folder, told from what captioner wrote: for `captioner adapt` and `review`.

In: a folder, in whatever form its captions are. Out: records of pictures with people's captions, and the
other pictures. The journal of `captioner caption --write` tells them apart; where there is none, all captions
are people's.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random

from captioner.apps.sidecars.journal import JOURNAL
from captioner.apps.sidecars.origins import FolderCaptions, KnownCaption, captions_in
from captioner.data.datasets import CaptionedImage, Problems, Split, open_dataset
from captioner.errors import DataError

LEARNED = ("corrected", "person", "accepted")  # rows of origins.ORIGINS: what a person stands for
PAIRS = "pairs"  # row of formats.DATASETS: captions beside the pictures


@dataclass
class Corrections:
    """What a folder has to teach."""

    records: list[CaptionedImage]  # with people's captions
    uncorrected: list[CaptionedImage] = field(default_factory=list)  # without
    problems: Problems = field(default_factory=Problems)
    kept: list[str] | None = None  # ids of the part to judge by, if the data set has one
    untouched: int = 0  # captions of captioner's that nobody has changed

    def in_language(self, language: str | None) -> list[CaptionedImage]:
        """The records; captions that carry no language are in this one."""
        return [
            replace(record, languages=(language,) * len(record.captions))
            if language and not record.languages
            else record
            for record in self.records
        ]

    def uncorrected_split(self, seed: int, most: int) -> Split:
        """Some of the pictures that no person has captioned."""
        chosen = Random(seed).sample(self.uncorrected, min(most, len(self.uncorrected)))
        return Split("uncorrected", tuple(chosen), Problems(), None)


def read_corrections(
    folder: str | Path, captions: str | Path | None, *, format: str = "auto", accept: bool = False
) -> Corrections:
    """The captions of people in a folder.

    Args:
        folder: of the pictures, or a data set of any form.
        captions: where the captions are, as given to `captioner caption --out`; None: with the pictures.
        format: of a data set.
        accept: captions that captioner wrote and nobody has changed count, too.

    Raises:
        CaptionerError: no such folder, or nothing in it that can be learned from.
    """
    folder = Path(folder)
    place = None if captions is None else Path(captions)
    if place is None and not _beside(folder, format):
        return _data_set(folder, format)
    found = captions_in(folder, out=place)
    taken = found.of(*LEARNED, *(["untouched"] if accept else []))
    problems = _problems(folder, found)
    if not taken:
        count = found.counts["untouched"]
        what = f"{count} captions that captioner wrote" if count else "no caption"
        raise DataError(
            f"{folder}: {what}, none that a person has written or changed; correct some (`captioner review "
            f"{folder}` names those to begin with), or take them as they are with --accept"
        )
    names = {each.picture for each in taken}
    others = [each.picture for each in found.known if each.picture not in names] + found.without
    return Corrections(
        [_record(folder, each) for each in taken],
        [CaptionedImage(_name(folder, path), path, ()) for path in sorted(others)],
        problems,
        untouched=0 if accept else found.counts["untouched"],
    )


def _beside(folder: Path, format: str) -> bool:
    """Whether the captions stand beside the pictures, or a journal says which ones are captioner's."""
    if not folder.is_dir():
        return False
    if any(JOURNAL in names for _, _, names in os.walk(folder)):
        return True
    return format == PAIRS or (format == "auto" and open_dataset(folder, format=format).format == PAIRS)


def _data_set(folder: Path, format: str) -> Corrections:
    dataset = open_dataset(folder, format=format)
    splits = dataset.listing.splits
    wanted = [name for part in ("train", "dev") for name in splits.get(part, ())] if splits else None
    records = dataset.records(dataset.listing.captions if wanted is None else dict.fromkeys(wanted))
    if not records:
        raise DataError(dataset.nothing_left("train"))
    kept = [*splits["dev"]] if "dev" in splits else None
    return Corrections(records, problems=dataset.listing.problems, kept=kept)


def _problems(folder: Path, found: FolderCaptions) -> Problems:
    """What is wrong, in the words of the data set, too: captions whose picture is gone stand there alone."""
    try:
        problems = open_dataset(folder, format=PAIRS).listing.problems
    except DataError:  # sheets only
        problems = Problems()
    for path, reason in found.problems:
        problems.note("files that cannot be read", f"{path}: {reason}")
    return problems


def _record(folder: Path, known: KnownCaption) -> CaptionedImage:
    captions = tuple(" ".join(caption.split()) for caption in known.captions)
    return CaptionedImage(_name(folder, known.picture), known.picture, captions)


def _name(folder: Path, picture: Path) -> str:
    return Path(os.path.relpath(picture, folder)).as_posix()


def least_sure(found: Sequence[KnownCaption], most: int) -> list[KnownCaption]:
    """The captions that the model was least sure of, by the mean log probability of a word."""
    return sorted((each for each in found if each.score is not None), key=lambda each: each.score or 0.0)[
        :most
    ]
