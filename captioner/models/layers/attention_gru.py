"""The decoder's recurrence over a whole batch of captions, with its own gradient.

A GRU that looks at the picture before each word, teacher forced. Autodiff through a `tf.while_loop` adds up
the gradients of weights and grids word by word, which costs most of a training step; here the forward pass
keeps each word's activations, the backward pass runs the words in reverse carrying only per-caption terms,
and every weight and grid gradient is one product over all words afterwards.

Letters as in `decoder.py`: B pictures, R captions a picture, P cells, T words, U state units, A attention
units, H heads, D context units. At a word, n captions and N pictures are still described; S is the sum of n
over the words, L that of N. `packed_captions.py` says where the rows lie.

What only products read is kept in their dtype: half the memory, and cast once.

GRU as in Cho et al. 2014 with the reset gate after the product (cuDNN's form); attention is scaled dot
product (Vaswani et al. 2017, equation 1) or additive (Bahdanau et al. 2015, section A.1.2).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import tensorflow as tf

from captioner.models.layers.mixed_precision import matmul
from captioner.models.layers.packed_captions import ActivationStore, Layout, SumPerPicture, shaped

Tensor = Any


class StepWeights(NamedTuple):
    """The matrices of one word's step, in the dtype of the products; candidate_bias and score float32.

    Attributes:
        state: (U, A + 3U) from the state to the attention query and the three gates.
        candidate_bias: (U,) of the candidate's state side, before the reset gate.
        context: (D, 3U) from the attended context to the gates.
        score: (A,) of additive attention; unused by dot.
    """

    state: Tensor
    candidate_bias: Tensor
    context: Tensor
    score: Tensor


class StepActivations(NamedTuple):
    """Everything one word's step computes; `before`, `query` and `context` in the dtype of the products."""

    before: Tensor  # (n, U): the state before the word
    query: Tensor  # (N, H, R, A/H)
    attention: Tensor  # (N, H, R, P)
    context: Tensor  # (n, D)
    update: Tensor  # (n, U)
    reset: Tensor  # (n, U)
    candidate: Tensor  # (n, U)
    candidate_state: Tensor  # (n, U): the state's share of the candidate, before the reset gate
    difference: Tensor  # (n, U): state before less candidate
    state: Tensor  # (n, U)


@dataclass(frozen=True)
class AttentionGRUCell:
    """The step, and its run over all words of a batch.

    Args:
        attention: "dot" or "additive".
        heads: attention heads (1 for additive).
        dtype: of the matrix products, tf.float32 or tf.bfloat16; sums, gates and softmax are float32.
    """

    attention: str
    heads: int
    dtype: Any

    def step(
        self, state: Tensor, inputs: Tensor, memory: tuple[Tensor, Tensor], weights: StepWeights, rows: Any
    ) -> StepActivations:
        """One word of n captions of N pictures; used by training and by search alike.

        Args:
            state: (n, U) before the word.
            inputs: (n, 3U) the embedded word times the input matrix, with its bias.
            memory: keys (N, H, P, A/H) and values (N, H, P, D/H), in the dtype of the products.
            weights: of the step.
            rows: `packed_captions.DenseRows` or `packed_captions.PackedRows`.
        """
        U = state.shape[-1]
        keys, values = memory
        before = tf.cast(state, self.dtype)
        query, to_gates, to_candidate = tf.split(
            tf.matmul(before, weights.state), [weights.state.shape[-1] - 3 * U, 2 * U, U], axis=1
        )
        query = self.split(rows.spread(query), rows.captions)  # (N, H, R, A/H)
        attention = tf.nn.softmax(self._scores(query, keys, weights.score))  # (N, H, R, P)
        context = tf.matmul(tf.cast(attention, self.dtype), values)  # (N, H, R, D/H)
        context = rows.collect(self._merge(context, rows.captions))  # (n, D)
        inputs = tf.cast(inputs, tf.float32) + matmul(context, weights.context)  # (n, 3U)
        of_gates, of_candidate = tf.split(inputs, [2 * U, U], axis=1)
        gates = tf.sigmoid(of_gates + tf.cast(to_gates, tf.float32))
        update, reset = tf.split(gates, 2, axis=1)  # (n, U)
        candidate_state = tf.nn.bias_add(tf.cast(to_candidate, tf.float32), weights.candidate_bias)
        candidate = tf.tanh(of_candidate + reset * candidate_state)  # (n, U)
        difference = state - candidate
        new = candidate + update * difference  # (n, U)
        kept = (before, query, attention, context, update, reset, candidate, candidate_state, difference)
        return StepActivations(*kept, new)

    def unroll(
        self,
        inputs: Tensor,
        layout: Layout,
        state: Tensor,
        memory: tuple[Tensor, Tensor],
        weights: StepWeights,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """All words of a batch.

        Args:
            inputs: (S, 3U) packed, in the dtype of the products.
            layout: of the batch.
            state: (B * R, U) before the first word, longest caption first.
            memory: keys (B, H, P, A/H) and values (B, H, P, D/H), float32.
            weights: of the step.

        Returns:
            states (S, U) float32, contexts (S, D) in the dtype of the products and attention (L, H, R, P)
            float32, packed; differentiable in every argument but `layout`.
        """

        @tf.custom_gradient
        def packed(inputs: Tensor, state: Tensor, keys: Tensor, values: Tensor, *matrices: Tensor) -> Any:
            cast, w = (tf.cast(keys, self.dtype), tf.cast(values, self.dtype)), StepWeights(*matrices)
            tape = ActivationStore(self._forward(inputs, layout, state, cast, w), cast, state.shape[-1])

            def gradient(*upstream: Tensor) -> tuple[Tensor, ...]:
                return self._backward(upstream, tape, layout, cast, w)

            return (tape.packed("state"), tape.packed("context"), tape.packed("attention")), gradient

        return packed(inputs, state, *memory, *weights)

    def _forward(
        self,
        inputs: Tensor,
        layout: Layout,
        state: Tensor,
        memory: tuple[Tensor, Tensor],
        weights: StepWeights,
    ) -> dict[str, Any]:
        """Run the words; a TensorArray per activation."""
        keys, values = memory
        T, names = tf.shape(layout.captions)[0], StepActivations._fields
        tape = tuple(self._array(T, name in ("before", "query", "context")) for name in names)

        def step(t: Tensor, state: Tensor, *tape: Any) -> Any:
            n, N = layout.captions[t], layout.pictures[t]
            own = inputs[layout.slices(t)[0]]
            new = self.step(state[:n], own, (keys[:N], values[:N]), weights, layout.rows_at(t))
            return (
                t + 1,
                new.state,
                *(array.write(t, value) for array, value in zip(tape, new, strict=True)),
            )

        shapes = (tf.TensorShape([]), tf.TensorShape([None, state.shape[-1]]))
        shapes += tuple(tf.TensorShape(None) for _ in names)
        done = tf.while_loop(
            lambda t, *_: t < T, step, (0, state, *tape), shape_invariants=shapes, parallel_iterations=1
        )
        return dict(zip(names, done[2:], strict=True))

    def _backward(
        self,
        upstream: Any,
        tape: ActivationStore,
        layout: Layout,
        memory: tuple[Tensor, Tensor],
        weights: StepWeights,
    ) -> tuple[Tensor, ...]:
        """Gradients of inputs, first state, keys, values and the four weights."""
        keys, values = memory
        T, R, U = tf.shape(layout.captions)[0], layout.R, upstream[0].shape[-1]

        def step(t: Tensor, carry: Tensor, d_keys: Tensor, d_score: Tensor, *arrays: Any) -> Any:
            (here, there), rows, N = layout.slices(t), layout.rows_at(t), layout.pictures[t]
            now = StepActivations(*(tape.read(name, t) for name in StepActivations._fields))
            d_state = upstream[0][here] + _grown(carry, layout.captions[t])  # (n, U)
            d_old = d_state * now.update
            d_candidate = tf.raw_ops.TanhGrad(y=now.candidate, dy=d_state - d_old)
            d_update = tf.raw_ops.SigmoidGrad(y=now.update, dy=d_state * now.difference)
            d_reset = tf.raw_ops.SigmoidGrad(y=now.reset, dy=d_candidate * now.candidate_state)
            d_sides = [tf.cast(x, self.dtype) for x in (d_update, d_reset)]
            d_inputs = tf.concat([*d_sides, tf.cast(d_candidate, self.dtype)], 1)  # (n, 3U)
            d_context = upstream[1][here] + tf.matmul(d_inputs, weights.context, transpose_b=True)
            by_head = self.split(rows.spread(d_context), R)  # (N, H, R, D/H)
            d_attention = upstream[2][there] + matmul(by_head, values[:N], transpose_b=True)
            d_scores = now.attention * (
                d_attention - tf.reduce_sum(d_attention * now.attention, -1, keepdims=True)
            )
            d_query, d_scores, d_keys, d_score = self._scores_back(
                d_scores, now.query, keys[:N], (weights.score, d_keys, d_score)
            )
            d_query = rows.collect(self._merge(d_query, R))  # (n, A)
            d_gates = tf.concat([d_query, *d_sides, tf.cast(d_candidate * now.reset, self.dtype)], 1)
            carry = d_old + matmul(d_gates, weights.state, transpose_b=True)
            kept = zip(arrays, (d_inputs, d_gates, by_head, d_scores), strict=True)
            return (t - 1, carry, d_keys, d_score, *(array.write(t, value) for array, value in kept))

        arrays = (*(self._array(T, True) for _ in range(3)), self._array(T, False))
        start = (T - 1, tf.zeros([0, U]), tf.zeros([0, *keys.shape[1:]]), tf.zeros_like(weights.score))
        shapes = (tf.TensorShape([]), tf.TensorShape([None, U]), tf.TensorShape([None, *keys.shape[1:]]))
        shapes += (weights.score.shape, *(tf.TensorShape(None) for _ in arrays))
        done = tf.while_loop(
            lambda t, *_: t >= 0, step, (*start, *arrays), shape_invariants=shapes, parallel_iterations=1
        )
        _, d_first, d_keys, d_score, *kept = done
        widths = (3 * U, weights.state.shape[-1])
        d_inputs, d_gates = (shaped(a.concat(), (None, w)) for a, w in zip(kept, widths, strict=False))
        d_context = shaped(kept[2].concat(), (None, self.heads, None, values.shape[-1]))
        d_scores = shaped(kept[3].concat(), (None, self.heads, None, values.shape[-2]))

        by_picture = SumPerPicture(layout.pictures, layout.B)
        d_values = by_picture.product(tape.packed("attention"), d_context, self.dtype)
        if self.attention == "dot":
            d_keys = by_picture.product(d_scores, tape.packed("query"), self.dtype)
        ones = tf.ones([1, tf.shape(d_gates)[0]], self.dtype)  # a product: sums over leading axes are slow
        d_weights = (
            tf.matmul(tape.packed("before"), d_gates, transpose_a=True),
            tf.cast(tf.matmul(ones, d_gates[:, -U:])[0], tf.float32),
            tf.matmul(tape.packed("context"), d_inputs, transpose_a=True),
            d_score,
        )
        d_first = _grown(d_first, layout.B * R)
        return d_inputs, d_first, d_keys, d_values, *d_weights

    def _array(self, T: Tensor, of_products: bool) -> Any:
        """A TensorArray for something of every word."""
        dtype = self.dtype if of_products else tf.float32
        return tf.TensorArray(dtype, T, infer_shape=False, clear_after_read=False)

    def _scores(self, query: Tensor, keys: Tensor, score: Tensor) -> Tensor:
        """(N, H, R, P): how well each cell answers each caption's query."""
        if self.attention == "dot":
            return matmul(query, keys, transpose_b=True) * keys.shape[-1] ** -0.5
        return tf.reduce_sum(_sum_tanh(query, keys) * score, -1)

    def _scores_back(
        self, d_scores: Tensor, query: Tensor, keys: Tensor, sums: Any
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Gradients of the query and of the products; additive attention adds up those of keys and score."""
        score, d_keys, d_score = sums
        if self.attention == "dot":
            d_scores *= keys.shape[-1] ** -0.5
            return tf.matmul(tf.cast(d_scores, self.dtype), keys), d_scores, d_keys, d_score
        active = _sum_tanh(query, keys)  # (N, 1, R, P, A)
        d_score += tf.reduce_sum(active * d_scores[..., None], [0, 1, 2, 3])
        d_sum = d_scores[..., None] * score * (1 - active * active)  # (N, 1, R, P, A)
        d_keys = _grown(d_keys, tf.shape(keys)[0]) + tf.reduce_sum(d_sum, 2)
        return tf.cast(tf.reduce_sum(d_sum, 3), self.dtype), d_scores, d_keys, d_score

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


def _grown(x: Tensor, rows: Tensor) -> Tensor:
    """With zeros appended up to so many rows."""
    return tf.concat([x, tf.zeros([rows - tf.shape(x)[0], *x.shape[1:]], x.dtype)], 0)


def _sum_tanh(query: Tensor, keys: Tensor) -> Tensor:
    """(N, 1, R, A), (N, 1, P, A) -> (N, 1, R, P, A)."""
    query, keys = (tf.cast(x, tf.float32) for x in (query, keys))
    return tf.tanh(query[:, :, :, None] + keys[:, :, None])
