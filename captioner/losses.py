"""What training minimises, in nats per real word.

The packed logits of a batch (`decoder.Packed`) go in; a scalar to minimise and the figures a person reads
come out. Weights come from the targets: padding never reaches a loss, so more padding changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

from captioner.config import PhaseConfig
from captioner.decoder import Packed
from captioner.errors import ConfigError, load_object, unknown_name
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
    smoothed, nats, hits = cross_entropy(packed.logits, packed.words, phase.label_smoothing)
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
    _, nats, _ = cross_entropy(packed.logits, packed.words, 0.0)
    return tf.reduce_sum(nats * packed.weights) / words


def cross_entropy(logits: Tensor, words: Tensor, smoothing: float) -> tuple[Tensor, Tensor, Tensor]:
    """Cross entropy against (1 - e) on the word and e spread evenly over the vocabulary.

    Label smoothing of Szegedy et al. 2016. The softmax is made once, for the loss and its gradient together.

    Args:
        logits: (M, V) float32.
        words: (M,) int32.
        smoothing: e.

    Returns:
        smoothed (M,) and plain (M,) cross entropy in nats, and whether the word has the largest logit
        (M,), 0 or 1.
    """

    @tf.custom_gradient
    def smoothed(logits: Tensor) -> Any:
        # (M, V); with its largest entry it gives log-sum-exp without a second exp
        share = tf.nn.softmax(logits)
        largest = tf.reduce_max(logits, -1)
        target = tf.gather(logits, words, batch_dims=1)
        nats = largest - tf.math.log(tf.reduce_max(share, -1)) - target
        loss = nats + smoothing * (target - tf.reduce_mean(logits, -1)) if smoothing else nats

        def gradient(d_loss: Tensor, d_nats: Tensor, _: Tensor) -> Tensor:
            d_both = d_loss + d_nats
            spread = d_both[:, None] * share
            if smoothing:
                spread -= (d_loss * (smoothing / logits.shape[-1]))[:, None]
            places = tf.stack([tf.range(tf.shape(words)[0]), words], 1)
            return tf.tensor_scatter_nd_sub(spread, places, d_both - smoothing * d_loss)

        return (loss, nats, tf.cast(target >= largest, tf.float32)), gradient

    return smoothed(logits)


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
