"""Search: from a function that gives the next word's logits to whole captions. Reads and writes no file.

In: `step(words, state) -> (logits, state, attention)` and the state before the first word. Out:
`Hypotheses`. Works for any step function; whole batches of pictures, inside a graph (`tf.function`) or
eagerly; any number of pictures with one trace. Greedy search is beam 1.

Score of a hypothesis: log probability / tokens ** length_normalisation (Wu et al. 2016, eq. 14, without its
constant 5), where tokens counts the words and, if it was written, the end. Log probabilities are the model's
own: banned words are not chosen but keep their share.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from captioner.inference.search_loop import Beams, Choose, Step, length_factor, read_off, run, without_repeats
from captioner.inference.search_options import IMPOSSIBLE, Hypotheses, SearchOptions

__all__ = ["Hypotheses", "SearchOptions", "Step", "beam_search", "sample"]

_GROUP = 64


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
    first = tf.where(tf.range(options.beam) == 0, 0.0, IMPOSSIBLE) + tf.zeros((pictures, 1))
    choose = _extend(options)
    beams, trace = run(step, state, first=first, choose=choose, follow=options.beam > 1, options=options)
    order = tf.math.top_k(beams.scores, options.n_best or options.beam).indices  # (B, K)
    return read_off(trace, order, beams, options)


def sample(
    step: Step, state: Any, *, pictures: Any, samples: int, options: SearchOptions, seed: Any
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
    """
    uniform = _uniform(seed, pictures, (options.max_words, samples))  # (T, B, K)
    first = tf.zeros((pictures, samples))
    choose = _draw(options, uniform)
    beams, trace = run(step, state, first=first, choose=choose, follow=False, options=options)
    order = tf.zeros((pictures, 1), tf.int32) + tf.range(samples)  # (B, K)
    return read_off(trace, order, beams, options)


def _extend(options: SearchOptions) -> Choose:
    """Chooses the K extensions of best score."""

    def choose(number: Any, logits: Any, beams: Beams) -> tuple[Any, Any, Any, Any]:
        width = beams.words.shape[1]
        gains, words = _likeliest(number, logits, beams.said, width, options)  # (N, J)
        shape = (-1, width, tf.shape(words)[1])
        words = tf.reshape(words, shape)  # (B, K, J)
        total = beams.total[..., None] + tf.reshape(gains, shape)
        scores = total / length_factor(number + 1, options)
        # An ended hypothesis has one extension: itself.
        ended = beams.ended[..., None]
        itself = tf.where(tf.range(shape[2]) == 0, beams.scores[..., None], IMPOSSIBLE)
        scores = tf.where(ended, itself, scores)
        total = tf.where(ended, beams.total[..., None], total)
        words = tf.where(ended, -1, words)
        words, total, scores = (tf.reshape(part, (-1, width * shape[2])) for part in (words, total, scores))
        scores, chosen = tf.math.top_k(scores, width)  # (B, K)
        words, total = (tf.gather(part, chosen, batch_dims=1) for part in (words, total))
        return chosen // shape[2], words, total, scores

    return choose


def _likeliest(number: Any, logits: Any, said: Any, width: int, options: SearchOptions) -> tuple[Any, Any]:
    """Log probabilities and ids (N, J) of the likeliest words; J = K and as many as are banned, or V."""
    if options.no_repeat:
        peak = tf.reduce_max(logits, -1, keepdims=True)
        normaliser = peak - tf.math.log(tf.reduce_max(tf.nn.softmax(logits), -1, keepdims=True))
        values, words = _top(without_repeats(number, logits, said, options), width + len(options.banned))
    else:
        values, words = _top(logits, width + len(options.banned))
        # Of the likeliest word the softmax cannot underflow, and it is faster than log_softmax or logsumexp.
        share = tf.gather(tf.nn.softmax(logits), words[:, :1], batch_dims=1)
        normaliser = values[:, :1] - tf.math.log(share)
    gains = values - normaliser
    banned = tf.reduce_any(words[..., None] == tf.constant(options.banned, tf.int32), -1)
    return tf.where(banned | tf.math.is_nan(gains), IMPOSSIBLE, gains), words


def _top(logits: Any, count: int) -> tuple[Any, Any]:
    """`tf.math.top_k`, twice as fast for a few of many: the top elements are in the groups of top maxima."""
    size = logits.shape[1] or tf.shape(logits)[1]
    if not isinstance(size, int) or size < 4 * count * _GROUP:
        return tf.math.top_k(logits, tf.minimum(count, size))
    groups = -(-size // _GROUP)
    padded = tf.pad(logits, ((0, 0), (0, groups * _GROUP - size)), constant_values=IMPOSSIBLE)
    grouped = tf.reshape(padded, (-1, groups, _GROUP))
    # Groups in rising order, so that of equal elements the one of lower index comes first, as in top_k.
    best = tf.sort(tf.math.top_k(tf.reduce_max(grouped, -1), count).indices)  # (N, count)
    members = tf.reshape(tf.gather(grouped, best, batch_dims=1), (-1, count * _GROUP))
    values, place = tf.math.top_k(members, count)
    group = tf.gather(best, place // _GROUP, batch_dims=1)
    return values, tf.minimum(group * _GROUP + place % _GROUP, size - 1)


def _draw(options: SearchOptions, uniform: Any) -> Choose:
    """Draws each slot's next word by inverting the cumulative distribution at `uniform` (T, B, K)."""

    def choose(number: Any, logits: Any, beams: Beams) -> tuple[Any, Any, Any, Any]:
        share = tf.nn.softmax(logits)  # (N, V)
        allowed = logits
        if options.no_repeat:
            allowed = without_repeats(number, allowed, beams.said, options)
        if options.banned:
            size = tf.shape(logits)[1]
            allowed += tf.reduce_min(tf.one_hot(options.banned, size, on_value=IMPOSSIBLE, off_value=0.0), 0)
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
