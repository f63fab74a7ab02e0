"""One step of training: what changes, what does not; it depends on its number and the weights alone."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from captioner.config import Config, DecodeConfig, DecoderConfig, EncoderConfig, PhaseConfig, TrainConfig
from captioner.data.vocabulary import Vocabulary
from captioner.errors import ConfigError
from captioner.models.backbones import EncoderSpec
from captioner.models.decoder import CaptionDecoder
from captioner.models.device import find_device
from captioner.models.encoder import Encoder, load_encoder
from captioner.training.losses import weight_penalty
from captioner.training.optimizers import TrainOptimizer
from captioner.training.rewards import CaptionReward
from captioner.training.train_step import (
    StepStats,
    TrainStep,
    encoder_variables,
    trained_variables,
)

WORDS = Vocabulary.build(["a b c d e f g h"])
V, P, C = len(WORDS), 4, 3
CONFIG = Config(seed=3, decoder=DecoderConfig(units=8, embedding=6), decode=DecodeConfig(max_words=5))
PLAIN = PhaseConfig(optimizer="sgd", learning_rate=0.1, schedule="constant", warmup_steps=0)


def steps_of(phase: PhaseConfig = PLAIN, *, encoder: Any = None, config: Config = CONFIG) -> TrainStep:
    """Of a decoder just born."""
    channels = encoder.channels if encoder else C
    decoder = CaptionDecoder(config.decoder, vocabulary_size=V, channels=channels, seed=1)
    return TrainStep(
        config,
        phase,
        decoder,
        encoder,
        TrainOptimizer(phase, 100, *trained_variables(phase, decoder, encoder)),
        WORDS,
    )


def batch_of(pictures: int, captions: int = 2, *, seed: int = 0, pixels: int = 0) -> Any:
    """Random words, longest caption first; every picture lacks words somewhere."""
    draw = np.random.default_rng(seed)
    lengths = -np.sort(-draw.integers(1, 7, (pictures, captions)), axis=0)
    T = lengths.max() + 1
    words = draw.integers(4, V, (pictures, captions, T)).astype(np.int32)
    place = np.arange(T)
    words_in = np.where(place <= lengths[..., None], words, 0)
    words_in[:, :, 0] = 2
    words_out = np.where(place < lengths[..., None], np.roll(words_in, -1, axis=2), 0)
    words_out[place == lengths[..., None]] = 3
    if pixels:
        inputs = draw.integers(0, 256, (pictures, pixels, pixels, 3)).astype(np.uint8)
    else:
        inputs = draw.normal(size=(pictures, P, C)).astype(np.float16)
    return (inputs, words_in), words_out, (words_out > 0).astype(np.float32)


def weights_of(steps: TrainStep) -> dict[str, np.ndarray]:
    return {name: array.copy() for name, array in steps.decoder.weights_dict().items()}


def equal(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return all(np.array_equal(one[name], other[name]) for name in one)


def close(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return all(np.allclose(one[name], other[name], rtol=1e-4, atol=1e-6) for name in one)


def without_dropout(phase: PhaseConfig = PLAIN) -> PhaseConfig:
    return dataclasses.replace(phase, use_dropout=False)


def test_steps_learn_and_say_how_far_they_are():
    steps = steps_of(PhaseConfig(learning_rate=0.05, schedule="constant", warmup_steps=0, use_dropout=False))
    batch = batch_of(6)
    figures = [steps.train(batch, step) for step in range(30)]
    words, captions = float(batch[2].sum()), 12.0
    assert all((f.words, f.captions, f.samples) == (words, captions, 0) for f in figures)
    assert figures[0].cross_entropy_sum / words == pytest.approx(np.log(V), abs=0.2), "knows nothing yet"
    assert (
        figures[-1].cross_entropy_sum < 0.5 * figures[0].cross_entropy_sum
        and figures[-1].correct > figures[0].correct
    )
    assert steps.evaluate(batch).cross_entropy_sum == pytest.approx(figures[-1].cross_entropy_sum, rel=0.3)


def test_a_dev_step_changes_nothing():
    steps = steps_of()
    before = weights_of(steps)
    assert steps.evaluate(batch_of(5)) == steps.evaluate(batch_of(5))
    assert equal(before, weights_of(steps))


def test_a_step_depends_on_its_number_and_the_weights_alone():
    """Also not on which batches came before: a resumed training begins in the middle, with another one."""
    unbroken = steps_of()
    unbroken.train(batch_of(5, 3, seed=1), 0)
    resumed = steps_of()
    resumed.train(batch_of(5, 3, seed=1), 0)
    assert equal(weights_of(unbroken), weights_of(resumed))
    resumed = TrainStep(CONFIG, PLAIN, resumed.decoder, resumed.encoder, resumed.updater, WORDS)
    for steps in (unbroken, resumed):
        steps.train(batch_of(3, 1, seed=2), 1)
    assert equal(weights_of(unbroken), weights_of(resumed))
    unbroken.train(batch_of(3, 1, seed=2), 2)
    resumed.train(batch_of(3, 1, seed=2), 3)
    assert not equal(weights_of(unbroken), weights_of(resumed)), "another step drops other numbers"


def own_loss(logits: Any, words: Any, weights: Any) -> Any:
    nats = tf.nn.sparse_softmax_cross_entropy_with_logits(words, logits)
    return tf.reduce_sum(nats * weights) / tf.reduce_sum(weights)


def smooth_cnn(weights: str | None, size: int) -> Any:
    """All that draws or looks across pictures, without ReLU and largest values.

    At their edges the last bit of a sum decides where a gradient goes, and last bits are not promised.
    """
    layers = keras.layers
    x = inputs = keras.Input((size, size, 3))
    for block, channels in enumerate((8, 16)):
        x = layers.Conv2D(channels, 3, padding="same", use_bias=False, name=f"block{block}_conv")(x)
        x = layers.AveragePooling2D(4, name=f"block{block}_pool")(x)
        x = layers.BatchNormalization(momentum=0.95, name=f"block{block}_norm")(x)
        x = layers.Activation("tanh", name=f"block{block}_tanh")(x)
        x = layers.Dropout(0.1, seed=block, name=f"block{block}_dropout")(x)
    return keras.Model(inputs, x, name="smooth_cnn")


SMOOTH_CNN = EncoderSpec("smooth_cnn", smooth_cnn, 32, (2, 2), 16, "minus1-to-1", 1, pretrained=False)

REWARD = {"objective": "reward", "samples": 3, "cross_entropy": 0.3}


@pytest.mark.machines
@pytest.mark.parametrize(
    ("objective", "from_scratch"),
    [
        ({"coverage": 0.5, "ema_decay": 0.9}, False),
        (REWARD, False),
        pytest.param({"objective": "tests.training.test_train_step:own_loss"}, True, marks=pytest.mark.slow),
        pytest.param(REWARD, True, marks=pytest.mark.slow),  # minutes of compiling, as the one before
    ],
    ids=["coverage", "reward", "a loss of one's own, CNN from nothing", "reward, CNN from nothing"],
)
def test_the_number_of_micro_batches_changes_nothing(objective, from_scratch):
    """Dropout, samples, batch normalization: all that a step draws or averages is of the whole batch."""
    pixels = SMOOTH_CNN.size if from_scratch else 0
    # Each micro-batch is compiled anew, which takes the time. Four for six pictures: some hold two, some one.
    pictures, counts = (16, (1, 2, 16)) if from_scratch else (6, (1, 4))
    phase = dataclasses.replace(PLAIN, **objective)
    name = "tests.training.test_train_step:SMOOTH_CNN"
    config = dataclasses.replace(CONFIG, encoder=EncoderConfig(name, weights="none"))
    found = []
    for count in counts:
        encoder = load_encoder(name, weights="none") if pixels else None
        if pixels:
            phase = dataclasses.replace(phase, trains=("decoder", "encoder"), encoder_learning_rate=0.01)
        steps = steps_of(
            phase,
            encoder=encoder,
            config=dataclasses.replace(config, train=TrainConfig(micro_batches=count)),
        )
        figures = []
        for step in range(3):
            batch = batch_of(pictures - step, seed=step, pixels=pixels)
            batch[2][1] = batch[0][1][1] = batch[1][1] = 0  # a picture that could not be read
            if phase.objective == "reward":
                reward = CaptionReward([[[4, 5, 6]], [[7, 8]], [[9, 10, 4]], [[5, 5]]] * 4)
                rows = np.arange(pictures - step)
                figures.append(steps.self_critical_step(batch, step, rows, reward))
            else:
                figures.append(steps.train(batch, step))
        arrays = weights_of(steps) | (encoder.weights_dict() if encoder else {})
        found.append((figures, arrays))
    (figures, arrays), *others = found
    for other_figures, other_arrays in others:
        np.testing.assert_allclose(other_figures, figures, rtol=1e-4)
        for name, array in arrays.items():
            np.testing.assert_allclose(
                other_arrays[name], array, rtol=1e-4, atol=1e-5 * np.abs(array).max(), err_msg=name
            )
    assert not equal(arrays, others[0][1]), "two computations, not one twice"


def test_a_picture_without_weight_counts_for_nothing():
    (features, words_in), words_out, weights = batch_of(2)
    for words in (words_in, words_out, weights):
        words[1] = 0
    steps, alone = steps_of(without_dropout()), steps_of(without_dropout())
    figures = steps.train(((features, words_in), words_out, weights), 0)
    expected = alone.train(((features[:1], words_in[:1]), words_out[:1], weights[:1]), 0)
    assert figures == pytest.approx(expected, rel=1e-5) and figures.captions == 2
    assert close(weights_of(steps), weights_of(alone))
    for words in (words_in, words_out, weights):
        words[:] = 0
    before = weights_of(steps)
    assert steps.train(((features, words_in), words_out, weights), 1) == StepStats()
    assert equal(before, weights_of(steps)), "not one readable picture: no step, and no NaN"


@pytest.mark.parametrize("mixed", [0.0, 0.2])
def test_reward_makes_captions_better(mixed):
    phase = PhaseConfig(
        objective="reward",
        learning_rate=0.05,
        schedule="constant",
        warmup_steps=0,
        samples=6,
        cross_entropy=mixed,
    )
    steps = steps_of(phase)
    batch = batch_of(4, 1)
    references = [[[int(w) for w in row[0] if w > 3]] for row in batch[1]]
    reward = CaptionReward(references)
    figures = [steps.self_critical_step(batch, step, np.arange(4), reward) for step in range(40)]
    first, last = (np.mean([f.reward / f.samples for f in part]) for part in (figures[:5], figures[-5:]))
    assert last > first + 30, "points of CIDEr-D"
    assert all(f.samples == f.captions == 24 for f in figures)
    assert (figures[0].words > 0) == (mixed > 0), "cross entropy is known only where it is asked for"
    steps.decoder.output_kernel.assign(np.full(steps.decoder.output_kernel.shape, np.nan, np.float32))
    spoiled = steps.self_critical_step(batch, 40, np.arange(4), reward)
    assert not np.isfinite(spoiled.cross_entropy_sum), "so the training stops, also without cross entropy"


def test_a_picture_without_weight_is_not_rewarded():
    phase = PhaseConfig(objective="reward", optimizer="sgd", clip_norm=0.0, use_dropout=False, samples=3)
    (features, words_in), words_out, weights = batch_of(1)
    weights[:] = 0
    steps = steps_of(phase)
    before = weights_of(steps)
    steps.self_critical_step(
        ((features, words_in), words_out, weights), 0, np.array([0]), CaptionReward([[[4, 5]], [[6]]])
    )
    assert equal(before, weights_of(steps))


# The encoder.


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return load_encoder("small_cnn", weights="none", size=32)


def test_only_what_a_phase_trains_changes(encoder):
    layers = [layer.name for layer in encoder.model.layers if layer.weights]
    phase = dataclasses.replace(
        PLAIN, trains=("encoder",), encoder_from=layers[-1], encoder_learning_rate=0.1
    )
    steps = steps_of(phase, encoder=encoder)
    decoder, cnn = weights_of(steps), encoder.weights_dict()
    batch = batch_of(4, pixels=32)
    figures = steps.train(batch, 0)
    assert equal(decoder, weights_of(steps)) and figures.words == batch[2].sum()
    changed = [name for name, array in encoder.weights_dict().items() if not np.array_equal(array, cnn[name])]
    last = len(encoder.model.get_layer(layers[-1]).weights)
    assert changed == list(cnn)[-last:], "the layer it names and those after it"


@pytest.mark.parametrize("pictures", [4, 2 * find_device().frozen_encoder_batch + 5])
def test_a_frozen_encoder_looks_at_pixels_and_stays_as_it_is(encoder, pictures):
    steps = steps_of(encoder=encoder)
    decoder, cnn = weights_of(steps), encoder.weights_dict()
    batch = batch_of(pictures, pixels=32)
    (pixels, words_in), words_out, weights = batch
    cells = np.asarray(encoder.encode(pixels))
    from_cells = TrainStep(CONFIG, PLAIN, steps.decoder, encoder, steps.updater, WORDS).evaluate(
        ((cells, words_in), words_out, weights)
    )
    assert steps.evaluate(batch) == pytest.approx(from_cells, rel=1e-4)
    steps.train(batch, 0)
    assert equal(cnn, encoder.weights_dict()) and not equal(decoder, weights_of(steps))


def test_a_frozen_encoder_may_look_once_as_one_in_training_does(encoder):
    mirrored = load_encoder("small_cnn", weights=encoder.weights_dict(), size=32, flip_augmented=True)
    batch, once = batch_of(4, pixels=32), dataclasses.replace(PLAIN, augment=True, views="one")
    plain = steps_of(without_dropout(), encoder=encoder).train(batch, 0)
    twice = steps_of(without_dropout(), encoder=mirrored).train(batch, 0)
    looked = steps_of(without_dropout(once), encoder=mirrored)
    assert looked.train(batch, 0) == pytest.approx(plain, rel=1e-5)
    assert twice.cross_entropy_sum != pytest.approx(plain.cross_entropy_sum, rel=1e-5)
    evaluated = steps_of(without_dropout(), encoder=mirrored).evaluate(batch)
    assert steps_of(without_dropout(once), encoder=mirrored).evaluate(batch) == evaluated, "dev has all views"


def test_convolutions_in_bfloat16_are_those_of_steps_alone(encoder):
    batch, phase = (
        batch_of(4, pixels=32),
        dataclasses.replace(without_dropout(), trains=("decoder", "encoder")),
    )

    def figures(**train: Any) -> tuple[StepStats, StepStats]:
        own = load_encoder("small_cnn", weights=encoder.weights_dict(), size=32)
        config = dataclasses.replace(CONFIG, train=TrainConfig(**train))
        steps = steps_of(phase, encoder=own, config=config)
        judged = steps.evaluate(batch)
        return judged, steps.train(batch, 0)

    plain, short, unasked = (
        figures(precision=precision, bfloat16_convolutions=wanted)
        for precision, wanted in (("bfloat16", False), ("bfloat16", True), ("float32", True))
    )
    assert short[0] == plain[0] == unasked[0], "what dev scores are made of stays as it is"
    assert short[1] == pytest.approx(plain[1], rel=0.02)
    assert unasked[1] == plain[1], "only where products are in bfloat16, too"


def test_a_layer_that_is_not_there(encoder):
    near = encoder.model.layers[2].name
    with pytest.raises(ConfigError, match=f'unknown encoder layer "{near}x"; did you mean'):
        encoder_variables(PhaseConfig(encoder_from=f"{near}x"), encoder)


def test_regularization_is_part_of_the_objective(encoder):
    config = dataclasses.replace(
        CONFIG,
        encoder=EncoderConfig(l2=0.01),
        decoder=DecoderConfig(units=8, embedding=6, regularizer="l2", regularizer_strength=0.1),
    )
    phase = dataclasses.replace(PLAIN, trains=("decoder", "encoder"))
    steps = steps_of(phase, encoder=encoder, config=config)
    matrices = [array for array in steps.decoder.weights_dict().values() if array.ndim == 2]
    expected = 0.1 * sum((a.astype(float) ** 2).sum() for a in matrices)
    expected += 0.01 * sum((np.asarray(v).astype(float) ** 2).sum() for v in encoder.trainable_variables)
    penalty = weight_penalty(steps.decoder, encoder.trainable_variables, 0.01)
    assert float(penalty) == pytest.approx(expected, rel=1e-4)
