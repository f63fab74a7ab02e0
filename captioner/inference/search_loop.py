"""The loop of a search: word after word for all hypotheses of a batch, then the captions read off backwards.

In: `step`, the state before the first word, and a function that chooses. Out: `Hypotheses`. Each word costs a
handful of small operations beside `step`: what was chosen is noted with the slot it came from; a hypothesis's
past is not moved while the search goes on. Runs in a graph or eagerly; no file is touched.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

from captioner.inference.search_options import IMPOSSIBLE, Hypotheses, SearchOptions

# words (N,) int32, state -> logits (N, V), state, attention (N, P); N = B * K rows, a picture's K together.
Step = Callable[[Any, Any], tuple[Any, Any, Any]]


class Beams(NamedTuple):
    """What goes from word to word."""

    state: Any  # (N, …)
    words: Any  # (B, K) int32, written last; -1 once the hypothesis has ended
    total: Any  # (B, K) log probability
    scores: Any  # (B, K)
    ended: Any  # (B, K) bool; ended hypotheses are frozen
    said: Any  # (N, T) int32, -1 where nothing is yet; () unless no_repeat needs it


class Trace(NamedTuple):
    """What was chosen at each word: TensorArrays, or () where not needed."""

    words: Any  # (B, K)
    parents: Any  # (B, K), the slot that the hypothesis in this slot extends
    attention: Any  # (B, K, P), of the slots before the choice


# (word number, logits (N, V), beams) -> parents (B, K), words (B, K), total (B, K), scores (B, K).
Choose = Callable[[Any, Any, Beams], tuple[Any, Any, Any, Any]]


def run(
    step: Step, state: Any, *, first: Any, choose: Choose, follow: bool, options: SearchOptions
) -> tuple[Beams, Trace]:
    """Goes from word to word until all hypotheses have ended.

    Args:
        step: see `Step`.
        state: one row a picture.
        first: (B, K) log probabilities to begin with.
        choose: see `Choose`.
        follow: whether hypotheses may change slots; if not, the parents from `choose` are not looked at.
        options: see there.
    """
    pictures, width = tf.shape(first)[0], first.shape[1]
    beams = Beams(
        state=tf.nest.map_structure(lambda part: tf.repeat(part, width, axis=0), state),
        words=tf.fill((pictures, width), options.start),
        total=first,
        scores=first,
        ended=tf.zeros((pictures, width), tf.bool),
        said=tf.fill((pictures * width, options.max_words), -1) if options.no_repeat else (),
    )
    trace = Trace(
        words=tf.TensorArray(tf.int32, 0, dynamic_size=True),
        parents=tf.TensorArray(tf.int32, 0, dynamic_size=True) if follow else (),
        attention=tf.TensorArray(tf.float32, 0, dynamic_size=True) if options.return_attention else (),
    )

    def body(number: Any, beams: Beams, trace: Trace) -> tuple[Any, Beams, Trace]:
        rows = tf.reshape(tf.maximum(beams.words, 0), (-1,))  # (N,)
        logits, state, attention = step(rows, beams.state)
        parents, words, total, scores = choose(number, tf.cast(logits, tf.float32), beams)
        ended, said = beams.ended, beams.said
        if follow:
            flat = tf.reshape(parents + tf.range(pictures)[:, None] * width, (-1,))  # (N,)
            state, said = tf.nest.map_structure(lambda part: tf.gather(part, flat), (state, said))
            ended = tf.gather(ended, parents, batch_dims=1)
            trace = trace._replace(parents=trace.parents.write(number, parents))
        if options.no_repeat:
            said = tf.where(tf.range(options.max_words) == number, tf.reshape(words, (-1, 1)), said)
        if options.return_attention:
            cells = tf.reshape(tf.cast(attention, tf.float32), (pictures, width, tf.shape(attention)[1]))
            trace = trace._replace(attention=trace.attention.write(number, cells))
        trace = trace._replace(words=trace.words.write(number, words))
        ended |= (words == options.end) | (scores == IMPOSSIBLE)
        beams = Beams(state, words, total, scores, ended, said)
        return number + 1, _stop_when_certain(beams, options) if follow else beams, trace

    def unfinished(number: Any, beams: Beams, trace: Trace) -> Any:
        return (number < options.max_words) & ~tf.reduce_all(beams.ended)

    invariants = (
        tf.TensorShape([]),
        tf.nest.map_structure(lambda part: tf.TensorShape([None, *part.shape[1:]]), beams),
        tf.nest.map_structure(lambda part: tf.TensorShape(None), trace),
    )
    start = (tf.constant(0), beams, trace)
    _, beams, trace = tf.while_loop(unfinished, body, start, shape_invariants=invariants)
    return beams, trace


def _stop_when_certain(beams: Beams, options: SearchOptions) -> Beams:
    """Ends a picture's search when nothing that goes on can still reach its `n_best` hypotheses.

    A log probability only falls; what goes on scores best if it fell no more and were as long as allowed.
    """
    if not 0 < options.n_best < beams.scores.shape[1]:
        return beams
    finished = tf.where(beams.ended, beams.scores, IMPOSSIBLE)
    worst = tf.math.top_k(finished, options.n_best).values[:, -1]  # (B,)
    going_on = tf.reduce_max(tf.where(beams.ended, IMPOSSIBLE, beams.total), -1)
    certain = (worst >= going_on / length_factor(options.max_words, options))[:, None]
    return beams._replace(
        scores=tf.where(certain & ~beams.ended, IMPOSSIBLE, beams.scores), ended=beams.ended | certain
    )


def read_off(trace: Trace, order: Any, beams: Beams, options: SearchOptions) -> Hypotheses:
    """The hypotheses that stand in slots `order` (B, K) at the end."""
    words = trace.words.stack()  # (T', B, K): words gone through
    attention = trace.attention.stack() if options.return_attention else None  # (T', B, K, P)
    if trace.parents != ():
        parents = trace.parents.stack()  # (T', B, K)
        slots = _trace_back(parents, order)
        words = tf.gather(words, slots, batch_dims=2)
        if attention is not None:
            attention = tf.gather(attention, tf.gather(parents, slots, batch_dims=2), batch_dims=2)
    scores, total = (tf.gather(part, order, batch_dims=1) for part in (beams.scores, beams.total))
    words = tf.transpose(words, (1, 2, 0))  # (B, K, T')
    real = (words >= 0) & (words != options.end) & (scores != IMPOSSIBLE)[..., None]
    rest = ((0, 0), (0, 0), (0, options.max_words - tf.shape(words)[2]))
    if attention is not None:
        attention = tf.transpose(attention, (1, 2, 0, 3)) * tf.cast(real, tf.float32)[..., None]
        attention = tf.pad(attention, (*rest, (0, 0)))  # (B, K, T, P)
    words = tf.ensure_shape(tf.pad(tf.where(real, words, 0), rest), (None, None, options.max_words))
    return Hypotheses(words, tf.reduce_sum(tf.cast(real, tf.int32), -1), scores, total, attention)


def _trace_back(parents: Any, order: Any) -> Any:
    """Of each final slot in `order` (B, K), the slot its hypothesis stood in after each word, (T', B, K)."""
    count = tf.shape(parents)[0]

    def body(number: Any, slots: Any, path: Any) -> tuple[Any, Any, Any]:
        path = path.write(number, slots)
        return number - 1, tf.gather(parents[number], slots, batch_dims=1), path

    path = tf.TensorArray(tf.int32, count)
    _, _, path = tf.while_loop(lambda number, *_: number >= 0, body, (count - 1, order, path))
    return path.stack()


def without_repeats(number: Any, logits: Any, said: Any, options: SearchOptions) -> Any:
    """Logits with -inf for words that would complete a run of `no_repeat` words that is already there."""
    run, most = options.no_repeat, options.max_words
    if run > most:
        return logits
    windows = most - run + 1
    repeated = tf.fill((tf.shape(said)[0], windows), number >= run - 1)
    for i in range(run - 1):
        latest = tf.gather(said, tf.maximum(number - run + 1 + i, 0), axis=1)[:, None]  # (N, 1)
        repeated &= said[:, i : i + windows] == latest
    next_words = said[:, run - 1 :]  # (N, windows): what followed
    repeated &= next_words >= 0
    rows = tf.broadcast_to(tf.range(tf.shape(said)[0])[:, None], tf.shape(next_words))
    places = tf.stack([rows, tf.where(repeated, next_words, 0)], -1)
    return tf.tensor_scatter_nd_min(logits, places, tf.where(repeated, IMPOSSIBLE, float("inf")))


def length_factor(tokens: Any, options: SearchOptions) -> Any:
    return tf.cast(tokens, tf.float32) ** options.length_normalisation
