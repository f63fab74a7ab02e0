"""Whether an exported form says what the run says: the same pictures, captioned by both.

In: pictures of the caller's data set, or drawn ones. Out: a `Check` for each way in which the form captions;
a CaptionerError if it disagrees.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from captioner.errors import CaptionerError, DataError

AGREEING_SHARE = 0.9  # of the pictures: a tie between two hypotheses may fall to either
# How far scores may differ, by the precision of the weights; about nats per word, or a share of large scores.
TOLERANCES = {"float32": 1e-3, "float16": 2e-2, "int8": 0.3}


class Answer(NamedTuple):
    """A caption and its score."""

    text: str
    score: float


class Way(NamedTuple):
    """One way in which an exported form captions picture files, and what may be expected of it."""

    answers: Callable[[Sequence[Path]], list[Answer]]
    tolerance: float


Ways: TypeAlias = Mapping[str, Way]


@dataclass(frozen=True)
class Check:
    """What a comparison found."""

    way: str
    pictures: int
    alike: int  # with the run's own caption, word for word
    agreeing: int  # with a score as the run's own, within the tolerance
    score_error: float  # largest difference of the scores of captions that are alike


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


def compare(captioner: Any, ways: Ways, pictures: Sequence[Path]) -> Iterator[Check]:
    """Captions the pictures with the run and in each of the ways.

    Raises:
        CaptionerError: the captions are not the run's.
    """
    own = answers_of(captioner)(pictures)
    for name, way in ways.items():
        check = _check(name, way, own, way.answers(pictures))
        if check.agreeing < AGREEING_SHARE * check.pictures:
            raise CaptionerError(
                f"{name}: only {check.agreeing} of {check.pictures} captions score as the run's own within "
                f"{way.tolerance:g}, {check.alike} are alike: this form is not kept; try another precision "
                "or format"
            )
        yield check


def answers_of(captioner: Any) -> Callable[[Sequence[Path]], list[Answer]]:
    """How a `BaseCaptioner` answers; of pictures that cannot be read: nothing."""

    def answers(pictures: Sequence[Path]) -> list[Answer]:
        found = captioner.caption(pictures)
        return [Answer(caption.text, caption.score) for caption in found if caption.error is None]

    return answers


def _check(name: str, way: Way, own: Sequence[Answer], found: Sequence[Answer]) -> Check:
    if not own:
        raise DataError("not one of the pictures to compare on can be read; name others with --data")
    pairs = list(zip(own, found, strict=True))
    alike = [(one, other) for one, other in pairs if one.text == other.text]
    agreeing = sum(
        abs(one.score - other.score) <= way.tolerance * max(1, abs(one.score)) for one, other in pairs
    )
    error = max((abs(one.score - other.score) for one, other in alike), default=0.0)
    return Check(name, len(pairs), len(alike), agreeing, error)


def _records(data: Path) -> Any:
    from captioner.data.datasets import load_split

    try:
        return load_split(data, "dev").records
    except DataError:
        return load_split(data, "all").records
