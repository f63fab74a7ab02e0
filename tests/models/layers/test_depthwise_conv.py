"""Depthwise convolutions in training: the plain layer's numbers."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from captioner.models.layers import depthwise_conv as depthwise


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize(("stride", "size"), [(1, (9, 12)), (2, (9, 12)), (2, (12, 9)), (3, (11, 7))])
@pytest.mark.parametrize(("width", "multiplier"), [(3, 1), (3, 2), (4, 2), (5, 1), (7, 2)])
def test_outputs_and_gradients_are_those_of_kerass_layer(width, multiplier, stride, size, padding):
    rng = np.random.default_rng(0)
    options = {"strides": stride, "padding": padding, "activation": "relu"}
    options["depth_multiplier"] = multiplier
    plain, ours = (
        kind(width, bias_initializer="ones", **options)
        for kind in (keras.layers.DepthwiseConv2D, depthwise.DepthwiseConv2D)
    )
    pixels = tf.constant(rng.normal(size=(2, *size, 3)), tf.float32)
    plain(pixels), ours(pixels)
    ours.set_weights(plain.get_weights())
    found = []
    for layer in (plain, ours):
        with tf.GradientTape() as tape, depthwise.trained():
            tape.watch(pixels)
            outputs = layer(pixels)
            objective = tf.reduce_sum(tf.sin(outputs))
        found.append([outputs, *tape.gradient(objective, [pixels, *(v.value for v in layer.variables)])])
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_only_in_training_is_its_graph_another_one():
    layer = depthwise.DepthwiseConv2D(5, padding="same")
    pixels = tf.zeros([1, 8, 8, 3])
    layer(pixels)

    def operations(call):
        graph = tf.function(call, autograph=False).get_concrete_function(pixels).graph
        return {operation.type for operation in graph.get_operations()}

    def trained(x):
        with depthwise.trained():
            return layer(x)

    assert "IdentityN" in operations(trained)
    assert "IdentityN" not in operations(layer)
