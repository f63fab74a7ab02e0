"""Losses: nats per real word, whatever the padding."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from captioner.config import DecoderConfig, PhaseConfig
from captioner.errors import ConfigError
from captioner.models.decoder import CaptionDecoder
from captioner.models.layers.mixed_precision import BIAS_ROWS
from captioner.models.layers.packed_captions import PackedBatch
from captioner.models.layers.packed_forward import packed_forward
from captioner.training.losses import caption_loss, coverage, cross_entropy, load_loss, reward_loss

V = 9


def half_of(logits, words, weights):
    """A loss of one's own: half the cross entropy."""
    return 0.5 * tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(words, logits) * weights)


def packed(extra_padding: int = 0, **config):
    decoder = CaptionDecoder(DecoderConfig(units=8, embedding=4, **config), vocabulary_size=V, channels=3)
    words_in = np.array([[[2, 4, 5, 6], [2, 7, 0, 0]]], "int32")
    words_out = np.array([[[4, 5, 6, 3], [7, 3, 0, 0]]], "int32")
    pad = [(0, 0), (0, 0), (0, extra_padding)]
    words_in, words_out = np.pad(words_in, pad), np.pad(words_out, pad)
    grids = np.random.default_rng(0).normal(size=(1, 5, 3)).astype("float32")
    return packed_forward(decoder, (grids, words_in), words_out, (words_out > 0).astype("float32"))


def words_of(outputs, matrix, words, tied=False) -> PackedBatch:
    """Packed words, without a bias unless the two hold one."""
    outputs, matrix = (tf.convert_to_tensor(x, tf.float32) for x in (outputs, matrix))
    return PackedBatch(outputs, matrix, tied, tf.constant(words), tf.ones([len(words)]), None, None, None)


def test_uniform_logits_give_log_v():
    batch = words_of(np.zeros((2, 3)), np.zeros((3, V)), [4, 3])
    smoothed, plain, hit = cross_entropy(batch, 0.1)
    np.testing.assert_allclose(plain, np.log(V), rtol=1e-6)
    np.testing.assert_allclose(smoothed, np.log(V), rtol=1e-6)
    assert hit.numpy().tolist() == [1, 1]


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("tied", [False, True])
def test_cross_entropy_and_its_gradients_are_those_of_log_softmax(smoothing, tied):
    rng = np.random.default_rng(3)
    outputs, matrix = (rng.normal(size=shape) * 2 for shape in ((6, 4), (V, 4) if tied else (4, V)))
    outputs[:, -1] = 1  # what meets the ones is the bias: 0, 1, 2, … tenths
    (matrix.T if tied else matrix)[-1] = np.arange(V) / 10
    batch, weighting = words_of(outputs, matrix, [0, 1, 2, 3, 4, 8], tied), tf.range(6.0)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(batch[:2])
        log_p = tf.nn.log_softmax(batch.logits)
        target = tf.gather(log_p, batch.words, batch_dims=1)
        expected = -(1 - smoothing) * target - smoothing * tf.reduce_mean(log_p, -1)
        found, plain, _ = cross_entropy(batch, smoothing)
        expected_sum, found_sum = (tf.reduce_sum(x * weighting) for x in (expected, found))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(plain, -target, rtol=1e-5, atol=1e-6)
    for one, other in zip(*(tape.gradient(x, batch[:2]) for x in (found_sum, expected_sum)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_a_certain_model_that_is_wrong_has_a_finite_loss():
    batch = words_of([[1.0]], [[200.0, *[0.0] * (V - 1)]], [1])
    _, nats, _ = cross_entropy(batch, 0.0)
    assert float(nats[0]) == pytest.approx(200.0)


def test_more_padding_same_loss():
    phase = PhaseConfig()
    short, long = (caption_loss(packed(extra), phase) for extra in (0, 7))
    assert float(short.words) == float(long.words) == 6
    assert float(short.objective) == pytest.approx(float(long.objective), rel=1e-6)


def test_the_mean_is_over_real_words():
    batch = packed()
    plain = caption_loss(batch, PhaseConfig(label_smoothing=0.0))
    assert float(plain.objective) == pytest.approx(float(plain.cross_entropy_sum) / 6, rel=1e-6)


def test_coverage_is_zero_where_each_cell_is_looked_at_once():
    # two words, one caption, two cells: each word looks at one of them
    attention = tf.constant([[[1.0, 0.0]], [[0.0, 1.0]]])  # (S, R, P)
    positions = tf.constant([[0, 0], [1, 0]], tf.int64)
    assert float(coverage(attention, positions)) == 0
    assert float(coverage(attention[:1], positions[:1])) == 0.5
    wanted, unwanted = (caption_loss(packed(), PhaseConfig(coverage=weight)) for weight in (2.0, 0.0))
    assert float(wanted.coverage) > 0 == float(unwanted.coverage)  # unweighted: the step weighs it
    assert float(wanted.pictures) == 1
    assert float(wanted.objective) == float(unwanted.objective)


def test_a_reward_pushes_words_up_and_a_penalty_down():
    batch = packed()
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(batch.matrix)
        first_alone = tf.one_hot(0, batch.words.shape[0])
        rewarded = reward_loss(batch._replace(weights=first_alone), tf.constant(6.0))
        punished = reward_loss(batch._replace(weights=-first_alone), tf.constant(6.0))
    up, down = (tape.gradient(x, batch.matrix)[-BIAS_ROWS] for x in (rewarded, punished))  # of the bias
    first = int(batch.words[0])
    assert float(up[first]) < 0 < float(down[first])


def test_a_loss_of_ones_own():
    phase = PhaseConfig(objective="tests.training.test_losses:half_of")
    own = caption_loss(packed(), phase).objective
    assert float(own) == pytest.approx(
        0.5 * float(caption_loss(packed(), PhaseConfig(label_smoothing=0.0)).objective)
    )


def test_an_unknown_loss_names_the_nearest():
    with pytest.raises(ConfigError, match='did you mean "cross_entropy"'):
        load_loss("crossentropy")
