"""Batch normalization where several devices train: its running averages, as one device would move them.

In: a CNN that is learnt from nothing, and the micro-batches of a batch, dealt to devices. Out: its averages,
moved.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras
import tensorflow as tf


class GraphContext(threading.local):
    """What a graph is being made for; each device's part of it is made in a thread of its own, in turns."""

    device = 0
    micro_batch = 0
    real: Any = None  # 1.0, or 0.0 where the pictures are of no weight
    moved: list[Any]


class RunningAverages:
    """The running averages of batch normalisation, moved by all devices as by one micro-batch after another.

    A micro-batch moves an average m to decay * m + c, where c depends on its pictures alone. So each
    micro-batch begins from the same m, its c is taken, and of T micro-batches, t = 0, 1, …, all together
    m becomes decay ** T * m + the sum of decay ** (T - 1 - t) * c.

    Args:
        model: with the averages; None: they stay as they are.
    """

    def __init__(self, model: Any) -> None:
        layers = model._flatten_layers(include_self=False) if model is not None else []
        norms = [x for x in layers if isinstance(x, keras.layers.BatchNormalization) and x.trainable]
        self.making = GraphContext()
        self.found = [(v.value, x.momentum) for x in norms for v in (x.moving_mean, x.moving_variance)]

    def begin(self, weights: Any) -> None:
        """For the graph of a device; `weights` of the batch: without any, its pictures count for nothing."""
        self.making.real = (
            tf.cast(tf.reduce_any(weights != 0), tf.float32) if self.found else tf.constant(1.0)
        )
        self.making.moved = [tf.constant(0.0), *(tf.zeros_like(m) for m, _ in self.found)]

    @contextmanager
    def moved_by(self, micro_batch: int) -> Iterator[None]:
        """Within, the CNN looks at the pictures of a micro-batch."""
        before = [tf.identity(m) for m, _ in self.found]
        yield
        moved, real = self.making.moved, self.making.real
        moved[0] += real
        for place, ((m, decay), old) in enumerate(zip(self.found, before, strict=True), start=1):
            # decay ** (T - 1 - micro_batch), but for decay ** (T - 1), which is not known yet
            moved[place] += real * decay**-micro_batch * (m - decay * old)
            m.assign(old)

    def assign(self, moved: list[Any]) -> None:
        """Moves the averages by what all devices found, added up."""
        for (m, decay), total in zip(self.found, moved[1:], strict=True):
            m.assign(tf.pow(decay, moved[0]) * m + tf.pow(decay, moved[0] - 1) * total)
