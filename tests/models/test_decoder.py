"""The decoder: one step, the same step over whole batches, and a gradient written by hand."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from captioner.config import DecoderConfig
from captioner.errors import RunError
from captioner.models.decoder import CaptionDecoder
from captioner.models.layers.dropout import BatchDropout
from captioner.models.layers.packed_captions import PackedBatch
from captioner.models.layers.packed_forward import packed_forward

KINDS = {
    "dot": {"attention": "dot"},
    "two heads, sentinel, tied": {"attention": "dot", "heads": 2, "sentinel": True, "tied": True},
    "normalized grid": {"attention": "dot", "l2_normalize_features": True},
    "additive": {"attention": "additive"},
    "additive, sentinel": {"attention": "additive", "sentinel": True},
}
B, R, T, P, C, V = 4, 3, 6, 7, 5, 11


@pytest.fixture(params=KINDS)
def decoder(request: pytest.FixtureRequest) -> CaptionDecoder:
    config = DecoderConfig(units=8, embedding=6, **KINDS[request.param])
    made = CaptionDecoder(config, vocabulary_size=V, channels=C)
    rng = np.random.default_rng(0)
    for variable in made.variables:  # zeros would hide mistakes
        variable.assign(rng.normal(size=variable.shape) * 0.5)
    return made


@pytest.fixture
def batch() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Grids, words_in, words_out, weights; in no order, one picture without a caption, one caption empty."""
    rng = np.random.default_rng(1)
    lengths = rng.integers(1, T + 1, (B, R))
    lengths[1, 2], lengths[0, 0], lengths[2] = 0, T, 0
    real = np.arange(T) < lengths[..., None]
    words_in, words_out = (rng.integers(2, V, (B, R, T)) * real for _ in range(2))
    grids = rng.normal(size=(B, P, C)).astype("float32")
    return grids, words_in.astype("int32"), words_out.astype("int32"), real.astype("float32")


def unpack_logits(packed: PackedBatch, shape: tuple[int, ...]) -> tf.Tensor:
    """The logits (B, R, T, V) of a packed batch, zero where there is no word."""
    logits = tf.where(packed.weights[:, None] != 0, packed.logits, 0)
    where = tf.reverse(packed.rows, [1])  # (S, 2): caption, word
    dense_logits = tf.scatter_nd(where, logits, [shape[0] * shape[1], shape[2], V])
    return tf.reshape(dense_logits, [*shape, V])


def fast(decoder: CaptionDecoder, grids: tf.Tensor, words_in: np.ndarray, real: np.ndarray) -> tf.Tensor:
    """What training computes, laid out as the plain forward pass is: (B, R, T, V)."""
    return unpack_logits(packed_forward(decoder, (grids, words_in), words_in, real), words_in.shape)


def test_the_packed_path_equals_the_plain_loop_over_step(decoder, batch):
    grids, words_in, _, real = batch
    plain = decoder((grids, words_in)) * real[..., None]
    np.testing.assert_allclose(fast(decoder, grids, words_in, real), plain, atol=1e-5)


def test_the_hand_written_gradient_equals_autodiff_through_the_plain_loop(decoder, batch):
    grids, words_in, _, real = batch
    grids = tf.constant(grids)
    weighting = tf.constant(np.random.default_rng(2).normal(size=(B, R, T, V)), tf.float32) * real[..., None]
    sources = [grids, *(v.value for v in decoder.trainable_variables)]

    def gradients(logits_of):
        with tf.GradientTape() as tape:
            tape.watch(grids)
            objective = tf.reduce_sum(tf.sin(logits_of()) * weighting)
        return tape.gradient(objective, sources)

    def packed():
        return fast(decoder, grids, words_in, real)

    plain = gradients(lambda: decoder((grids, words_in)))
    found = gradients(packed)
    compiled = tf.function(lambda: gradients(packed), autograph=False)()
    names = ["grids", *(v.name for v in decoder.trainable_variables)]
    for name, expected, *others in zip(names, plain, found, compiled, strict=True):
        expected = np.asarray(tf.convert_to_tensor(expected))
        for other in others:
            scale = np.abs(expected).max()
            assert scale > 0, name
            np.testing.assert_allclose(
                np.asarray(tf.convert_to_tensor(other)), expected, atol=1e-5 * scale, err_msg=name
            )


def test_attention_gets_its_gradient_too(decoder, batch):
    grids, words_in, words_out, weights = batch
    variables = [v.value for v in decoder.trainable_variables]

    def looks(words_in):
        return packed_forward(decoder, (grids, words_in), words_out, weights).attention

    with tf.GradientTape() as tape:
        objective = tf.reduce_sum(looks(words_in)[..., 0] ** 2)
    slope = tape.gradient(objective, variables)
    index = [v.name for v in decoder.trainable_variables].index("state_kernel")
    step = 1e-3 * np.sign(np.asarray(slope[index]))
    kept = np.asarray(variables[index])
    decoder.trainable_variables[index].assign(kept + step)
    up = float(tf.reduce_sum(looks(words_in)[..., 0] ** 2))
    decoder.trainable_variables[index].assign(kept - step)
    down = float(tf.reduce_sum(looks(words_in)[..., 0] ** 2))
    assert (up - down) / 2e-3 == pytest.approx(float(tf.reduce_sum(tf.abs(slope[index]))), rel=2e-2)


def test_a_word_changes_nothing_before_it(decoder, batch):
    grids, words_in, _, _ = batch
    changed = words_in.copy()
    changed[0, 0, 3] = changed[0, 0, 3] % (V - 2) + 2
    before, after = (np.asarray(decoder((grids, words))) for words in (words_in, changed))
    np.testing.assert_array_equal(before[0, 0, :3], after[0, 0, :3])
    assert np.abs(before[0, 0, 3:] - after[0, 0, 3:]).max() > 1e-4


def test_the_state_is_carried_from_word_to_word(decoder, batch):
    grids, words_in, _, _ = batch
    changed = words_in.copy()
    changed[0, 0, 0] = words_in[0, 0, 0] % (V - 2) + 2  # the first word, the last one's logits
    before, after = (np.asarray(decoder((grids, words)))[0, 0, -1] for words in (words_in, changed))
    assert np.abs(before - after).max() > 1e-4


def test_attention_over_the_cells_sums_to_one(decoder, batch):
    memory = decoder.project_memory(batch[0])
    _, _, attention = decoder.step(
        np.full(B * R, 2), tf.repeat(decoder.initial_state(memory), R, axis=0), memory
    )
    total = np.asarray(attention).sum(-1)
    assert attention.shape == (B * R, P)
    assert (total < 1).all() if decoder.config.sentinel else np.allclose(total, 1)


def test_dropout_depends_on_the_seed_and_the_pictures_numbers_alone(batch):
    decoder = CaptionDecoder(DecoderConfig(units=8, embedding=6), vocabulary_size=V, channels=C)
    grids, words_in, words_out, weights = batch

    def logits(seed, pictures):
        dropout = BatchDropout(tf.constant(seed), B)
        part = [x[pictures] for x in (grids, words_in, words_out, weights)]
        packed = packed_forward(
            decoder, (part[0], part[1]), *part[2:], dropout=dropout, pictures=tf.constant(pictures)
        )
        return np.asarray(unpack_logits(packed, (len(pictures), R, T)))

    whole = logits([0, 1], [0, 1, 2, 3])
    np.testing.assert_allclose(logits([0, 1], [3, 1]), whole[[3, 1]], atol=1e-6)
    assert np.abs(whole - logits([0, 2], [0, 1, 2, 3])).max() > 0


def test_products_in_bfloat16_stay_close(batch):
    grids, words_in, _, _ = batch
    config = DecoderConfig(units=64, embedding=32)
    exact = CaptionDecoder(config, vocabulary_size=V, channels=C)
    rounded = CaptionDecoder(config, vocabulary_size=V, channels=C, precision="bfloat16")
    np.testing.assert_allclose(rounded((grids, words_in)), exact((grids, words_in)), atol=0.05)


def test_weights_of_another_shape_are_refused():
    small = CaptionDecoder(DecoderConfig(units=8, embedding=6), vocabulary_size=V, channels=C)
    other = CaptionDecoder(DecoderConfig(units=8, embedding=6), vocabulary_size=V + 1, channels=C)
    with pytest.raises(RunError, match="'(embedding|word_kernel|word_bias)' is .*, the configuration says"):
        small.load_weights_dict(other.weights_dict())
    with pytest.raises(RunError, match="'score' is unknown"):
        small.load_weights_dict({**small.weights_dict(), "score": np.zeros(1)})
