"""Pictures through the encoder during training, in micro-batches whose number changes nothing but speed.

In: pixels (b, H, W, 3) of each micro-batch. Out: cells (b, P, C) of each, and the new running averages of
batch normalization. A frozen or pretrained CNN treats every picture by itself. One that is learnt from
nothing does not: its batch normalization takes mean and variance of the whole batch, whatever the number of
micro-batches, devices and workers, and its dropout is drawn for each picture of the whole batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from captioner.models.encoder import Encoder
from captioner.models.layers import depthwise_conv
from captioner.models.layers.dropout import BatchDropout

Tensor = Any
Moved = list[tuple[Any, Tensor]]  # running averages and their new values

_FIRST_LAYER = 16  # number of the CNN's first dropout; those before are the decoder's


class _Parts:
    """One value of each micro-batch; no list, which Keras would take for several inputs."""

    def __init__(self, values: Sequence[Tensor]) -> None:
        self.values = list(values)


class BatchContext(NamedTuple):
    """What layers that look across pictures need to know.

    Attributes:
        dropout: of this step.
        pictures: of each micro-batch the numbers (b,) of its pictures in the whole batch.
        real: of each micro-batch (b,) float32, 0 for pictures that count for nothing.
        all_reduce_sum: adds up over devices and workers.
    """

    dropout: BatchDropout
    pictures: Sequence[Tensor]
    real: Sequence[Tensor]
    all_reduce_sum: Callable[[Tensor], Tensor] = tf.identity


def frozen_cells(encoder: Encoder, pixels: Tensor, at_once: int) -> Tensor:
    """Cells (b, P, C) of pixels (b, H, W, 3), so many pictures after the others: less memory at a time."""
    chunks = -(-tf.shape(pixels)[0] // at_once)
    cells = tf.TensorArray(tf.float32, chunks, infer_shape=False)

    def step(i: Tensor, cells: Any) -> Any:
        return i + 1, cells.write(i, encoder.encode_graph(pixels[i * at_once : (i + 1) * at_once]))

    _, cells = tf.while_loop(lambda i, _: i < chunks, step, (0, cells), parallel_iterations=1)
    return tf.ensure_shape(cells.concat(), [None, encoder.num_cells, encoder.channels])


def trained_cells(
    encoder: Encoder, pixels: Sequence[Tensor], context: BatchContext | None
) -> tuple[list[Tensor], Moved]:
    """The cells of an encoder in training, and its running averages after this batch.

    It meets mirror images in turn (augmentation), not both at once as `Encoder.encode` does: half the time.

    Args:
        encoder: some of its variables are trained.
        pixels: (b, H, W, 3) of each micro-batch.
        context: for a CNN that is learnt from nothing; None: it keeps its statistics and drops nothing.
    """
    pixels, moved = [tf.cast(x, tf.float32) for x in pixels], list[tuple[Any, Tensor]]()
    with depthwise_conv.trained():
        if context is None:
            grids = [encoder.model(x, training=False) for x in pixels]
        else:
            encoder.reseed(
                context.dropout.seed[0], context.dropout.seed[1]
            )  # layers that draw for themselves
            grids, moved = _from_scratch(encoder.model, pixels, context)
    rows, columns = encoder.grid
    shape = [-1, rows * columns, encoder.channels]
    return [tf.reshape(tf.cast(grid, tf.float32), shape) for grid in grids], moved


def _from_scratch(model: Any, pixels: list[Tensor], context: BatchContext) -> tuple[list[Tensor], Moved]:
    """The model's grids in training mode, layer by layer over all micro-batches."""
    moved: Moved = []
    layers = iter(range(_FIRST_LAYER, 2**16))

    def operation(layer: Any) -> Callable[..., _Parts]:
        norm = isinstance(layer, keras.layers.BatchNormalization) and layer.trainable and not layer.renorm
        if norm:
            return partial(_normalized, layer, context, moved)
        if type(layer) is keras.layers.Dropout and layer.noise_shape is None:
            return partial(_dropped, layer, context.dropout, context.pictures, next(layers))
        if _looks_across(layer):
            return partial(_together, layer)
        return partial(_one_by_one, layer)

    grids = model._run_through_graph(_Parts(pixels), operation_fn=operation)
    return grids.values, moved


def _normalized(layer: Any, context: BatchContext, moved: Moved, parts: _Parts, **_: Any) -> _Parts:
    """Batch normalization (Ioffe and Szegedy 2015, algorithm 1) over the whole batch."""
    xs = [tf.cast(x, tf.float32) for x in parts.values]
    axis = layer.axis % xs[0].shape.rank
    others = [i for i in range(xs[0].shape.rank) if i != axis]
    real = [tf.reshape(x, [-1, *[1] * (xs[0].shape.rank - 1)]) for x in context.real]
    of_a_picture = tf.cast(tf.size(xs[0][:1]) // tf.shape(xs[0])[axis], tf.float32)
    count = context.all_reduce_sum(tf.add_n([tf.reduce_sum(x) for x in real])) * of_a_picture

    def mean_of(values: list[Tensor]) -> Tensor:
        total = tf.add_n([tf.reduce_sum(x * own, others) for x, own in zip(values, real, strict=True)])
        return tf.math.divide_no_nan(context.all_reduce_sum(total), count)

    def broadcast(x: Tensor) -> Tensor:
        return tf.reshape(x, [-1 if i == axis else 1 for i in range(xs[0].shape.rank)])

    mean = mean_of(xs)  # (C,)
    centered = [x - broadcast(mean) for x in xs]
    variance = mean_of([tf.square(x) for x in centered])
    scale = tf.math.rsqrt(variance + layer.epsilon)
    if layer.scale:
        scale *= tf.convert_to_tensor(layer.gamma)
    outputs = [x * broadcast(scale) for x in centered]
    if layer.center:
        outputs = [x + broadcast(tf.convert_to_tensor(layer.beta)) for x in outputs]
    for average, value in ((layer.moving_mean, mean), (layer.moving_variance, variance)):
        moved.append((average, average * layer.momentum + tf.stop_gradient(value) * (1 - layer.momentum)))
    return _Parts([tf.cast(x, layer.compute_dtype) for x in outputs])


def _dropped(
    layer: Any, dropout: BatchDropout, pictures: Sequence[Tensor], number: int, parts: _Parts, **_: Any
) -> _Parts:
    def drop(x: Tensor, rows: Tensor) -> Tensor:
        flat = tf.reshape(x, [-1, x.shape[1:].num_elements()])
        return tf.reshape(dropout(flat, layer.rate, layer=number, rows=rows), tf.shape(x))

    return _Parts([drop(x, rows) for x, rows in zip(parts.values, pictures, strict=True)])


def _one_by_one(layer: Any, *arguments: Any, **more: Any) -> _Parts:
    """A layer that treats every picture by itself."""
    count = max(len(x.values) for x in _leaves((arguments, more)) if isinstance(x, _Parts))
    return _Parts([layer(*_pick(arguments, i), **_pick(more, i)) for i in range(count)])


def _together(layer: Any, *arguments: Any, **more: Any) -> _Parts:
    """A layer of another kind that looks across pictures or draws at random: it gets the whole batch."""
    found = [x for x in _leaves((arguments, more)) if isinstance(x, _Parts)]
    sizes = [tf.shape(x)[0] for x in found[0].values]
    whole = keras.tree.map_structure(
        lambda x: tf.concat(x.values, 0) if isinstance(x, _Parts) else x, (arguments, more)
    )
    return _Parts(tf.split(layer(*whole[0], training=True, **whole[1]), sizes, num=len(sizes)))


def _looks_across(layer: Any) -> bool:
    inner = [layer, *(layer._flatten_layers(include_self=False) if isinstance(layer, keras.Layer) else ())]
    return any(
        isinstance(each, keras.layers.BatchNormalization) or getattr(each, "seed_generator", None) is not None
        for each in inner
    )


def _leaves(nest: Any) -> list[Any]:
    return keras.tree.flatten(nest)  # type: ignore[no-any-return]


def _pick(nest: Any, number: int) -> Any:
    return keras.tree.map_structure(lambda x: x.values[number] if isinstance(x, _Parts) else x, nest)
