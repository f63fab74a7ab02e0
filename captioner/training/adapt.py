"""Learning from corrections without forgetting: the run that one starts from stays at hand as a measure.

In: the start's networks, pictures and what the start itself writes of them. Out: steps that follow the
corrections and hold the words' probabilities on those captions close to what they were (Li and Hoiem 2017,
"Learning without forgetting").
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from captioner.data.datasets import CaptionedImage
from captioner.data.vocabulary import Vocabulary, words_of
from captioner.inference.captioner import Captioner
from captioner.models.decoder import CaptionDecoder
from captioner.models.layers.attention_gru import Tensor
from captioner.models.layers.dropout import BatchDropout
from captioner.models.layers.packed_forward import packed_forward
from captioner.training.input_pipeline import FeatureSource, TokenizedCaptions
from captioner.training.losses import add_up, divergence
from captioner.training.micro_batches import by_position, split_micro_batches
from captioner.training.train_step import StepStats, TrainStep, stats_of

SAMPLES = 2  # captions of the start's a picture
DRAWN = 6  # of which those are kept that are most like what people said


class StartCaptions:
    """What the start writes of pictures, drawn at random as it finds it likely; batches of it by step.

    Where people have captioned a picture, those of the start's captions that have most words in common with
    theirs are kept to: what it says rightly is held, what was corrected is let go.

    Args:
        captioner: with the start's networks and words.
        source: features of the pictures.
        records: the pictures, with what people said of them or without captions.
        language: of the captions; None: the first that the start knows, or none.
        vocabulary: of the training; the start's words come first in it.
        seed: of the captions, and of which pictures are in which batch.
    """

    def __init__(
        self,
        captioner: Captioner,
        source: FeatureSource,
        records: Sequence[CaptionedImage],
        vocabulary: Vocabulary,
        *,
        language: str | None = None,
        seed: int,
    ) -> None:
        self.source, self.seed = source, seed
        ids = [record.id for record in records]
        drawn = captioner.caption_features(
            source, ids, temperature=1.0, n_best=DRAWN, seed=seed, language=language
        )
        kept = []
        for record, caption in zip(records, drawn, strict=True):
            texts = [caption.text, *(other.text for other in caption.alternatives)]
            alike = most_alike(texts, record.in_language(language))
            languages = (language,) * len(alike) if language else ()
            kept.append(CaptionedImage(record.id, record.path, alike, languages))
        self.captions = TokenizedCaptions(kept, vocabulary, max_words=captioner.decode.max_words)

    def batch(self, step: int, pictures: int) -> tuple[np.ndarray, ...]:
        """Features (B, P, C), words_in, words_out, weights (B, R, T): a function of (seed, step)."""
        rng = np.random.default_rng([self.seed, step])
        count = len(self.captions.ids)
        chosen = rng.permutation(count)[: min(pictures, count)]
        chosen = chosen[np.argsort(-self.captions.longest[chosen], kind="stable")]
        captions = [range(len(self.captions.captions[picture])) for picture in chosen]
        features = self.source.read([self.captions.ids[picture] for picture in chosen])
        return features, *self.captions.pad_batch(chosen, captions)


class AdaptStep(TrainStep):
    """Steps of cross entropy that stay close to the start.

    The phase's `closeness` weighs how far the probabilities have moved, in nats a word.

    Args:
        of_step: as `TrainStep`; the encoder is frozen.
        start: the start's decoder, of the first V of the words.
        shares: (n, V), of these in each of the n others.
        captions: what the start writes.
    """

    def __init__(
        self, *of_step: Any, start: CaptionDecoder, shares: np.ndarray, captions: StartCaptions
    ) -> None:
        super().__init__(*of_step)
        self.start, self.shares, self.captions = start, shares, captions

    def train(self, batch: Any, step: int) -> StepStats:
        """One step."""
        (inputs, words_in), words_out, weights = batch
        kept = self.captions.batch(step, inputs.shape[0])
        sums = self._run("adapt", (inputs, words_in, words_out, weights, *kept), self._seed(step))
        return stats_of(sums, weights)

    def _adapt_graph(self, count: int, batch: tuple[Tensor, ...], pictures: Tensor, seed: Tensor) -> Any:
        variables = [v.value for v in self.updater.variables_trained]
        parts = by_position(split_micro_batches(count, (*batch[:4], pictures)))
        inputs, captions, numbers = parts[0], parts[1:4], parts[4]
        kept_pictures = tf.range(tf.shape(batch[4])[0])
        kept = by_position(split_micro_batches(count, (*batch[4:], kept_pictures)))
        dropout = BatchDropout(seed, self._pictures(pictures))
        with tf.GradientTape(watch_accessed_variables=False) as tape, self.decoder.casted_weights.shared():
            tape.watch(variables)
            cells, moved = self._cells(inputs, captions[2], numbers, dropout)
            losses = self._losses(inputs, cells, captions, numbers, dropout)
            distance = self._distance(kept, BatchDropout(seed, tf.size(kept_pictures)))
            objective = self._mean_loss(losses) + self.phase.closeness * distance + self._penalty()
        return self._apply(tape.gradient(objective, variables), add_up(losses), moved)

    def _distance(self, kept: list[list[Tensor]], dropout: BatchDropout) -> Tensor:
        """How far the probabilities have moved on the start's captions: the mean over their words."""
        shape = [None, self.encoder.num_cells, self.encoder.channels]
        cells = [tf.ensure_shape(tf.cast(x, tf.float32), shape) for x in kept[0]]
        now = self._packed(cells, kept[1:4], kept[4], dropout)
        distances, words = [], []
        for x, words_in, words_out, weights, after in zip(cells, *kept[1:4], now, strict=True):
            before = packed_forward(self.start, (x, words_in), words_out, weights)
            real = tf.cast(after.weights != 0, tf.float32)
            distances.append(tf.reduce_sum(divergence(before.logits, after.logits, self.shares) * real))
            words.append(tf.reduce_sum(real))
        return tf.math.divide_no_nan(tf.add_n(distances), tf.add_n(words))


def most_alike(captions: Sequence[str], references: Sequence[str], count: int = SAMPLES) -> tuple[str, ...]:
    """The captions that have most words in common with the references (F1); the first where there are none.

    >>> most_alike(["a cat", "a dog runs", "dogs"], ["the dog runs"], 1)
    ('a dog runs',)
    """
    said = [set(words_of(reference)) for reference in references]

    def alike(caption: str) -> float:
        words = set(words_of(caption))
        return sum(2 * len(words & other) / max(1, len(words) + len(other)) for other in said)

    return tuple(sorted(captions, key=alike, reverse=True)[:count])
