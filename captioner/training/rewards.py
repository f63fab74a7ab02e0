"""The reward of self-critical training: CIDEr-D of samples, against the other samples of the same picture.

Word ids in, advantages out (Rennie et al. 2017; the leave-one-out baseline is that of Luo 2020, "A Better
Variant of Self-Critical Sequence Training"). The end word counts as a word, in samples and references alike:
left out, the reward is higher for captions that break off in the middle. Document frequencies are those of
the training references.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from captioner.data.vocabulary import END
from captioner.evaluation.cider import CiderD


class CaptionReward:
    """Scores samples of training pictures.

    Args:
        references: per training picture its captions as word ids, without <end>.

    >>> reward = CaptionReward([[[4, 5, 6, 7]], [[8, 9, 10, 11]], [[12, 13, 14, 15]]])
    >>> words = np.array([[[4, 5, 6, 7, 0], [8, 9, 0, 0, 0]]])
    >>> advantages, mean = reward([0], words, np.array([[4, 2]]))
    >>> advantages.round().tolist(), round(mean)
    ([[1000.0, -1000.0]], 500)
    """

    def __init__(self, references: Sequence[Sequence[Iterable[int]]]) -> None:
        self._cider = CiderD([[[*map(int, caption), END] for caption in captions] for captions in references])

    def __call__(
        self, pictures: Sequence[int], words: np.ndarray, lengths: np.ndarray
    ) -> tuple[np.ndarray, float]:
        """How much better each sample is than the mean of its picture's others.

        Args:
            pictures: (B,) places in the references.
            words: (B, K, T) samples without <end>, 0 after the last word.
            lengths: (B, K); T means that the sample was cut off, and gets no <end>.

        Returns:
            advantages (B, K) float32 in points of CIDEr-D, and the mean score.
        """
        B, K, T = words.shape
        hypotheses = [
            [
                [*words[b, k, : lengths[b, k]].tolist(), *([END] if lengths[b, k] < T else [])]
                for k in range(K)
            ]
            for b in range(B)
        ]
        scores = np.array(self._cider.scores(hypotheses, pictures=list(pictures)), np.float32)  # (B, K)
        others = (scores.sum(1, keepdims=True) - scores) / max(K - 1, 1)
        return scores - others, float(scores.mean())
