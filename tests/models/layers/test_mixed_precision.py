"""Matrix products in the dtype of the processor."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from captioner.models.layers.mixed_precision import CastedWeights, append_bias_columns, dense, matmul


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(("dtype", "close"), [(tf.float32, 1e-5), (tf.bfloat16, 2e-2)])
def test_a_bias_within_the_product_is_a_bias_after_it(dtype, close, transposed):
    rng = np.random.default_rng(0)
    x, kernel, bias = (rng.normal(size=shape).astype("float32") for shape in ((5, 4), (4, 3), (3,)))
    variable = tf.Variable(kernel.T if transposed else kernel, name="kernel")
    kernels, own = CastedWeights(dtype), tf.constant(bias)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(own)
        within = matmul(
            append_bias_columns(x),
            kernels.with_bias(variable, own, transposed=transposed),
            transpose_b=transposed,
        )
        after = dense(x, kernels.cast(variable), own, transposed=transposed)
    np.testing.assert_allclose(within, after, rtol=close, atol=close)
    for wanted in (own, variable):
        gradients = (tape.gradient(y, wanted) for y in (within, after))
        np.testing.assert_allclose(*gradients, rtol=close, atol=close)


def test_a_bias_keeps_twice_the_digits_of_bfloat16():
    bias = tf.constant([1.001, -8.003])
    kernel = tf.Variable(tf.zeros([2, 2]), name="kernel")
    matrix = tf.cast(CastedWeights(tf.bfloat16).with_bias(kernel, bias), tf.float32)
    np.testing.assert_allclose(tf.reduce_sum(matrix, 0), bias, rtol=2e-5)


def test_kernels_are_made_once_where_they_are_shared():
    kernels, variable = CastedWeights(tf.bfloat16), tf.Variable(tf.ones([2, 2]), name="kernel")
    with kernels.shared():
        assert kernels.cast(variable) is kernels.cast(variable)
    assert kernels.cast(variable) is not kernels.cast(variable)
