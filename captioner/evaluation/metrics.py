"""Captions and their references in, numbers out; reads and writes no file.

All scores work on the words of `vocabulary.words_of`, the normalizer that training uses, and are percentages.
They agree with the coco-caption toolkit (pycocoevalcap): BLEU takes the closest reference length and one
brevity penalty for the whole set, ROUGE-L has beta 1.2, CIDEr is CIDEr-D. `protocol` says in words what a
figure stands on: print it beside the figure.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from fractions import Fraction
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np

from captioner.data.vocabulary import words_of
from captioner.errors import ConfigError, DataError, unknown_name
from captioner.evaluation.cider import CiderD, Words, check_references

__all__ = ["METRICS", "CiderD", "MetricResult", "describe", "per_caption", "protocol", "score"]

_BLEU_ORDERS = (1, 2, 3, 4)
_TINY_MATCHES, _TINY_GUESSES = 1e-15, 1e-9  # coco-caption's, where one of the two is 0
_ROUGE_BETA = 1.2  # recall weighs beta² times as much as precision


class MetricResult(NamedTuple):
    """One metric's answer, in per cent: over the whole set, and caption by caption."""

    corpus: float
    captions: list[float] | Callable[[], list[float]]  # a function, where few want them and they cost time


def score(
    references: Sequence[Sequence[str]], hypotheses: Sequence[str], *, metrics: Iterable[str] | None = None
) -> dict[str, float]:
    """Corpus figures of one hypothesis a picture, in per cent.

    Args:
        references: for each picture its captions by people, as plain text.
        hypotheses: for each picture the caption to judge; an empty one scores 0.
        metrics: rows of `METRICS` to compute; all when not given.

    Returns:
        `bleu1` … `bleu4`, `rouge_l`, `cider`, and `meteor` (nltk's, see `meteor`) where WordNet is installed.

    Raises:
        DataError: different numbers of pictures, or a picture without references.
        ConfigError: a metric that is not in the table.

    >>> references = [["A dog runs on the beach.", "A dog is running."], ["Two men."]]
    >>> figures = score(references, ["a dog runs", "two men"])
    >>> round(figures["bleu1"], 1), round(figures["rouge_l"], 1)
    (81.9, 81.4)
    """
    return {name: result.corpus for name, result in _results(references, hypotheses, metrics).items()}


def per_caption(
    references: Sequence[Sequence[str]], hypotheses: Sequence[str], *, metrics: Iterable[str] | None = None
) -> dict[str, list[float]]:
    """What each hypothesis scores alone, in per cent; arguments and errors as in `score`.

    CIDEr's document frequencies are those of the set given, so its mean is the corpus figure. BLEU of one
    caption is coco-caption's: an order without a match counts 1e-15 instead of 0, so that captions
    can be ranked.
    """
    results = _results(references, hypotheses, metrics)
    return {
        name: result.captions() if callable(result.captions) else result.captions
        for name, result in results.items()
    }


def describe(hypotheses: Sequence[str], *, known: Iterable[str] = ()) -> dict[str, float]:
    """How varied captions are: a model that does not look writes few different ones, most of them known.

    Args:
        hypotheses: the captions.
        known: the captions that were trained on.

    Returns:
        `mean_words`; `distinct` (different captions) and `novel` (captions not among `known`) in per cent.
    """
    captions = [tuple(words_of(text)) for text in hypotheses]
    trained_on = {tuple(words_of(text)) for text in known}
    count = max(1, len(captions))
    return {
        "mean_words": sum(map(len, captions)) / count,
        "distinct": 100.0 * len(set(captions)) / count,
        "novel": 100.0 * sum(caption not in trained_on for caption in captions) / count,
    }


def protocol(references: Sequence[Sequence[str]]) -> dict[str, str]:
    """What figures over these references stand on, as phrases to print beside them."""
    counts = sorted({len(captions) for captions in references}) or [0]
    span = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    notes = {
        "references": f"{len(references)} pictures, {span} references each",
        "words": "captioner.words_of on hypotheses and references: lower case, no punctuation",
        "bleu": "nltk corpus_bleu, closest reference length and one brevity penalty, as coco-caption",
        "rouge_l": "beta 1.2, mean over pictures, as coco-caption",
        "cider": "CIDEr-D, sigma 6, document frequencies of these references, 100 x coco-caption's",
    }
    if _wordnet_found():
        notes["meteor"] = "nltk's (form of 2007), about twice METEOR 1.5: not comparable with coco-caption's"
    return notes


def bleu(references: Sequence[Sequence[Words]], hypotheses: Sequence[Words]) -> dict[str, MetricResult]:
    """BLEU-1 to BLEU-4 (Papineni et al. 2002), through nltk, made to agree with coco-caption.

    nltk counts one n-gram for a hypothesis too short to have any, coco-caption none. An order that
    matches nowhere though it could gives exactly 0, where coco-caption leaves up to 0.02 % and nltk warns.
    """
    from nltk.translate.bleu_score import corpus_bleu  # 0.5 s to import, and a reward needs none of it

    guesses = [sum(max(0, len(words) - order + 1) for words in hypotheses) for order in _BLEU_ORDERS]
    missed: list[int] = []

    def coco_precisions(precisions: Sequence[Fraction], **_: Any) -> list[float]:
        matches = [precision.numerator for precision in precisions]
        missed.extend(order for order in _BLEU_ORDERS if guesses[order - 1] and not matches[order - 1])
        return [_precision(*counts) for counts in zip(matches, guesses, strict=True)]

    weights = [(1.0 / order,) * order for order in _BLEU_ORDERS]
    corpus = [0.0] * len(weights)
    if hypotheses:
        corpus = corpus_bleu(references, hypotheses, weights, smoothing_function=coco_precisions)
    matched = min(missed, default=len(_BLEU_ORDERS) + 1) - 1  # BLEU of higher orders is 0
    return {
        f"bleu{order}": MetricResult(
            corpus=100.0 * corpus[order - 1] if order <= matched else 0.0,
            captions=partial(_sentence_bleus, references, hypotheses, order),
        )
        for order in _BLEU_ORDERS
    }


def bleu_counts(references: Sequence[Sequence[str]], hypotheses: Sequence[str]) -> np.ndarray:
    """What BLEU counts in each caption, (N, 10): sums of rows are what it counts in all of them.

    Columns: n-grams that match, for n = 1 … 4; n-grams there are; words; words of the closest reference.
    """
    rows = np.zeros((len(hypotheses), 2 * len(_BLEU_ORDERS) + 2))
    for row, captions, text in zip(rows, references, hypotheses, strict=True):
        words, texts = words_of(text), [words_of(caption) for caption in captions]
        for column, order in enumerate(_BLEU_ORDERS):
            row[column], row[column + len(_BLEU_ORDERS)] = _matches(texts, words, order)
        row[-2:] = len(words), _closest_length(texts, words)
    return rows


def bleu_of_counts(counts: np.ndarray) -> np.ndarray:
    """BLEU-1 to BLEU-4 in per cent, (…, 4), of sums of `bleu_counts`, (…, 10): those of `bleu`."""
    orders = len(_BLEU_ORDERS)
    matches, guesses, words, closest = np.split(counts, [orders, 2 * orders, 2 * orders + 1], axis=-1)
    logarithms = np.log((matches + _TINY_MATCHES) / (guesses + _TINY_GUESSES))
    means = np.cumsum(logarithms, -1) / np.arange(1, orders + 1)
    brevity = np.exp(np.minimum(0, 1 - closest / np.maximum(words, 1)))
    missed = np.cumsum((matches == 0) & (guesses > 0), -1) > 0
    return np.where(missed | (words == 0), 0.0, 100 * brevity * np.exp(means))


def rouge_l(references: Sequence[Sequence[Words]], hypotheses: Sequence[Words]) -> dict[str, MetricResult]:
    """ROUGE-L (Lin 2004); precision and recall are each the best over references, as in coco-caption."""
    return {"rouge_l": _mean_of(_sentence_rouge, references, hypotheses)}


def cider(references: Sequence[Sequence[Words]], hypotheses: Sequence[Words]) -> dict[str, MetricResult]:
    """CIDEr-D (Vedantam et al. 2015), document frequencies over these references."""
    captions = [scores[0] for scores in CiderD(references).scores([[words] for words in hypotheses])]
    return {"cider": MetricResult(sum(captions) / max(1, len(captions)), captions)}


def meteor(references: Sequence[Sequence[Words]], hypotheses: Sequence[Words]) -> dict[str, MetricResult]:
    """METEOR as nltk has it: the form of 2007 (exact, stem, WordNet), mean over captions; {} without WordNet.

    Captions to which METEOR 1.5 of coco-caption gives 19 get about 38 here: never compare the two.
    """
    if not _wordnet_found():
        return {}
    from nltk.translate.meteor_score import meteor_score

    return {"meteor": _mean_of(meteor_score, references, hypotheses)}


# A metric: for each picture the words of its references, and of its hypothesis → figures by name.
METRICS: dict[str, Callable[[Sequence[Sequence[Words]], Sequence[Words]], dict[str, MetricResult]]] = {
    "bleu": bleu,
    "rouge_l": rouge_l,
    "cider": cider,
    "meteor": meteor,
}


def _results(
    references: Sequence[Sequence[str]], hypotheses: Sequence[str], metrics: Iterable[str] | None
) -> dict[str, MetricResult]:
    """Results by name of every metric asked for, from plain text."""
    if isinstance(hypotheses, str) or len(references) != len(hypotheses):
        given = "one string" if isinstance(hypotheses, str) else f"{len(hypotheses)} hypotheses"
        raise DataError(f"{given} for the references of {len(references)} pictures: give one for each")
    check_references(references)
    wanted = list(METRICS) if metrics is None else list(metrics)
    for name in wanted:
        if name not in METRICS:
            raise ConfigError(unknown_name("metric", name, METRICS))
    reference_words = [[words_of(text) for text in captions] for captions in references]
    hypothesis_words = [words_of(text) for text in hypotheses]
    results: dict[str, MetricResult] = {}
    for name in wanted:
        results |= METRICS[name](reference_words, hypothesis_words)
    return results


def _mean_of(
    sentence_metric: Callable[[Sequence[Words], Words], float],
    references: Sequence[Sequence[Words]],
    hypotheses: Sequence[Words],
) -> MetricResult:
    """Figures of a metric that judges captions one by one from 0 to 1, an empty one being 0."""
    captions = [
        100.0 * sentence_metric(captions, words) if words else 0.0
        for captions, words in zip(references, hypotheses, strict=True)
    ]
    return MetricResult(sum(captions) / max(1, len(captions)), captions)


def _precision(matches: int, guesses: int) -> float:
    """n-gram precision with coco-caption's constants, which matter only where one of the two numbers is 0."""
    return (matches + _TINY_MATCHES) / (guesses + _TINY_GUESSES)


def _sentence_bleus(
    references: Sequence[Sequence[Words]], hypotheses: Sequence[Words], most: int
) -> list[float]:
    """BLEU of the orders 1 to `most` of each caption, in per cent."""
    return [
        100.0 * _sentence_bleu(captions, words, most)
        for captions, words in zip(references, hypotheses, strict=True)
    ]


def _sentence_bleu(references: Sequence[Words], hypothesis: Words, most: int) -> float:
    """BLEU of the orders 1 to `most` of one caption, 0 to 1."""
    if not hypothesis:
        return 0.0
    closest = _closest_length(references, hypothesis)
    brevity_penalty = math.exp(min(0.0, 1 - closest / len(hypothesis)))
    product = 1.0
    for order in range(1, most + 1):
        product *= _precision(*_matches(references, hypothesis, order))
    return brevity_penalty * product ** (1 / most)


def _closest_length(references: Sequence[Words], hypothesis: Words) -> int:
    return min((abs(len(words) - len(hypothesis)), len(words)) for words in references)[1]


def _matches(references: Sequence[Words], hypothesis: Words, order: int) -> tuple[int, int]:
    """How many n-grams of a caption the references have, and how many it has."""
    allowed: Counter[tuple[Hashable, ...]] = Counter()
    for words in references:
        allowed |= _ngrams(words, order)
    found = _ngrams(hypothesis, order)
    return (found & allowed).total(), found.total()


def _ngrams(words: Words, order: int) -> Counter[tuple[Hashable, ...]]:
    return Counter(zip(*(words[offset:] for offset in range(order)), strict=False))


def _sentence_rouge(references: Sequence[Words], hypothesis: Words) -> float:
    """ROUGE-L of one caption, 0 to 1."""
    common = [_common_subsequence(words, hypothesis) for words in references]
    if not any(common):
        return 0.0
    precision = max(common) / len(hypothesis)
    recall = max(shared / len(words) for shared, words in zip(common, references, strict=True) if words)
    return (1 + _ROUGE_BETA**2) * precision * recall / (recall + _ROUGE_BETA**2 * precision)


def _common_subsequence(first: Words, second: Words) -> int:
    """Length of the longest common subsequence; a row of its table is one integer's bits (Hyyrö 2004)."""
    places: dict[Hashable, int] = {}
    for index, word in enumerate(first):
        places[word] = places.get(word, 0) | 1 << index
    full = (1 << len(first)) - 1
    row = full  # a bit is 0 where the subsequence grows by one
    for word in second:
        matches = row & places.get(word, 0)
        row = ((row + matches) | (row - matches)) & full
    return len(first) - row.bit_count()


@cache
def _wordnet_found() -> bool:
    """Whether nltk's search path holds WordNet; nothing is ever downloaded."""
    import nltk.data

    for name in ("corpora/wordnet", "corpora/wordnet.zip"):
        try:
            nltk.data.find(name)
        except LookupError:
            continue
        return True
    return False
