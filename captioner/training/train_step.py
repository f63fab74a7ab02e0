"""One step of training, compiled: a batch in, changed weights and figures out.

The same step serves every phase: cached features or pictures, encoder trained or not, cross entropy or
reward. Everything random is drawn from (seed, step) for each picture, caption and word, so neither what came
before nor the number of micro-batches, cores or workers changes a step, but for the last bits of its sums.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from captioner.config import Config, PhaseConfig
from captioner.data.vocabulary import Vocabulary
from captioner.errors import ConfigError, unknown_name
from captioner.inference.beam_search import SearchOptions, sample
from captioner.models.decoder import CaptionDecoder
from captioner.models.device import find_device
from captioner.models.encoder import Encoder
from captioner.models.layers.attention_gru import Tensor
from captioner.models.layers.dropout import BatchDropout
from captioner.models.layers.packed_captions import PackedBatch
from captioner.models.layers.packed_forward import packed_forward
from captioner.training.encoder_forward import BatchContext, Moved, frozen_cells, trained_cells
from captioner.training.losses import LossTerms, add_up, caption_loss, reward_loss, weight_penalty
from captioner.training.micro_batches import (
    GraphCache,
    bfloat16_convolutions,
    by_position,
    join_micro_batches,
    split_micro_batches,
)
from captioner.training.optimizers import TrainOptimizer
from captioner.training.rewards import CaptionReward, sampled_batch


class StepStats(NamedTuple):
    """Sums over the real words of one or more batches; `reward` is the sum of rewards over `samples`."""

    cross_entropy_sum: float = 0.0
    correct: float = 0.0
    words: float = 0.0
    captions: float = 0.0
    reward: float = 0.0
    samples: float = 0.0

    def __add__(self, other: object) -> StepStats:
        """The sums over the batches of both."""
        assert isinstance(other, StepStats)
        return StepStats(*(a + b for a, b in zip(self, other, strict=True)))


class TrainStep:
    """The compiled steps of a phase.

    Args:
        config: seed, encoder and decoding limits.
        phase: objective and what is trained.
        decoder: trained if the phase says so.
        encoder: likewise; looks at pixels where the batches hold pixels.
        updater: of the variables in `trained_variables`.
        vocabulary: of the captions.
    """

    def __init__(
        self,
        config: Config,
        phase: PhaseConfig,
        decoder: CaptionDecoder,
        encoder: Encoder,
        updater: TrainOptimizer,
        vocabulary: Vocabulary,
    ) -> None:
        self.config, self.phase, self.vocabulary = config, phase, vocabulary
        self.decoder, self.encoder, self.updater = decoder, encoder, updater
        # A pretrained CNN keeps its statistics and drops nothing; one that starts from nothing trains like
        # any network.
        self._from_scratch = "encoder" in phase.trains and config.encoder.weights == "none"
        self._graphs = GraphCache()

    def train(self, batch: Any, step: int) -> StepStats:
        """One step of cross entropy (or a loss of one's own)."""
        (inputs, words_in), words_out, weights = batch
        return stats_of(self._run("train", (inputs, words_in, words_out, weights), self._seed(step)), weights)

    def self_critical_step(
        self, batch: Any, step: int, pictures: np.ndarray, reward: CaptionReward
    ) -> StepStats:
        """One step of self-critical training: sample, score, follow the advantages.

        Args:
            batch: as in `train`; its captions count only with `phase.cross_entropy`.
            step: its number.
            pictures: (B,) rows of the reward's references.
            reward: of sampled captions.
        """
        (inputs, words_in), words_out, weights = batch
        languages = reward.draw_languages(
            pictures.tolist(), self.phase.languages, seed=(self.config.seed, step)
        )
        starts = tf.constant([self.vocabulary.start(language) for language in languages], tf.int32)
        cells, words, lengths = self._run("sample", (inputs, weights, starts), self._seed(step))
        advantages, mean = reward(pictures.tolist(), words.numpy(), lengths.numpy(), languages)
        advantages[~np.asarray(weights).any((1, 2))] = 0  # pictures that could not be read
        encoded = inputs if "encoder" in self.phase.trains else cells  # a frozen encoder encodes once
        sampled = sampled_batch(words, lengths, advantages / 100, starts)
        sums = self._run("self_critical", (encoded, *sampled, words_in, words_out, weights), self._seed(step))
        count = float(lengths.shape[0] * lengths.shape[1])
        cross_entropy_sum, correct, real = map(float, sums)
        return StepStats(cross_entropy_sum, correct, real, captions=count, reward=mean * count, samples=count)

    def evaluate(self, batch: Any) -> StepStats:
        """Teacher-forced figures, without dropout; changes nothing."""
        (inputs, words_in), words_out, weights = batch
        return stats_of(self._run("evaluate", (inputs, words_in, words_out, weights), self._seed(0)), weights)

    def _seed(self, step: int) -> Tensor:
        return tf.constant([self.config.seed, step], tf.int32)

    def _run(self, name: str, batch: tuple[Any, ...], seed: Tensor) -> Any:
        """Calls the graph `_NAME_graph` for this batch."""
        count, graph = self._count(batch[0].shape[0]), getattr(self, f"_{name}_graph")
        train = self.config.train
        short = train.bfloat16_convolutions and train.precision == "bfloat16" and name != "evaluate"
        with bfloat16_convolutions(short):
            return self._graphs((name, count), partial(self._whole_batch, graph, count), batch, seed)

    def _count(self, pictures: int) -> int:
        return find_device().micro_batches(self.config.train.micro_batches, pictures)

    # What is different where several devices or workers train together, see `distributed`.

    def _whole_batch(self, graph: Any, count: int, batch: tuple[Tensor, ...], seed: Tensor) -> Any:
        """In a graph: the results of `graph` for a whole batch."""
        pictures = tf.range(tf.shape(batch[0])[0])
        return graph(count, batch, pictures, seed)

    def _pictures(self, pictures: Tensor) -> Tensor:
        """How many pictures the whole batch has, of which these (b,) numbers are here."""
        return tf.size(pictures)

    def _everywhere(self, total: Tensor) -> Tensor:
        """The sum over all devices and workers."""
        return total

    def _apply(self, gradients: list[Tensor], sums: tuple[Tensor, ...], moved: Moved) -> Any:
        norm = self.updater.apply(gradients)
        for average, value in moved:
            average.assign(value)
        return spoiled(sums, norm)

    # Graphs.

    def _train_graph(self, count: int, batch: tuple[Tensor, ...], pictures: Tensor, seed: Tensor) -> Any:
        variables = [v.value for v in self.updater.variables_trained]
        parts = by_position(split_micro_batches(count, (*batch, pictures)))
        inputs, captions, numbers = parts[0], parts[1:4], parts[4]
        dropout = BatchDropout(seed, self._pictures(pictures))
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(variables)
            with self.decoder.casted_weights.shared():
                cells, moved = self._cells(inputs, captions[2], numbers, dropout)
                losses = self._losses(inputs, cells, captions, numbers, dropout)
            objective = self._mean_loss(losses) + self._penalty()
        return self._apply(tape.gradient(objective, variables), add_up(losses), moved)

    def _sample_graph(self, count: int, batch: tuple[Tensor, ...], pictures: Tensor, seed: Tensor) -> Any:
        inputs, weights, starts, numbers = by_position(split_micro_batches(count, (*batch, pictures)))
        dropout = BatchDropout(seed, self._pictures(pictures))
        all_cells, _ = self._cells(inputs, weights, numbers, dropout)
        options = SearchOptions(
            beam=1,
            max_words=self.config.decode.max_words,
            temperature=self.phase.temperature,
            banned=self.vocabulary.unwritten,
        )
        drawn = []
        for cells, first, number in zip(all_cells, starts, numbers, strict=True):
            memory = self.decoder.project_memory(cells)
            step_seed = tf.cast(seed[0], tf.int64) * 1_000_003 + tf.cast(seed[1], tf.int64)
            found = sample(
                self.decoder.make_step_fn(memory),
                self.decoder.initial_state(memory),
                pictures=tf.shape(cells)[0],
                samples=self.phase.samples,
                options=options,
                starts=first,
                seed=step_seed * 2**20 + tf.cast(number, tf.int64),
            )
            drawn.append((cells, found.words, found.lengths))
        return tuple(map(join_micro_batches, zip(*drawn, strict=True)))

    def _self_critical_graph(
        self, count: int, batch: tuple[Tensor, ...], pictures: Tensor, seed: Tensor
    ) -> Any:
        variables = [v.value for v in self.updater.variables_trained]
        parts = by_position(split_micro_batches(count, (*batch, pictures)))
        inputs, sampled, references, numbers = parts[0], parts[1:4], parts[4:7], parts[7]
        total = self._everywhere(tf.reduce_sum(tf.cast(batch[2] > 0, tf.float32)))
        pictures_in_all = self._pictures(pictures)
        losses: list[LossTerms] = []
        with tf.GradientTape(watch_accessed_variables=False) as tape, self.decoder.casted_weights.shared():
            tape.watch(variables)
            dropout = BatchDropout(seed, pictures_in_all)
            cells, moved = self._cells(inputs, references[2], numbers, dropout)
            packed = self._packed(cells, sampled, numbers, dropout)
            objective = self._penalty() + tf.add_n([reward_loss(each, total) for each in packed])
            if self.phase.cross_entropy:
                # Dropout of its own: these captions have another number of words than the sampled ones.
                dropout = BatchDropout(seed, pictures_in_all)
                losses = self._losses(inputs, cells, references, numbers, dropout)
                objective += self.phase.cross_entropy * self._mean_loss(losses)
        sums = add_up(losses) if losses else (tf.constant(0.0),) * 3
        # Samples that are all alike have no advantage and no gradient, those of spoiled weights, too.
        sums = spoiled(sums, tf.add_n([tf.reduce_sum(v) for v in variables]))
        return self._apply(tape.gradient(objective, variables), sums, moved)

    def _evaluate_graph(self, count: int, batch: tuple[Tensor, ...], pictures: Tensor, seed: Tensor) -> Any:
        inputs, *captions = by_position(split_micro_batches(count, batch))
        packed = self._packed([self._frozen_cells(x) for x in inputs], captions, [None] * count, None)
        plain = PhaseConfig(label_smoothing=0.0)
        return add_up([caption_loss(each, plain) for each in packed])

    # Parts of them, for all micro-batches.

    def _cells(
        self, inputs: list[Tensor], weights: list[Any], numbers: list[Tensor], dropout: BatchDropout
    ) -> tuple[list[Tensor], Moved]:
        """Cells (b, P, C) float32 of features, or of the pixels that the encoder encodes."""
        if len(inputs[0].shape) == 3 or "encoder" not in self.phase.trains:
            if len(inputs[0].shape) == 4 and self.phase.views == "one":
                return trained_cells(self.encoder, inputs, None)  # no gradient: its variables are not watched
            return [self._frozen_cells(x) for x in inputs], []
        context = None
        if self._from_scratch:  # pictures that could not be read have no part in its statistics
            real = [tf.cast(tf.reduce_any(x != 0, [1, 2]), tf.float32) for x in weights]
            context = BatchContext(dropout, numbers, real, self._everywhere)
        return trained_cells(self.encoder, inputs, context)

    def _frozen_cells(self, inputs: Tensor) -> Tensor:
        if len(inputs.shape) == 3:
            return tf.cast(inputs, tf.float32)
        return frozen_cells(self.encoder, inputs, find_device().frozen_encoder_batch)

    def _packed(
        self,
        cells: list[Tensor],
        captions: Sequence[list[Tensor]],
        numbers: list[Any],
        dropout: BatchDropout | None,
    ) -> list[PackedBatch]:
        """The packed words of captions, which are words_in, words_out and weights."""
        dropout = dropout if self.phase.use_dropout else None
        return [
            packed_forward(self.decoder, (x, words_in), words_out, weights, dropout=dropout, pictures=number)
            for x, words_in, words_out, weights, number in zip(cells, *captions, numbers, strict=True)
        ]

    def _losses(
        self,
        inputs: list[Tensor],
        cells: list[Tensor],
        captions: Sequence[list[Tensor]],
        numbers: list[Any],
        dropout: BatchDropout,
    ) -> list[LossTerms]:
        """The losses of captions; `inputs` are what the cells are of."""
        packed = self._packed(cells, captions, numbers, dropout)
        return [caption_loss(each, self.phase) for each in packed]

    def _mean_loss(self, losses: list[LossTerms]) -> Tensor:
        """The objective of the whole batch: its mean over all real words, its coverage over all pictures."""
        words = self._everywhere(tf.add_n([loss.words for loss in losses]))
        total = tf.add_n([loss.objective * loss.words for loss in losses])
        objective = tf.math.divide_no_nan(total, words)
        if self.phase.coverage:
            pictures = self._everywhere(tf.add_n([loss.pictures for loss in losses]))
            covered = tf.add_n([loss.coverage * loss.pictures for loss in losses])
            objective += self.phase.coverage * tf.math.divide_no_nan(covered, pictures)
        return objective

    def _penalty(self) -> Tensor:
        return weight_penalty(self.decoder, self.updater.groups[1], self.config.encoder.l2)


def trained_variables(
    phase: PhaseConfig, decoder: CaptionDecoder, encoder: Encoder
) -> tuple[list[Any], list[Any]]:
    """The decoder's and the encoder's variables that a phase changes.

    Raises:
        ConfigError: `encoder_from` is no layer of the encoder.
    """
    own = list(decoder.trainable_variables) if "decoder" in phase.trains else []
    return own, encoder_variables(phase, encoder) if "encoder" in phase.trains else []


def encoder_variables(phase: PhaseConfig, encoder: Encoder) -> list[Any]:
    """The encoder's variables from the layer `encoder_from` on; errors as in `trained_variables`."""
    layers = encoder.model.layers
    names = [layer.name for layer in layers]
    start = 0
    if phase.encoder_from:
        if phase.encoder_from not in names:
            raise ConfigError(
                unknown_name(
                    "encoder layer",
                    phase.encoder_from,
                    [n for n, la in zip(names, layers, strict=True) if la.weights],
                )
            )
        start = names.index(phase.encoder_from)
    return [v for layer in layers[start:] for v in layer.trainable_variables]


def spoiled(sums: tuple[Tensor, ...], witness: Tensor) -> tuple[Tensor, ...]:
    """The figures of a step; NaN where `witness`, such as the gradient's norm, is not finite."""
    return tuple(x + 0.0 * witness for x in sums)  # 0 times infinity is no number


def stats_of(sums: Any, weights: Any) -> StepStats:
    """The figures of a step, from its sums and the weights of its captions."""
    cross_entropy_sum, correct, words = map(float, sums)
    captions = float(np.count_nonzero(np.asarray(weights)[:, :, 0]))
    return StepStats(cross_entropy_sum, correct, words, captions=captions)
