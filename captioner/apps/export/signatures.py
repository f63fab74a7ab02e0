"""A run's networks as functions of fixed signatures, for converters; and captions by what came of them.

In: a `Captioner`. Out: `encode`, `start` and `step` as TensorFlow functions that hold no state:

    encode   pixels (B, H, W, 3) uint8 → cells (B, P, C)
    start    cells → keys, values, state (B, U): what `step` wants of a picture
    step     words (N,) int32, state (N, U), keys, values → logits (N, V), new_state (N, U), attention (N, P)

all float32 where nothing else is said; N = B * K rows, a picture's K hypotheses together. Where the run knows
languages, `step` also takes language (N,) int32, 0 for the first: words of the others get no chance. The
first word of a caption is then that of its language (export.json: words.languages), else `start`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from captioner.data.vocabulary import END
from captioner.inference.base import BaseCaptioner
from captioner.inference.numpy_beam_search import beam_search
from captioner.inference.search_options import NEG_INF, CaptionOptions, Hypotheses, SearchOptions
from captioner.models.decoder import Memory

Arrays = dict[str, Any]


class Networks(NamedTuple):
    """The three, each with the shapes it takes; None stands for any."""

    encode: Any
    start: Any
    step: Any


def networks(captioner: Any, *, pictures: int | None = None, beam: int | None = None) -> Networks:
    """The functions, for so many pictures and hypotheses of each at a time; None: for any number."""
    encoder, decoder = captioner.encoder, captioner.decoder

    def encode(pixels: Any) -> Arrays:
        return {"cells": encoder.encode_graph(pixels)}

    def start(cells: Any) -> Arrays:
        memory = decoder.project_memory(cells)
        return {"keys": memory.keys, "values": memory.values, "state": decoder.initial_state(memory)}

    def step(words: Any, state: Any, keys: Any, values: Any) -> Arrays:
        logits, new, attention = decoder.step(words, state, Memory(keys, values, mean=None))
        return {"logits": logits, "new_state": new, "attention": attention}

    def step_in(words: Any, state: Any, keys: Any, values: Any, language: Any) -> Arrays:
        found = step(words, state, keys, values)
        ruled_out = tf.gather(tf.where(decoder.spoken > 0, 0.0, NEG_INF), language)  # (N, V)
        return {**found, "logits": found["logits"] + ruled_out}

    def graph(function: Callable[..., Arrays], **inputs: tuple[Any, ...]) -> Any:
        kinds = {"pixels": tf.uint8, "words": tf.int32, "language": tf.int32}
        signature = [
            tf.TensorSpec(shape, kinds.get(name, tf.float32), name=name) for name, shape in inputs.items()
        ]
        return tf.function(function, input_signature=signature, autograph=False)

    heads, units = decoder.cell.heads, decoder.config.units
    memory = (pictures, heads, encoder.num_cells + decoder.config.sentinel, units // heads)
    rows = pictures * beam if pictures and beam else None
    inputs = {"words": (rows,), "state": (rows, units), "keys": memory, "values": memory}
    return Networks(
        graph(encode, pixels=(pictures, *encoder.size, 3)),
        graph(start, cells=(pictures, encoder.num_cells, encoder.channels)),
        graph(step, **inputs) if decoder.spoken is None else graph(step_in, **inputs, language=(rows,)),
    )


def save(captioner: Any, functions: Mapping[str, Any], folder: str | Path) -> None:
    """Writes a SavedModel with a signature for each function, and each array once."""
    module = tf.Module()
    module.arrays = [
        variable.value
        for model in (captioner.encoder.model, captioner.decoder)
        for variable in model.variables
    ]
    tf.saved_model.save(module, str(folder), signatures=dict(functions))


class ExportedCaptioner(BaseCaptioner):
    """Captions by three converted functions and the NumPy search: how an export is used, and compared.

    Args:
        captioner: the run's own, whose words and options count.
        functions: called with named arrays, they give a dictionary of arrays.
        batch_size: pictures that they take at a time; 0: any number.
    """

    def __init__(self, captioner: Any, functions: Networks, *, batch_size: int = 0) -> None:
        self.encoder, self.vocabulary, self.decode = captioner.encoder, captioner.vocabulary, captioner.decode
        self.functions, self.batch_size = functions, batch_size

    def encode(self, pixels: np.ndarray) -> np.ndarray:
        """(n, H, W, 3) uint8 → (n, P, C) float16."""
        parts = [self.functions.encode(pixels=part)["cells"] for part in self._parts(pixels)]
        return np.concatenate(parts).astype(np.float16)

    def _decode(self, features: np.ndarray, options: CaptionOptions) -> Hypotheses:
        wanted = self.search_options(options)
        found = [self._search_part(part, wanted) for part in self._parts(features.astype(np.float32))]
        return Hypotheses(
            *(None if part[0] is None else np.concatenate(part) for part in zip(*found, strict=True))
        )

    def _search_part(self, cells: np.ndarray, options: SearchOptions) -> Hypotheses:
        memory = self.functions.start(cells=cells)
        keys, values = memory["keys"], memory["values"]

        def step(words: np.ndarray, state: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            inputs = {"words": words.astype(np.int32), "state": state, "keys": keys, "values": values}
            if self.vocabulary.languages:
                inputs["language"] = np.full(len(words), options.start - END - 1, np.int32)
            given = self.functions.step(**inputs)
            return given["logits"], given["new_state"], given["attention"]

        return beam_search(step, memory["state"], pictures=len(cells), options=options)

    def _parts(self, rows: np.ndarray) -> Iterator[np.ndarray]:
        size = self.batch_size or len(rows)
        return (rows[start : start + size] for start in range(0, len(rows), size))
