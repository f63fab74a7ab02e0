"""The first thing that is learned of new words: where to write them.

In: a decoder that has rows for them, captions of people and of the start itself. Out: the same decoder, whose
new rows of the output matrix tell the places of new words from all others; everything else stays. These rows
are a regression on the outputs of a network that stands still: seconds of work. Without it a new word, which
begins as a mixture of the words in whose place it stands, hardly ever outdoes the likeliest of them. Where
nearly all words are new, since captions are in another language, it is the old ones that have to give way.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from captioner.data.vocabulary import END
from captioner.models.decoder import CaptionDecoder
from captioner.models.layers.packed_forward import packed_forward
from captioner.training.input_pipeline import FeatureSource, TokenizedCaptions
from captioner.training.optimizers import FusedAdam
from captioner.training.warm_start import caption_batches

STEPS, POSITIONS = 200, 2048  # steps, and positions looked at in each
RATE = 0.02  # of Adam, falling to nothing
HELD = 3e-3  # weight of the squared distance of a row from its beginning
CLAIMED = 0.05  # share in a new word from which on the start may have written an old one in its place
UNUSED = 5.0  # nats by which words fall behind that another language has no use for
FEWEST = 5  # times a word must stand somewhere: fewer, perhaps of one picture, do not tell where it belongs
MOST_PICTURES = 1000  # looked at; what the captions of others have is learned by training alone


class Positions(NamedTuple):
    """Places in captions where a word is to be written.

    Attributes:
        outputs: (M, O) what the output matrix is applied to.
        log_sum: (M,) of the exponentials of the known words' logits.
        words: (M,) int32, those that stand there.
        open: (M, n) bool, new words of which it is known whether they belong there.
    """

    outputs: np.ndarray
    log_sum: np.ndarray
    words: np.ndarray
    open: np.ndarray


def fit_new_words(
    decoder: CaptionDecoder,
    shares: np.ndarray,
    people: tuple[TokenizedCaptions, FeatureSource],
    own: tuple[TokenizedCaptions, FeatureSource] | None = None,
    *,
    seed: int,
) -> int:
    """Fits the output rows of the new words that captions have often enough; the others stay.

    Args:
        decoder: with V known words and n new ones behind them; changed.
        shares: (n, V), of the known words in each new one.
        people: their captions, and features of the pictures.
        own: the start's captions, which have none of the new words. Where one has a word that a new one may
            stand for, nothing is concluded.
        seed: of the order.

    Returns:
        how many words were fitted.
    """
    new, known = shares.shape
    found = [_positions(decoder, *people, np.ones((new, known), bool))]
    if own:
        found.append(_positions(decoder, *own, shares < CLAIMED))
    positions = Positions(*(np.concatenate(each) for each in zip(*found, strict=True)))
    met = np.bincount(positions.words[positions.words >= known] - known, minlength=new) >= FEWEST
    weights = decoder.weights_dict()
    tied = decoder.word_kernel is None
    name = "embedding" if tied else "word_kernel"
    matrix = weights[name] if tied else weights[name].T  # (V + n, O)
    matrix = np.concatenate([matrix, weights["word_bias"][:, None]], 1)
    fitted = _fitted(positions, matrix[known:], met, known, seed)
    matrix[known:] = np.where(met[:, None], fitted, matrix[known:])
    rows = matrix[:, :-1] if tied else matrix[:, :-1].T
    decoder.load_weights_dict({**weights, name: rows, "word_bias": matrix[:, -1]})
    return int(met.sum())


def sink_unused_words(decoder: CaptionDecoder, known: int, captions: TokenizedCaptions) -> int:
    """Makes the start's words unlikely that no caption has: where another language is learned.

    Otherwise they stay what is likeliest after each word that is not yet known well, and sentences fall back
    into the start's language.

    Args:
        decoder: with that many known words and new ones behind them; its biases are changed.
        known: V.
        captions: of people.

    Returns:
        how many words that were.
    """
    used = np.concatenate([caption for each in captions.captions for caption in each])
    unused = ~np.isin(np.arange(known), [*used, *range(END + 1)])
    bias = decoder.word_bias.numpy()
    bias[:known][unused] -= UNUSED
    decoder.word_bias.assign(bias)
    return int(unused.sum())


def _positions(
    decoder: CaptionDecoder, captions: TokenizedCaptions, source: FeatureSource, known_of: np.ndarray
) -> Positions:
    """All positions of captions.

    Args:
        decoder: the network.
        captions: of pictures.
        source: their features.
        known_of: (n, V) bool, whether a known word says that a new one does not belong there.
    """
    V = known_of.shape[1]
    batch = [tf.TensorSpec([None] * 3, dtype) for dtype in (tf.float32, tf.int32, tf.int32, tf.float32)]

    @tf.function(input_signature=batch, autograph=False)  # type: ignore[untyped-decorator]
    def read(features: Any, words_in: Any, words_out: Any, weights: Any) -> Any:
        features = tf.ensure_shape(features, [None, None, decoder.channels])
        packed = packed_forward(decoder, (features, words_in), words_out, weights)
        outputs = tf.cast(packed.outputs[:, : decoder.outputs_width], tf.float32)
        return outputs, tf.reduce_logsumexp(packed.logits[:, :V], -1), packed.words, packed.weights

    found = []
    for each in caption_batches(captions, source, most=MOST_PICTURES):
        outputs, log_sum, words, weights = (x.numpy() for x in read(*each))
        real = weights != 0
        found.append((outputs[real], log_sum[real], words[real]))
    outputs, log_sum, words = (np.concatenate(each) for each in zip(*found, strict=True))
    return Positions(outputs, log_sum, words, known_of.T[np.minimum(words, V - 1)] | (words >= V)[:, None])


def _fitted(positions: Positions, rows: np.ndarray, met: np.ndarray, known: int, seed: int) -> np.ndarray:
    """(n, O + 1): rows, with their bias last, under which the words stand where they do.

    Which of the known words stands somewhere is all one: they are one rival, as strong as all of them.
    """
    start = tf.constant(rows)
    fitted = tf.Variable(rows)
    optimizer = FusedAdam(RATE)
    optimizer.build([fitted])
    targets = np.where(positions.words >= known, positions.words - known + 1, 0).astype(np.int32)
    closed = np.where(positions.open & met, 0, -1e9).astype(np.float32)

    @tf.function(autograph=False)  # type: ignore[untyped-decorator]
    def step(outputs: Any, log_sum: Any, targets: Any, closed: Any) -> None:
        with tf.GradientTape() as tape:
            logits = tf.matmul(outputs, fitted[:, :-1], transpose_b=True) + fitted[:, -1] + closed
            logits = tf.concat([log_sum[:, None], logits], 1)  # (m, 1 + n)
            nats = tf.nn.sparse_softmax_cross_entropy_with_logits(targets, logits)
            moved = tf.reduce_sum((fitted[:, :-1] - start[:, :-1]) ** 2)
            loss = tf.reduce_mean(nats) + HELD / 2 * moved
        optimizer.apply([tape.gradient(loss, fitted)], [fitted])

    rng, order = np.random.default_rng(seed), np.zeros(0, np.int64)
    for number in range(STEPS):
        if len(order) < min(POSITIONS, len(targets)):
            order = rng.permutation(len(targets))
        chosen, order = order[:POSITIONS], order[POSITIONS:]
        optimizer.learning_rate = RATE * (1 - number / STEPS)
        step(positions.outputs[chosen], positions.log_sum[chosen], targets[chosen], closed[chosen])
    result: np.ndarray = fitted.numpy()
    return result
