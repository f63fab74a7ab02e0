"""The textbook attention captioner, as courses and tutorials publish it: what the benchmarks compare with.

Bahdanau attention over a 7 x 7 grid and a GRU, trained word by word under one `tf.function`, every caption
padded to the longest, one caption an example, Adam, batch 64, float32. Captions are decoded greedily, picture
by picture, a call a word. Features come from Keras's `predict`, fed by Pillow. As published, the GRU gets no
state from the word before: only attention sees it.

Nothing here uses the library, so that it stays what it is while the library changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from PIL import Image

START, END = 2, 3
BATCH = 64


class Captioner(keras.Model):  # type: ignore[misc]
    """Cells of a picture and the last word in, logits of the next word out."""

    def __init__(self, vocabulary: int, units: int = 512, embedding: int = 256) -> None:
        super().__init__()
        self.units = units
        self.shrink = keras.layers.Dense(embedding, activation="relu")
        self.embed = keras.layers.Embedding(vocabulary, embedding)
        self.of_cells = keras.layers.Dense(units)
        self.of_state = keras.layers.Dense(units)
        self.energy = keras.layers.Dense(1)
        self.gru = keras.layers.GRU(units, return_sequences=True, return_state=True)
        self.hidden = keras.layers.Dense(units)
        self.words = keras.layers.Dense(vocabulary)

    def call(self, words: Any, cells: Any, state: Any) -> tuple[Any, Any]:
        """One word: (B,), (B, P, E), (B, U) -> (B, V), (B, U)."""
        query = self.of_state(state)[:, tf.newaxis]  # (B, 1, U)
        energy = self.energy(tf.tanh(self.of_cells(cells) + query))  # (B, P, 1)
        context = tf.reduce_sum(tf.nn.softmax(energy, axis=1) * cells, axis=1)  # (B, E)
        inputs = tf.concat([context, self.embed(words)], axis=-1)[:, tf.newaxis]  # (B, 1, 2E)
        output, state = self.gru(inputs)  # (B, 1, U), (B, U)
        return self.words(self.hidden(output)[:, 0]), state


class Training:
    """The textbook's training step, with its optimizer."""

    def __init__(self, captioner: Captioner) -> None:
        self.captioner = captioner
        self.optimizer = keras.optimizers.Adam()
        self.step = tf.function(self._step)

    def _step(self, features: Any, captions: Any) -> Any:
        """Features (B, P, C), captions (B, T) with start, end and padding -> loss."""
        model = self.captioner
        state = tf.zeros((captions.shape[0], model.units))
        loss = tf.constant(0.0)
        with tf.GradientTape() as tape:
            cells = model.shrink(features)
            for place in range(1, captions.shape[1]):
                logits, state = model(captions[:, place - 1], cells, state)
                nats = tf.nn.sparse_softmax_cross_entropy_with_logits(captions[:, place], logits)
                loss += tf.reduce_mean(nats * tf.cast(captions[:, place] != 0, tf.float32))
        variables = model.trainable_variables
        self.optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        return loss / captions.shape[1]


def padded(captions: Sequence[Sequence[int]], longest: int) -> np.ndarray:
    """Word ids of captions as (captions, longest + 2) int32: start, words, end, zeros."""
    table = np.zeros((len(captions), longest + 2), np.int32)
    for row, caption in zip(table, captions, strict=True):
        ids = [START, *caption[:longest], END]
        row[: len(ids)] = ids
    return table


def greedy(captioner: Captioner, features: np.ndarray, words: int) -> list[int]:
    """The likeliest words of one picture (P, C), one after the other; always as many.

    An untrained model would stop anywhere: the number of words is given, so that the work is.
    """
    cells = captioner.shrink(tf.cast(features[np.newaxis], tf.float32))
    state = tf.zeros((1, captioner.units))
    found = [START]
    for _ in range(words):
        logits, state = captioner(tf.constant(found[-1:]), cells, state)
        found.append(int(tf.argmax(logits[0])))
    return found[1:]


def cnn(size: int, weights: str | Path | None) -> Any:
    """MobileNetV2 as Keras builds it."""
    model = keras.applications.MobileNetV2(weights=None, include_top=False, input_shape=(size, size, 3))
    if weights is not None:
        model.load_weights(str(weights))
    return model


def pixels(path: str | Path, size: int) -> np.ndarray:
    """A picture file as the CNN wants it: (size, size, 3) float32 in -1 … 1."""
    with Image.open(path) as picture:
        array = np.asarray(picture.convert("RGB").resize((size, size)), np.float32)
    return array / 127.5 - 1


def features(model: Any, paths: Sequence[str], size: int) -> np.ndarray:
    """Keras's `predict` of pictures read one by one, 32 at a time: (n, h, w, C)."""
    batches = [paths[i : i + 32] for i in range(0, len(paths), 32)]
    grids = [model.predict(np.stack([pixels(p, size) for p in batch]), verbose=0) for batch in batches]
    return np.concatenate(grids)


def compiled(model: Any) -> Any:
    """The CNN as a function of a batch, compiled: quicker a picture than calling the model."""
    return tf.function(lambda batch: model(batch, training=False))
