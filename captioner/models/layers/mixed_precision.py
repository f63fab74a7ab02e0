"""Matrix products in the dtype that the processor is fastest at; what comes out is float32.

Letters as in `decoder.py`; X and Y are the rows and columns of a kernel.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import tensorflow as tf

Tensor = Any

BIAS_ROWS = 16  # one would do for float32, two for bfloat16; products are made of blocks of 16


def matmul(a: Tensor, b: Tensor, *, transpose_b: bool = False) -> Tensor:
    """a times b, float32, in the dtype of `b`."""
    return tf.cast(tf.matmul(tf.cast(a, b.dtype), b, transpose_b=transpose_b), tf.float32)


def append_bias_columns(x: Tensor) -> Tensor:
    """(S, X) -> (S, X + BIAS_ROWS), for a product with `CastedWeights.with_bias`."""
    return tf.concat([x, tf.ones([tf.shape(x)[0], BIAS_ROWS])], 1)


class CastedWeights:
    """The weights in the dtype of the matrix products.

    Args:
        dtype: of the products, tf.float32 or tf.bfloat16.
    """

    def __init__(self, dtype: Any) -> None:
        self.dtype = dtype
        self._made: dict[str, Tensor] | None = None

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Context in which each weight is cast once for all micro-batches; gradients are added, then cast."""
        self._made = {}
        try:
            yield
        finally:
            self._made = None

    def cast(self, kernel: Any) -> Tensor:
        """A variable in the dtype of the products."""
        made = {} if self._made is None else self._made
        if kernel.name not in made:
            made[kernel.name] = tf.cast(kernel, self.dtype)
        return made[kernel.name]

    def with_bias(self, kernel: Any, bias: Tensor, *, transposed: bool = False) -> Tensor:
        """(X + BIAS_ROWS, Y): a kernel and below it its bias, which a product adds without another pass.

        Args:
            kernel: variable (X, Y), or (Y, X) if `transposed`; then the bias stands beside it.
            bias: (Y,).
        """
        made, name = {} if self._made is None else self._made, f"{kernel.name} with bias"
        if name not in made:
            high = tf.cast(bias, self.dtype)
            low = tf.cast(tf.stop_gradient(bias - tf.cast(high, tf.float32)), self.dtype)  # lost by rounding
            rows = tf.pad(tf.stack([high, low]), [[0, BIAS_ROWS - 2], [0, 0]])  # (BIAS_ROWS, Y)
            rows = tf.transpose(rows) if transposed else rows
            made[name] = tf.concat([self.cast(kernel), rows], int(transposed))
        return made[name]


def dense(a: Tensor, kernel: Tensor, bias: Any, *, transposed: bool = False) -> Tensor:
    """a (…, X) times a cast kernel, plus bias (Y,): (…, Y) float32."""
    flat = matmul(tf.reshape(a, [-1, a.shape[-1]]), kernel, transpose_b=transposed)
    flat = tf.nn.bias_add(flat, bias)  # its gradient sums rows much faster than that of +
    return tf.reshape(flat, [*tf.unstack(tf.shape(a)[:-1]), flat.shape[-1]])
