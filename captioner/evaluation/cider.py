"""CIDEr-D, fast enough to be the reward of a training step: sequences of words in, scores out; no file.

Vedantam et al., "CIDEr: Consensus-based Image Description Evaluation", CVPR 2015, in coco-caption's form:
cosine of n-gram counts weighted by rarity, hypothesis counts clipped to the reference's, times a Gaussian
of the length difference; mean over n = 1 … 4 and over references. Numpy counts all captions at once.

Letters: H hypotheses, R references, N pairs of the two, W words, G different n-grams, E n-grams of
references.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from captioner.errors import DataError

Words = Sequence[Hashable]  # one caption: words, or word ids

_ORDERS = (1, 2, 3, 4)  # lengths of the n-grams that are counted
_SIGMA = 6.0  # words of length difference at which the Gaussian is exp(-1/2)
_SCALE = 100.0 * 10.0  # per cent of coco-caption's figure, which is ten times the mean cosine
_KEY_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # odd, bits evenly spread: 2^64 / golden ratio


class CiderD:
    """CIDEr-D against fixed references: build it once, then score any number of hypotheses fast.

    Words may be strings or ids. A score is 100 times coco-caption's: a fair captioner gets about 50, a person
    about 80. If document frequencies come from one picture, nothing is rare and every score is 0.

    Args:
        references: for each picture its references, each a sequence of words.

    Raises:
        DataError: a picture without references.

    >>> reward = CiderD([[["a", "dog", "runs", "fast"]], [["two", "men", "sit", "down"]]])
    >>> same, short = reward.scores([[["a", "dog", "runs", "fast"], ["two", "men"]]], pictures=[0])[0]
    >>> round(same), round(short)
    (1000, 0)
    """

    def __init__(self, references: Sequence[Sequence[Words]]) -> None:
        check_references(references)
        words = (word for captions in references for caption in captions for word in caption)
        self._ids = {word: index for index, word in enumerate(dict.fromkeys(words))}
        self._counts = np.array([len(captions) for captions in references], np.int64)
        self._first = np.cumsum(self._counts) - self._counts  # row of each picture's first reference
        flat = _Flat.of(references, self._ids)
        self._bigrams = flat.bigrams
        self._tables = [_NgramTable.build(flat, order) for order in _ORDERS]

    def scores(
        self, hypotheses_per_picture: Sequence[Sequence[Words]], *, pictures: Sequence[int] | None = None
    ) -> list[list[float]]:
        """Scores of any number of hypotheses a picture, in the order given; an empty hypothesis scores 0.

        Args:
            hypotheses_per_picture: for each picture the hypotheses to judge, each a sequence of words.
            pictures: which of the reference pictures these are; all of them, in order, when not given.

        Raises:
            DataError: another number of pictures than `pictures` (or `references`) has.
        """
        where = np.arange(len(self._counts)) if pictures is None else np.asarray(pictures, np.int64)
        if len(where) != len(hypotheses_per_picture):
            given = len(hypotheses_per_picture)
            raise DataError(f"CIDEr-D got hypotheses for {given} pictures, expected {len(where)}")
        flat = _Flat.of(hypotheses_per_picture, self._ids)
        picture = where[flat.groups]  # (H,)
        counts = self._counts[picture]  # (H,) references of each hypothesis
        pairs = _Pairs(
            first=np.cumsum(counts) - counts,
            counts=counts,
            hypothesis=np.repeat(np.arange(len(counts)), counts),
            reference=_ranges(self._first[picture], counts),
        )
        cosines = sum(table.cosines(flat, pairs) for table in self._tables) / len(_ORDERS)  # (N,)
        longer = flat.bigrams[pairs.hypothesis] - self._bigrams[pairs.reference]
        cosines *= np.exp(-(longer**2) / (2 * _SIGMA**2))
        sums = np.bincount(pairs.hypothesis, cosines, minlength=len(counts))  # (H,)
        figures = iter((_SCALE * sums / counts).tolist())
        return [[next(figures) for _ in group] for group in hypotheses_per_picture]


def check_references(references: Sequence[Sequence[object]]) -> None:
    """Raises DataError unless every picture has a list of at least one reference."""
    for index, captions in enumerate(references):
        if isinstance(captions, str):
            raise DataError(f"the references of picture {index} are one string, expected a list of them")
        if not len(captions):
            raise DataError(f"picture {index} has no reference caption: leave it out, or give it one")


@dataclass(frozen=True)
class _Pairs:
    """Each hypothesis with each reference of its picture."""

    first: np.ndarray  # (H,) row of each hypothesis' first pair
    counts: np.ndarray  # (H,) how many pairs it has
    hypothesis: np.ndarray  # (N,)
    reference: np.ndarray  # (N,)


@dataclass(frozen=True)
class _Flat:
    """Captions laid end to end."""

    words: np.ndarray  # (W,) uint64 ids
    rows: np.ndarray  # (W,) caption that each word belongs to
    groups: np.ndarray  # (rows,) picture that each caption belongs to
    pictures: int
    bigrams: np.ndarray  # (rows,) their number is what coco-caption calls a caption's length

    @classmethod
    def of(cls, captions_per_picture: Sequence[Sequence[Words]], ids: Mapping[Hashable, int]) -> _Flat:
        strangers: dict[Hashable, int] = {}  # a word of no reference still weighs in its caption's norm
        captions = [caption for group in captions_per_picture for caption in group]
        words = [
            ids[word] if word in ids else strangers.setdefault(word, len(ids) + len(strangers))
            for caption in captions
            for word in caption
        ]
        lengths = np.array([len(caption) for caption in captions], np.int64)
        sizes = np.array([len(group) for group in captions_per_picture], np.int64)
        return cls(
            words=np.array(words, np.uint64),
            rows=np.repeat(np.arange(len(captions)), lengths),
            groups=np.repeat(np.arange(len(sizes)), sizes),
            pictures=len(sizes),
            bigrams=np.maximum(lengths - 1, 0),
        )

    def ngrams(self, order: int) -> tuple[np.ndarray, np.ndarray]:
        """(rows, keys) of every n-gram; a key is a 64-bit polynomial of the ids.

        Two n-grams could share a key; among the 22 million of COCO the chance is about 1 in 100,000.
        """
        count = max(0, len(self.words) - order + 1)
        keys = np.zeros(count, np.uint64)
        for offset in range(order):
            keys = keys * _KEY_MULTIPLIER + self.words[offset : offset + count] + np.uint64(1)
        inside = self.rows[:count] == self.rows[order - 1 :][:count]  # not across two captions
        return self.rows[:count][inside], keys[inside]


@dataclass(frozen=True)
class _NgramTable:
    """The n-grams of one order: how rare each is, and how often each reference has it."""

    order: int
    keys: np.ndarray  # (G,) sorted
    rarity: np.ndarray  # (G + 1,) log(pictures / pictures that have it), last: of an n-gram in no reference
    codes: np.ndarray  # (E,) sorted: reference * (G + 1) + n-gram, for each n-gram of a reference
    weights: np.ndarray  # (E + 1,) its count times its rarity, last: 0, of an n-gram that is not there
    norms: np.ndarray  # (R,) Euclidean norm of each reference's weights

    @classmethod
    def build(cls, references: _Flat, order: int) -> _NgramTable:
        """From the references to compare with, whose pictures also say how rare an n-gram is."""
        all_rows, all_keys = references.ngrams(order)
        rows, row_keys, counts = _tally(all_rows, all_keys)
        _, picture_keys, _ = _tally(references.groups[all_rows], all_keys)
        known_keys, frequencies = np.unique(picture_keys, return_counts=True)
        keys = np.union1d(known_keys, row_keys)
        rarity = np.full(len(keys) + 1, math.log(max(1, references.pictures)))
        rarity[np.searchsorted(keys, known_keys)] -= np.log(frequencies)
        ngrams = np.searchsorted(keys, row_keys)
        weights = counts * rarity[ngrams]
        return cls(
            order=order,
            keys=keys,
            rarity=rarity,
            codes=rows * len(rarity) + ngrams,
            weights=np.append(weights, 0.0),
            norms=np.sqrt(np.bincount(rows, weights**2, minlength=len(references.groups))),
        )

    def cosines(self, hypotheses: _Flat, pairs: _Pairs) -> np.ndarray:
        """(N,) clipped cosine of each pair, 0 where one of the two has no n-gram of this order."""
        rows, row_keys, counts = _tally(*hypotheses.ngrams(self.order))
        ngrams = _find(self.keys, row_keys)
        weights = counts * self.rarity[ngrams]
        norms = np.sqrt(np.bincount(rows, weights**2, minlength=len(pairs.counts)))  # (H,)
        known = ngrams < len(self.keys)
        rows, ngrams, weights = rows[known], ngrams[known], weights[known]
        pair = _ranges(pairs.first[rows], pairs.counts[rows])  # every known n-gram, once for each reference
        again = np.repeat(np.arange(len(rows)), pairs.counts[rows])
        entries = _find(self.codes, pairs.reference[pair] * len(self.rarity) + ngrams[again])
        in_reference = self.weights[entries]
        products = np.minimum(weights[again], in_reference) * in_reference
        dots = np.bincount(pair, products, minlength=len(pairs.reference))  # (N,)
        scale = norms[pairs.hypothesis] * self.norms[pairs.reference]
        return np.divide(dots, scale, out=np.zeros(len(dots)), where=scale > 0)


def _find(table: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Position of each value in the sorted `table`, len(table) where it is not there."""
    if not len(table):
        return np.zeros(len(values), np.int64)
    positions = np.minimum(np.searchsorted(table, values), len(table) - 1)
    return np.where(table[positions] == values, positions, len(table))


def _tally(rows: np.ndarray, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(rows, keys, counts) of the different pairs of row and key, sorted."""
    order = np.lexsort((keys, rows))
    rows, keys = rows[order], keys[order]
    first = np.ones(len(rows), bool)
    first[1:] = (rows[1:] != rows[:-1]) | (keys[1:] != keys[:-1])
    return rows[first], keys[first], np.diff(np.flatnonzero(first), append=len(rows))


def _ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """starts[0], starts[0] + 1, … (lengths[0] numbers), then starts[1], …"""
    shifts = starts - (np.cumsum(lengths) - lengths)
    return np.repeat(shifts, lengths) + np.arange(int(lengths.sum()))
