"""The reward of sampled captions: better or worse than the other samples of the same picture."""

from __future__ import annotations

import numpy as np
import pytest

from captioner.data.vocabulary import END
from captioner.evaluation.cider import CiderD
from captioner.training.rewards import CaptionReward

REFERENCES = [[[4, 5, 6, 7], [4, 5, 6]], [[8, 9, 10, 11]], [[12, 13, 14, 15]]]


def padded(captions: list[list[list[int]]], T: int) -> tuple[np.ndarray, np.ndarray]:
    """Words (B, K, T) and lengths (B, K)."""
    words = [[caption + [0] * (T - len(caption)) for caption in row] for row in captions]
    return np.array(words), np.array([[len(caption) for caption in row] for row in captions])


def test_a_sample_is_held_against_the_others_of_its_picture():
    samples = [[[4, 5, 6, 7], [4, 5], [8, 9, 10, 11]], [[8, 9, 10, 11], [8], []]]
    advantages, mean = CaptionReward(REFERENCES)([0, 1], *padded(samples, 6))
    judge = CiderD([[[*caption, END] for caption in captions] for captions in REFERENCES])
    scores = np.array(judge.scores([[[*s, END] for s in row] for row in samples], pictures=[0, 1]))
    expected = [[row[k] - np.delete(row, k).mean() for k in range(3)] for row in scores]
    np.testing.assert_allclose(advantages, expected, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(advantages.sum(1), 0, atol=1e-2)
    assert mean == pytest.approx(scores.mean(), rel=1e-5) and advantages.dtype == np.float32
    assert advantages[0, 0] > 0 > advantages[0, 2] and advantages[1, 0] > 0 > advantages[1, 2]


def test_pictures_are_found_by_their_place_in_the_references():
    reward = CaptionReward(REFERENCES)
    words = padded([[[12, 13, 14, 15], [4, 5, 6, 7]]], 5)
    right, wrong = reward([2], *words)[0], reward([0], *words)[0]
    assert right[0, 0] > 0 > right[0, 1] and wrong[0, 0] < 0 < wrong[0, 1]


def test_the_end_is_a_word_and_a_caption_cut_off_has_none():
    reward = CaptionReward(REFERENCES)
    ended = reward([1], *padded([[[8, 9, 10, 11]]], 5))[1]
    cut_off = reward([1], *padded([[[8, 9, 10, 11]]], 4))[1]
    assert ended > cut_off > 0


def test_one_sample_alone_is_held_against_nothing():
    advantages, mean = CaptionReward(REFERENCES)([1], *padded([[[8, 9, 10, 11]]], 5))
    assert advantages[0, 0] == pytest.approx(mean)


def test_each_language_is_rewarded_by_its_own_references() -> None:
    references = [[[4, 5, 6, 7], [8, 9, 10, 11]], [[4, 4, 5, 5]], [[8, 8, 9, 9]]]
    languages = [["en", "de"], ["en"], ["de"]]
    reward = CaptionReward(references, languages)
    words, lengths = padded([[[4, 5, 6, 7], [8, 9, 10, 11]]], 5)
    english, _ = reward([0], words, lengths, ["en"])
    german, _ = reward([0], words, lengths, ["de"])
    assert english[0, 0] > 0 > english[0, 1]
    assert german[0, 0] < 0 < german[0, 1]
    # Document frequencies are those of the language: as if there were no other.
    alone = CaptionReward([[[4, 5, 6, 7]], [[4, 4, 5, 5]]])([0], words, lengths)[0]
    assert np.array_equal(english, alone)


def test_languages_are_drawn_for_each_picture_by_itself() -> None:
    reward = CaptionReward([[[4], [5], [6]]] * 40 + [[[4]]], [["en", "de", "zh"]] * 40 + [["en"]])
    pictures = list(range(41))
    drawn = reward.draw_languages(pictures, ["en", "en", "de"], seed=(1, 2))
    assert set(drawn) == {"en", "de"} and drawn.count("en") > drawn.count("de") and drawn[40] == "en"
    assert reward.draw_languages(pictures[1::2], ["en", "en", "de"], seed=(1, 2)) == drawn[1::2]
    assert set(reward.draw_languages(pictures, (), seed=(1, 2))) == {"en", "de", "zh"}
    assert reward.draw_languages(pictures, ["de"], seed=(1, 2))[40] == "en"  # all it has
    assert CaptionReward([[[4]], [[5]]]).draw_languages([0, 1], (), seed=(0,)) == ["", ""]
