"""Where the words of a batch lie."""

from __future__ import annotations

import numpy as np
import pytest

from captioner.models.layers.packed_captions import ROWS, Layout


def layout_of(lengths):
    """Of captions (B, R) with so many words."""
    lengths = np.array(lengths)
    weights = np.arange(lengths.max())[:, None, None] < lengths
    return Layout(weights.astype("float32"))  # (T, B, R)


def test_the_words_of_two_pictures_with_two_captions():
    layout = layout_of([[3, 1], [2, 0]])
    assert layout.order.numpy().tolist() == [0, 2, 1, 3]  # longest caption first
    assert layout.positions.numpy().tolist() == [0, 2, 1, 3]
    assert layout.captions.numpy().tolist() == [4, 4, 4]  # 3, 2, 1 and those that fill up: all there are
    assert layout.pictures.numpy().tolist() == [2, 2, 2]
    assert layout.rows().numpy().tolist() == [[t, i] for t in range(3) for i in (0, 2, 1, 3)]


@pytest.mark.parametrize("seed", range(5))
def test_rows_fill_up_to_a_multiple_from_the_last_words_on(seed):
    lengths = np.random.default_rng(seed).integers(3, 20, (16, 5))
    real = (np.arange(lengths.max())[:, None] < lengths.reshape(-1)).sum(1)
    layout = layout_of(lengths)
    found = layout.captions.numpy()
    assert found.sum() == -(-real.sum() // ROWS) * ROWS
    assert (found >= real).all() and (np.diff(found) <= 0).all()
    raised = found[found > real]
    assert np.ptp(raised) <= 1 and (found[-len(raised) :] > real[-len(raised) :]).all()

    of_row = layout.order.numpy()[: found.max()] // 5
    pictures = [of_row[:n].max() + 1 for n in found]
    assert layout.pictures.numpy().tolist() == [16, *pictures[1:]]


def test_a_batch_without_a_caption_has_no_rows():
    layout = Layout(np.zeros((2, 3, 1), "float32"))
    assert layout.captions.numpy().tolist() == [0, 0]
    assert layout.pictures.numpy().tolist() == [3, 0]
    assert layout.rows().shape == (0, 2)
