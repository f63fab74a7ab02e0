"""Depthwise convolution that can be trained fast on a processor.

oneDNN has no kernel of its own for some gradients and takes one for grouped convolutions, which computes 16
times what is needed. It is spared that: the gradient by filters wider than 3 is computed a few columns at a
time, and the one by the inputs of a convolution with steps is a convolution without.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
    """Keras's layer; within `trained`, the same function and gradient, faster for wide filters and steps."""

    def call(self, inputs: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, h, w, C * multiplier)."""
        plain = not _TRAINED.get() or (self.kernel_size[1] <= WIDEST and self.strides[0] == 1)
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
            if stride > 1 and kernel.shape[-1] == 1:
                d_inputs = _back_through_stride(
                    d, kernel, inputs.shape[1:3], stride, (numbers[2], numbers[4])
                )
            else:
                d_inputs = tf.raw_ops.DepthwiseConv2dNativeBackpropInput(
                    input_sizes=tf.shape(inputs),
                    filter=kernel,
                    out_backprop=d,
                    strides=strides,
                    padding=padding,
                )
            d_kernel = _by_kernel(inputs, d, kernel.shape, stride, numbers[2:6])
            return d_inputs, d_kernel

        return tf.nn.depthwise_conv2d(inputs, kernel, strides, padding), gradient

    return convolved(inputs, kernel)


def _by_kernel(inputs: Tensor, d: Tensor, shape: Any, stride: int, around: Sequence[int]) -> Tensor:
    """The gradient by the kernel, a few columns of it at a time: as narrow as oneDNN has a kernel for.

    Args:
        inputs: (B, H, W, C).
        d: (B, h, w, C * multiplier), gradient by the outputs.
        shape: of the kernel.
        stride: of both directions.
        around: rows before and after, columns before and after, of padding.
    """
    top, bottom, left, right = around
    inputs = tf.pad(inputs, [[0, 0], [top, bottom], [left, right], [0, 0]])
    rows, columns = shape[:2]
    height, width = ((cells - 1) * stride for cells in d.shape[1:3])
    parts = []
    for first in range(0, columns, WIDEST):
        last = min(first + WIDEST, columns)
        parts.append(
            tf.raw_ops.DepthwiseConv2dNativeBackpropFilter(
                input=inputs[:, : height + rows, first : width + last],
                filter_sizes=[rows, last - first, *shape[2:]],
                out_backprop=d,
                strides=[1, stride, stride, 1],
                padding="VALID",
            )
        )
    return tf.concat(parts, 1)


def _back_through_stride(
    d: Tensor, kernel: Tensor, size: Any, stride: int, before: tuple[int, int]
) -> Tensor:
    """The gradient by the inputs as a convolution of the gradient, zeros between its cells: 10 times faster.

    Args:
        d: (B, h, w, C), gradient by the outputs.
        kernel: (rows, columns, C, 1).
        size: (H, W) of the inputs.
        stride: of both directions.
        before: rows and columns of padding before the inputs.
    """
    B, (h, w), C = tf.shape(d)[0], d.shape[1:3], d.shape[3]
    spread = tf.pad(
        d[:, :, None, :, None], [[0, 0], [0, 0], [0, stride - 1], [0, 0], [0, stride - 1], [0, 0]]
    )
    spread = tf.reshape(spread, [B, h * stride, w * stride, C])
    around = [[0, 0]]
    for whole, width, first, cells in zip(size, kernel.shape[:2], before, (h, w), strict=True):
        around.append([width - 1 - first, max(whole + first - cells * stride, 0)])
    spread = tf.pad(spread, [*around, [0, 0]])
    rows, columns = (whole + width - 1 for whole, width in zip(size, kernel.shape[:2], strict=True))
    spread = spread[:, :rows, :columns]
    return tf.nn.depthwise_conv2d(spread, kernel[::-1, ::-1], [1, 1, 1, 1], "VALID")
