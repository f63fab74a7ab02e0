"""What training minimises, in nats per real word.

The packed words of a batch (`packing.Packed`) go in; a scalar to minimise and the figures a person reads
come out. Weights come from the targets: padding never reaches a loss, so more padding changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

from captioner.config import PhaseConfig
from captioner.errors import ConfigError, load_object, unknown_name
from captioner.packing import Packed
from captioner.recurrence import Tensor


class Loss(NamedTuple):
    """One batch's loss.

    Attributes:
        objective: scalar to minimise.
        nats: scalar, cross entropy summed over the real words, without smoothing.
        correct: scalar, words whose logit is the largest.
        words: scalar, real words.
    """

    objective: Tensor
    nats: Tensor
    correct: Tensor
    words: Tensor


def caption_loss(packed: Packed, phase: PhaseConfig) -> Loss:
    """The phase's objective, meaned over real words, plus the coverage term if the phase asks for it."""
    smoothed, nats, hits = cross_entropy(packed, phase.label_smoothing)
    words = tf.cast(tf.shape(packed.words)[0], tf.float32)
    if phase.objective in OBJECTIVES:  # in a reward phase this is the term beside the reward
        objective = tf.math.divide_no_nan(
            tf.reduce_sum(smoothed * packed.weights), tf.reduce_sum(packed.weights)
        )
    else:
        objective = load_loss(phase.objective)(packed.logits, packed.words, packed.weights)
    if phase.coverage:
        objective += phase.coverage * coverage(packed.attention, packed.place)
    return Loss(objective, tf.reduce_sum(nats), tf.reduce_sum(hits), words)


def reward_loss(packed: Packed, words: Tensor) -> Tensor:
    """REINFORCE (Rennie et al. 2017, equation 8): -advantage * log p(word), meaned over all sampled words.

    Args:
        packed: of the sampled captions; its weights are the advantages, the same for all words of a caption.
        words: scalar, sampled words, those of zero advantage included.
    """
    nats, _, _ = cross_entropy(packed, 0.0)
    return tf.reduce_sum(nats * packed.weights) / words


def cross_entropy(packed: Packed, smoothing: float) -> tuple[Tensor, Tensor, Tensor]:
    """Cross entropy against (1 - e) on the word and e spread evenly over the vocabulary.

    Label smoothing of Szegedy et al. 2016. With s the softmax, the gradient of a word's loss by its logits is
    s - (1 - e) [word] - e / V. The product of logits is part of the function, so that its gradient is never
    made as a float32 (M, V): what differs from row to row is applied to the (M, O) side of the products, what
    is the same for all words of the vocabulary to their sums.

    Args:
        packed: M words, V in the vocabulary.
        smoothing: e.

    Returns:
        smoothed (M,) and plain (M,) cross entropy in nats, the first alone differentiable, and whether the
        word has the largest logit (M,), 0 or 1.
    """
    words, tied, V = packed.words, packed.tied, packed.bias.shape[0]

    @tf.custom_gradient
    def smoothed(outputs: Tensor, matrix: Tensor, bias: Tensor) -> Any:
        logits = packed._replace(outputs=outputs, matrix=matrix, bias=bias).logits
        share = tf.nn.softmax(logits)
        own, target = (tf.gather(x, words, batch_dims=1) for x in (share, logits))
        largest = tf.reduce_max(logits, -1)
        # Where the share is too small for a float32, all of it is the largest's, give or take log V.
        nats = tf.where(own > 1e-30, -tf.math.log(own), largest - target)
        mean = tf.reduce_mean(tf.cast(matrix, tf.float32), 0 if tied else 1)  # (O,)
        loss = nats
        if smoothing:
            mean_logit = tf.linalg.matvec(outputs, mean) + tf.reduce_mean(bias)
            loss += smoothing * (target - mean_logit)

        def gradient(d: Tensor, *_: Tensor) -> tuple[Tensor, ...]:
            places = tf.stack([tf.range(tf.shape(words)[0]), words], 1)
            residual = tf.cast(own - (1 - smoothing), matrix.dtype)
            residual = tf.tensor_scatter_nd_update(tf.cast(share, matrix.dtype), places, residual)  # (M, V)
            scaled = d[:, None] * outputs  # (M, O)
            x = tf.cast(scaled, matrix.dtype)
            sides = (residual, x) if tied else (x, residual)
            d_matrix = tf.matmul(*sides, transpose_a=True)
            back = tf.cast(tf.matmul(residual, matrix, transpose_b=not tied), tf.float32)  # (M, O)
            d_bias = tf.cast(tf.matmul(tf.cast(d, matrix.dtype)[None], residual)[0], tf.float32)
            if smoothing:
                back -= smoothing * mean
                evenly = tf.cast(smoothing / V * tf.reduce_sum(scaled, 0), matrix.dtype)  # (O,)
                d_matrix -= evenly if tied else evenly[:, None]
                d_bias -= smoothing / V * tf.reduce_sum(d)
            return d[:, None] * back, d_matrix, d_bias

        return (loss, nats, tf.cast(target >= largest, tf.float32)), gradient

    return smoothed(packed.outputs, packed.matrix, packed.bias)


def coverage(attention: Tensor, place: Tensor) -> Tensor:
    """Doubly stochastic attention (Xu et al. 2015, equation 14): every cell looked at about once per caption.

    Args:
        attention: (S, R, P) packed.
        place: (S, 2), word and picture of each row.

    Returns:
        the mean over pictures, captions and cells of (1 - sum over words of attention) ** 2.
    """
    looks = tf.math.unsorted_segment_sum(attention, place[:, 1], tf.reduce_max(place[:, 1]) + 1)  # (B, R, P)
    return tf.reduce_mean((1 - looks) ** 2)


def load_loss(name: str) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """A loss of one's own, `"package.module:name"`: (logits (M, V), words (M,), weights (M,)) -> scalar."""
    if ":" not in name:
        raise ConfigError(unknown_name("objective", name, OBJECTIVES) + '; or "package.module:name"')
    loss = load_object(name, "loss")
    if not callable(loss):
        raise ConfigError(f'loss "{name}" is not a function of (logits, words, weights)')
    return loss  # type: ignore[no-any-return]


OBJECTIVES = ("cross_entropy", "reward")
