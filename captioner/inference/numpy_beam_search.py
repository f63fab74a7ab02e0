"""Beam search in NumPy: what `beam_search.beam_search` does, where TensorFlow is too heavy to load.

In: `step(words, state) -> (logits, state, attention)` on NumPy arrays, and the state before the first word.
Out: the same `Hypotheses` as from there, to the last word (a test compares the two); scores but for rounding.
How hypotheses are scored and when the search may stop is said there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from captioner.inference.search_options import NEG_INF, Hypotheses, SearchOptions

State: TypeAlias = "np.ndarray | tuple[np.ndarray, ...]"  # one row a hypothesis
# words (N,) int32, state -> logits (N, V), state, attention (N, P); N = B * K rows, a picture's K together.
Step = Callable[[np.ndarray, Any], tuple[np.ndarray, Any, Any]]

WORTHWHILE = 0.75  # share of the pictures that go on, at which to leave the others out


class _Choice(NamedTuple):
    """What stands in the slots after a word, and where it comes from; each (B, K)."""

    parents: np.ndarray  # int, the slot that the hypothesis in this slot extends
    words: np.ndarray  # int32; -1: it has ended before
    total: np.ndarray  # float32, log probability
    scores: np.ndarray  # float32


class _Trace(NamedTuple):
    """What was chosen, word by word, and for which pictures; what the slots score at the end."""

    numbers: list[np.ndarray]  # (B',), of the pictures that were searched on
    choices: list[_Choice]
    attention: list[np.ndarray | None]  # (B', K, P), of the slots before the choice
    scores: np.ndarray  # (B, K)
    totals: np.ndarray  # (B, K)

    def add(self, numbers: np.ndarray, choice: _Choice, attention: np.ndarray | None) -> None:
        self.numbers.append(numbers)
        self.choices.append(choice)
        self.attention.append(attention)


def beam_search(
    step: Step,
    state: State,
    *,
    pictures: int,
    options: SearchOptions,
    narrow: Callable[[np.ndarray], Step] | None = None,
) -> Hypotheses:
    """The likeliest captions, as far as a beam of K hypotheses finds them.

    Args:
        step: see `Step`; what it returns is not changed.
        state: one row a picture; repeated K times.
        pictures: B, at least 1.
        options: see there; those of sampling mean nothing here.
        narrow: gives the step for some of the pictures, by number: finished ones are then left out.

    Returns:
        Hypotheses of NumPy arrays, K = n_best or beam.

    Example:
        >>> spell = np.eye(6, dtype="float32")[[3, 3, 4, 3, 5, 3]] * 9  # 2 (start), then 4, 5, 3 (end)
        >>> found = beam_search(
        ...     lambda words, state: (spell[words], state, None),
        ...     np.zeros((1, 0)), pictures=1, options=SearchOptions(beam=1, max_words=4),
        ... )
        >>> found.words.tolist()
        [[[4, 5, 0, 0]]]
    """
    K, numbers = options.beam, np.arange(pictures)
    first = np.full((pictures, K), NEG_INF, np.float32)
    first[:, 0] = 0  # before the first word all slots are alike: only the first counts
    last = _Choice(first, np.full((pictures, K), options.start, np.int32), first, first)
    state = _rows(state, np.repeat(numbers, K))
    generated = np.full((pictures * K, options.max_words), -1, np.int32)
    ended = np.zeros((pictures, K), bool)
    trace = _Trace([], [], [], first.copy(), first.copy())
    while len(trace.choices) < options.max_words and not ended.all():
        number = len(trace.choices)
        logits, state, attention = step(np.maximum(last.words, 0).ravel(), state)
        last = _extend(logits, last, ended, generated=generated[:, :number], options=options)
        trace.add(
            numbers, last, np.reshape(attention, (len(numbers), K, -1)) if options.return_attention else None
        )
        came_from = (last.parents + np.arange(len(numbers))[:, None] * K).ravel()  # (N,)
        state, generated = _rows(state, came_from), generated[came_from]
        generated[:, number] = last.words.ravel()
        ended = ended.ravel()[came_from].reshape(-1, K)
        ended |= (last.words == options.end) | (last.scores == NEG_INF)
        last, ended = _stop_when_certain(last, ended, options)
        trace.scores[numbers], trace.totals[numbers] = last.scores, last.total
        going_on = np.flatnonzero(~ended.all(1))
        if narrow is not None and 0 < len(going_on) <= WORTHWHILE * len(numbers):
            rows = (going_on[:, None] * K + np.arange(K)).ravel()
            numbers, ended, generated, state = (
                numbers[going_on],
                ended[going_on],
                generated[rows],
                _rows(state, rows),
            )
            last, step = _Choice(*(part[going_on] for part in last)), narrow(numbers)
    return _backtrack(trace, options)


def _extend(
    logits: np.ndarray, last: _Choice, ended: np.ndarray, *, generated: np.ndarray, options: SearchOptions
) -> _Choice:
    """The K extensions by one word that score best, for each picture."""
    pictures, K = ended.shape
    gains, words = _likeliest(np.array(logits, np.float32), generated, options)
    gains, words = gains.reshape(pictures, K, K), words.reshape(pictures, K, K)
    total = last.total[..., None] + gains
    scores = total / length_factor(generated.shape[1] + 1, options)
    # An ended hypothesis has one extension: itself.
    scores[ended] = NEG_INF
    scores[ended, 0] = last.scores[ended]
    total[ended] = last.total[ended][:, None]
    words[ended] = -1
    words, total, scores = (part.reshape(pictures, -1) for part in (words, total, scores))
    best = np.argsort(-scores, axis=1, kind="stable")[:, :K]  # (B, K); of equals the first
    words, total, scores = (np.take_along_axis(part, best, 1) for part in (words, total, scores))
    return _Choice(best // K, words, total, scores)


def _likeliest(
    logits: np.ndarray, generated: np.ndarray, options: SearchOptions
) -> tuple[np.ndarray, np.ndarray]:
    """Log probabilities and ids (N, K) of the K likeliest words; of equals the lower id. Changes `logits`."""
    rows = np.arange(len(logits))
    with np.errstate(invalid="ignore"):  # a row without any possible word: infinity minus infinity
        peak = logits.max(1, keepdims=True)
        normaliser = peak + np.log(np.exp(logits - peak).sum(1, keepdims=True))
    if options.no_repeat:
        _forbid_repeats(logits, generated, options.no_repeat)
    logits[:, [word for word in options.banned if word < logits.shape[1]]] = NEG_INF
    words = np.empty((len(logits), options.beam), np.int32)
    gains = np.empty((len(logits), options.beam), np.float32)
    for k in range(options.beam):  # for a few words faster than any sorting
        words[:, k] = logits.argmax(1)
        gains[:, k] = logits[rows, words[:, k]]
        logits[rows, words[:, k]] = NEG_INF
    with np.errstate(invalid="ignore"):
        gains -= normaliser
    gains[np.isnan(gains)] = NEG_INF
    return gains, words


def _forbid_repeats(logits: np.ndarray, generated: np.ndarray, run: int) -> None:
    """-inf for words that would complete a run of `run` words that is already there."""
    windows = generated.shape[1] - run + 1
    if windows < 1:
        return
    following = generated[:, run - 1 :]  # (N, windows)
    repeated = following >= 0
    for i in range(run - 1):
        repeated &= generated[:, i : i + windows] == generated[:, windows + i, None]
    rows, places = np.nonzero(repeated)
    logits[rows, following[rows, places]] = NEG_INF


def _stop_when_certain(
    last: _Choice, ended: np.ndarray, options: SearchOptions
) -> tuple[_Choice, np.ndarray]:
    """Ends a picture's search when nothing that goes on can still reach its `n_best` hypotheses."""
    if not 0 < options.n_best < options.beam:
        return last, ended
    finished = np.sort(np.where(ended, last.scores, NEG_INF), axis=1)
    worst = finished[:, -options.n_best]  # (B,)
    going_on = np.where(ended, NEG_INF, last.total).max(1)
    certain = (worst >= going_on / length_factor(options.max_words, options))[:, None]
    scores = np.where(certain & ~ended, np.float32(NEG_INF), last.scores)
    return last._replace(scores=scores), ended | certain


def _backtrack(trace: _Trace, options: SearchOptions) -> Hypotheses:
    """The best hypotheses, read off backwards from the slots in which they ended."""
    slots = np.argsort(-trace.scores, axis=1, kind="stable")[:, : options.n_best or options.beam]  # (B, K)
    scores, totals = (np.take_along_axis(part, slots, 1) for part in (trace.scores, trace.totals))
    words = np.zeros((*slots.shape, options.max_words), np.int32)
    lengths = np.zeros(slots.shape, np.int32)
    looks = trace.attention[0]
    attention = None if looks is None else np.zeros((*words.shape, looks.shape[2]), np.float32)
    for number in reversed(range(len(trace.choices))):
        there, choice, looks = trace.numbers[number], trace.choices[number], trace.attention[number]
        written = np.take_along_axis(choice.words, slots[there], 1)
        real = (written >= 0) & (written != options.end) & (scores[there] != NEG_INF)
        words[there, :, number] = np.where(real, written, 0)
        lengths[there] += real
        slots[there] = np.take_along_axis(choice.parents, slots[there], 1)
        if attention is not None and looks is not None:
            cells = np.take_along_axis(looks, slots[there][..., None], 1)
            attention[there, :, number] = np.where(real[..., None], cells, 0)
    return Hypotheses(words, lengths, scores, totals, attention)


def _rows(state: Any, rows: np.ndarray) -> Any:
    return tuple(part[rows] for part in state) if isinstance(state, tuple) else state[rows]


def length_factor(tokens: int, options: SearchOptions) -> np.float32:
    return np.float32(tokens) ** np.float32(options.length_normalization)
