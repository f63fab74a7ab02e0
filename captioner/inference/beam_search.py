"""Search: from a function that gives the next word's logits to whole captions. Reads and writes no file.

In: `step(words, state) -> (logits, state, attention)` and the state before the first word. Out:
`Hypotheses`. Works for any step function; whole batches of pictures, inside a graph (`tf.function`) or
eagerly; any number of pictures with one trace. Greedy search is beam 1.

Score of a hypothesis: log probability / tokens ** length_normalization (Wu et al. 2016, eq. 14, without its
constant 5), where tokens counts the words and, if it was written, the end. Log probabilities are the model's
own: banned words are not chosen but keep their share.

Each word costs a handful of small operations beside `step`: what was chosen is noted with the slot it came
from; a hypothesis's past is not moved while the search goes on, and the captions are read off backwards.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

from captioner.inference.search_options import NEG_INF, Hypotheses, SearchOptions

__all__ = ["Hypotheses", "SearchOptions", "Step", "beam_search", "sample"]

_GROUP = 64

# words (N,) int32, state -> logits (N, V), state, attention (N, P); N = B * K rows, a picture's K together.
Step = Callable[[Any, Any], tuple[Any, Any, Any]]


class BeamState(NamedTuple):
    """The state of a search between two words."""

    state: Any  # (N, …)
    words: Any  # (B, K) int32, written last; -1 once the hypothesis has ended
    total: Any  # (B, K) log probability
    scores: Any  # (B, K)
    ended: Any  # (B, K) bool; ended hypotheses are frozen
    generated: Any  # (N, T) int32, -1 where nothing is yet; () unless no_repeat needs it


class Trace(NamedTuple):
    """What was chosen at each word: TensorArrays, or () where not needed."""

    words: Any  # (B, K)
    parents: Any  # (B, K), the slot that the hypothesis in this slot extends
    attention: Any  # (B, K, P), of the slots before the choice


# (word number, logits (N, V), beams) -> parents (B, K), words (B, K), total (B, K), scores (B, K).
Choose = Callable[[Any, Any, BeamState], tuple[Any, Any, Any, Any]]


def beam_search(step: Step, state: Any, *, pictures: Any, options: SearchOptions) -> Hypotheses:
    """The likeliest captions, as far as a beam of K hypotheses finds them.

    Of all extensions by one word the K of best score stay; an ended hypothesis stays with the score it has
    until better ones push it out. Equal scores: the better slot first, then the lower word id.

    Args:
        step: see `Step`.
        state: any nest of tensors of one row a picture; repeated K times.
        pictures: B, at least 1.
        options: see there.

    Returns:
        Hypotheses, K = n_best or beam.

    Example:
        >>> spell = tf.one_hot([3, 3, 4, 3, 5, 3], 6) * 9.0  # after 2 (start) comes 4, then 5, then 3 (end)
        >>> found = beam_search(
        ...     lambda words, state: (tf.gather(spell, words), state, None),
        ...     tf.zeros((1, 0)), pictures=1, options=SearchOptions(beam=1, max_words=4),
        ... )
        >>> found.words.numpy().tolist()
        [[[4, 5, 0, 0]]]
    """
    # Before the first word all slots are alike: only the first counts.
    first = tf.where(tf.range(options.beam) == 0, 0.0, NEG_INF) + tf.zeros((pictures, 1))
    choose = _extend(options)
    beams, trace = run(step, state, first=first, choose=choose, reorder=options.beam > 1, options=options)
    order = tf.math.top_k(beams.scores, options.n_best or options.beam).indices  # (B, K)
    return backtrack(trace, order, beams, options)


def sample(
    step: Step,
    state: Any,
    *,
    pictures: Any,
    samples: int,
    options: SearchOptions,
    seed: Any,
    starts: Any = None,
) -> Hypotheses:
    """Independent random captions, in the order drawn.

    Args:
        step: see `Step`.
        state: any nest of tensors of one row a picture; repeated for each sample.
        pictures: B, at least 1.
        samples: K, captions a picture.
        options: temperature, top_k, top_p and the rest; top_p is taken of what top_k leaves.
        seed: int or integer tensor. One number: picture b draws from (seed, b). (B,) numbers: each picture
            draws from its own, so that its captions do not depend on its place in the batch.
        starts: (B,) int32, the word that the captions of each picture start with; None: `options.start`.
    """
    uniform = _uniform(seed, pictures, (options.max_words, samples))  # (T, B, K)
    first = tf.zeros((pictures, samples))
    choose = _draw(options, uniform)
    beams, trace = run(step, state, first=first, choose=choose, reorder=False, options=options, starts=starts)
    order = tf.zeros((pictures, 1), tf.int32) + tf.range(samples)  # (B, K)
    return backtrack(trace, order, beams, options)


def _extend(options: SearchOptions) -> Choose:
    """Chooses the K extensions of best score."""

    def choose(number: Any, logits: Any, beams: BeamState) -> tuple[Any, Any, Any, Any]:
        width = beams.words.shape[1]
        gains, words = _likeliest(number, logits, beams.generated, width, options)  # (N, J)
        shape = (-1, width, tf.shape(words)[1])
        words = tf.reshape(words, shape)  # (B, K, J)
        total = beams.total[..., None] + tf.reshape(gains, shape)
        scores = total / length_factor(number + 1, options)
        # An ended hypothesis has one extension: itself.
        ended = beams.ended[..., None]
        itself = tf.where(tf.range(shape[2]) == 0, beams.scores[..., None], NEG_INF)
        scores = tf.where(ended, itself, scores)
        total = tf.where(ended, beams.total[..., None], total)
        words = tf.where(ended, -1, words)
        words, total, scores = (tf.reshape(part, (-1, width * shape[2])) for part in (words, total, scores))
        scores, chosen = tf.math.top_k(scores, width)  # (B, K)
        words, total = (tf.gather(part, chosen, batch_dims=1) for part in (words, total))
        return chosen // shape[2], words, total, scores

    return choose


def _likeliest(
    number: Any, logits: Any, generated: Any, width: int, options: SearchOptions
) -> tuple[Any, Any]:
    """Log probabilities and ids (N, J) of the likeliest words; J = K and as many as are banned, or V."""
    if options.no_repeat:
        peak = tf.reduce_max(logits, -1, keepdims=True)
        normaliser = peak - tf.math.log(tf.reduce_max(tf.nn.softmax(logits), -1, keepdims=True))
        values, words = _top(without_repeats(number, logits, generated, options), width + len(options.banned))
    else:
        values, words = _top(logits, width + len(options.banned))
        # Of the likeliest word the softmax cannot underflow, and it is faster than log_softmax or logsumexp.
        share = tf.gather(tf.nn.softmax(logits), words[:, :1], batch_dims=1)
        normaliser = values[:, :1] - tf.math.log(share)
    gains = values - normaliser
    banned = tf.reduce_any(words[..., None] == tf.constant(options.banned, tf.int32), -1)
    return tf.where(banned | tf.math.is_nan(gains), NEG_INF, gains), words


def _top(logits: Any, count: int) -> tuple[Any, Any]:
    """`tf.math.top_k`, twice as fast for a few of many: the top elements are in the groups of top maxima."""
    size = logits.shape[1] or tf.shape(logits)[1]
    if not isinstance(size, int) or size < 4 * count * _GROUP:
        return tf.math.top_k(logits, tf.minimum(count, size))
    groups = -(-size // _GROUP)
    padded = tf.pad(logits, ((0, 0), (0, groups * _GROUP - size)), constant_values=NEG_INF)
    grouped = tf.reshape(padded, (-1, groups, _GROUP))
    # Groups in rising order, so that of equal elements the one of lower index comes first, as in top_k.
    best = tf.sort(tf.math.top_k(tf.reduce_max(grouped, -1), count).indices)  # (N, count)
    members = tf.reshape(tf.gather(grouped, best, batch_dims=1), (-1, count * _GROUP))
    values, place = tf.math.top_k(members, count)
    group = tf.gather(best, place // _GROUP, batch_dims=1)
    return values, tf.minimum(group * _GROUP + place % _GROUP, size - 1)


def _draw(options: SearchOptions, uniform: Any) -> Choose:
    """Draws each slot's next word by inverting the cumulative distribution at `uniform` (T, B, K)."""

    def choose(number: Any, logits: Any, beams: BeamState) -> tuple[Any, Any, Any, Any]:
        share = tf.nn.softmax(logits)  # (N, V)
        allowed = logits
        if options.no_repeat:
            allowed = without_repeats(number, allowed, beams.generated, options)
        if options.banned:
            size = tf.shape(logits)[1]
            allowed += tf.reduce_min(tf.one_hot(options.banned, size, on_value=NEG_INF, off_value=0.0), 0)
        point = tf.reshape(tf.gather(uniform, number), (-1, 1))  # (N, 1)
        if options.top_k or options.top_p < 1:
            words, possible = _draw_among_top(allowed / options.temperature, point, options)
        else:
            words, possible = _invert(tf.nn.softmax(allowed / options.temperature), point)
        words = tf.where(possible, words, options.end)  # everything is banned
        gain = tf.math.log(tf.gather(share, words, batch_dims=1))
        ended = beams.ended
        words, gain = (tf.reshape(part, tf.shape(ended)) for part in (words, gain))
        words = tf.where(ended, -1, words)
        total = tf.where(ended, beams.total, beams.total + gain)
        scores = tf.where(ended, beams.scores, total / length_factor(number + 1, options))
        return (), words, total, scores

    return choose


def _draw_among_top(logits: Any, point: Any, options: SearchOptions) -> tuple[Any, Any]:
    size = logits.shape[1] or tf.shape(logits)[1]
    if options.top_k:
        values, words = _top(logits, options.top_k)
    else:
        values, words = tf.math.top_k(logits, size)
    share = tf.nn.softmax(values)  # (N, J), falling
    if options.top_p < 1:
        before = tf.cumsum(share, -1, exclusive=True)
        share = tf.where(before < options.top_p, share, 0.0)
    place, possible = _invert(share, point)
    return tf.gather(words, place[:, None], batch_dims=1)[:, 0], possible


def _invert(share: Any, point: Any) -> tuple[Any, Any]:
    """Where the running sum of `share` (N, J) passes `point` (N, 1) of the whole; whether there is any."""
    size = share.shape[1]
    possible = tf.reduce_max(share, -1) > 0
    if size is None or size < 4 * _GROUP:
        return _pick(share, point)[0], possible
    # A running sum over thousands of words is slow: first the group, then the word within it.
    groups = -(-size // _GROUP)
    padded = tf.pad(share, ((0, 0), (0, groups * _GROUP - size)))
    grouped = tf.reshape(padded, (-1, groups, _GROUP))
    group, point = _pick(tf.reduce_sum(grouped, -1), point)
    place, _ = _pick(tf.gather(grouped, group[:, None], batch_dims=1)[:, 0], point)
    return tf.minimum(group * _GROUP + place, size - 1), possible


def _pick(mass: Any, point: Any) -> tuple[Any, Any]:
    """Index (N,) in whose share of the whole mass `point` (N, 1) falls, and where in it, (N, 1) in 0..1."""
    summed = tf.cumsum(mass, -1)
    target = point * summed[:, -1:]
    index = tf.reduce_sum(tf.cast(summed <= target, tf.int32), -1, keepdims=True)
    index = tf.minimum(index, tf.shape(mass)[1] - 1)  # (N, 1)
    chosen = tf.gather(mass, index, batch_dims=1)
    rest = target - (tf.gather(summed, index, batch_dims=1) - chosen)
    # Below 1, so that rounding cannot lead past the last word that has any share.
    return index[:, 0], tf.clip_by_value(tf.math.divide_no_nan(rest, chosen), 0.0, 1 - 2.0**-23)


def _uniform(seed: Any, pictures: Any, shape: tuple[int, int]) -> Any:
    """Random numbers in 0..1, (T, B, K): of each picture a function of its seed alone."""
    seed = tf.cast(tf.convert_to_tensor(seed), tf.int64)
    if seed.shape.rank == 0:
        pairs = tf.stack([tf.fill((pictures,), seed), tf.range(tf.cast(pictures, tf.int64))], 1)
    else:
        pairs = tf.stack([seed, tf.zeros_like(seed)], 1)  # (B, 2)
    draw = tf.map_fn(
        lambda pair: tf.random.stateless_uniform(shape, pair), pairs, fn_output_signature=tf.float32
    )
    return tf.transpose(draw, (1, 0, 2))


def run(
    step: Step,
    state: Any,
    *,
    first: Any,
    choose: Choose,
    reorder: bool,
    options: SearchOptions,
    starts: Any = None,
) -> tuple[BeamState, Trace]:
    """Goes from word to word until all hypotheses have ended.

    Args:
        step: see `Step`.
        state: one row a picture.
        first: (B, K) log probabilities to begin with.
        choose: see `Choose`.
        reorder: whether hypotheses may change slots; if not, the parents from `choose` are not looked at.
        options: see there.
        starts: see `sample`.
    """
    pictures, width = tf.shape(first)[0], first.shape[1]
    begin = tf.fill((pictures,), options.start) if starts is None else starts
    beams = BeamState(
        state=tf.nest.map_structure(lambda part: tf.repeat(part, width, axis=0), state),
        words=tf.repeat(begin[:, None], width, axis=1),
        total=first,
        scores=first,
        ended=tf.zeros((pictures, width), tf.bool),
        generated=tf.fill((pictures * width, options.max_words), -1) if options.no_repeat else (),
    )
    trace = Trace(
        words=tf.TensorArray(tf.int32, 0, dynamic_size=True),
        parents=tf.TensorArray(tf.int32, 0, dynamic_size=True) if reorder else (),
        attention=tf.TensorArray(tf.float32, 0, dynamic_size=True) if options.return_attention else (),
    )

    def body(number: Any, beams: BeamState, trace: Trace) -> tuple[Any, BeamState, Trace]:
        rows = tf.reshape(tf.maximum(beams.words, 0), (-1,))  # (N,)
        logits, state, attention = step(rows, beams.state)
        parents, words, total, scores = choose(number, tf.cast(logits, tf.float32), beams)
        ended, generated = beams.ended, beams.generated
        if reorder:
            flat = tf.reshape(parents + tf.range(pictures)[:, None] * width, (-1,))  # (N,)
            state, generated = tf.nest.map_structure(lambda part: tf.gather(part, flat), (state, generated))
            ended = tf.gather(ended, parents, batch_dims=1)
            trace = trace._replace(parents=trace.parents.write(number, parents))
        if options.no_repeat:
            generated = tf.where(tf.range(options.max_words) == number, tf.reshape(words, (-1, 1)), generated)
        if options.return_attention:
            cells = tf.reshape(tf.cast(attention, tf.float32), (pictures, width, tf.shape(attention)[1]))
            trace = trace._replace(attention=trace.attention.write(number, cells))
        trace = trace._replace(words=trace.words.write(number, words))
        ended |= (words == options.end) | (scores == NEG_INF)
        beams = BeamState(state, words, total, scores, ended, generated)
        return number + 1, _stop_when_certain(beams, options) if reorder else beams, trace

    def unfinished(number: Any, beams: BeamState, trace: Trace) -> Any:
        return (number < options.max_words) & ~tf.reduce_all(beams.ended)

    invariants = (
        tf.TensorShape([]),
        tf.nest.map_structure(lambda part: tf.TensorShape([None, *part.shape[1:]]), beams),
        tf.nest.map_structure(lambda part: tf.TensorShape(None), trace),
    )
    start = (tf.constant(0), beams, trace)
    _, beams, trace = tf.while_loop(unfinished, body, start, shape_invariants=invariants)
    return beams, trace


def _stop_when_certain(beams: BeamState, options: SearchOptions) -> BeamState:
    """Ends a picture's search when nothing that goes on can still reach its `n_best` hypotheses.

    A log probability only falls; what goes on scores best if it fell no more and were as long as allowed.
    """
    if not 0 < options.n_best < beams.scores.shape[1]:
        return beams
    finished = tf.where(beams.ended, beams.scores, NEG_INF)
    worst = tf.math.top_k(finished, options.n_best).values[:, -1]  # (B,)
    going_on = tf.reduce_max(tf.where(beams.ended, NEG_INF, beams.total), -1)
    certain = (worst >= going_on / length_factor(options.max_words, options))[:, None]
    return beams._replace(
        scores=tf.where(certain & ~beams.ended, NEG_INF, beams.scores), ended=beams.ended | certain
    )


def backtrack(trace: Trace, order: Any, beams: BeamState, options: SearchOptions) -> Hypotheses:
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
    real = (words >= 0) & (words != options.end) & (scores != NEG_INF)[..., None]
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


def without_repeats(number: Any, logits: Any, generated: Any, options: SearchOptions) -> Any:
    """Logits with -inf for words that would complete a run of `no_repeat` words that is already there."""
    run, most = options.no_repeat, options.max_words
    if run > most:
        return logits
    windows = most - run + 1
    repeated = tf.fill((tf.shape(generated)[0], windows), number >= run - 1)
    for i in range(run - 1):
        latest = tf.gather(generated, tf.maximum(number - run + 1 + i, 0), axis=1)[:, None]  # (N, 1)
        repeated &= generated[:, i : i + windows] == latest
    next_words = generated[:, run - 1 :]  # (N, windows): what followed
    repeated &= next_words >= 0
    rows = tf.broadcast_to(tf.range(tf.shape(generated)[0])[:, None], tf.shape(next_words))
    places = tf.stack([rows, tf.where(repeated, next_words, 0)], -1)
    return tf.tensor_scatter_nd_min(logits, places, tf.where(repeated, NEG_INF, float("inf")))


def length_factor(tokens: Any, options: SearchOptions) -> Any:
    return tf.cast(tokens, tf.float32) ** options.length_normalization
