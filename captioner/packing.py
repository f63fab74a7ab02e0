"""Where the words of a batch lie: the packed layout, and what is stored and summed in it.

A batch's pictures stand longest caption first, so those active at word t are the first `active[t]`; their
rows follow one another word by word, (S, R, ·), S being the sum of `active`. All captions of a picture sit
beside each other, so a picture's grid is read once for all of them. Letters as in `decoder.py`.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

Tensor = Any


def active_pictures(weights: Tensor) -> tuple[Tensor, Tensor]:
    """From weights (T, B, R): pictures active at each word (T,), and the packed rows' (word, picture) (S, 2).

    A picture stays active while any picture after it does, so that any order is right. All are active at the
    first word, even those without a weight (not readable, or no advantage), which gives them a gradient of 0.
    """
    used = tf.reduce_any(weights != 0, -1)  # (T, B)
    later = tf.reverse(tf.cumsum(tf.cast(tf.reverse(used, [0, 1]), tf.int32), axis=0), [0])
    later = tf.cumsum(later, axis=1) > 0  # (T, B), pictures reversed
    active = tf.reduce_sum(tf.cast(later, tf.int32), 1)
    B = tf.shape(weights)[1]
    active = tf.maximum(active, B * tf.one_hot(0, tf.shape(active)[0], dtype=tf.int32))
    return active, tf.where(tf.range(B)[None] < active[:, None])


class Tape:
    """The stored activations, with the static shapes that a TensorArray forgets."""

    def __init__(self, arrays: dict[str, Any], memory: tuple[Tensor, Tensor], U: int) -> None:
        (_, H, P, A), (_, _, _, D) = (x.shape for x in memory)
        special: dict[str, Any] = {"query": (None, H, None, A), "attention": (None, H, None, P)}
        special["context"] = (None, None, H * D)
        self.arrays = arrays
        self.shapes = {name: special.get(name, (None, None, U)) for name in arrays}

    def read(self, name: str, t: Tensor) -> Tensor:
        """One word's rows, (N, …)."""
        return shaped(self.arrays[name].read(t), self.shapes[name])

    def packed(self, name: str) -> Tensor:
        """All words' rows, (S, …)."""
        return shaped(self.arrays[name].concat(), self.shapes[name])


def shaped(x: Tensor, shape: tuple[int | None, ...]) -> Tensor:
    """The tensor with its static shape told."""
    x.set_shape(shape)
    return x


class ByPicture:
    """Sums over a picture's words and captions, from packed rows."""

    def __init__(self, active: Tensor, B: Tensor) -> None:
        on = tf.range(B)[:, None] < active[None]  # (B, T)
        place = tf.cumsum(active, exclusive=True)[None] + tf.range(B)[:, None]
        self.place = tf.where(on, place, 0)  # (B, T): packed row, 0 where there is none
        self.on = tf.cast(on, tf.float32)[:, :, None, None, None]

    def product(self, a: Tensor, b: Tensor, dtype: Any) -> Tensor:
        """(S, H, R, P), (S, H, R, d) -> (B, H, P, d): sum over words and captions of a times b."""
        a = tf.gather(a, self.place) * self.on  # (B, T, H, R, P); the narrow factor masks both
        b = tf.gather(tf.cast(b, dtype), self.place)  # (B, T, H, R, d)
        a, b = self._flat(tf.cast(a, dtype)), self._flat(b)
        return tf.cast(tf.matmul(a, b, transpose_a=True), tf.float32)

    @staticmethod
    def _flat(x: Tensor) -> Tensor:
        """(B, T, H, R, d) -> (B, H, T * R, d)."""
        B, H, d = tf.shape(x)[0], x.shape[2], x.shape[4]
        if H != 1:
            x = tf.transpose(x, [0, 2, 1, 3, 4])
        return tf.reshape(x, [B, H, -1, d])
