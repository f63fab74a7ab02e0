"""Dropout drawn for each picture, caption and word of a batch, however the batch is computed.

In: numbers of rows in the whole batch, and what stands in them. Out: the same with some numbers dropped. What
is dropped of a row depends on the seed, the layer and the row's number alone: not on how many micro-batches,
threads, devices or workers share the batch.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

Tensor = Any


class BatchDropout:
    """What one training step drops.

    A random byte decides over each number, so rates are rounded to a 256th. What a layer keeps is drawn once
    for the whole batch; micro-batches that share this object take their rows of it.

    Args:
        seed: (2,) int32, of the step.
        pictures: scalar, how many there are in the whole batch.

    >>> dropout = BatchDropout(tf.constant([0, 1]), 4)
    >>> whole = dropout(tf.ones([4, 6]), 0.5, layer=1, rows=tf.range(4))
    >>> last = BatchDropout(tf.constant([0, 1]), 4)(tf.ones([1, 6]), 0.5, layer=1, rows=tf.constant([3]))
    >>> bool(tf.reduce_all(whole[3:] == last))
    True
    """

    def __init__(self, seed: Tensor, pictures: Tensor) -> None:
        self.seed, self._pictures = seed, pictures
        self._kept: dict[int, Tensor] = {}

    def __call__(self, x: Tensor, rate: float, *, layer: int, rows: Tensor, per_picture: Any = 1) -> Tensor:
        """Drops numbers of x (n, d) and scales the others up, so that the mean stays.

        Args:
            x: float32, d known.
            rate: share that is dropped; the same for all calls of the layer.
            layer: which of the network's dropout layers this is.
            rows: (n,) the number of each row in the whole batch.
            per_picture: rows of a picture in this layer; the same for all calls of the layer.
        """
        dropped = min(round(rate * 256), 255)
        if dropped == 0:
            return x
        if layer not in self._kept:
            words = -(-x.shape[-1] // 4)
            shape = [self._pictures * per_picture, words]
            drawn = tf.random.stateless_uniform(
                shape, self.seed + [0, layer * 7919], None, None, tf.uint32
            )  # counted row by row: more rows do not change the first ones
            drawn = tf.reshape(tf.bitcast(drawn, tf.uint8), [-1, 4 * words])
            self._kept[layer] = drawn >= tf.constant(dropped, tf.uint8)
        kept = tf.cast(tf.gather(self._kept[layer], rows)[:, : x.shape[-1]], tf.float32)
        return x * (kept * (256 / (256 - dropped)))
