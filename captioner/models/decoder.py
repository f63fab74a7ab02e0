"""The network that writes: attention over the picture's grid and a GRU, one word after another.

In: a grid (B, P, C) and the words so far. Out: the logits of the next word. Dimension letters of the whole
project:

    B pictures    P cells of the grid   C channels of a cell   R captions a picture    K beams (R, decoding)
    T words       V vocabulary          U state units          E embedding             N rows: B * K
    H heads       A attention units     D context units        M words of a batch      S see attention_gru.py

`CaptionDecoder.call` is the network in its plainest form: project the picture, then one `step` a word. Search
uses the same `step`. Training uses `layers.packed_forward`, which computes all words of a batch at once; a
test holds it to the plain loop, outputs to 1e-5 and gradients likewise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from captioner.config import DecoderConfig
from captioner.data.vocabulary import END, START
from captioner.errors import RunError
from captioner.models.layers.attention_gru import AttentionGRUCell, StepWeights, Tensor
from captioner.models.layers.mixed_precision import CastedWeights, dense
from captioner.models.layers.packed_captions import DenseRows
from captioner.models.regularizers import load_regularizer


class Memory(NamedTuple):
    """Pictures projected for attention: keys (B, H, P, A/H), values (B, H, P, D/H), mean (B, C)."""

    keys: Tensor
    values: Tensor
    mean: Tensor


class CaptionDecoder(keras.Model):
    """Attention + GRU decoder (Xu et al. 2015, with the GRU of Cho et al. 2014).

    Args:
        config: its size and kind.
        vocabulary_size: V.
        channels: C of the grid.
        languages: L, how many captions may be in; 0: nobody speaks of languages.
        seed: of the initial weights.
        precision: "float32" or "bfloat16", of the matrix products.

    >>> decoder = CaptionDecoder(DecoderConfig(units=8, embedding=4), vocabulary_size=6, channels=3)
    >>> memory = decoder.project_memory(np.ones((2, 5, 3), "float32"))
    >>> logits, state, attention = decoder.step(np.array([2, 2]), decoder.initial_state(memory), memory)
    >>> logits.shape, state.shape, attention.shape
    (TensorShape([2, 6]), TensorShape([2, 8]), TensorShape([2, 5]))
    >>> decoder((np.ones((2, 5, 3), "float32"), np.full((2, 1, 7), 4))).shape
    TensorShape([2, 1, 7, 6])
    """

    def __init__(
        self,
        config: DecoderConfig,
        *,
        vocabulary_size: int,
        channels: int,
        languages: int = 0,
        seed: int = 0,
        precision: str = "float32",
    ) -> None:
        super().__init__(name="decoder")
        self.config, self.vocabulary_size, self.channels = config, vocabulary_size, channels
        self.casted_weights = CastedWeights(tf.bfloat16 if precision == "bfloat16" else tf.float32)
        heads = config.heads if config.attention == "dot" else 1
        self.cell = AttentionGRUCell(config.attention, heads, self.casted_weights.dtype)
        self._seed = seed * 1000
        V, C, U, E = vocabulary_size, channels, config.units, config.embedding
        A = D = U
        self.outputs_width = E if config.tied else U
        self.embedding = self._matrix("embedding", V, E, scale=0.05)
        self.input_kernel = self._matrix("input_kernel", E, 3 * U)
        self.input_bias = self._vector("input_bias", 3 * U)
        self.state_kernel = self._matrix("state_kernel", U, A + 3 * U)
        self.state_bias = self._vector("state_bias", 3 * U)
        self.context_kernel = self._matrix("context_kernel", D, 3 * U)
        self.score = self._matrix("score", A, 1) if config.attention == "additive" else None
        self.grid_kernel = self._matrix("grid_kernel", C, A + D)
        self.grid_bias = self._vector("grid_bias", A + D)
        self.start_kernel = self._matrix("start_kernel", C, U)
        self.start_bias = self._vector("start_bias", U)
        self.sentinel = self._matrix("sentinel", 1, A + D) if config.sentinel else None
        self.output_kernel = self._matrix("output_kernel", U + D, self.outputs_width)
        self.output_bias = self._vector("output_bias", self.outputs_width)
        self.word_kernel = None if config.tied else self._matrix("word_kernel", self.outputs_width, V)
        self.word_bias = self._vector("word_bias", V)
        # (L, V), 1 where captions of a language have the word: no other is written in it. The languages have
        # their start words right after the special ones, in this order.
        self.spoken: Any = None
        if languages:
            shape = (languages, V)
            self.spoken = self.add_weight(shape=shape, initializer="ones", trainable=False, name="spoken")
        self.built = True

    def call(self, inputs: tuple[Tensor, Tensor]) -> Tensor:
        """Teacher-forced logits (B, R, T, V) of features (B, P, C) and words_in (B, R, T)."""
        features, words_in = inputs
        B, R = words_in.shape[:2]
        memory = self.project_memory(features)
        step = self.make_step_fn(memory)
        state = tf.repeat(self.initial_state(memory), R, axis=0)  # (B * R, U)
        logits = []
        for words in tf.unstack(words_in, axis=2):  # (B, R)
            of_word, state, _ = step(tf.reshape(words, [-1]), state)
            logits.append(tf.reshape(of_word, [B, R, self.vocabulary_size]))
        return tf.stack(logits, 2)

    # The picture, once.

    def project_memory(self, features: Tensor, *, normalized: bool = False) -> Memory:
        """Projects the grids (B, P, C) to attention keys and values, whatever the number of captions.

        Args:
            features: of the encoder.
            normalized: they are what `normalize` gave.
        """
        features = features if normalized else self.normalize(features)
        A, cells = self.config.units, tf.shape(features)[1]
        parts = []
        # The kernel is cut, not the larger product.
        kernels = tf.split(self.casted_weights.cast(self.grid_kernel), 2, axis=1)
        for columns, kernel in zip((slice(None, A), slice(A, None)), kernels, strict=True):
            part = dense(features, kernel, self.grid_bias[columns])
            if self.sentinel is not None:
                extra = tf.repeat(self.sentinel[None, :, columns], tf.shape(features)[0], axis=0)
                part = tf.concat([part, extra], 1)  # (B, P + 1, ·)
            parts.append(part)
        cells += self.sentinel is not None
        keys = self.cell.split(parts[0], cells)  # (B, H, P, A/H)
        values = self.cell.split(tf.nn.relu(parts[1]), cells)  # (B, H, P, D/H)
        static = features.shape[1] + (self.sentinel is not None) if features.shape[1] is not None else None
        for part in (keys, values):
            part.set_shape([None, None, static, None])
        return Memory(keys, values, tf.reduce_mean(features, 1))

    def normalize(self, features: Tensor) -> Tensor:
        """Features as float32; every cell of the same length, if the configuration asks for it."""
        features = tf.cast(features, tf.float32)
        if self.config.l2_normalize_features:
            features = tf.math.l2_normalize(features, -1) * self.channels**0.5
        return features

    def initial_state(self, memory: Memory) -> Tensor:
        """(B, U): the state before the first word, from the mean of the grid."""
        return tf.tanh(dense(memory.mean, self.casted_weights.cast(self.start_kernel), self.start_bias))

    # Word by word.

    def step(self, words: Tensor, state: Tensor, memory: Memory) -> tuple[Tensor, Tensor, Tensor]:
        """The next word's logits for K captions of each of B pictures.

        Args:
            words: (N,) int32, the words written last; N = B * K, the captions of a picture side by side.
            state: (N, U).
            memory: of the B pictures.

        Returns:
            logits (N, V), state (N, U), attention (N, P): over the cells; with a sentinel the
            rest to 1 is its.
        """
        return self.make_step_fn(memory)(words, state)

    def make_step_fn(
        self, memory: Memory, start: int = START
    ) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]:
        """`step` for these pictures; what stays the same from word to word is computed here, once.

        Args:
            memory: of the pictures.
            start: word that captions start with; that of a language rules out the words of the others.
        """
        mask = None
        if self.spoken is not None and start > END:
            mask = tf.where(self.spoken[start - END - 1] > 0, 0.0, -math.inf)  # (V,)
        B = tf.shape(memory.keys)[0]
        keys, values = (tf.cast(x, self.casted_weights.dtype) for x in memory[:2])
        weights, bias = self.step_weights(), self.gate_bias()
        kernels = (self.input_kernel, self.output_kernel, self.word_matrix())
        inner, outer, word = (self.casted_weights.cast(x) for x in kernels)

        def step(words: Tensor, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            inputs = dense(tf.gather(self.embedding, words), inner, bias)  # (N, 3U)
            rows = DenseRows(tf.shape(words)[0] // B)
            new = self.cell.step(state, inputs, (keys, values), weights, rows)
            both = tf.concat([tf.cast(new.state, self.casted_weights.dtype), new.context], -1)  # (N, U + D)
            outputs = dense(both, outer, self.output_bias)
            logits = dense(outputs, word, self.word_bias, transposed=self.word_kernel is None)  # (N, V)
            if mask is not None:
                logits += mask
            attention = tf.reduce_mean(new.attention, 1)  # (B, K, P)
            attention = tf.reshape(attention, [-1, attention.shape[-1] or tf.shape(attention)[-1]])
            if self.sentinel is not None:
                attention = attention[:, :-1]
            return logits, new.state, attention

        return step

    # Weights.

    def word_matrix(self) -> Any:
        """The output matrix, (O, V), or (V, E) where it is the embedding."""
        return self.embedding if self.word_kernel is None else self.word_kernel

    def step_weights(self) -> StepWeights:
        """The matrices of one step, in the dtype of the products."""
        score = tf.zeros([1]) if self.score is None else tf.convert_to_tensor(self.score)[:, 0]
        matrices = [self.casted_weights.cast(x) for x in (self.state_kernel, self.context_kernel)]
        return StepWeights(matrices[0], self.state_bias[-self.config.units :], matrices[1], score)

    def gate_bias(self) -> Tensor:
        """(3U,): what is added before the gates; only the candidate's state side has a bias of its own."""
        U = self.config.units
        return self.input_bias + tf.concat([self.state_bias[: 2 * U], tf.zeros([U])], 0)

    def init_output_bias(self, counts: np.ndarray) -> None:
        """Sets the output bias so that the untrained decoder writes words as often as captions do.

        Args:
            counts: (V,) of the words in the training captions; 0: hardly ever.
        """
        shares = np.maximum(counts, 1e-2) / max(counts.sum(), 1)
        self.word_bias.assign(np.log(shares).astype("float32"))

    def set_spoken(self, spoken: np.ndarray) -> None:
        """Sets which words (L, V) the captions of each language have; special words are everybody's."""
        spoken = spoken.astype("float32")
        spoken[:, : END + 1] = 1
        self.spoken.assign(spoken)

    def weights_dict(self) -> dict[str, np.ndarray]:
        """All weights by name, float32."""
        return {v.name: np.asarray(v) for v in self.variables}

    def load_weights_dict(self, arrays: dict[str, np.ndarray]) -> None:
        """Sets all weights; names and shapes must be this decoder's.

        Raises:
            RunError: one is missing, unknown or of another shape.
        """
        mine = {v.name: v for v in self.variables}
        if self.spoken is not None and "spoken" not in arrays:  # nobody noted them: all words are everybody's
            arrays = {**arrays, "spoken": np.ones(self.spoken.shape, "float32")}
        for name in mine.keys() | arrays.keys():
            if name not in arrays or name not in mine:
                fault = "missing from" if name in mine else "unknown to"
                raise RunError(f"decoder weight {name!r} is {fault} this model")
            if tuple(mine[name].shape) != arrays[name].shape:
                raise RunError(
                    f"decoder weight {name!r} is {arrays[name].shape}, "
                    f"the configuration says {mine[name].shape}"
                )
        for name, variable in mine.items():
            variable.assign(arrays[name].astype("float32"))

    def _matrix(self, name: str, rows: int, columns: int, scale: float = 0.0) -> Any:
        self._seed += 1
        glorot = keras.initializers.GlorotUniform(seed=self._seed)
        uniform = keras.initializers.RandomUniform(-scale, scale, seed=self._seed)
        name_of, strength = self.config.regularizer, self.config.regularizer_strength
        regularizer = load_regularizer(name_of, strength) if name_of else None
        return self.add_weight(
            shape=(rows, columns),
            initializer=uniform if scale else glorot,
            name=name,
            regularizer=regularizer,
        )

    def _vector(self, name: str, size: int) -> Any:
        return self.add_weight(shape=(size,), initializer="zeros", name=name)
