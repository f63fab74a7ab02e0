"""Regularizers by name."""

from __future__ import annotations

import pytest
import tensorflow as tf

from captioner.errors import ConfigError
from captioner.models.regularizers import REGULARIZERS, load_regularizer


@pytest.mark.parametrize("name", REGULARIZERS)
def test_every_regularizer_punishes_large_weights(name):
    punish = load_regularizer(name, 0.1)
    assert float(punish(tf.ones([3, 3]))) > 0


def test_a_regularizer_of_ones_own():
    assert load_regularizer("keras.regularizers:L2", 0.5).l2 == 0.5


def test_an_unknown_name_is_answered_with_the_known_ones():
    with pytest.raises(ConfigError, match="unknown regularizer"):
        load_regularizer("l3", 0.1)


@pytest.mark.parametrize("name", ["os:path", "json:loads", "builtins:float"])
def test_what_is_no_regularizer_is_named(name):
    with pytest.raises(ConfigError, match=f'regularizer "{name}"'):
        load_regularizer(name, 0.1)
