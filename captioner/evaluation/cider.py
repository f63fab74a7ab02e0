"""CIDEr-D, fast enough to be the reward of a training step: sequences of words in, scores out; no file.

Vedantam et al., "CIDEr: Consensus-based Image Description Evaluation", CVPR 2015, in coco-caption's form:
cosine of n-gram counts weighted by rarity, hypothesis counts clipped to the reference's, times a Gaussian
of the length difference; mean over n = 1 … 4 and over references. Numpy counts all captions at once.

Letters: H hypotheses, N pairs of one and a reference, W words, G different n-grams.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from captioner.errors import DataError

Words = Sequence[Hashable]  # one caption: words, or word ids

_ORDERS = (1, 2, 3, 4)  # lengths of the n-grams that are counted
_SIGMA = 6.0  # words of length difference at which the Gaussian is exp(-1/2)
_SCALE = 100.0 * 10.0  # per cent of coco-caption's figure, which is ten times the mean cosine
_AT_A_TIME = 4096  # pictures whose n-grams are counted together
_KEY_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # odd, bits evenly spread: 2^64 / golden ratio


class CiderD:
    """CIDEr-D against fixed references: build it once, then score any number of hypotheses fast.

    Words may be strings or ids. A score is 100 times coco-caption's: a fair captioner gets about 50, a person
    about 80. If document frequencies come from one picture, nothing is rare and every score is 0.

    Args:
        references: for each picture its references, each a sequence of words; read once, none is kept.

    Raises:
        DataError: a picture without references.

    >>> reward = CiderD([[["a", "dog", "runs", "fast"]], [["two", "men", "sit", "down"]]])
    >>> same, short = reward.scores([[["a", "dog", "runs", "fast"], ["two", "men"]]], pictures=[0])[0]
    >>> round(same), round(short)
    (1000, 0)
    """

    def __init__(self, references: Iterable[Sequence[Words]]) -> None:
        self._ids: dict[Hashable, int] = {}  # in the order in which words are first met
        words, lengths, counts = array("I"), array("I"), array("I")
        for index, captions in enumerate(references):
            check_references([captions], index)
            for caption in captions:
                words.extend(self._ids.setdefault(word, len(self._ids)) for word in caption)
                lengths.append(len(caption))
            counts.append(len(captions))
        self._words = np.frombuffer(words, np.uint32) if words else np.zeros(0, np.uint32)
        self._starts = np.append(0, np.cumsum(lengths, dtype=np.int64))  # of each reference, and the end
        self._counts = np.array(counts, np.int64)  # references of each picture
        self._first = np.cumsum(self._counts) - self._counts  # row of each picture's first reference
        self._tables = [self._rarities(order) for order in _ORDERS]

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
        asked, positions = np.unique(where, return_inverse=True)
        references = self._references(asked)
        picture = positions[flat.groups]  # (H,)
        own = self._counts[asked]
        counts = own[picture]  # (H,) references of each hypothesis
        pairs = _Pairs(
            first=np.cumsum(counts) - counts,
            counts=counts,
            hypothesis=np.repeat(np.arange(len(counts)), counts),
            reference=_ranges((np.cumsum(own) - own)[picture], counts),
        )
        cosines = sum(table.cosines(flat, references, pairs) for table in self._tables) / len(_ORDERS)  # (N,)
        longer = flat.bigrams[pairs.hypothesis] - references.bigrams[pairs.reference]
        cosines *= np.exp(-(longer**2) / (2 * _SIGMA**2))
        sums = np.bincount(pairs.hypothesis, cosines, minlength=len(counts))  # (H,)
        figures = iter((_SCALE * sums / counts).tolist())
        return [[next(figures) for _ in group] for group in hypotheses_per_picture]

    def _references(self, pictures: np.ndarray) -> _Flat:
        """The references of some pictures, which are numbered anew from 0."""
        counts = self._counts[pictures]
        rows = _ranges(self._first[pictures], counts)
        starts = self._starts[rows]
        lengths = self._starts[rows + 1] - starts
        return _Flat(
            words=self._words[_ranges(starts, lengths)].astype(np.uint64),
            rows=np.repeat(np.arange(len(rows)), lengths),
            groups=np.repeat(np.arange(len(pictures)), counts),
            bigrams=np.maximum(lengths - 1, 0),
        )

    def _rarities(self, order: int) -> _Rarities:
        """How many pictures have each n-gram, some thousand pictures at a time."""
        keys = [np.zeros(0, np.uint64)]
        for start in range(0, len(self._counts), _AT_A_TIME):
            flat = self._references(np.arange(start, min(start + _AT_A_TIME, len(self._counts))))
            rows, found = flat.ngrams(order)
            keys.append(_tally(flat.groups[rows], found)[1])
        return _Rarities.of(order, np.concatenate(keys), pictures=len(self._counts))


def check_references(references: Sequence[Sequence[object]], first: int = 0) -> None:
    """Raises DataError unless every picture has a list of at least one reference; counts from `first` on."""
    for index, captions in enumerate(references, first):
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
class _Rarities:
    """How rare the n-grams of one order are: log(pictures / pictures that have it).

    Those of one picture alone, three in four, are as rare as those of none and need no entry: the n-grams of
    the references themselves are counted when a caption is compared with them, so that memory hardly grows.
    """

    order: int
    keys: np.ndarray  # (G,) sorted, of n-grams that two pictures or more have
    values: np.ndarray  # (G + 1,), last: of all others

    @classmethod
    def of(cls, order: int, keys: np.ndarray, *, pictures: int) -> _Rarities:
        """From the n-grams of all pictures, each once a picture; sorts them."""
        keys.sort()
        first = np.ones(len(keys), bool)
        first[1:] = keys[1:] != keys[:-1]
        starts = np.flatnonzero(first)
        counts = np.diff(starts, append=len(keys))
        shared = counts > 1
        values = np.full(int(shared.sum()) + 1, math.log(max(1, pictures)))
        values[:-1] -= np.log(counts[shared])
        return cls(order, keys[starts[shared]], values)

    def weighted(self, captions: _Flat) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """The different n-grams of each caption as rows, keys and weights (count times rarity); and norms."""
        rows, keys, counts = _tally(*captions.ngrams(self.order))
        weights = counts * self.values[_find(self.keys, keys)]
        norms = np.sqrt(np.bincount(rows, weights**2, minlength=len(captions.groups)))
        return rows, keys, weights, norms

    def cosines(self, hypotheses: _Flat, references: _Flat, pairs: _Pairs) -> np.ndarray:
        """(N,) clipped cosine of each pair, 0 where one of the two has no n-gram of this order."""
        reference_rows, reference_keys, reference_weights, reference_norms = self.weighted(references)
        rows, keys, weights, norms = self.weighted(hypotheses)
        known_keys = np.unique(reference_keys)
        # Sorted: reference * (different n-grams + 1) + n-gram, for each n-gram of a reference.
        codes = reference_rows * (len(known_keys) + 1) + np.searchsorted(known_keys, reference_keys)
        ngrams = _find(known_keys, keys)
        known = ngrams < len(known_keys)
        rows, ngrams, weights = rows[known], ngrams[known], weights[known]
        pair = _ranges(pairs.first[rows], pairs.counts[rows])  # every known n-gram, once for each reference
        again = np.repeat(np.arange(len(rows)), pairs.counts[rows])
        entries = _find(codes, pairs.reference[pair] * (len(known_keys) + 1) + ngrams[again])
        in_reference = np.append(reference_weights, 0.0)[entries]
        products = np.minimum(weights[again], in_reference) * in_reference
        dots = np.bincount(pair, products, minlength=len(pairs.reference))  # (N,)
        scale = norms[pairs.hypothesis] * reference_norms[pairs.reference]
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
