"""Search over scripted steps: no network here, every number can be followed by hand."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from captioner.errors import ConfigError
from captioner.inference.beam_search import Hypotheses, SearchOptions, _invert, _top, beam_search, sample

START, END = 2, 3
NOTHING = tf.zeros((1, 0))
FIRST = tf.zeros((1, 1), tf.int32)


def speller(*words: int, size: int = 8) -> Any:
    """A step that writes these words whatever it is asked; its state is the number of words written."""
    script = tf.constant([*words, END, END])

    def step(_: Any, written: Any) -> tuple[Any, Any, Any]:
        place = tf.minimum(tf.cast(written[:, 0], tf.int32), len(words))
        attention = tf.one_hot(place, 5)  # looks at cell 0, then 1, …
        return tf.one_hot(tf.gather(script, place), size) * 20.0, written + 1, attention

    return step


def table_step(table: np.ndarray) -> Any:
    """A step whose next word depends on the last one alone: logits are rows of `table` (V, V)."""
    logits = tf.constant(table, tf.float32)
    return lambda words, state: (tf.gather(logits, words), state, None)


def language_step(language: np.ndarray) -> Any:
    """The next word depends on the last and its place, `language` (T, V, V): no two captions tie."""
    logits = tf.constant(language, tf.float32)

    def step(words: Any, place: Any) -> tuple[Any, Any, Any]:
        return tf.gather_nd(logits, tf.stack([place[:, 0], words], 1)), place + 1, None

    return step


def log_softmax(logits: np.ndarray) -> np.ndarray:
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def picture_step(tables: np.ndarray) -> Any:
    """The same with a table (V, V) of its own for each picture; the state is the picture's number."""
    logits = tf.constant(tables, tf.float32)

    def step(words: Any, state: Any) -> tuple[Any, Any, Any]:
        return tf.gather_nd(logits, tf.stack([state[:, 0], words], 1)), state, None

    return step


def numbers(pictures: int) -> Any:
    return tf.range(pictures)[:, None]


def captions(found: Hypotheses) -> list[list[list[int]]]:
    """Words without the padding, as lists."""
    return [
        [list(map(int, words[:length])) for words, length in zip(rows, lengths, strict=True)]
        for rows, lengths in zip(found.words.numpy(), found.lengths.numpy(), strict=True)
    ]


def brute_force(language: np.ndarray, options: SearchOptions) -> list[tuple[float, tuple[int, ...]]]:
    """Every caption of a language (T, V, V), as (score, words), best first."""
    log_p = log_softmax(language)
    allowed = [word for word in range(language.shape[1]) if word not in (*options.banned, END)]
    found = []
    for count in range(options.max_words + 1):
        for words in itertools.product(allowed, repeat=count):
            tokens = (*words, END) if count < options.max_words else words
            pairs = itertools.pairwise((START, *tokens))
            total = sum(log_p[place, last, word] for place, (last, word) in enumerate(pairs))
            found.append((total / len(tokens) ** options.length_normalization, words))
    return sorted(found, reverse=True)


@pytest.mark.parametrize("beam", [1, 2, 3, 7, 8, 20])
def test_a_scripted_step_spells_its_words(beam: int) -> None:
    options = SearchOptions(beam=beam, max_words=6, return_attention=True)
    found = beam_search(speller(5, 4, 6), tf.zeros((2, 1)), pictures=2, options=options)
    assert found.words.shape == (2, beam, 6)
    assert found.words[:, 0].numpy().tolist() == [[5, 4, 6, 0, 0, 0]] * 2
    assert found.lengths[:, 0].numpy().tolist() == [3, 3]
    # Word t was chosen while looking at cell t; after the last word there is nothing.
    assert found.attention[0, 0].numpy().tolist() == [*np.eye(5)[:3].tolist(), *[[0.0] * 5] * 3]
    expected = 4 * math.log(math.exp(20) / (math.exp(20) + 7))
    assert float(found.log_probabilities[0, 0]) == pytest.approx(expected, abs=1e-6)
    assert float(found.scores[0, 0]) == pytest.approx(expected / 4**0.7, abs=1e-6)
    assert np.all(np.diff(found.scores.numpy()) <= 0)


@pytest.mark.parametrize("alpha", [0.0, 0.7, 1.0, 2.0])
@pytest.mark.parametrize("banned", [(), (0, 1, 2)])
def test_a_wide_beam_equals_brute_force(alpha: float, banned: tuple[int, ...]) -> None:
    # Four words and the special ones; or, nothing banned, a language whose four words are those.
    size = 8 if banned else 4
    language = np.random.default_rng(3).normal(size=(4, size, size)) * 1.5
    options = SearchOptions(beam=400, max_words=4, length_normalization=alpha, banned=banned)
    expected = brute_force(language, options)
    found = beam_search(language_step(language), FIRST, pictures=1, options=options)
    scores = found.scores[0].numpy()
    count = min(len(expected), 400)
    np.testing.assert_allclose(scores[:count], [score for score, _ in expected[:count]], rtol=1e-5)
    assert captions(found)[0][:count] == [list(words) for _, words in expected[:count]]
    if len(expected) < 400:  # there are no more: said so, not made up
        assert np.all(scores[len(expected) :] == -np.inf)
        assert not found.words[0, len(expected) :].numpy().any()
    three = dataclasses.replace(options, n_best=3)
    best = beam_search(language_step(language), FIRST, pictures=1, options=three)
    np.testing.assert_array_equal(best.words, found.words[:, :3])
    np.testing.assert_array_equal(best.scores, found.scores[:, :3])


def test_a_narrow_beam_equals_the_same_search_in_plain_python() -> None:
    random = np.random.default_rng(5)
    for trial in range(20):
        language = random.normal(size=(5, 9, 9)) * 2
        options = SearchOptions(beam=1 + trial % 4, max_words=5, length_normalization=0.5 * (trial % 3))
        found = beam_search(language_step(language), FIRST, pictures=1, options=options)
        expected = plain_beam_search(language, options)
        assert captions(found)[0] == [list(words) for _, words in expected]
        np.testing.assert_allclose(found.scores[0], [score for score, _ in expected], rtol=1e-5)


def plain_beam_search(language: np.ndarray, options: SearchOptions) -> list[tuple[float, tuple[int, ...]]]:
    log_p = log_softmax(language)
    beams = [(0.0, 0.0, (START,), False)]  # score, log probability, tokens, ended
    for count in range(1, options.max_words + 1):
        extensions = [beam for beam in beams if beam[3]]
        for _, total, tokens, ended in beams:
            for word in range(language.shape[1]):
                if not ended and word not in options.banned:
                    gained = total + log_p[count - 1, tokens[-1], word]
                    score = gained / count**options.length_normalization
                    extensions.append((score, gained, (*tokens, word), word == END))
        beams = sorted(extensions, reverse=True)[: options.beam]
    return [(score, tuple(w for w in tokens[1:] if w != END)) for score, _, tokens, _ in beams]


def test_greedy_takes_the_likeliest_word_each_time() -> None:
    table = np.random.default_rng(0).normal(size=(50, 50)) * 3
    table[:, [0, 1, 2]] = -50
    words, last = [], START
    while len(words) < 12 and (last := int(table[last].argmax())) != END:
        words.append(last)
    found = beam_search(table_step(table), NOTHING, pictures=1, options=SearchOptions(beam=1, max_words=12))
    assert captions(found) == [[words]]


def test_equal_scores_fall_the_same_way_every_time() -> None:
    level = table_step(np.zeros((40, 40)))
    for beam in (1, 4, 35):
        options = SearchOptions(beam=beam, max_words=2, length_normalization=0)
        found = beam_search(level, NOTHING, pictures=1, options=options)
        # Ending at once is likeliest; then the better slot first, in it the lower word.
        assert captions(found)[0][:4] == [[], [4], [4, 4], [4, 5]][:beam]


def test_a_caption_without_an_end_is_ended_at_the_limit() -> None:
    never = np.zeros((6, 6))
    never[:, END] = -1e9
    for limit in (1, 3):
        found = beam_search(
            table_step(never), NOTHING, pictures=1, options=SearchOptions(beam=2, max_words=limit)
        )
        assert found.lengths.numpy().tolist() == [[limit, limit]]
        assert np.isfinite(found.scores).all()


@pytest.mark.parametrize(
    ("logits", "banned"),
    [
        (np.zeros((4, 4)), (0, 1, 2)),  # only the end is left
        (np.zeros((5, 5)), (0, 1, 2, 3, 4)),  # nothing is left
        (np.full((5, 5), -np.inf), (0, 1, 2)),
        (np.full((5, 5), np.nan), (0, 1, 2)),
        (np.full((5, 5), -1e9), (0, 1, 2)),
        (np.eye(5) * 1e4, (0, 1, 2)),
    ],
)
@pytest.mark.parametrize("beam", [1, 3])
def test_nothing_to_say_is_an_empty_caption(logits: np.ndarray, banned: tuple[int, ...], beam: int) -> None:
    options = SearchOptions(beam=beam, max_words=3, banned=banned, return_attention=True)

    def step(words: Any, state: Any) -> tuple[Any, Any, Any]:
        return tf.gather(tf.constant(logits, tf.float32), words), state, tf.ones((tf.size(words), 2))

    for found in (
        beam_search(step, NOTHING, pictures=1, options=options),
        sample(step, NOTHING, pictures=1, samples=beam, options=options, seed=0),
    ):
        assert found.words.shape == (1, beam, 3)
        assert not np.isin(found.words, [1, 2]).any()
        assert np.isfinite(found.attention).all()


def test_a_picture_alone_is_as_in_a_batch() -> None:
    tables = np.random.default_rng(1).normal(size=(7, 30, 30)) * 2
    step = picture_step(tables)
    for options in (
        SearchOptions(beam=3, max_words=8),
        SearchOptions(beam=4, n_best=1, max_words=8, no_repeat=2),
        SearchOptions(beam=1, max_words=8),
    ):
        together = beam_search(step, numbers(7), pictures=7, options=options)
        for number in range(7):
            alone = beam_search(step, numbers(7)[number : number + 1], pictures=1, options=options)
            assert captions(alone)[0] == captions(together)[number]
            # Not bit-equal: which elements of a softmax are computed side by side depends on the batch.
            np.testing.assert_allclose(together.scores[number], alone.scores[0], rtol=1e-6)


def test_n_best_gives_the_same_first_ones_sooner() -> None:
    steps = []

    def counting(inner: Any) -> Any:
        def step(words: Any, state: Any) -> tuple[Any, Any, Any]:
            steps.append(1)
            return inner(words, state)

        return step

    tables = np.random.default_rng(2).normal(size=(5, 12, 12)) * 3
    tables[:, :, END] += 4
    taken = []
    for n_best in (0, 2, 1):
        options = SearchOptions(beam=4, n_best=n_best, max_words=20, length_normalization=0)
        steps.clear()
        found = beam_search(counting(picture_step(tables)), numbers(5), pictures=5, options=options)
        taken.append(len(steps))
        if n_best == 0:
            whole = found
        else:
            np.testing.assert_array_equal(found.words, whole.words[:, :n_best])
            np.testing.assert_array_equal(found.scores, whole.scores[:, :n_best])
    assert taken[0] >= taken[1] >= taken[2] and taken[2] < taken[0]


@pytest.mark.parametrize("run", [1, 2, 3])
@pytest.mark.parametrize("beam", [1, 3])
def test_no_run_of_words_comes_twice(run: int, beam: int) -> None:
    table = np.random.default_rng(4).normal(size=(7, 7)) * 2
    table[:, END] = -8
    options = SearchOptions(beam=beam, max_words=12, no_repeat=run)
    found = beam_search(table_step(table), NOTHING, pictures=1, options=options)
    drawn = sample(table_step(table), NOTHING, pictures=1, samples=8, options=options, seed=1)
    for words in captions(found)[0] + captions(drawn)[0]:
        runs = [tuple(words[i : i + run]) for i in range(len(words) - run + 1)]
        assert len(runs) == len(set(runs))
    free = beam_search(table_step(table), NOTHING, pictures=1, options=SearchOptions(beam=beam, max_words=12))
    assert len(set(captions(free)[0][0])) < 12  # without the rule it does repeat


def test_one_trace_serves_every_number_of_pictures() -> None:
    traces = []
    tables = np.random.default_rng(6).normal(size=(9, 30, 30))
    step = picture_step(tables)
    options = SearchOptions(beam=3, max_words=6, no_repeat=2)

    @tf.function(input_signature=[tf.TensorSpec((None, 1), tf.int32)])
    def search(state: Any) -> Hypotheses:
        traces.append(1)
        return beam_search(step, state, pictures=tf.shape(state)[0], options=options)

    @tf.function(input_signature=[tf.TensorSpec((None, 1), tf.int32), tf.TensorSpec((), tf.int32)])
    def draw(state: Any, seed: Any) -> Hypotheses:
        traces.append(1)
        return sample(step, state, pictures=tf.shape(state)[0], samples=2, options=options, seed=seed)

    for count in (1, 4, 9):
        eager = beam_search(step, numbers(count), pictures=count, options=options)
        np.testing.assert_array_equal(search(numbers(count)).words, eager.words)
        eager = sample(step, numbers(count), pictures=count, samples=2, options=options, seed=5)
        np.testing.assert_array_equal(draw(numbers(count), 5).words, eager.words)
    assert len(traces) == 2


def test_sampling_is_reproducible_and_of_the_right_distribution() -> None:
    table = np.log(np.array([[0.05, 0.05, 0.05, 0.15, 0.5, 0.2]] * 6))
    options = SearchOptions(max_words=1, banned=())
    draw = dict(pictures=1, samples=20000, options=options)
    found = sample(table_step(table), NOTHING, seed=7, **draw)
    counts = Counter(
        END if not length else int(words[0])
        for words, length in zip(found.words[0].numpy(), found.lengths[0].numpy(), strict=True)
    )
    shares = np.array([counts[word] / 20000 for word in range(6)])
    np.testing.assert_allclose(shares, np.exp(table[0]), atol=0.012)
    again = sample(table_step(table), NOTHING, seed=7, **draw)
    other = sample(table_step(table), NOTHING, seed=8, **draw)
    np.testing.assert_array_equal(found.words, again.words)
    assert (found.words.numpy() != other.words.numpy()).any()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"banned": (4,)}, {3: 0.3, 5: 0.4, 0: 0.3}),
        ({"temperature": 0.5}, {0: 9, 3: 9, 4: 16, 5: 16}),
        ({"top_k": 2}, {4: 0.5, 5: 0.5}),
        ({"top_p": 0.5}, {4: 0.5, 5: 0.5}),
        ({"top_p": 0.81}, {4: 0.4, 5: 0.4, 0: 0.3, 3: 0.3}),
        ({"top_p": 0.1}, {4: 1.0}),
    ],
)
def test_temperature_top_k_and_top_p(changes: dict[str, Any], expected: dict[int, float]) -> None:
    share = np.array([0.3, 1e-9, 1e-9, 0.3, 0.4, 0.4])
    table = np.log(np.array([share] * 6))
    options = SearchOptions(**{"max_words": 1, "banned": (), **changes})
    found = sample(table_step(table), NOTHING, pictures=1, samples=8000, options=options, seed=0)
    words = np.where(found.lengths[0] == 0, END, found.words[0, :, 0])
    whole = sum(expected.values())
    for word in range(6):
        assert np.mean(words == word) == pytest.approx(expected.get(word, 0) / whole, abs=0.02)
    # The log probability is the model's own, whatever it was drawn from.
    log_p = np.log(share / share.sum())
    np.testing.assert_allclose(found.log_probabilities[0], log_p[words], rtol=1e-5)


def test_a_seed_for_each_picture_makes_it_independent_of_its_place() -> None:
    tables = np.random.default_rng(1).normal(size=(4, 20, 20))
    step = picture_step(tables)
    options = SearchOptions(max_words=6)
    seeds = tf.constant([11, 12, 13, 14])
    together = sample(step, numbers(4), pictures=4, samples=3, options=options, seed=seeds)
    alone = sample(step, numbers(4)[2:3], pictures=1, samples=3, options=options, seed=seeds[2:3])
    np.testing.assert_array_equal(together.words[2], alone.words[0])
    assert len({tuple(words) for words in together.words[2].numpy()}) > 1


def test_states_of_any_shape_follow_their_hypotheses() -> None:
    """The state spells the caption so far: at the end it must agree with what was read off."""
    table = np.random.default_rng(8).normal(size=(10, 10))
    seen = {}

    def step(words: Any, state: Any) -> tuple[Any, Any, Any]:
        spelled = tf.concat([state["said"][:, 1:], words[:, None]], 1)
        for row in spelled.numpy():
            written = tuple(int(word) for word in row if word > 0)
            seen[written] = True
        return tf.gather(tf.constant(table, tf.float32), words), {"said": spelled, "n": state["n"]}, None

    state = {"said": tf.zeros((1, 6), tf.int32), "n": tf.zeros((1, 2, 3))}
    found = beam_search(step, state, pictures=1, options=SearchOptions(beam=3, max_words=5))
    for words in captions(found)[0]:
        prefix = (START, *words)[:5]
        assert prefix in seen


@pytest.mark.parametrize(("size", "count"), [(10, 3), (1000, 3), (5003, 7), (8000, 1), (6400, 20)])
def test_top_equals_tensorflows(size: int, count: int) -> None:
    random = np.random.default_rng(size)
    for rows in (random.normal(size=(6, size)), random.integers(0, 5, (6, size)), np.zeros((2, size))):
        values, places = _top(tf.constant(rows, tf.float32), count)
        expected = tf.math.top_k(tf.constant(rows, tf.float32), count)
        np.testing.assert_array_equal(values, expected.values)
        np.testing.assert_array_equal(places, expected.indices)


def test_inverting_a_long_distribution() -> None:
    random = np.random.default_rng(0)
    share = random.exponential(size=5003).astype(np.float32) * (random.random(5003) < 0.1)
    share[:300] = 0
    point = np.linspace(0, 1, 4001, endpoint=False, dtype=np.float32)[:, None]
    words, possible = _invert(tf.constant(np.repeat(share[None], len(point), 0)), tf.constant(point))
    exact = np.searchsorted(
        np.cumsum(share, dtype=np.float64) / share.sum(dtype=np.float64), point[:, 0], "right"
    )
    assert possible.numpy().all() and (share[words.numpy()] > 0).all()
    assert np.mean(words.numpy() == exact) > 0.99  # the rest: float32 at a border


@pytest.mark.parametrize(
    "wrong", [{"beam": 0}, {"max_words": 0}, {"temperature": 0.0}, {"top_p": 0.0}, {"n_best": 9}]
)
def test_options_that_make_no_sense(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        SearchOptions(**wrong)
