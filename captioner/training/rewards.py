"""The reward of self-critical training: CIDEr-D of samples, against the other samples of the same picture.

Word ids in, advantages out (Rennie et al. 2017; the leave-one-out baseline is that of Luo 2020, "A Better
Variant of Self-Critical Sequence Training"). The end word counts as a word, in samples and references alike:
left out, the reward is higher for captions that break off in the middle. Document frequencies are those of
the training references.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from captioner.data.vocabulary import END
from captioner.evaluation.cider import CiderD


class CaptionReward:
    """Scores samples of training pictures.

    Args:
        references: per training picture its captions as word ids, without <end>.
        languages: of these captions. A sample is compared with references of its language, and document
            frequencies are those of the language.
        cut: of each caption whether it was cut off, so that no <end> belongs to it; None: none was.

    >>> reward = CaptionReward([[[4, 5, 6, 7]], [[8, 9, 10, 11]], [[12, 13, 14, 15]]])
    >>> words = np.array([[[4, 5, 6, 7, 0], [8, 9, 0, 0, 0]]])
    >>> advantages, mean = reward([0], words, np.array([[4, 2]]))
    >>> advantages.round().tolist(), round(mean)
    ([[1000.0, -1000.0]], 500)
    """

    def __init__(
        self,
        references: Sequence[Sequence[Iterable[int]]],
        languages: Sequence[Sequence[str]] | None = None,
        cut: Sequence[Sequence[bool]] | None = None,
    ) -> None:
        cut = cut or [[False] * len(captions) for captions in references]
        told = languages or [[""] * len(captions) for captions in references]
        known: dict[tuple[str, ...], tuple[str, ...]] = {}  # most pictures have the same: each is kept once
        self._languages = [known.setdefault(own, own) for own in (tuple(dict.fromkeys(own)) for own in told)]
        self._pictures: dict[str, np.ndarray] = {}  # of each language, as `_cider` has them
        self._cider: dict[str, CiderD] = {}
        for language in dict.fromkeys(name for own in self._languages for name in own):
            own = [picture for picture, spoken in enumerate(self._languages) if language in spoken]
            self._pictures[language] = np.array(own, np.int64)
            self._cider[language] = CiderD(
                [
                    [*map(int, caption), *([] if short else [END])]
                    for caption, name, short in zip(
                        references[picture], told[picture], cut[picture], strict=True
                    )
                    if name == language
                ]
                for picture in own
            )

    def draw_languages(
        self, pictures: Sequence[int], wanted: Sequence[str], *, seed: Sequence[int]
    ) -> list[str]:
        """A language for each picture, of those that it has captions in; "" where captions name none.

        Args:
            pictures: (B,) places in the references.
            wanted: languages to draw from, each as often as it is named; empty: all alike.
            seed: what is drawn for a picture depends on this and the picture alone.
        """
        drawn = []
        for picture in pictures:
            own = self._languages[picture]
            among = [language for language in wanted if language in own] or own
            place = int(np.random.default_rng([*seed, picture]).integers(len(among))) if len(among) > 1 else 0
            drawn.append(among[place])
        return drawn

    def __call__(
        self,
        pictures: Sequence[int],
        words: np.ndarray,
        lengths: np.ndarray,
        languages: Sequence[str] | None = None,
    ) -> tuple[np.ndarray, float]:
        """How much better each sample is than the mean of its picture's others.

        Args:
            pictures: (B,) rows of the references.
            words: (B, K, T) samples without <end>, 0 after the last word.
            lengths: (B, K); T means that the sample was cut off, and gets no <end>.
            languages: (B,) that the samples are in.

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
        spoken = list(languages or [""] * B)
        scores = np.zeros((B, K), np.float32)
        for language in dict.fromkeys(spoken):
            batch = [b for b in range(B) if spoken[b] == language]
            rows = np.searchsorted(self._pictures[language], [pictures[b] for b in batch]).tolist()
            scores[batch] = self._cider[language].scores([hypotheses[b] for b in batch], pictures=rows)
        others = (scores.sum(1, keepdims=True) - scores) / max(K - 1, 1)
        return scores - others, float(scores.mean())


def sampled_batch(words: Any, lengths: Any, advantages: np.ndarray, starts: Any) -> tuple[Any, Any, Any]:
    """Samples as a batch to train on: words_in, words_out and weights (B, K, T + 1), the advantages.

    Args:
        words: (B, K, T) int32, 0 after the last word.
        lengths: (B, K); those of length T were cut off and get no end word.
        advantages: (B, K), of all words of a sample.
        starts: (B,) int32, the word that each picture's samples start with.
    """
    T = tf.shape(words)[2]
    lengths = lengths[:, :, None]
    position = tf.range(T + 1)[None, None]
    real = position < tf.minimum(lengths + 1, T)
    first = tf.repeat(starts[:, None, None], tf.shape(words)[1], axis=1)  # (B, K, 1)
    words_in = tf.concat([first, words], -1)
    words_out = tf.where(position == lengths, END, tf.pad(words, [[0, 0], [0, 0], [0, 1]]))
    weights = tf.cast(real, tf.float32) * tf.cast(advantages, tf.float32)[:, :, None]
    return tf.where(real, words_in, 0), tf.where(real, words_out, 0), weights
