"""Captions and references become scores that can be judged: beside what chance would score, with warnings.

In: for each picture its references and the caption to judge. Out: figures in per cent, and sentences about
what is suspicious. Loads no TensorFlow, reads and writes no file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from captioner.data.datasets import CaptionedImage
from captioner.evaluation.metrics import METRICS, describe, score
from captioner.inference.caption import Caption

SLOW_METRICS = ("meteor",)  # looked up word by word in WordNet: not after every epoch
ALIKE_SHARE = 0.1  # fewer different captions than this are suspicious
CHANCE_SHARE = 0.8  # of the CIDEr score: more of it without looking is suspicious
_FEW = 10  # pictures: below, neither says anything


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate.evaluate` found, and wrote."""

    scores: dict[str, Any]  # the content of scores.json
    captions: list[Caption]  # in the order of `records`
    records: list[CaptionedImage]  # those that could be captioned
    failures: list[tuple[str, str]]  # path and reason of those that could not
    # ids -> captions of these pictures once more, with attention
    recaption_with_attention: Callable[[Sequence[str]], list[Caption]]
    languages: Mapping[str, Evaluation] = field(default_factory=dict)  # where there are several

    @property
    def warnings(self) -> list[str]:
        """What makes the captions suspicious, as sentences."""
        return list(self.scores["warnings"])


def score_captions(references: Sequence[Sequence[str]], captions: Sequence[str]) -> dict[str, float]:
    """The figures that training keeps after each epoch: all scores that are quick, mean length, variety."""
    quick = [name for name in METRICS if name not in SLOW_METRICS]
    variety = describe(captions)
    return {
        **score(references, captions, metrics=quick),
        "mean_words": variety["mean_words"],
        "distinct": variety["distinct"],
    }


def score_with_chance(
    references: Sequence[Sequence[str]], captions: Sequence[str], *, known: Sequence[str] = ()
) -> dict[str, Any]:
    """Scores of captions, the same scores without looking at the picture, and warnings.

    A caption depends on its picture's features alone, so features shuffled among the pictures give the same
    captions in another order: they need not be generated twice. No picture keeps its own.

    Args:
        references: for each picture its captions by people.
        captions: for each picture the caption to judge.
        known: captions that were trained on; empty: unknown, then there is no `novel`.

    Returns:
        scores in per cent, `mean_words`, `distinct`, `novel`, `shuffled` (scores; None for a single
        picture) and `warnings` (sentences).
    """
    scores = score(references, captions)
    variety = describe(captions, known=known)
    if not known:
        del variety["novel"]
    chance = None
    if len(captions) > 1:
        quick = [name for name in METRICS if name not in SLOW_METRICS]
        chance = score(references, [captions[i] for i in shuffled(len(captions))], metrics=quick)
    figures = {name: round(value, 3) for name, value in {**scores, **variety}.items()}
    if chance is not None:
        chance = {name: round(value, 3) for name, value in chance.items()}
    return {**figures, "shuffled": chance, "warnings": sanity_warnings(captions, scores, chance)}


def shuffled(count: int) -> np.ndarray:
    """A permutation of 0 … count - 1, always the same, that leaves nothing in its place."""
    order = np.random.default_rng(count).permutation(count)
    places = np.empty(count, int)
    places[order] = np.roll(order, 1)  # one cycle through all
    return places


def sanity_warnings(
    captions: Sequence[str], scores: dict[str, float], chance: dict[str, float] | None
) -> list[str]:
    """Sentences about captions that do not depend on their pictures; none where all looks well."""
    if len(captions) < _FEW:
        return []
    found = []
    text, times = Counter(captions).most_common(1)[0]
    different = len(set(captions))
    if different < ALIKE_SHARE * len(captions):
        found.append(
            f"only {different} different captions for {len(captions)} pictures, the most frequent {times} "
            f'times ("{text}"): the model hardly looks'
        )
    if chance is not None and chance["cider"] >= CHANCE_SHARE * scores["cider"]:
        found.append(
            f"CIDEr is {scores['cider']:.1f}, and {chance['cider']:.1f} with the pictures shuffled: the "
            "captions say little about their own picture"
        )
    if empty := sum(not caption for caption in captions):
        found.append(f"{empty} captions are empty")
    return found


def means(figures: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Of each number that all have, the mean.

    >>> means([{"cider": 60.0, "split": "dev"}, {"cider": 40.0, "novel": 3.0}])
    {'cider': 50.0}
    """
    first, *others = figures
    return {
        name: round(sum(own[name] for own in figures) / len(figures), 3)
        for name, value in first.items()
        if isinstance(value, float) and all(isinstance(own.get(name), float) for own in others)
    }


def together(found: Mapping[str, Evaluation]) -> Evaluation:
    """The evaluations of several languages as one: the means of their figures, and all of each."""
    parts = list(found.values())
    scores = [part.scores for part in parts]
    chance = [part.scores["shuffled"] for part in parts]
    content = {
        **means(scores),
        "shuffled": means(chance) if all(chance) else None,
        "warnings": [f"{name}: {text}" for name, part in found.items() for text in part.warnings],
        "images": len({record.id for part in parts for record in part.records}),
        "failed": scores[0]["failed"],
        "protocol": {**scores[0]["protocol"], "language": ", ".join(found), "figures": "means of languages"},
        "languages": {name: part.scores for name, part in found.items()},
    }
    return Evaluation(
        content,
        [caption for part in parts for caption in part.captions],
        [record for part in parts for record in part.records],
        parts[0].failures,
        parts[0].recaption_with_attention,
        found,
    )
