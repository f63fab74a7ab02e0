"""Whether an exported form says what the run says: the same pictures, captioned by both.

In: pictures of the caller's data set, or drawn ones. Out: a `Check` for each variant of the form, that is,
each entry point by which it captions; a CaptionerError if one disagrees.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from captioner.errors import CaptionerError, DataError

SAME_SCORE_SHARE = 0.9  # of the pictures: a tie between two hypotheses may fall to either
# How far scores may differ, by the precision of the weights; about nats per word, or a share of large scores.
TOLERANCES = {"float32": 1e-3, "float16": 2e-2, "int8": 0.3}


class Answer(NamedTuple):
    """A caption and its score."""

    text: str
    score: float


class Variant(NamedTuple):
    """An entry point by which an exported form captions picture files, and how exactly it must agree."""

    answers: Callable[[Sequence[Path]], list[Answer]]
    tolerance: float
    language: str = ""  # of its captions; empty: the first that the run knows, or none


Variants: TypeAlias = Mapping[str, Variant]


@dataclass(frozen=True)
class Check:
    """What a comparison found."""

    variant: str
    pictures: int
    same_text: int  # with the run's own caption, word for word
    same_score: int  # with a score as the run's own, within the tolerance
    score_error: float  # largest difference of the scores of captions that are the same


@contextmanager
def comparison_pictures(data: Path | None, count: int) -> Iterator[list[Path]]:
    """Up to `count` pictures: of a data set's dev split, or of all where it has none; else drawn ones."""
    if data is not None:
        records = _records(data)
        step = max(1, len(records) // count)
        yield [record.path for record in records[::step][:count]]
        return
    from captioner.data.synthetic.scenes import draw, scenes

    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{number}.png" for number in range(count)]
        for path, (scene, rng) in zip(paths, scenes("test", count), strict=True):
            draw(scene, rng, size=240).save(path)
        yield paths


def compare(captioner: Any, variants: Variants, pictures: Sequence[Path]) -> Iterator[Check]:
    """Captions the pictures with the run and with each of the variants.

    Raises:
        CaptionerError: the captions are not the run's.
    """
    own: dict[str, list[Answer]] = {}
    for name, variant in variants.items():
        if variant.language not in own:
            own[variant.language] = answers_of(captioner, variant.language)(pictures)
        check = _check(name, variant, own[variant.language], variant.answers(pictures))
        if check.same_score < SAME_SCORE_SHARE * check.pictures:
            raise CaptionerError(
                f"{name}: only {check.same_score} of {check.pictures} captions score as the run's own within "
                f"{variant.tolerance:g}, {check.same_text} are alike: this form is not kept; try another "
                "precision or format"
            )
        yield check


def variants_of(name: str, captioner: Any, tolerance: float) -> Variants:
    """An entry point `name` of a `BaseCaptioner`, and one for each language that it knows after the first."""
    languages = ("", *captioner.vocabulary.languages[1:])
    return {
        " ".join(filter(None, (name, language))): Variant(
            answers_of(captioner, language), tolerance, language
        )
        for language in languages
    }


def answers_of(captioner: Any, language: str = "") -> Callable[[Sequence[Path]], list[Answer]]:
    """The answers of a `BaseCaptioner` in a language; pictures that cannot be read are left out."""

    def answers(pictures: Sequence[Path]) -> list[Answer]:
        found = captioner.caption(pictures, language=language or None)
        return [Answer(caption.text, caption.score) for caption in found if caption.error is None]

    return answers


def _check(name: str, variant: Variant, own: Sequence[Answer], found: Sequence[Answer]) -> Check:
    if not own:
        raise DataError("not one of the pictures to compare on can be read; name others with --data")
    pairs = list(zip(own, found, strict=True))
    same = [(one, other) for one, other in pairs if one.text == other.text]
    same_score = sum(
        abs(one.score - other.score) <= variant.tolerance * max(1, abs(one.score)) for one, other in pairs
    )
    error = max((abs(one.score - other.score) for one, other in same), default=0.0)
    return Check(name, len(pairs), len(same), same_score, error)


def _records(data: Path) -> Any:
    from captioner.data.datasets import load_split

    try:
        return load_split(data, "dev").records
    except DataError:
        return load_split(data, "all").records
