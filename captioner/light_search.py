"""Beam search in NumPy: what `search.beam_search` does, where TensorFlow is too heavy to load.

In: `step(words, state) -> (logits, state, attention)` on NumPy arrays, and the state before the first word.
Out: the same `Hypotheses` as from there, to the last word (a test compares the two); scores but for rounding.
How hypotheses are scored and when the search may stop is said there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from captioner.hypotheses import IMPOSSIBLE, Hypotheses, SearchOptions

State: TypeAlias = "np.ndarray | tuple[np.ndarray, ...]"  # one row a hypothesis
# words (N,) int32, state -> logits (N, V), state, attention (N, P); N = B * K rows, a picture's K together.
Step = Callable[[np.ndarray, Any], tuple[np.ndarray, Any, Any]]


class _Choice(NamedTuple):
    """What stands in the slots after a word, and where it comes from; each (B, K)."""

    parents: np.ndarray  # int, the slot that the hypothesis in this slot extends
    words: np.ndarray  # int32; -1: it has ended before
    total: np.ndarray  # float32, log probability
    scores: np.ndarray  # float32


def beam_search(step: Step, state: State, *, pictures: int, options: SearchOptions) -> Hypotheses:
    """The likeliest captions, as far as a beam of K hypotheses finds them.

    Args:
        step: see `Step`; what it returns is not changed.
        state: one row a picture; repeated K times.
        pictures: B, at least 1.
        options: see there; those of sampling mean nothing here.

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
    K = options.beam
    first = np.full((pictures, K), IMPOSSIBLE, np.float32)
    first[:, 0] = 0  # before the first word all slots are alike: only the first counts
    last = _Choice(first, np.full((pictures, K), options.start, np.int32), first, first)
    state = _rows(state, np.repeat(np.arange(pictures), K))
    said = np.full((pictures * K, options.max_words), -1, np.int32)
    ended = np.zeros((pictures, K), bool)
    chosen: list[_Choice] = []
    looks: list[np.ndarray] = []
    while len(chosen) < options.max_words and not ended.all():
        number = len(chosen)
        logits, state, attention = step(np.maximum(last.words, 0).ravel(), state)
        last = _extend(logits, last, ended, said=said[:, :number], options=options)
        chosen.append(last)
        if options.return_attention:
            looks.append(np.asarray(attention, np.float32).reshape(pictures, K, -1))
        came_from = (last.parents + np.arange(pictures)[:, None] * K).ravel()  # (N,)
        state, said = _rows(state, came_from), said[came_from]
        said[:, number] = last.words.ravel()
        ended = ended.ravel()[came_from].reshape(pictures, K)
        ended |= (last.words == options.end) | (last.scores == IMPOSSIBLE)
        last, ended = _stop_when_certain(last, ended, options)
    return _read_off(chosen, looks, last, options)


def _extend(
    logits: np.ndarray, last: _Choice, ended: np.ndarray, *, said: np.ndarray, options: SearchOptions
) -> _Choice:
    """The K extensions by one word that score best, for each picture."""
    pictures, K = ended.shape
    gains, words = _likeliest(np.array(logits, np.float32), said, options)
    gains, words = gains.reshape(pictures, K, K), words.reshape(pictures, K, K)
    total = last.total[..., None] + gains
    scores = total / length_factor(said.shape[1] + 1, options)
    # An ended hypothesis has one extension: itself.
    scores[ended] = IMPOSSIBLE
    scores[ended, 0] = last.scores[ended]
    total[ended] = last.total[ended][:, None]
    words[ended] = -1
    words, total, scores = (part.reshape(pictures, -1) for part in (words, total, scores))
    best = np.argsort(-scores, axis=1, kind="stable")[:, :K]  # (B, K); of equals the first
    words, total, scores = (np.take_along_axis(part, best, 1) for part in (words, total, scores))
    return _Choice(best // K, words, total, scores)


def _likeliest(logits: np.ndarray, said: np.ndarray, options: SearchOptions) -> tuple[np.ndarray, np.ndarray]:
    """Log probabilities and ids (N, K) of the K likeliest words; of equals the lower id. Changes `logits`."""
    rows = np.arange(len(logits))
    with np.errstate(invalid="ignore"):  # a row without any possible word: infinity minus infinity
        peak = logits.max(1, keepdims=True)
        normaliser = peak + np.log(np.exp(logits - peak).sum(1, keepdims=True))
    if options.no_repeat:
        _forbid_repeats(logits, said, options.no_repeat)
    logits[:, [word for word in options.banned if word < logits.shape[1]]] = IMPOSSIBLE
    words = np.empty((len(logits), options.beam), np.int32)
    gains = np.empty((len(logits), options.beam), np.float32)
    for k in range(options.beam):  # for a few words faster than any sorting
        words[:, k] = logits.argmax(1)
        gains[:, k] = logits[rows, words[:, k]]
        logits[rows, words[:, k]] = IMPOSSIBLE
    with np.errstate(invalid="ignore"):
        gains -= normaliser
    gains[np.isnan(gains)] = IMPOSSIBLE
    return gains, words


def _forbid_repeats(logits: np.ndarray, said: np.ndarray, run: int) -> None:
    """-inf for words that would complete a run of `run` words that is already there."""
    windows = said.shape[1] - run + 1
    if windows < 1:
        return
    following = said[:, run - 1 :]  # (N, windows)
    repeated = following >= 0
    for i in range(run - 1):
        repeated &= said[:, i : i + windows] == said[:, windows + i, None]
    rows, places = np.nonzero(repeated)
    logits[rows, following[rows, places]] = IMPOSSIBLE


def _stop_when_certain(
    last: _Choice, ended: np.ndarray, options: SearchOptions
) -> tuple[_Choice, np.ndarray]:
    """Ends a picture's search when nothing that goes on can still reach its `n_best` hypotheses."""
    if not 0 < options.n_best < options.beam:
        return last, ended
    finished = np.sort(np.where(ended, last.scores, IMPOSSIBLE), axis=1)
    worst = finished[:, -options.n_best]  # (B,)
    going_on = np.where(ended, IMPOSSIBLE, last.total).max(1)
    certain = (worst >= going_on / length_factor(options.max_words, options))[:, None]
    scores = np.where(certain & ~ended, np.float32(IMPOSSIBLE), last.scores)
    return last._replace(scores=scores), ended | certain


def _read_off(
    chosen: list[_Choice], looks: list[np.ndarray], last: _Choice, options: SearchOptions
) -> Hypotheses:
    """The best hypotheses, read off backwards from the slots in which they ended."""
    wanted = options.n_best or options.beam
    order = np.argsort(-last.scores, axis=1, kind="stable")[:, :wanted]  # (B, K)
    scores, total = (np.take_along_axis(part, order, 1) for part in (last.scores, last.total))
    words = np.zeros((*order.shape, options.max_words), np.int32)
    lengths = np.zeros(order.shape, np.int32)
    shape = (*words.shape, looks[0].shape[2]) if looks else ()
    attention = np.zeros(shape, np.float32) if looks else None
    slots = order
    for number in reversed(range(len(chosen))):
        written = np.take_along_axis(chosen[number].words, slots, 1)
        real = (written >= 0) & (written != options.end) & (scores != IMPOSSIBLE)
        words[:, :, number] = np.where(real, written, 0)
        lengths += real
        slots = np.take_along_axis(chosen[number].parents, slots, 1)
        if attention is not None:
            cells = np.take_along_axis(looks[number], slots[..., None], 1)
            attention[:, :, number] = np.where(real[..., None], cells, 0)
    return Hypotheses(words, lengths, scores, total, attention)


def _rows(state: Any, rows: np.ndarray) -> Any:
    return tuple(part[rows] for part in state) if isinstance(state, tuple) else state[rows]


def length_factor(tokens: int, options: SearchOptions) -> np.float32:
    return np.float32(tokens) ** np.float32(options.length_normalisation)
