"""A batch computed in several micro-batches side by side: which pictures, and the graphs for it.

In: a batch. Out: its micro-batches; results in the batch's order again. A training
step is faster as a few independent streams of small operations than as one stream whose operations are each
spread over the cores. How many there are changes speed and the last bits of sums, nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import tensorflow as tf

from captioner.models.device import find_device
from captioner.system.hardware import cores

Tensor = Any

_REWRITE = "auto_mixed_precision_onednn_bfloat16"  # a pass of TensorFlow's over graphs before they run


def use_cores_side_by_side() -> None:
    """One thread an operation and several operations at once: a step is many small ones.

    Where TensorFlow is in use already (a notebook), its threads stay as they are; steps are only slower. On a
    GPU, operations of the processor (input, metrics) keep TensorFlow's own choice.
    """
    if find_device().on_gpu:
        return
    with suppress(RuntimeError):
        tf.config.threading.set_intra_op_parallelism_threads(1)
        tf.config.threading.set_inter_op_parallelism_threads(cores())


@contextmanager
def bfloat16_convolutions(on: bool) -> Iterator[None]:
    """Graphs run within compute in bfloat16 what TensorFlow holds safe, convolutions above all.

    On processors with bfloat16 a pass through the CNN is several times faster. Weights stay float32, and what
    runs elsewhere, such as the captions that dev scores are of, stays as it is. Nothing changes on a GPU.
    """
    if on:
        tf.config.optimizer.set_experimental_options({_REWRITE: True})
    try:
        yield
    finally:
        if on:
            tf.config.optimizer.set_experimental_options({_REWRITE: False})


def split_micro_batches(count: int, batch: Sequence[Tensor]) -> list[list[Tensor]]:
    """The rows of a batch dealt out like cards, so that each micro-batch has long and short captions."""
    rows = tf.range(tf.shape(batch[0])[0])
    # Not x[number::count], which goes number by number; this copies whole rows.
    return [[tf.gather(x, rows[number::count]) for x in batch] for number in range(count)]


def by_position(parts: list[list[Tensor]]) -> list[list[Tensor]]:
    """The micro-batches of each tensor of a batch, from the tensors of each micro-batch."""
    return [list(each) for each in zip(*parts, strict=True)]


def join_micro_batches(parts: Sequence[Tensor]) -> Tensor:
    """What was computed of each micro-batch, in the order of the batch."""
    if len(parts) == 1:
        return parts[0]
    rows = tf.add_n([tf.shape(part)[0] for part in parts])
    order = tf.argsort(tf.concat([tf.range(number, rows, len(parts)) for number in range(len(parts))], 0))
    return tf.gather(tf.concat(parts, 0), order)


class GraphCache:
    """Functions compiled once for each number of micro-batches.

    A function is traced for batches of every size at once: a graph of the first batch's own sizes could round
    otherwise, and a resumed training begins with another batch.
    """

    def __init__(self) -> None:
        self._graphs: dict[Any, Any] = {}

    def __call__(self, key: Any, function: Callable[..., Any], *arguments: Any) -> Any:
        """Calls the function's graph.

        Args:
            key: what tells it from other functions.
            function: what is compiled where the key is new.
            arguments: nests of tensors; the first tensor keeps all its dimensions but the first.
        """
        if key not in self._graphs:
            first = tf.nest.flatten(arguments)[0]
            signature = tf.nest.map_structure(
                lambda x: tf.TensorSpec([None] * len(x.shape), x.dtype), arguments
            )
            known = tf.TensorSpec([None, *first.shape[1:]], first.dtype)
            signature = tf.nest.pack_sequence_as(signature, [known, *tf.nest.flatten(signature)[1:]])
            self._graphs[key] = tf.function(function, input_signature=list(signature), autograph=False)
        return self._graphs[key](*arguments)
