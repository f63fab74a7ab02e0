"""What captions get wrong: words that nobody said of the picture, words missed, sentences said too often.

In: for each picture the references by people and the caption to judge, as text in any language. Out: counts
and examples, most frequent first. A word counts as content if people agree on it: where one said it of a
picture, others say it of that picture, too, more often than chance would have it. No list of stop words.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from captioner.data.vocabulary import words_of

AGREED = 0.25  # Scott's pi, agreement beyond chance, of the references on a word: from here on it is content
RARE = 0.15  # of all captions: the bound instead, where each picture has one reference only
_LEAST = 2  # times a thing happens before it is called frequent


@dataclass(frozen=True)
class Confusion:
    """A word that nobody said of these pictures, and what people said instead."""

    hypothesis: str
    reference: str
    pictures: tuple[int, ...]  # which, in order


@dataclass(frozen=True)
class Count:
    """A word or a caption, and how often something happened to it."""

    text: str
    times: int
    of: int  # chances for it
    pictures: tuple[int, ...]  # where


@dataclass(frozen=True)
class Mistakes:
    """The mistakes of many captions; each list is sorted, most frequent first."""

    confusions: list[Confusion]
    invented: list[Count]  # words that none of the references has; of: all captions with the word
    missed: list[Count]  # words that half the references have or more; of: all pictures where that is so
    repeated: list[Count]  # the same caption for many pictures; of: all pictures
    repetitive: list[int]  # pictures whose caption says the same two words twice, or one twice in a row


def find_mistakes(references: Sequence[Sequence[str]], captions: Sequence[str]) -> Mistakes:
    """The mistakes of `captions`, one for each of the `references`.

    >>> references = [["a red ball", "red ball here"]] * 2 + [["a cup"]] * 2
    >>> found = find_mistakes(references, ["a blue ball"] * 2 + ["a cup"] * 2)
    >>> [(one.hypothesis, one.reference, len(one.pictures)) for one in found.confusions]
    [('blue', 'red', 2)]
    """
    written = [[words_of(text) for text in texts] for texts in references]
    reference_words = [[frozenset(words) for words in texts] for texts in written]
    hypotheses = [words_of(caption) for caption in captions]
    content = content_words(reference_words)
    agreed = [_agreed(texts) & content for texts in reference_words]
    known = [frozenset().union(*texts) for texts in reference_words]
    # What the model says and no reference ever does is content, too: nobody could agree on it.
    spoken = content | (frozenset(word for words in hypotheses for word in words) - frozenset().union(*known))
    invented, used = defaultdict(list), Counter[str]()
    missed, due = defaultdict(list), Counter[str]()
    confused: dict[tuple[str, str], list[int]] = defaultdict(list)
    for picture, words in enumerate(hypotheses):
        own = frozenset(words)
        used.update(own & spoken)
        due.update(agreed[picture])
        for word in agreed[picture] - own:
            missed[word].append(picture)
        for word in (own & spoken) - known[picture]:
            invented[word].append(picture)
            for other in agreed[picture] - own:
                if _stands_for(word, words, other, written[picture]):
                    confused[word, other].append(picture)
    return Mistakes(
        confusions=_confusions(invented, missed, confused),
        invented=_counts(invented, used),
        missed=_counts(missed, due),
        repeated=_repeated(captions),
        repetitive=[picture for picture, words in enumerate(hypotheses) if _repeats_itself(words)],
    )


def content_words(references: Sequence[Sequence[frozenset[str]]]) -> frozenset[str]:
    """Words that say something about their picture, from the words of each reference of each picture."""
    uses: Counter[str] = Counter()  # references with the word
    again: Counter[str] = Counter()  # further references of the same picture that have it, too
    chances: Counter[str] = Counter()  # further references of the same picture
    total = sum(map(len, references))
    for texts in references:
        here = Counter(word for words in texts for word in words)
        for word, times in here.items():
            uses[word] += times
            again[word] += times * (times - 1)
            chances[word] += times * (len(texts) - 1)
    found = set()
    for word, times in uses.items():
        share = times / total
        agreement = again[word] / chances[word] if chances[word] else 1.0
        if agreement - share >= AGREED * (1 - share) and (chances[word] or share <= RARE):
            found.add(word)
    return frozenset(found)


def word_shares(
    references: Sequence[Sequence[str]], captions: Sequence[str], most: int
) -> list[tuple[str, float, float]]:
    """The content words written most: each with its share of the references and of the captions, 0 to 1."""
    reference_words = [[frozenset(words_of(text)) for text in texts] for texts in references]
    content = content_words(reference_words)
    people = Counter(word for texts in reference_words for words in texts for word in words)
    model = Counter(word for caption in captions for word in frozenset(words_of(caption)))
    texts, count = max(1, sum(map(len, reference_words))), max(1, len(captions))
    rows = [(word, people[word] / texts, model[word] / count) for word in content | (model.keys() - people)]
    rows.sort(key=lambda row: (-max(row[1], row[2]), row[0]))
    return rows[:most]


def _agreed(texts: Sequence[frozenset[str]]) -> frozenset[str]:
    """Words that at least half of the references have."""
    counts = Counter(word for words in texts for word in words)
    return frozenset(word for word, times in counts.items() if 2 * times >= len(texts))


def _confusions(
    invented: dict[str, list[int]], missed: dict[str, list[int]], confused: dict[tuple[str, str], list[int]]
) -> list[Confusion]:
    """For each invented word the word of people that stands in its place more often than elsewhere."""
    best: dict[str, tuple[float, str]] = {}
    for (hypothesis, reference), places in confused.items():
        share = len(places) / len(invented[hypothesis])
        weight = share * math.log(1 + len(places) ** 2 / len(missed[reference]))
        if len(places) >= _LEAST:
            best[hypothesis] = max(best.get(hypothesis, (0.0, "")), (weight, reference))
    found = [
        Confusion(hypothesis, reference, tuple(confused[hypothesis, reference]))
        for hypothesis, (_, reference) in best.items()
    ]
    return sorted(found, key=lambda confusion: (-len(confusion.pictures), confusion.hypothesis))


def _stands_for(
    hypothesis: str, caption: Sequence[str], reference: str, texts: Sequence[Sequence[str]]
) -> bool:
    """Whether `reference` has a neighbor in a text that `hypothesis` has in the caption, on the same side."""
    own = _neighbors(hypothesis, caption)
    return any(own & _neighbors(reference, words) for words in texts if reference in words)


def _neighbors(word: str, words: Sequence[str]) -> set[tuple[int, str]]:
    """The words before (-1) and after (1) a word; none at the ends."""
    pairs = list(pairwise(words))
    return {(-1, left) for left, right in pairs if right == word} | {
        (1, right) for left, right in pairs if left == word
    }


def _counts(places: dict[str, list[int]], chances: Counter[str]) -> list[Count]:
    found = [Count(word, len(where), chances[word], tuple(where)) for word, where in places.items()]
    frequent = [count for count in found if count.times >= _LEAST]
    return sorted(frequent, key=lambda count: (-count.times, count.text))


def _repeated(captions: Sequence[str]) -> list[Count]:
    where: dict[str, list[int]] = defaultdict(list)
    for picture, caption in enumerate(captions):
        where[caption].append(picture)
    return _counts(where, Counter(dict.fromkeys(where, len(captions))))


def _repeats_itself(words: Sequence[str]) -> bool:
    pairs = list(pairwise(words))
    return any(first == second for first, second in pairs) or _most(pairs) > 1


def _most(things: Iterable[tuple[str, str]]) -> int:
    return max(Counter(things).values(), default=0)
