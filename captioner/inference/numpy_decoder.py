"""The decoder in NumPy, for captioning without TensorFlow: `decoder.CaptionDecoder`, word by word.

In: the arrays of a run's best epoch, a batch of grids. Out: the next word's logits. A few matrix products of
three rows a picture: nothing that compiles or starts is faster. What is computed, and the dimension letters,
are explained in models/decoder.py and models/layers/attention_gru.py; a test holds the two to each other for
every kind of decoder.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from captioner.config import DecoderConfig
from captioner.data.vocabulary import END, START
from captioner.inference.numpy_beam_search import Step
from captioner.inference.search_options import NEG_INF


class Memory(NamedTuple):
    """A picture as the decoder sees it: keys (B, H, A/H, P), values (B, H, P, D/H), mean (B, C)."""

    keys: np.ndarray
    values: np.ndarray
    mean: np.ndarray

    def of(self, numbers: np.ndarray) -> Memory:
        """That of some of the pictures."""
        return Memory(*(part[numbers] for part in self))


class NumPyDecoder:
    """Attention and GRU over plain arrays.

    Args:
        config: of the decoder that was trained.
        arrays: its `weights_dict()`, float32.

    Example:
        >>> shapes = {"grid_kernel": (3, 16), "start_kernel": (3, 8), "embedding": (6, 4)}
        >>> shapes |= {"input_kernel": (4, 24), "state_kernel": (8, 32), "context_kernel": (8, 24)}
        >>> shapes |= {"output_kernel": (16, 8), "word_kernel": (8, 6), "grid_bias": (16,)}
        >>> shapes |= {"start_bias": (8,), "input_bias": (24,), "state_bias": (24,)}
        >>> shapes |= {"output_bias": (8,), "word_bias": (6,)}
        >>> arrays = {name: np.ones(shape, "float32") for name, shape in shapes.items()}
        >>> decoder = NumPyDecoder(DecoderConfig(units=8, embedding=4), arrays)
        >>> memory = decoder.project_memory(np.ones((2, 5, 3)))
        >>> step, state = decoder.make_step_fn(memory), decoder.initial_state(memory)
        >>> logits, state, attention = step(np.array([2, 2]), state)
        >>> logits.shape, state.shape, attention.shape
        ((2, 6), (2, 8), (2, 5))
    """

    def __init__(self, config: DecoderConfig, arrays: Mapping[str, np.ndarray]) -> None:
        self.config, self.arrays = config, dict(arrays)
        self.heads = config.heads if config.attention == "dot" else 1
        self._words: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}  # start word: see `_spoken`

    def project_memory(self, features: np.ndarray) -> Memory:
        """Projects the grids (B, P, C)."""
        features = features.astype(np.float32)
        if self.config.l2_normalize_features:
            squares = np.maximum((features * features).sum(-1, keepdims=True), np.float32(1e-12))
            features *= np.float32(features.shape[-1]) ** np.float32(0.5) / np.sqrt(squares)
        projected = self._affine(features, "grid")  # (B, P, A + D)
        if self.config.sentinel:
            extra = np.broadcast_to(self.arrays["sentinel"], (len(features), 1, projected.shape[-1]))
            projected = np.concatenate([projected, extra], 1)  # (B, P + 1, A + D)
        split = (*projected.shape[:2], self.heads, -1)
        keys, values = (part.reshape(split) for part in np.split(projected, 2, axis=-1))  # A = D
        keys = np.ascontiguousarray(keys.transpose(0, 2, 3, 1))  # (B, H, A/H, P)
        return Memory(keys, np.maximum(values.transpose(0, 2, 1, 3), 0), features.mean(1))

    def initial_state(self, memory: Memory) -> np.ndarray:
        """(B, U): the state before the first word, from the mean of the grid."""
        return np.tanh(self._affine(memory.mean, "start"))

    def make_step_fn(self, memory: Memory, start: int = START) -> Step:
        """The step of a search over these pictures: words (N,), state (N, U) → logits, state, attention.

        Args:
            memory: of the pictures.
            start: word that captions start with; that of a language rules out the words of the others.
        """
        arrays, U = self.arrays, self.config.units
        spoken = self._spoken(start)

        def step(words: np.ndarray, state: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            projected = _product(state, arrays["state_kernel"])  # (N, A + 3U)
            attention = self._attention(projected[:, : -3 * U], memory.keys)  # (B, H, K, P)
            context = (attention @ memory.values).transpose(0, 2, 1, 3).reshape(len(state), -1)  # (N, D)
            from_input = self._affine(arrays["embedding"][words], "input")  # (N, 3U)
            from_input += _product(context, arrays["context_kernel"])
            from_state = projected[:, -3 * U :] + arrays["state_bias"]  # (N, 3U)
            gates = _sigmoid(from_input[:, : 2 * U] + from_state[:, : 2 * U])
            update, reset = gates[:, :U], gates[:, U:]
            candidate = np.tanh(from_input[:, 2 * U :] + reset * from_state[:, 2 * U :])  # (N, U)
            new = candidate + update * (state - candidate)
            outputs = self._affine(np.concatenate([new, context], -1), "output")  # (N, O)
            looks = attention.mean(1).reshape(len(state), -1)  # (N, P)
            return self._logits(outputs, spoken), new, looks[:, :-1] if self.config.sentinel else looks

        return step

    def _attention(self, query: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """(N, A) → (B, H, K, P): the share of each cell in what each hypothesis sees."""
        pictures, heads, width, _ = keys.shape
        query = query.reshape(pictures, -1, heads, width).transpose(0, 2, 1, 3)  # (B, H, K, A/H)
        if self.config.attention == "dot":
            scores = (query @ keys) * np.float32(width**-0.5)
        else:
            active = np.tanh(query[..., None] + keys[:, :, None])  # (B, 1, K, A, P)
            scores = (active * self.arrays["score"]).sum(-2)
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        return scores / scores.sum(-1, keepdims=True)

    def _spoken(self, start: int) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
        """The words of a language, and what of matrix and bias is theirs; None: all words may be written."""
        if "spoken" not in self.arrays or start <= END:
            return None
        if start not in self._words:
            words = np.flatnonzero(self.arrays["spoken"][start - END - 1] > 0)
            matrix = self.arrays["embedding"].T if self.config.tied else self.arrays["word_kernel"]
            own = np.ascontiguousarray(matrix[:, words])
            self._words[start] = words, own, self.arrays["word_bias"][words]
        return self._words[start]

    def _logits(
        self, outputs: np.ndarray, spoken: tuple[np.ndarray, np.ndarray, np.ndarray] | None
    ) -> np.ndarray:
        if spoken is not None:
            words, matrix, bias = spoken  # a third of the products, where there are three languages
            logits = np.full((len(outputs), len(self.arrays["word_bias"])), NEG_INF, np.float32)
            logits[:, words] = _product(outputs, matrix) + bias
            return logits
        if self.config.tied:
            return _product(outputs, self.arrays["embedding"].T) + self.arrays["word_bias"]
        return self._affine(outputs, "word")

    def _affine(self, x: np.ndarray, name: str) -> np.ndarray:
        product = _product(x.reshape(-1, x.shape[-1]), self.arrays[f"{name}_kernel"])
        product += self.arrays[f"{name}_bias"]
        return product.reshape(*x.shape[:-1], -1)


def _product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(N, X), (X, Y) → (N, Y). A single row goes through the same routine as many: the same bits."""
    return (np.repeat(a, 2, axis=0) @ b)[:1] if len(a) == 1 else a @ b


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return np.float32(0.5) * np.tanh(np.float32(0.5) * x) + np.float32(0.5)  # never overflows
