"""Depthwise convolution that can be trained fast on a processor.

oneDNN has no kernel of its own for the gradient of depthwise filters wider than 3: it takes one for grouped
convolutions and computes 16 times what is needed, 2 to 4 times slower than TensorFlow's own kernel. That one
serves where padding is given as numbers, which is how the gradient is asked for here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import keras
import tensorflow as tf

Tensor = Any

WIDEST = 3  # columns of the filters whose gradient oneDNN is fast at

_TRAINED = ContextVar("_TRAINED", default=False)


@contextmanager
def trained() -> Iterator[None]:
    """Context in which the layer takes the faster gradient; outside, its graph is plain, for exports."""
    token = _TRAINED.set(True)
    try:
        yield
    finally:
        _TRAINED.reset(token)


@keras.saving.register_keras_serializable("captioner")
class DepthwiseConv2D(keras.layers.DepthwiseConv2D):  # type: ignore[misc]
    """Keras's layer; within `trained`, the same function and gradient, faster for filters wider than 3."""

    def call(self, inputs: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, h, w, C * multiplier)."""
        plain = not _TRAINED.get() or self.kernel_size[1] <= WIDEST
        if plain or self.data_format != "channels_last" or self.dilation_rate != (1, 1):
            return super().call(inputs)
        kernel = tf.convert_to_tensor(self.kernel)
        outputs = convolution(inputs, kernel, self.strides[0], self.padding.upper())
        if self.use_bias:
            outputs = tf.nn.bias_add(outputs, tf.convert_to_tensor(self.bias))
        return self.activation(outputs)


def convolution(inputs: Tensor, kernel: Tensor, stride: int, padding: str) -> Tensor:
    """Depthwise convolution.

    Args:
        inputs: (B, H, W, C), H and W known.
        kernel: (rows, columns, C, multiplier).
        stride: of both directions.
        padding: "SAME" or "VALID".

    Returns:
        (B, h, w, C * multiplier).
    """
    numbers = [0, 0]
    for size, width in zip(inputs.shape[1:3], kernel.shape[:2], strict=True):
        missing = max((-(-size // stride) - 1) * stride + width - size, 0) if padding == "SAME" else 0
        numbers += [missing // 2, missing - missing // 2]
    numbers, strides = [*numbers, 0, 0], [1, stride, stride, 1]

    @tf.custom_gradient
    def convolved(inputs: Tensor, kernel: Tensor) -> Any:
        def gradient(d: Tensor) -> tuple[Tensor, Tensor]:
            options = {"out_backprop": d, "strides": strides}
            d_inputs = tf.raw_ops.DepthwiseConv2dNativeBackpropInput(
                input_sizes=tf.shape(inputs), filter=kernel, padding=padding, **options
            )
            d_kernel = tf.raw_ops.DepthwiseConv2dNativeBackpropFilter(
                input=inputs,
                filter_sizes=kernel.shape,
                padding="EXPLICIT",
                explicit_paddings=numbers,
                **options,
            )
            return d_inputs, d_kernel

        return tf.nn.depthwise_conv2d(inputs, kernel, strides, padding), gradient

    return convolved(inputs, kernel)
