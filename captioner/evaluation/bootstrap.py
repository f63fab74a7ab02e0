"""Whether one model's captions are better than another's, or only luckier in the pictures they were tried on.

In: for each picture its references and the captions of two models. Out: for each metric the difference, an
interval around it, and how often it keeps its sign when the pictures are drawn anew (paired bootstrap: Koehn,
"Statistical significance tests for machine translation evaluation", EMNLP 2004). Reads and writes no file.

Letters: N pictures, R resamples, F figures of a caption.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from captioner.evaluation.metrics import METRICS, bleu_counts, bleu_of_counts, per_caption

RESAMPLES = 1000
CONFIDENCE = 95  # per cent of the resamples lie within the interval
_AT_ONCE = 2**24  # numbers of a matrix of resamples held in memory


@dataclass(frozen=True)
class Difference:
    """How much better the first captions score than the second; all in per cent, as the scores are."""

    metric: str
    difference: float  # of the scores over all pictures
    low: float  # the interval that holds CONFIDENCE per cent of the resampled differences
    high: float
    better: float  # share of the resamples in which the first scores higher, 0 to 1

    @property
    def certain(self) -> bool:
        """Whether the interval leaves 0 out."""
        return self.low > 0 or self.high < 0


def paired_bootstrap(
    references: Sequence[Sequence[str]],
    first: Sequence[str],
    second: Sequence[str],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[Difference]:
    """Compares two captions a picture, metric by metric.

    Each resample draws as many pictures as there are, with replacement, the same for both. BLEU-4 is computed
    anew from the n-grams counted in them; the others are means over pictures, with the document frequencies
    of CIDEr those of all pictures.

    Args:
        references: for each picture its captions by people.
        first, second: for each picture the captions to compare.
        resamples: how often pictures are drawn.
        seed: of the drawing.

    >>> people = [["a dog runs on grass"], ["two men sit down"], ["a red car parks"], ["a cat sleeps here"]]
    >>> for found in paired_bootstrap(people, [captions[0] for captions in people], ["a dog"] * 4):
    ...     print(found.metric, found.difference > 0, found.certain)
    bleu4 True True
    rouge_l True True
    cider True True
    """
    means = [name for name in METRICS if name != "bleu"]
    both = [per_caption(references, captions, metrics=means) for captions in (first, second)]
    counts = [bleu_counts(references, captions) for captions in (first, second)]  # (N, F) each
    draws = _draws(len(references), resamples, seed)
    found = []
    for name in ("bleu4", *both[0]):
        if name == "bleu4":
            whole = [bleu_of_counts(table.sum(0))[3] for table in counts]
            drawn = [bleu_of_counts(draws @ table)[..., 3] for table in counts]
        else:
            columns = [np.asarray(figures[name]) for figures in both]
            whole = [column.mean() for column in columns]
            drawn = [draws @ column / len(references) for column in columns]
        differences = drawn[0] - drawn[1]  # (R,)
        margin = (100 - CONFIDENCE) / 2
        low, high = np.percentile(differences, [margin, 100 - margin])
        found.append(
            Difference(
                name,
                round(float(whole[0] - whole[1]), 3),
                round(float(low), 3),
                round(float(high), 3),
                round(float((differences > 0).mean() + (differences == 0).mean() / 2), 4),
            )
        )
    return found


def _draws(count: int, resamples: int, seed: int) -> np.ndarray:
    """(R, N): how often each picture is in each resample; rows sum to N."""
    rng = np.random.default_rng(seed)
    step = max(1, _AT_ONCE // max(1, count))
    shares = np.full(count, 1 / count)
    parts = [
        rng.multinomial(count, shares, size=min(step, resamples - start))
        for start in range(0, resamples, step)
    ]
    return np.concatenate([part.astype(np.float32) for part in parts])
