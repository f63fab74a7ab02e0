"""Corrected captions as a data set: which of them can be learned from, and a part kept to judge by.

In: pictures with the captions that people wrote. Out: the splits "train" and "dev", and what was left out,
counted and named. Reads no file.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from captioner.data.datasets import CaptionedImage, Problems, Split
from captioner.data.vocabulary import UNK, Vocabulary, words_of
from captioner.errors import DataError

FEW = 20  # corrections: below, little can be expected
KEPT_SHARE = 0.1  # of the pictures, to judge by
KEPT_LEAST, KEPT_MOST = 4, 200
FOREIGN_WORDS = 4  # a caption of fewer words is not told to be in another language
OTHER_WORDING = 0.5  # share of the words of all captions that a run knows: below, another language is learned
FOREIGN_SHARE = 0.35  # of a caption's words known from elsewhere: less is another language


def split_corrections(
    records: Sequence[CaptionedImage],
    vocabulary: Vocabulary,
    problems: Problems,
    *,
    max_words: int,
    seed: int,
    pinned: Mapping[str, Sequence[str]] | None = None,
    files: str = "",
) -> dict[str, Split]:
    """The corrections that can be learned from, and a tenth of them kept to judge by.

    Left out are captions without a word, of more than `max_words`, and in another language than the rest.

    Args:
        records: pictures with the captions of people.
        vocabulary: of the run that training begins with.
        problems: where what is left out is noted.
        max_words: in a caption.
        seed: of the part that is kept.
        pinned: ids by split, of an earlier call: these stay where they were.
        files: where the captions were read, for people.

    Raises:
        DataError: nothing is left.
    """
    foreign = _foreign(records, vocabulary)
    usable = []
    for record in records:
        kept = []
        for number, caption in enumerate(record.captions):
            words = words_of(caption)
            if not words:
                problems.note("corrections without a word", record.id)
            elif len(words) > max_words:
                problems.note(f"corrections of more than {max_words} words", record.id)
            elif caption in foreign:
                problems.note("corrections in another language than the rest", f"{record.id}: {caption[:40]}")
            else:
                kept.append(number)
        if kept:
            captions, languages = (
                tuple(texts[number] for number in kept) if texts else ()
                for texts in (record.captions, record.languages)
            )
            usable.append(replace(record, captions=captions, languages=languages))
    if len(usable) < 2:
        lines = "".join(f"\n  {line}" for line in problems.lines())
        raise DataError(f"{len(usable)} corrections can be learned from, at least 2 are needed{lines}")
    names = _kept([record.id for record in usable], seed, pinned)
    made = {"train": [r.id for r in usable if r.id not in names], "dev": sorted(names), "test": []}
    return {
        "train": Split("train", tuple(r for r in usable if r.id not in names), problems, made, files),
        "dev": Split("dev", tuple(r for r in usable if r.id in names), problems, made, files),
    }


def known_share(captions: Sequence[str], vocabulary: Vocabulary) -> float:
    """The share of the words in captions that a vocabulary has: low where they are in another language.

    >>> known_share(["ein Hund", "a dog"], Vocabulary.build(["a dog"]))
    0.5
    """
    ids = [word for caption in captions for word in vocabulary.ids(caption)]
    return sum(word != UNK for word in ids) / max(1, len(ids))


def _kept(ids: Sequence[str], seed: int, pinned: Mapping[str, Sequence[str]] | None) -> set[str]:
    """Which pictures are kept to judge by: those whose hash comes first, so that most stay when some come."""
    if pinned:
        kept = set(ids) & set(pinned["dev"])
        if kept and set(ids) - kept:
            return kept
    count = min(max(KEPT_LEAST, round(KEPT_SHARE * len(ids))), KEPT_MOST, max(1, len(ids) // 4))
    return set(sorted(ids, key=lambda name: _hash(seed, name))[:count])


def _hash(seed: int, name: str) -> bytes:
    return hashlib.blake2b(f"{seed} {name}".encode("utf-8", "surrogateescape"), digest_size=8).digest()


def _foreign(records: Iterable[CaptionedImage], vocabulary: Vocabulary) -> set[str]:
    """Captions that hardly share a word, or a script, with the others."""
    captions = [caption for record in records for caption in record.captions]
    seen = Counter(word for caption in captions for word in set(words_of(caption)))
    scripts = Counter(_script(caption) for caption in captions)
    usual = max(scripts, key=lambda script: scripts[script], default="")
    native = sum(word in vocabulary for word in seen.elements()) > 0.5 * seen.total()
    found = set()
    for caption in captions:
        words = words_of(caption)
        if _script(caption) != usual and scripts[usual] > 0.8 * len(captions):
            found.add(caption)
        elif len(words) >= FOREIGN_WORDS:
            known = sum(seen[word] > 1 or (native and word in vocabulary) for word in words)
            if known < FOREIGN_SHARE * len(words):
                found.add(caption)
    return found if len(found) < 0.3 * len(captions) else set()  # so many are not the exception


def _script(caption: str) -> str:
    """The script of most letters, as Unicode names it.

    >>> _script("ein Hund"), _script("개 한 마리")
    ('LATIN', 'HANGUL')
    """
    names = Counter(unicodedata.name(letter, "").split(" ")[0] for letter in caption if letter.isalpha())
    return max(names, key=lambda name: names[name], default="")
