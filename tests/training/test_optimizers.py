"""Optimizers, schedules, clipping, averages."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from captioner.config import PhaseConfig
from captioner.errors import ConfigError
from captioner.training.optimizers import (
    EMA_EVERY,
    EMA_WARMUP_STEPS,
    OPTIMIZERS,
    FusedAdam,
    PhaseSchedule,
    TrainOptimizer,
    load_optimizer,
)


def plain_descent(rate):
    """An optimizer of one's own."""
    return keras.optimizers.SGD(rate, momentum=0.5)


def variables():
    rng = np.random.default_rng(0)
    return [keras.Variable(rng.normal(size=shape).astype("float32")) for shape in ((3, 4), (4,))]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_goes_downhill(name):
    weights = variables()
    rate = 1.0 if name == "adadelta" else 0.05
    phase = PhaseConfig(optimizer=name, learning_rate=rate, schedule="constant", warmup_steps=0, clip_norm=0)
    updater = TrainOptimizer(phase, 200, weights)
    height = lambda: float(sum(tf.reduce_sum(tf.convert_to_tensor(w) ** 2) for w in weights))  # noqa: E731
    before = height()
    for _ in range(30):
        updater.apply([2 * tf.convert_to_tensor(w) for w in weights])
    assert height() < before


def test_fused_adam_is_kerass_adam():
    fused, plain = variables(), variables()
    ours, keras_own = FusedAdam(0.01), keras.optimizers.Adam(0.01)
    rng = np.random.default_rng(1)
    for _ in range(20):
        slopes = [tf.constant(rng.normal(size=w.shape), tf.float32) for w in fused]
        ours.apply(slopes, fused)
        keras_own.apply(slopes, plain)
    for a, b in zip(fused, plain, strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "middle"), [("constant", 1.0), ("linear", 0.55), ("cosine", 0.55), ("exponential", 0.1**0.5)]
)
def test_a_schedule_warms_up_and_ends_at_its_final_share(kind, middle):
    rate = PhaseSchedule(PhaseConfig(schedule=kind, warmup_steps=10, final_lr_fraction=0.1), 2.0, 110)
    assert float(rate(0)) == pytest.approx(0.2)
    assert float(rate(10)) == pytest.approx(2.0)
    assert float(rate(60)) == pytest.approx(2.0 * middle, rel=1e-4)
    assert float(rate(110)) == pytest.approx(2.0 if kind == "constant" else 0.2, rel=1e-4)


def test_long_gradients_are_scaled_back_to_the_norm():
    weights = [keras.Variable(np.zeros(2, "float32"))]
    phase = PhaseConfig(
        optimizer="sgd", learning_rate=1.0, schedule="constant", warmup_steps=0, clip_norm=5.0
    )
    norm = TrainOptimizer(phase, 10, weights).apply([tf.constant([30.0, 40.0])])
    assert float(norm) == 50
    np.testing.assert_allclose(np.asarray(weights[0]), [-3, -4], rtol=1e-6)


def test_averages_follow_and_can_be_swapped_in():
    weights = [keras.Variable(np.zeros(1, "float32"))]
    phase = PhaseConfig(
        optimizer="sgd", learning_rate=1.0, schedule="constant", warmup_steps=0, ema_decay=0.9
    )
    updater = TrainOptimizer(phase, 10, weights)
    for _ in range(3):
        updater.apply([tf.constant([-1.0])])
    assert np.asarray(weights[0]) == 3
    average = float(updater.averages[0][0])
    assert 0 < average < 3
    updater.swap_ema_weights()
    assert (float(np.asarray(weights[0])[0]), float(updater.averages[0][0])) == (pytest.approx(average), 3.0)


def test_old_averages_follow_every_fourth_step_by_as_much_as_four_steps_would():
    weights = [keras.Variable(np.zeros(1, "float32"))]
    phase = PhaseConfig(
        optimizer="sgd", learning_rate=1.0, schedule="constant", warmup_steps=0, ema_decay=0.98
    )
    updater, every_step = TrainOptimizer(phase, 200, weights), 0.0
    lags = []
    for step in range(1, 201):
        updater.apply([tf.constant([-1.0])])
        decay = min(0.98, (1 + step) / (10 + step))
        every_step = decay * every_step + (1 - decay) * step
        lags.append((every_step, float(updater.averages[0][0])))
    young, old = np.array(lags[:EMA_WARMUP_STEPS]), np.array(lags[EMA_WARMUP_STEPS:])
    np.testing.assert_allclose(young[:-1, 0], young[:-1, 1], rtol=1e-5)
    assert (np.diff(old[:, 1]) > 0).sum() == len(old) // EMA_EVERY  # moved every fourth step
    assert np.abs(old[:, 0] - old[:, 1]).max() < 5  # steps: about what it can be late


def test_an_optimizer_of_ones_own():
    phase = PhaseConfig(optimizer=f"{__name__}:plain_descent")
    assert load_optimizer(phase, 0.1).momentum == 0.5


def test_unknown_names_are_answered_with_the_nearest():
    with pytest.raises(ConfigError, match='did you mean "adam"'):
        load_optimizer(PhaseConfig(optimizer="adamm"), 0.1)
