"""Folders of captioned pictures as `--data` names them, and several of them as one data set.

In: `[LANGUAGE=]FOLDER[*TIMES]`. Out: splits in which a picture that stands in several folders is one record,
with the captions of all and the language of each.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from captioner.data.datasets import CaptionedImage, Split, languages_of, open_dataset, split_name
from captioner.data.listings import Problems
from captioner.data.vocabulary import LANGUAGE_CODE
from captioner.errors import DataError, MissingSplit


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
    named = [split_name(split) for split in splits]
    opened = [(folder, open_dataset(folder.path, *named, format=format)) for folder in folders]
    found = {}
    for split in splits:
        parts: list[tuple[DataFolder, Split]] = []
        lacking: MissingSplit | None = None
        for folder, dataset in opened:
            try:
                parts.append((folder, dataset.split(split_name(split), seed=seed, made=made)))
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


def _check_languages(records: Sequence[CaptionedImage]) -> None:
    if not languages_of(records):
        return
    for record in records:
        if not record.languages or "" in record.languages:
            raise DataError(
                f"{record.path}: has a caption without a language, while others carry one; name it in a "
                "column `language`, or before the folder: --data en=FOLDER"
            )
