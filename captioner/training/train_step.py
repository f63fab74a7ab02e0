"""One step of training, compiled: a batch in, changed weights and figures out.

The same step serves every phase: cached features or pictures, encoder trained or not, cross entropy or
reward. Randomness comes from (seed, step) alone.
"""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from captioner.config import Config, PhaseConfig
from captioner.data.vocabulary import END, Vocabulary
from captioner.errors import ConfigError, unknown_name
from captioner.inference.beam_search import SearchOptions, sample
from captioner.models.decoder import CaptionDecoder
from captioner.models.encoder import Encoder
from captioner.models.layers import depthwise_conv as depthwise
from captioner.models.layers.attention_gru import Tensor
from captioner.system.hardware import cores
from captioner.training.losses import caption_loss, reward_loss
from captioner.training.optimizers import TrainOptimizer
from captioner.training.rewards import CaptionReward

# Pictures that go through a frozen CNN together in a micro-batch: more are slower, and take more memory.
FROZEN_ENCODER_BATCH = 4


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
        self._micro_batches = self._all_micro_batches = config.train.micro_batches or cores()
        # A pretrained CNN keeps its statistics and drops nothing; one that starts from nothing trains like
        # any network.
        self._cnn_training = "encoder" in phase.trains and config.encoder.weights == "none"
        self._graphs: dict[Any, Any] = {}

    def train(self, batch: Any, step: int) -> StepStats:
        """One step of cross entropy (or a loss of one's own)."""
        (inputs, words_in), words_out, weights = batch
        seed = tf.constant([self.config.seed, step], tf.int32)
        return stats_of(self._run(self._train_graph, (inputs, words_in, words_out, weights), seed), weights)

    def self_critical_step(
        self, batch: Any, step: int, pictures: np.ndarray, reward: CaptionReward
    ) -> StepStats:
        """One step of self-critical training: sample, score, follow the advantages."""
        (inputs, words_in), words_out, weights = batch
        seed = tf.constant([self.config.seed, step], tf.int32)
        languages = reward.draw_languages(
            pictures.tolist(), self.phase.languages, seed=(self.config.seed, step)
        )
        starts = tf.constant([self.vocabulary.start(language) for language in languages], tf.int32)
        cells, words, lengths = self._run(self._sample_graph, (inputs, starts), seed)
        advantages, mean = reward(pictures.tolist(), words.numpy(), lengths.numpy(), languages)
        advantages[~np.asarray(weights).any((1, 2))] = 0  # pictures that could not be read
        looked_at = inputs if "encoder" in self.phase.trains else cells  # a frozen encoder looks once
        sampled = _as_batch(words, lengths, advantages / 100, starts)
        references = (words_in, words_out, weights)
        figures = self._run(self._self_critical_graph, (looked_at, *sampled), references, seed)
        count = float(lengths.shape[0] * lengths.shape[1])
        nats, correct, real = map(float, figures)
        return StepStats(nats, correct, real, captions=count, reward=mean * count, samples=count)

    def evaluate(self, batch: Any) -> StepStats:
        """Teacher-forced figures without any change."""
        (inputs, words_in), words_out, weights = batch
        return stats_of(self._run(self._evaluate_graph, (inputs, words_in, words_out, weights)), weights)

    # Graphs.

    def _run(self, graph: Any, batch: tuple[Any, ...], *rest: Any) -> Any:
        """Calls a graph with the number of parts that run side by side, one a core, and the batch.

        It is traced for batches of every size at once: a graph of the first batch's own sizes could round
        otherwise, and a resumed training begins with another batch.
        """
        micro_batches = min(self._micro_batches, batch[0].shape[0])
        if (graph, micro_batches) not in self._graphs:
            inputs, *captions = tf.nest.map_structure(_any_size, (*batch, *rest))
            inputs = tf.TensorSpec([None, *batch[0].shape[1:]], batch[0].dtype)
            signature = [(inputs, *captions[: len(batch) - 1]), *captions[len(batch) - 1 :]]
            compiled = tf.function(
                self._bound(graph, micro_batches), input_signature=signature, autograph=False
            )
            self._graphs[graph, micro_batches] = compiled
        return self._graphs[graph, micro_batches](batch, *rest)

    # What is different where several workers train together, see `replicas`.

    def _bound(self, graph: Any, micro_batches: int) -> Any:
        return partial(graph, micro_batches)

    def _place(self, micro_batch: int) -> int:
        """The number of a micro-batch among those of all workers."""
        return micro_batch

    def _everywhere(self, total: Tensor) -> Tensor:
        """The sum over all workers."""
        return total

    def _follow(self, gradients: list[Tensor], sums: tuple[Tensor, ...]) -> Any:
        self.updater.apply(gradients)
        return sums

    def _train_graph(self, micro_batches: int, batch: tuple[Tensor, ...], seed: Tensor) -> Any:
        variables = [v.value for v in self.updater.variables_trained]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(variables)
            with self.decoder.casted_weights.shared():
                losses = [
                    self._micro_batch_loss(part, seed + [0, self._place(number) * 104_729])
                    for number, part in enumerate(split_micro_batches(micro_batches, batch))
                ]
            words = self._everywhere(tf.add_n([loss.words for loss in losses]))
            total = tf.add_n([loss.objective * loss.words for loss in losses])
            objective = tf.math.divide_no_nan(total, words) + self._penalty()
        return self._follow(tape.gradient(objective, variables), sums_of(losses))

    def _micro_batch_loss(self, part: Any, seed: Tensor) -> Any:
        """The loss of a part of the batch."""
        inputs, words_in, words_out, weights = part
        cells = self._cells(inputs, seed)
        packed = self.decoder.packed_forward((cells, words_in), words_out, weights, self._dropout_seed(seed))
        return caption_loss(packed, self.phase)

    def _sample_graph(self, micro_batches: int, batch: tuple[Tensor, ...], seed: Tensor) -> Any:
        parts = []
        for number, (part, starts) in enumerate(split_micro_batches(micro_batches, batch)):
            cells = self._cells(part, seed)
            memory = self.decoder.project_memory(cells)
            options = SearchOptions(
                beam=1,
                max_words=self.config.decode.max_words,
                temperature=self.phase.temperature,
                banned=self.vocabulary.unwritten,
            )
            found = sample(
                self.decoder.make_step_fn(memory),
                self.decoder.initial_state(memory),
                pictures=tf.shape(cells)[0],
                samples=self.phase.samples,
                options=options,
                starts=starts,
                seed=(seed[0] * 1_000_003 + seed[1]) * self._all_micro_batches + self._place(number),
            )
            parts.append((cells, found.words, found.lengths))
        B = tf.shape(batch[0])[0]
        place = tf.argsort(
            tf.concat([tf.range(number, B, micro_batches) for number in range(micro_batches)], 0)
        )
        return tuple(tf.gather(tf.concat(part, 0), place) for part in zip(*parts, strict=True))

    def _self_critical_graph(
        self, micro_batches: int, batch: tuple[Tensor, ...], references: tuple[Tensor, ...], seed: Tensor
    ) -> Any:
        variables = [v.value for v in self.updater.variables_trained]
        mixed = self.phase.cross_entropy
        losses, total = [], self._everywhere(tf.reduce_sum(tf.cast(batch[2] > 0, tf.float32)))
        with tf.GradientTape(watch_accessed_variables=False) as tape, self.decoder.casted_weights.shared():
            tape.watch(variables)
            objective = self._penalty()
            for number, part in enumerate(split_micro_batches(micro_batches, (*batch, *references))):
                own = seed + [0, self._place(number) * 104_729]
                cells = self._cells(part[0], own)
                packed = self.decoder.packed_forward(
                    (cells, part[1]), part[2], part[3], self._dropout_seed(own)
                )
                objective += reward_loss(packed, total)
                if mixed:
                    packed = self.decoder.packed_forward(
                        (cells, part[4]), part[5], part[6], self._dropout_seed(own)
                    )
                    losses.append(caption_loss(packed, self.phase))
            if mixed:
                count = self._everywhere(tf.add_n([loss.words for loss in losses]))
                both = tf.add_n([loss.objective * loss.words for loss in losses])
                objective += mixed * tf.math.divide_no_nan(both, count)
        sums = sums_of(losses) if mixed else (tf.constant(0.0),) * 3
        return self._follow(tape.gradient(objective, variables), sums)

    def _evaluate_graph(self, micro_batches: int, batch: tuple[Tensor, ...]) -> Any:
        losses = []
        for inputs, words_in, words_out, weights in split_micro_batches(micro_batches, batch):
            packed = self.decoder.packed_forward((self._cells(inputs, None), words_in), words_out, weights)
            losses.append(caption_loss(packed, _plain(self.phase)))
        return sums_of(losses)

    def _cells(self, inputs: Tensor, seed: Tensor | None) -> Tensor:
        """(B, P, C) float32 of a batch of features, or of pixels that the encoder looks at."""
        if len(inputs.shape) == 3:
            return tf.cast(inputs, tf.float32)
        training = self._cnn_training and seed is not None
        if seed is not None and training:
            self.encoder.reseed(seed[0], seed[1])
        if seed is None or "encoder" not in self.phase.trains:
            return self._look(inputs)
        # An encoder in training meets mirror images in turn, not both at once: half the time.
        with depthwise.trained():
            grid = self.encoder.model(tf.cast(inputs, tf.float32), training=training)  # (B, h, w, C)
        rows, columns = self.encoder.grid
        return tf.reshape(tf.cast(grid, tf.float32), [-1, rows * columns, self.encoder.channels])

    def _look(self, pixels: Tensor) -> Tensor:
        """`Encoder.encode_graph`, `FROZEN_ENCODER_BATCH` pictures after the others."""
        chunks = -(-tf.shape(pixels)[0] // FROZEN_ENCODER_BATCH)
        cells = tf.TensorArray(tf.float32, chunks, infer_shape=False)

        def step(i: Tensor, cells: Any) -> Any:
            return i + 1, cells.write(
                i,
                self.encoder.encode_graph(pixels[i * FROZEN_ENCODER_BATCH : (i + 1) * FROZEN_ENCODER_BATCH]),
            )

        _, cells = tf.while_loop(lambda i, _: i < chunks, step, (0, cells), parallel_iterations=1)
        return tf.ensure_shape(cells.concat(), [None, self.encoder.num_cells, self.encoder.channels])

    def _dropout_seed(self, seed: Tensor) -> Tensor | None:
        return seed if self.phase.use_dropout else None

    def _penalty(self) -> Tensor:
        """Weight regularisation of what is trained."""
        total = tf.add_n(self.decoder.losses) if self.decoder.losses else tf.constant(0.0)
        strength = self.config.encoder.l2
        if strength and self.updater.groups[1]:
            total += strength * tf.add_n([tf.reduce_sum(tf.square(v)) for v in self.updater.groups[1]])
        return total


def use_cores_side_by_side() -> None:
    """One thread an operation and several operations at once: a step is many small ones, in `micro_batches`.

    Where TensorFlow is in use already (a notebook), its threads stay as they are; steps are only slower.
    """
    with suppress(RuntimeError):
        tf.config.threading.set_intra_op_parallelism_threads(1)
        tf.config.threading.set_inter_op_parallelism_threads(cores())


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


def sums_of(losses: list[Any]) -> tuple[Tensor, ...]:
    return tuple(
        tf.add_n([getattr(loss, name) for loss in losses])
        for name in ("cross_entropy_sum", "correct", "words")
    )


def stats_of(sums: Any, weights: Any) -> StepStats:
    nats, correct, words = map(float, sums)
    return StepStats(nats, correct, words, captions=float(np.count_nonzero(np.asarray(weights)[:, :, 0])))


def _any_size(x: Any) -> tf.TensorSpec:
    return tf.TensorSpec([None] * len(x.shape), x.dtype)


def split_micro_batches(micro_batches: int, batch: tuple[Tensor, ...]) -> list[list[Tensor]]:
    """The batch dealt out, so that each part has long and short captions."""
    rows = tf.range(tf.shape(batch[0])[0])
    # Not x[number::micro_batches], which goes number by number; this copies whole rows.
    return [[tf.gather(x, rows[number::micro_batches]) for x in batch] for number in range(micro_batches)]


def _as_batch(
    words: Tensor, lengths: Tensor, advantages: Any, starts: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Samples (B, K, T) as words_in, words_out and weights (B, K, T + 1); those cut off get no end word."""
    T = tf.shape(words)[2]
    lengths = lengths[:, :, None]
    place = tf.range(T + 1)[None, None]
    real = place < tf.minimum(lengths + 1, T)
    first = tf.repeat(starts[:, None, None], tf.shape(words)[1], axis=1)  # (B, K, 1)
    words_in = tf.concat([first, words], -1)
    words_out = tf.where(place == lengths, END, tf.pad(words, [[0, 0], [0, 0], [0, 1]]))
    weights = tf.cast(real, tf.float32) * tf.cast(advantages, tf.float32)[:, :, None]
    return tf.where(real, words_in, 0), tf.where(real, words_out, 0), weights


def _plain(phase: PhaseConfig) -> PhaseConfig:
    return PhaseConfig(label_smoothing=0.0, objective="cross_entropy", epochs=phase.epochs)
