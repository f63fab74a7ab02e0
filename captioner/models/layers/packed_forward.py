"""All words of a batch of captions at once: what `CaptionDecoder.call` computes, many times faster.

In: a decoder, grids, words. Out: a `PackedBatch`, the real words of all captions. Three things make it fast:
nothing is computed for captions that have ended, all embedded words go through the input matrix in one
product, and the recurrence has a gradient of its own (`attention_gru`). Letters as in `decoder.py`.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from captioner.models.layers.dropout import BatchDropout
from captioner.models.layers.mixed_precision import append_bias_columns, dense
from captioner.models.layers.packed_captions import Layout, PackedBatch

Tensor = Any

GRID, EMBEDDING, OUTPUTS = range(3)  # the decoder's dropout layers


def packed_forward(
    decoder: Any,
    inputs: tuple[Tensor, Tensor],
    words_out: Tensor,
    weights: Tensor,
    *,
    dropout: BatchDropout | None = None,
    pictures: Tensor | None = None,
) -> PackedBatch:
    """What gives the logits of the real words, those whose target has a weight.

    Args:
        decoder: a `CaptionDecoder`.
        inputs: features (B, P, C) and words_in (B, R, T), 0 after a caption's end.
        words_out: (B, R, T) the words to be written.
        weights: (B, R, T), 0 after a caption's end, and for captions to be left out.
        dropout: of this step; None: nothing is dropped.
        pictures: (B,) int32, the number of each picture in the whole batch, which dropout is drawn for; None:
            these are all.
    """
    features, words_in = inputs
    config, casted = decoder.config, decoder.casted_weights
    B, R, T = (tf.shape(words_in)[i] for i in range(3))
    pictures = tf.range(B) if pictures is None else pictures
    features = decoder.normalize(features)
    if dropout is not None:  # whole channels, so that no neighboring cell gives the dropped number away
        kept = dropout(tf.ones([B, decoder.channels]), config.grid_dropout, layer=GRID, rows=pictures)
        features *= kept[:, None]
    memory = decoder.project_memory(features, normalized=True)

    by_word = [tf.transpose(x, [2, 0, 1]) for x in (words_in, words_out, weights)]  # (T, B, R)
    layout = Layout(by_word[2])
    rows, positions = layout.rows(), layout.picture_rows()
    captions = [tf.reshape(x, [T, -1]) for x in by_word]  # (T, B * R)
    words, targets, kept = (tf.gather_nd(x, rows) for x in captions)  # (S,)
    word, caption = tf.unstack(rows, axis=1)  # (S,), (S,)
    number = (tf.gather(pictures, caption // R) * R + caption % R) * T + word  # (S,) in the whole batch

    def dropped(x: Tensor, layer: int) -> Tensor:
        if dropout is None:
            return x
        return dropout(x, config.dropout, layer=layer, rows=number, per_picture=R * T)

    embedded = dropped(tf.gather(decoder.embedding, words), EMBEDDING)  # (S, E)
    kernel = casted.with_bias(decoder.input_kernel, decoder.gate_bias())
    gates = tf.matmul(tf.cast(append_bias_columns(embedded), kernel.dtype), kernel)  # (S, 3U)
    start = tf.gather(decoder.initial_state(memory), layout.order // layout.R)  # (B * R, U)
    states, contexts, attention = decoder.cell.unroll(
        gates, layout, start, memory[:2], decoder.step_weights()
    )

    both = tf.concat([tf.cast(states, casted.dtype), contexts], -1)  # (S, U + D)
    outputs = dense(both, casted.cast(decoder.output_kernel), decoder.output_bias)
    outputs = dropped(outputs, OUTPUTS)  # (S, O)
    on = tf.cast(tf.gather_nd(by_word[2], positions) != 0, tf.float32)  # (L, R)
    mean_attention = tf.reduce_mean(attention, 1) * on[..., None]  # (L, R, P)
    if decoder.sentinel is not None:
        mean_attention = mean_attention[..., :-1]
    tied = decoder.word_kernel is None
    matrix = casted.with_bias(decoder.word_matrix(), tf.convert_to_tensor(decoder.word_bias), transposed=tied)
    return PackedBatch(
        append_bias_columns(outputs), matrix, tied, targets, kept, rows, mean_attention, positions
    )
