"""What training minimizes, in nats per real word.

In: the packed words of a micro-batch (`PackedBatch`). Out: a scalar to minimize and the figures a person
reads. Weights come from the targets: padding never reaches a loss, so more padding changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from captioner.config import PhaseConfig
from captioner.errors import ConfigError, load_object, unknown_name
from captioner.models.device import find_device
from captioner.models.layers.attention_gru import Tensor
from captioner.models.layers.packed_captions import PackedBatch

TINY = 1e-30  # a share that could have underflown


class LossTerms(NamedTuple):
    """The loss of one micro-batch.

    Attributes:
        objective: scalar to minimize, a mean over the real words.
        cross_entropy_sum: scalar, in nats, summed over the real words, without smoothing.
        correct: scalar, words whose logit is the largest.
        words: scalar, real words.
        coverage: scalar to minimize beside it, a mean over the pictures; 0 where the phase wants none.
        pictures: scalar.
    """

    objective: Tensor
    cross_entropy_sum: Tensor
    correct: Tensor
    words: Tensor
    coverage: Tensor
    pictures: Tensor


def caption_loss(packed: PackedBatch, phase: PhaseConfig) -> LossTerms:
    """The phase's objective of a micro-batch, and its coverage term if the phase asks for it."""
    smoothed, nats, hits = cross_entropy(packed, phase.label_smoothing)
    real = packed.weights != 0
    if phase.objective in OBJECTIVES:  # in a reward phase this is the term beside the reward
        objective = tf.math.divide_no_nan(
            tf.reduce_sum(smoothed * packed.weights), tf.reduce_sum(packed.weights)
        )
    else:
        objective = load_loss(phase.objective)(
            *(tf.boolean_mask(x, real) for x in (packed.logits, packed.words, packed.weights))
        )
    cross_entropy_sum, correct, words = (
        tf.reduce_sum(tf.where(real, each, 0)) for each in (nats, hits, tf.ones_like(nats))
    )
    uncovered = coverage(packed.attention, packed.positions) if phase.coverage else tf.constant(0.0)
    pictures = tf.cast(tf.reduce_max(packed.positions[:, 1]) + 1, tf.float32) if phase.coverage else 0.0
    return LossTerms(objective, cross_entropy_sum, correct, words, uncovered, tf.convert_to_tensor(pictures))


def distillation_loss(packed: PackedBatch, taught: Tensor, share: float) -> LossTerms:
    """Cross entropy against a mixture of the teachers' probabilities and the caption's own word.

    Word-level distillation of Kim and Rush 2016, "Sequence-Level Knowledge Distillation".

    Args:
        packed: of the student, M words, V in the vocabulary.
        taught: (M, V) float32, the teachers' probabilities.
        share: theirs in the mixture, from 0 to 1.
    """
    logits = tf.cast(packed.logits, tf.float32)
    target = share * taught + (1 - share) * tf.one_hot(packed.words, tf.shape(logits)[1])
    each = tf.nn.softmax_cross_entropy_with_logits(tf.stop_gradient(target), logits)  # (M,)
    nats = tf.nn.sparse_softmax_cross_entropy_with_logits(packed.words, tf.stop_gradient(logits))
    hits = _largest(tf.nn.softmax(tf.stop_gradient(logits)), packed.words)
    real = packed.weights != 0
    objective = tf.math.divide_no_nan(tf.reduce_sum(each * packed.weights), tf.reduce_sum(packed.weights))
    cross_entropy_sum, correct, words = (
        tf.reduce_sum(tf.where(real, x, 0)) for x in (nats, hits, tf.ones_like(nats))
    )
    nothing = tf.constant(0.0)
    return LossTerms(objective, cross_entropy_sum, correct, words, coverage=nothing, pictures=nothing)


def add_up(losses: Sequence[LossTerms]) -> tuple[Tensor, Tensor, Tensor]:
    """Cross entropy, right words and real words of all micro-batches."""
    figures = zip(*(loss[1:4] for loss in losses), strict=True)
    return tuple(tf.add_n(each) for each in figures)  # type: ignore[return-value]


def weight_penalty(decoder: Any, encoder_variables: Sequence[Any], strength: float) -> Tensor:
    """The decoder's regularizers, and the squared weights of the trained encoder times `strength`."""
    total = tf.add_n(decoder.losses) if decoder.losses else tf.constant(0.0)
    if strength and encoder_variables:
        total += strength * tf.add_n([tf.reduce_sum(tf.square(v)) for v in encoder_variables])
    return total


def reward_loss(packed: PackedBatch, words: Tensor) -> Tensor:
    """REINFORCE (Rennie et al. 2017, equation 8): -advantage * log p(word), the mean over all sampled words.

    Args:
        packed: of the sampled captions; its weights are the advantages, the same for all words of a caption.
        words: scalar, sampled words, those of zero advantage included.
    """
    nats, _, _ = cross_entropy(packed, 0.0)
    return tf.reduce_sum(nats * packed.weights) / words


def divergence(then: Tensor, now: Tensor, shares: Tensor) -> Tensor:
    """How far probabilities have moved, in nats: the Kullback-Leibler divergence of the later ones.

    What a new word takes from the words whose place it has, such as a dog's name from "dog", is no move: it
    is counted as theirs.

    Args:
        then: (M, V) logits, to be kept to.
        now: (M, V + n) logits of the same words and n new ones.
        shares: (n, V), of the words in each new one; each row adds up to 1.

    Returns:
        (M,), differentiable by `now`.
    """
    V = tf.shape(then)[1]
    before = tf.stop_gradient(tf.nn.log_softmax(then))
    share = tf.nn.softmax(now)
    after = share[:, :V] + tf.matmul(share[:, V:], tf.cast(shares, share.dtype))
    return tf.reduce_sum(tf.exp(before) * (before - tf.math.log(after + TINY)), -1)


def cross_entropy(packed: PackedBatch, smoothing: float) -> tuple[Tensor, Tensor, Tensor]:
    """Cross entropy against (1 - e) on the word and e spread evenly over the vocabulary.

    Label smoothing of Szegedy et al. 2016. With s the softmax, the gradient of a word's loss by its logits is
    s - (1 - e) [word] - e / V. The product of logits is part of the function, so that nothing (M, V) is ever
    made in float32 where products are bfloat16: what differs from row to row is applied to the (M, O) side of
    the products, what is the same for all words of the vocabulary to their sums.

    Args:
        packed: M words, V in the vocabulary.
        smoothing: e.

    Returns:
        smoothed (M,) and plain (M,) cross entropy in nats, the first alone differentiable, and whether the
        word has the largest logit (M,), 0 or 1.
    """
    words, tied = packed.words, packed.tied
    V = packed.matrix.shape[0 if tied else 1]

    @tf.custom_gradient
    def smoothed(outputs: Tensor, matrix: Tensor) -> Any:
        logits = tf.matmul(tf.cast(outputs, matrix.dtype), matrix, transpose_b=tied)  # (M, V)
        share = tf.nn.softmax(logits)
        own, target = (tf.cast(tf.gather(x, words, batch_dims=1), tf.float32) for x in (share, logits))
        nats = -tf.math.log(tf.maximum(own, TINY))
        nats = tf.cond(  # a share too small for its dtype: all of it is the largest's, give or take log V
            tf.reduce_any(own <= TINY),
            lambda: tf.where(own <= TINY, tf.cast(tf.reduce_max(logits, -1), tf.float32) - target, nats),
            lambda: nats,
        )
        mean = tf.reduce_mean(tf.cast(matrix, tf.float32), 0 if tied else 1)  # (O,)
        loss = nats
        if smoothing:
            loss += smoothing * (target - tf.linalg.matvec(outputs, mean))

        def gradient(d: Tensor, *_: Tensor) -> tuple[Tensor, ...]:
            places = tf.stack([tf.range(tf.shape(words)[0]), words], 1)
            residual = tf.cast(own - (1 - smoothing), matrix.dtype)
            residual = tf.tensor_scatter_nd_update(share, places, residual)  # (M, V)
            scaled = tf.transpose(outputs) * d  # (O, M): products are faster if they need not transpose
            x = tf.cast(scaled, matrix.dtype)
            if tied:
                d_matrix = tf.matmul(residual, x, transpose_a=True, transpose_b=True)
            else:
                d_matrix = tf.matmul(x, residual)
            back = tf.cast(tf.matmul(residual, matrix, transpose_b=not tied), tf.float32)  # (M, O)
            if smoothing:
                back -= smoothing * mean
                evenly = tf.cast(smoothing / V * tf.reduce_sum(scaled, 1), matrix.dtype)  # (O,)
                d_matrix -= evenly if tied else evenly[:, None]
            return d[:, None] * back, d_matrix

        return (loss, nats, _largest(share, words)), gradient

    return smoothed(packed.outputs, packed.matrix)


def _largest(share: Tensor, words: Tensor) -> Tensor:
    """(M,) 1 where the word's share is the largest, else 0."""
    if find_device().on_gpu:  # which compares floats as fast, and has no maximum of int16
        own = tf.gather(share, words, batch_dims=1)
        return tf.cast(own >= tf.reduce_max(share, -1), tf.float32)
    kind = tf.int16 if share.dtype.size == 2 else tf.int32
    bits = tf.bitcast(share, kind)  # no share is negative: its bits stand in the same order, and compare fast
    own = tf.gather(bits, words, batch_dims=1)
    return tf.cast(own >= tf.reduce_max(bits, -1), tf.float32)


def coverage(attention: Tensor, positions: Tensor) -> Tensor:
    """Doubly stochastic attention (Xu et al. 2015, equation 14): every cell looked at about once per caption.

    Args:
        attention: (S, R, P) packed.
        positions: (S, 2), word and picture of each row.

    Returns:
        the mean over pictures, captions and cells of (1 - sum over words of attention) ** 2.
    """
    looks = tf.math.unsorted_segment_sum(
        attention, positions[:, 1], tf.reduce_max(positions[:, 1]) + 1
    )  # (B, R, P)
    return tf.reduce_mean((1 - looks) ** 2)


def load_loss(name: str) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """A loss of one's own, `"package.module:name"`: (logits (M, V), words (M,), weights (M,)) -> scalar."""
    if ":" not in name:
        raise ConfigError(unknown_name("objective", name, OBJECTIVES) + '; or "package.module:name"')
    loss = load_object(name, "loss")
    if not callable(loss):
        raise ConfigError(f'loss "{name}" is not a function of (logits, words, weights)')
    return loss  # type: ignore[no-any-return]


OBJECTIVES = ("cross_entropy", "distill", "reward")
