"""Dropout of numbered rows: the share it says, and the same for a row whoever asks."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from captioner.models.layers.dropout import BatchDropout


@pytest.mark.parametrize(("rate", "share"), [(0.5, 0.5), (0.1, 26 / 256), (1 / 1000, 0), (0.999, 255 / 256)])
def test_it_drops_the_share_it_says_and_keeps_the_mean(rate, share):
    x = tf.ones([999, 501])
    dropped = np.asarray(BatchDropout(tf.constant([3, 4]), 999)(x, rate, layer=1, rows=tf.range(999)))
    assert np.unique(dropped).tolist() == ([0, np.float32(1 / (1 - share))] if share else [1])
    spread = (share * (1 - share) / x.shape.num_elements()) ** 0.5
    assert abs((dropped == 0).mean() - share) <= 5 * spread
    for axis in (0, 1):  # neighbors share a draw of four bytes, but no fate
        a, b = (np.take(dropped == 0, range(start, 500 + start), axis) for start in (0, 1))
        assert abs((a & b).mean() - share**2) <= 10 * spread


@pytest.mark.parametrize("pictures", [7, 16, 5000])
def test_a_row_is_the_same_however_many_there_are(pictures):
    rows = tf.constant([6, 0, 3])
    few, many = (
        BatchDropout(tf.constant([1, 2]), count)(tf.ones([3, 10]), 0.5, layer=2, rows=rows)
        for count in (7, pictures)
    )
    np.testing.assert_array_equal(few, many)


def test_layers_and_steps_drop_other_numbers():
    rows, x = tf.range(8), tf.ones([8, 32])
    first, layer, step = (
        np.asarray(BatchDropout(tf.constant([0, number]), 8)(x, 0.5, layer=layer, rows=rows))
        for number, layer in ((1, 1), (1, 2), (2, 1))
    )
    assert (first != layer).any() and (first != step).any()
