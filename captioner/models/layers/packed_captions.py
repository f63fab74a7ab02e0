"""Packed captions: the words of a batch without padding, and what is stored and summed in this layout.

Captions stand longest first, so those with a word t are the first `captions[t]` rows; the rows of the words
follow one another, (S, ·), S being the sum of `captions`. Rows of captions that have ended only fill S up to
a multiple of `ROWS`: oneDNN generates code for every shape it has not met, 1.5 ms a product.
Attention reads a picture's grid once for all its captions: for it, rows are spread to (N, R, ·), the first
N = `pictures[t]` pictures with all their captions, zeros for those that have ended.

Letters as in `decoder.py`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import tensorflow as tf

from captioner.models.layers.mixed_precision import Tensor, matmul

ROWS = 32  # of packed rows; many fewer than a batch has, enough for the batches of an epoch to share shapes


class PackedBatch(NamedTuple):
    """The words of a batch: the real ones, and rows that fill up.

    Attributes:
        outputs: (M, O) what the output matrix is applied to, with ones (`append_bias_columns`).
        matrix: (O, V), or (V, O) if `tied`, in the dtype of the products, with its bias.
        tied: the matrix is the embedding.
        words: (M,) int32, the words that should have been written.
        weights: (M,) float32, 0 where a row only fills up.
        rows: (M, 2) int32: word number and caption number, b * R + r, of each.
        attention: (L, R, P), mean over heads, zero where a caption has ended; L is the sum of `pictures`.
        positions: (L, 2) int64: word number and picture number of each of its rows.
    """

    outputs: Tensor
    matrix: Tensor
    tied: bool
    words: Tensor
    weights: Tensor
    rows: Tensor
    attention: Tensor
    positions: Tensor

    @property
    def logits(self) -> Tensor:
        """(M, V) float32."""
        return matmul(self.outputs, self.matrix, transpose_b=self.tied)


class DenseRows(NamedTuple):
    """Rows of a search: all captions of a picture side by side.

    Attributes:
        captions: of a picture.
    """

    captions: Tensor

    def spread(self, x: Tensor) -> Tensor:
        """(N * R, d) -> (N, R, d)."""
        return tf.reshape(x, [-1, self.captions, x.shape[-1]])

    def collect(self, x: Tensor) -> Tensor:
        """(N, R, d) -> (N * R, d)."""
        return tf.reshape(x, [-1, x.shape[-1]])


class PackedRows(NamedTuple):
    """Rows of one word in training: the captions that have it, longest first.

    Attributes:
        order: (n,) the caption, b * R + r, of each row.
        positions: (N * R,) the row of each caption; n for those that have ended.
        captions: R of a picture.
    """

    order: Tensor
    positions: Tensor
    captions: Tensor

    def spread(self, x: Tensor) -> Tensor:
        """(n, d) -> (N, R, d), zeros where a caption has ended."""
        rows = tf.gather(tf.concat([x, tf.zeros([1, x.shape[-1]], x.dtype)], 0), self.positions)
        return tf.reshape(rows, [-1, self.captions, x.shape[-1]])

    def collect(self, x: Tensor) -> Tensor:
        """(N, R, d) -> (n, d)."""
        return tf.gather(tf.reshape(x, [-1, x.shape[-1]]), self.order)


class Layout:
    """The layout of a batch: which captions and pictures have a word t.

    Args:
        weights: (T, B, R); from a caption's first word on, up to its last, none is 0.

    Attributes:
        captions: (T,) captions with a word t and those that fill up, never rising.
        pictures: (T,) pictures up to the last one that has such a caption, never rising; all at the first
            word, even those without a caption, whose gradient is 0.
        order: (B * R,) captions, longest first.
        positions: (B * R,) the inverse.
    """

    def __init__(self, weights: Tensor) -> None:
        T, self.B, self.R = (tf.shape(weights)[i] for i in range(3))
        t = tf.range(T)[:, None, None]
        lengths = tf.reduce_max(tf.where(weights != 0, t + 1, 0), 0)  # (B, R)
        self.order = tf.argsort(tf.reshape(-lengths, [-1]), stable=True)
        self.positions = tf.math.invert_permutation(self.order)
        on = tf.cast(lengths[None] > t, tf.int32)  # (T, B, R)
        self.captions = _filled(tf.reduce_sum(on, [1, 2]), self.B * self.R)
        picture = tf.where(self._on(), self.order // self.R + 1, 0)  # (T, B * R)
        self.pictures = tf.maximum(tf.reduce_max(picture, 1), self.B * tf.one_hot(0, T, dtype=tf.int32))
        self.first = tf.cumsum(self.captions, exclusive=True)
        self.first_picture = tf.cumsum(self.pictures, exclusive=True)

    def rows(self) -> Tensor:
        """(S, 2) int32: word and caption of each row."""
        found = tf.where(self._on())  # (S, 2)
        return tf.stack([tf.cast(found[:, 0], tf.int32), tf.gather(self.order, found[:, 1])], 1)

    def picture_rows(self) -> Tensor:
        """(L, 2) int64: word and picture of each row of the attention."""
        return tf.where(tf.range(self.B)[None] < self.pictures[:, None])

    def rows_at(self, t: Tensor) -> PackedRows:
        """The rows of a word."""
        n = self.captions[t]
        return PackedRows(self.order[:n], tf.minimum(self.positions[: self.pictures[t] * self.R], n), self.R)

    def slices(self, t: Tensor) -> tuple[slice, slice]:
        """The rows of word t among those of all words: of captions, of pictures."""
        start, first = self.first[t], self.first_picture[t]
        return slice(start, start + self.captions[t]), slice(first, first + self.pictures[t])

    def _on(self) -> Tensor:
        """(T, B * R) bool: whether the word has such a row."""
        return tf.range(self.B * self.R)[None] < self.captions[:, None]


def _filled(captions: Tensor, most: Tensor) -> Tensor:
    """(T,) counts raised, the last ones first, until their sum is a multiple of ROWS or each is `most`."""
    T, levels = tf.shape(captions)[0], tf.range(most + 1)
    sums = tf.reduce_sum(tf.maximum(captions[:, None], levels), 0)  # (most + 1,): each raised to the level
    wanted = tf.minimum(-(-sums[0] // ROWS) * ROWS, T * most)
    level = tf.reduce_max(tf.where(sums <= wanted, levels, 0))
    low = tf.cumsum(tf.cast(captions <= level, tf.int32))  # (T,): 1, 2, 3, … where a count can be raised
    more = (low > 0) & (low <= wanted - sums[level])
    return tf.maximum(captions, level) + tf.cast(more, tf.int32)


class ActivationStore:
    """The stored activations of all words, with the static shapes that a TensorArray forgets."""

    def __init__(self, arrays: dict[str, Any], memory: tuple[Tensor, Tensor], U: int) -> None:
        (_, H, P, A), (_, _, _, D) = (x.shape for x in memory)
        special: dict[str, Any] = {"query": (None, H, None, A), "attention": (None, H, None, P)}
        special["context"] = (None, H * D)
        self.arrays = arrays
        self.shapes = {name: special.get(name, (None, U)) for name in arrays}

    def read(self, name: str, t: Tensor) -> Tensor:
        """One word's rows, (N, …)."""
        return shaped(self.arrays[name].read(t), self.shapes[name])

    def packed(self, name: str) -> Tensor:
        """All words' rows, (S, …)."""
        return shaped(self.arrays[name].concat(), self.shapes[name])


def shaped(x: Tensor, shape: tuple[int | None, ...]) -> Tensor:
    """The tensor, with this static shape."""
    x.set_shape(shape)
    return x


class SumPerPicture:
    """Sums over a picture's words and captions, from packed rows."""

    def __init__(self, active: Tensor, B: Tensor) -> None:
        on = tf.range(B)[:, None] < active[None]  # (B, T)
        positions = tf.cumsum(active, exclusive=True)[None] + tf.range(B)[:, None]
        self.positions = tf.where(on, positions, 0)  # (B, T): packed row, 0 where there is none
        self.on = tf.cast(on, tf.float32)[:, :, None, None, None]

    def product(self, a: Tensor, b: Tensor, dtype: Any) -> Tensor:
        """(S, H, R, P), (S, H, R, d) -> (B, H, P, d): sum over words and captions of a times b."""
        a = tf.gather(a, self.positions) * self.on  # (B, T, H, R, P); the narrow factor masks both
        b = tf.gather(tf.cast(b, dtype), self.positions)  # (B, T, H, R, d)
        a, b = self._flat(tf.cast(a, dtype)), self._flat(b)
        return tf.cast(tf.matmul(a, b, transpose_a=True), tf.float32)

    @staticmethod
    def _flat(x: Tensor) -> Tensor:
        """(B, T, H, R, d) -> (B, H, T * R, d)."""
        B, H, d = tf.shape(x)[0], x.shape[2], x.shape[4]
        if H != 1:
            x = tf.transpose(x, [0, 2, 1, 3, 4])
        return tf.reshape(x, [B, H, -1, d])
