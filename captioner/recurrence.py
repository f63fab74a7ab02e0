"""The decoder's recurrence over a whole batch of captions, with its own gradient.

A GRU that looks at the picture before each word, teacher forced. Autodiff through a `tf.while_loop` adds up
the gradients of weights and grids word by word, which costs most of a training step; here the forward pass
keeps each word's activations, the backward pass runs the words in reverse carrying only per-caption terms,
and every weight and grid gradient is one product over all words afterwards.

Letters as in `decoder.py`: B pictures, R captions a picture, P cells, T words, U state units, A attention
units, H heads, D context units; here also N pictures still described at a word, S = sum of N over the words.

The packed layout of rows is described in `packing.py`.

GRU as in Cho et al. 2014 with the reset gate after the product (cuDNN's form); attention is scaled dot
product (Vaswani et al. 2017, equation 1) or additive (Bahdanau et al. 2015, section A.1.2).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import tensorflow as tf

from captioner.packing import ByPicture, Tape, shaped

Tensor = Any


class Weights(NamedTuple):
    """The matrices of one word's step.

    Attributes:
        state: (U, A + 3U) from the state to the attention query and the three gates.
        state_bias: (3U,) of the gates' state side.
        context: (D, 3U) from the attended context to the gates.
        score: (A,) of additive attention; unused by dot.
    """

    state: Tensor
    state_bias: Tensor
    context: Tensor
    score: Tensor


class Word(NamedTuple):
    """Everything one word's step computes; rows are (N, R, ·). Gate order: update, reset, candidate."""

    query: Tensor  # (N, H, R, A/H)
    attention: Tensor  # (N, H, R, P)
    context: Tensor  # (N, R, D)
    update: Tensor  # (N, R, U)
    reset: Tensor  # (N, R, U)
    candidate: Tensor  # (N, R, U)
    candidate_state: Tensor  # (N, R, U): the state's share of the candidate, before the reset gate
    state: Tensor  # (N, R, U)


@dataclass(frozen=True)
class Recurrence:
    """The step, and its run over all words of a batch.

    Args:
        attention: "dot" or "additive".
        heads: attention heads (1 for additive).
        dtype: of the matrix products, tf.float32 or tf.bfloat16; sums, gates and softmax are float32.
    """

    attention: str
    heads: int
    dtype: Any

    def word(self, state: Tensor, inputs: Tensor, keys: Tensor, values: Tensor, weights: Weights) -> Word:
        """One word for N pictures of R captions each; used by training and by search alike.

        Args:
            state: (N, R, U) before the word.
            inputs: (N, R, 3U) the embedded word times the input matrix, its bias included.
            keys: (N, H, P, A/H) and values: (N, H, P, D/H), in the dtype of the products.
            weights: in the dtype of the products, biases and score float32.
        """
        U = state.shape[-1]
        R = tf.shape(state)[1]
        projected = self.product(state, weights.state)  # (N, R, A + 3U)
        query = self.split(projected[..., : -3 * U], R)  # (N, H, R, A/H)
        attention = tf.nn.softmax(self._scores(query, keys, weights.score))  # (N, H, R, P)
        context = self._merge(self.product(attention, values), R)  # (N, R, D)
        from_input = inputs + self.product(context, weights.context)  # (N, R, 3U)
        from_state = projected[..., -3 * U :] + weights.state_bias  # (N, R, 3U)
        gates = tf.sigmoid(from_input[..., : 2 * U] + from_state[..., : 2 * U])  # (N, R, 2U)
        update, reset = gates[..., :U], gates[..., U:]
        candidate_state = from_state[..., 2 * U :]
        candidate = tf.tanh(from_input[..., 2 * U :] + reset * candidate_state)  # (N, R, U)
        new = candidate + update * (state - candidate)  # (N, R, U)
        return Word(query, attention, context, update, reset, candidate, candidate_state, new)

    def run(
        self, inputs: Tensor, active: Tensor, state: Tensor, memory: tuple[Tensor, Tensor], weights: Weights
    ) -> tuple[Tensor, Tensor, Tensor]:
        """All words of a batch.

        Args:
            inputs: (S, R, 3U) packed, float32.
            active: (T,) int32, never rising.
            state: (B, R, U) before the first word.
            memory: keys (B, H, P, A/H) and values (B, H, P, D/H), float32.
            weights: float32.

        Returns:
            states (S, R, U), contexts (S, R, D) and attention (S, H, R, P), packed; differentiable in every
            argument but `active`.
        """

        @tf.custom_gradient
        def packed(inputs: Tensor, state: Tensor, keys: Tensor, values: Tensor, *matrices: Tensor) -> Any:
            cast = (tf.cast(keys, self.dtype), tf.cast(values, self.dtype))
            w = Weights(*matrices)
            w = w._replace(state=tf.cast(w.state, self.dtype), context=tf.cast(w.context, self.dtype))
            tape = Tape(self._forward(inputs, active, state, cast, w), cast, state.shape[-1])

            def gradient(*upstream: Tensor) -> tuple[Tensor, ...]:
                return self._backward(upstream, tape, active, cast, w)

            return (tape.packed("state"), tape.packed("context"), tape.packed("attention")), gradient

        return packed(inputs, state, *memory, *weights)

    def _forward(
        self, inputs: Tensor, active: Tensor, state: Tensor, memory: tuple[Tensor, Tensor], weights: Weights
    ) -> dict[str, Any]:
        """Run the words; a TensorArray per activation, plus the state before each word."""
        keys, values = memory
        T, first = tf.shape(active)[0], tf.cumsum(active, exclusive=True)
        names = ("before", *Word._fields)
        tape = tuple(tf.TensorArray(tf.float32, T, infer_shape=False, clear_after_read=False) for _ in names)

        def step(t: Tensor, state: Tensor, *tape: Any) -> Any:
            n = active[t]
            before = state[:n]
            new = self.word(before, inputs[first[t] : first[t] + n], keys[:n], values[:n], weights)
            return (
                t + 1,
                new.state,
                *(array.write(t, value) for array, value in zip(tape, (before, *new), strict=True)),
            )

        rows = tf.TensorShape([None, *state.shape[1:]])
        shapes = (tf.TensorShape([]), rows, *(tf.TensorShape(None) for _ in names))
        done = tf.while_loop(
            lambda t, *_: t < T, step, (0, state, *tape), shape_invariants=shapes, parallel_iterations=1
        )
        return dict(zip(names, done[2:], strict=True))

    def _backward(
        self, upstream: Any, tape: Tape, active: Tensor, memory: tuple[Tensor, Tensor], weights: Weights
    ) -> tuple[Tensor, ...]:
        """Gradients of inputs, first state, keys, values and the four weights."""
        keys, values = memory
        B, T, first = tf.shape(keys)[0], tf.shape(active)[0], tf.cumsum(active, exclusive=True)
        R, U = tf.shape(upstream[0])[1], upstream[0].shape[-1]

        def step(t: Tensor, carry: Tensor, d_keys: Tensor, d_score: Tensor, *arrays: Any) -> Any:
            n, rows = active[t], slice(first[t], first[t] + active[t])
            old, now = tape.read("before", t), Word(*(tape.read(name, t) for name in Word._fields))
            d_state = upstream[0][rows] + tf.pad(carry, [[0, n - tf.shape(carry)[0]], [0, 0], [0, 0]])
            d_candidate = d_state * (1 - now.update) * (1 - now.candidate * now.candidate)
            d_update = d_state * (old - now.candidate) * now.update * (1 - now.update)
            d_reset = d_candidate * now.candidate_state * now.reset * (1 - now.reset)
            d_inputs = tf.concat([d_update, d_reset, d_candidate], -1)  # (N, R, 3U)
            d_context = upstream[1][rows] + self.product(d_inputs, weights.context, transpose_b=True)
            by_head = self.split(d_context, R)  # (N, H, R, D/H)
            d_attention = upstream[2][rows] + self.product(by_head, values[:n], transpose_b=True)
            d_scores = now.attention * (
                d_attention - tf.reduce_sum(d_attention * now.attention, -1, keepdims=True)
            )
            d_query, d_keys, d_score = self._scores_back(
                d_scores, now.query, keys[:n], (weights.score, d_keys, d_score)
            )
            d_gates = tf.concat([self._merge(d_query, R), d_update, d_reset, d_candidate * now.reset], -1)
            carry = d_state * now.update + self.product(d_gates, weights.state, transpose_b=True)
            kept = (d_inputs, d_gates, by_head, d_scores)
            return (
                t - 1,
                carry,
                d_keys,
                d_score,
                *(a.write(t, v) for a, v in zip(arrays, kept, strict=True)),
            )

        arrays = tuple(tf.TensorArray(tf.float32, T, infer_shape=False) for _ in range(4))
        start = (
            T - 1,
            tf.zeros([0, R, U]),
            tf.zeros([0, *keys.shape[1:]]),
            tf.zeros_like(weights.score),
            *arrays,
        )
        rows = tf.TensorShape([None, None, U])
        shapes = (tf.TensorShape([]), rows, tf.TensorShape([None, *keys.shape[1:]]), weights.score.shape)
        shapes += tuple(tf.TensorShape(None) for _ in arrays)
        done = tf.while_loop(
            lambda t, *_: t >= 0, step, start, shape_invariants=shapes, parallel_iterations=1
        )
        _, d_first, d_keys, d_score, *kept = done
        widths = (3 * U, weights.state.shape[-1])
        d_inputs, d_gates = (shaped(a.concat(), (None, None, w)) for a, w in zip(kept, widths, strict=False))
        d_context = shaped(kept[2].concat(), (None, self.heads, None, values.shape[-1]))
        d_scores = shaped(kept[3].concat(), (None, self.heads, None, values.shape[-2]))

        by_picture = ByPicture(active, B)
        d_values = by_picture.product(tape.packed("attention"), d_context, self.dtype)
        if self.attention == "dot":
            scale = keys.shape[-1] ** -0.5
            d_keys = by_picture.product(d_scores * scale, tape.packed("query"), self.dtype)
        d_weights = (
            self._over_words(tape.packed("before"), d_gates),
            self._row_sums(d_gates)[-3 * U :],
            self._over_words(tape.packed("context"), d_inputs),
            d_score,
        )
        return d_inputs, d_first, d_keys, d_values, *d_weights

    def _scores(self, query: Tensor, keys: Tensor, score: Tensor) -> Tensor:
        """(N, H, R, P): how well each cell answers each caption's query."""
        if self.attention == "dot":
            return self.product(query, keys, transpose_b=True) * keys.shape[-1] ** -0.5
        return tf.reduce_sum(_sum_tanh(query, keys) * score, -1)

    def _scores_back(
        self, d_scores: Tensor, query: Tensor, keys: Tensor, sums: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradient of the query; additive attention also adds up those of keys and score here."""
        score, d_keys, d_score = sums
        if self.attention == "dot":
            return self.product(d_scores, keys) * keys.shape[-1] ** -0.5, d_keys, d_score
        active = _sum_tanh(query, keys)  # (N, 1, R, P, A)
        d_score += tf.reduce_sum(active * d_scores[..., None], [0, 1, 2, 3])
        d_sum = d_scores[..., None] * score * (1 - active * active)  # (N, 1, R, P, A)
        d_keys = tf.pad(d_keys, [[0, tf.shape(keys)[0] - tf.shape(d_keys)[0]], [0, 0], [0, 0], [0, 0]])
        return tf.reduce_sum(d_sum, 3), d_keys + tf.reduce_sum(d_sum, 2), d_score

    def product(self, a: Tensor, b: Tensor, transpose_b: bool = False) -> Tensor:
        """Matrix product in the products' dtype, float32 out; `b` is already cast."""
        if len(b.shape) == 2 and len(a.shape) == 3:  # one large product instead of N small ones
            shape = tf.shape(a)
            flat = self.product(tf.reshape(a, [-1, a.shape[-1]]), b, transpose_b)
            return tf.reshape(flat, [shape[0], shape[1], flat.shape[-1]])
        return tf.cast(tf.matmul(tf.cast(a, self.dtype), b, transpose_b=transpose_b), tf.float32)

    def _over_words(self, a: Tensor, b: Tensor) -> Tensor:
        """(S, R, X), (S, R, Y) -> (X, Y): the gradient of a weight, over all words at once."""
        a, b = (tf.cast(tf.reshape(x, [-1, x.shape[-1]]), self.dtype) for x in (a, b))
        return tf.cast(tf.matmul(a, b, transpose_a=True), tf.float32)

    @staticmethod
    def _row_sums(x: Tensor) -> Tensor:
        """(S, R, X) -> (X,): the gradient of a bias, as a product because sums over leading axes are slow."""
        flat = tf.reshape(x, [-1, x.shape[-1]])
        return tf.matmul(tf.ones([1, tf.shape(flat)[0]]), flat)[0]

    def split(self, x: Tensor, R: Tensor) -> Tensor:
        """(N, R, H * d) -> (N, H, R, d)."""
        H, d = self.heads, x.shape[-1] // self.heads
        if H == 1:
            return tf.reshape(x, [-1, 1, R, d])
        return tf.transpose(tf.reshape(x, [-1, R, H, d]), [0, 2, 1, 3])

    def _merge(self, x: Tensor, R: Tensor) -> Tensor:
        """(N, H, R, d) -> (N, R, H * d)."""
        if self.heads > 1:
            x = tf.transpose(x, [0, 2, 1, 3])
        return tf.reshape(x, [-1, R, self.heads * x.shape[-1]])


def _sum_tanh(query: Tensor, keys: Tensor) -> Tensor:
    """(N, 1, R, A), (N, 1, P, A) -> (N, 1, R, P, A)."""
    return tf.tanh(query[:, :, :, None] + tf.cast(keys, tf.float32)[:, :, None])
