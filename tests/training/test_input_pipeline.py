"""Batches: which pictures with which words, in which order; pictures that change a little each epoch."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from captioner.config import PhaseConfig
from captioner.data.datasets import CaptionedImage
from captioner.data.vocabulary import Vocabulary, words_of
from captioner.errors import CacheError, DataError
from captioner.training.augmentation import augment, can_be_mirrored
from captioner.training.input_pipeline import (
    WINDOW,
    PixelSource,
    TokenizedCaptions,
    TrainingBatches,
)
from captioner.training.rewards import CaptionReward

TOY = {"a.png": ("a dog runs", "a dog"), "b.png": ("a cat sleeps",), "c.png": ("a man",)}


class Numbers:
    """Features of a picture: its number, as one cell of one channel."""

    def __init__(self, ids: Sequence[str]) -> None:
        self.rows = {name: row for row, name in enumerate(ids)}

    def read(self, ids: Sequence[str]) -> np.ndarray:
        return np.array([[[self.rows[name]]] for name in ids], np.float16)


def records(captions: dict[str, tuple[str, ...]], folder: Path = Path("nowhere")) -> list[CaptionedImage]:
    return [CaptionedImage(name, folder / name, texts) for name, texts in captions.items()]


def table_of(captions: dict[str, tuple[str, ...]], max_words: int = 30) -> TokenizedCaptions:
    vocabulary = Vocabulary.build([text for texts in captions.values() for text in texts])
    return TokenizedCaptions(records(captions), vocabulary, max_words=max_words)


def many(pictures: int = 150, captions: int = 1) -> TokenizedCaptions:
    """Pictures whose captions have 1 to 40 words."""
    draw = np.random.default_rng(5)
    lengths = draw.integers(1, 41, (pictures, captions))
    return table_of({f"{i}": tuple(" ".join("w" * n) for n in row) for i, row in enumerate(lengths)}, 40)


def batches_of(
    table: TokenizedCaptions, *, worker_shard: tuple[int, int] = (0, 1), seed: int = 0, **phase: int
):
    return TrainingBatches(
        table,
        Numbers(table.ids),
        phase=PhaseConfig(pictures_per_batch=8, **phase),
        seed=seed,
        worker_shard=worker_shard,
    )


def same(one, other) -> bool:
    return all(
        np.array_equal(a, b) for a, b in zip(tf.nest.flatten(one), tf.nest.flatten(other), strict=True)
    )


# Words.


def test_four_toy_captions_word_by_word():
    table = table_of(TOY)  # a 4, dog 5, cat 6, man 7, runs 8, sleeps 9
    words_in, words_out, weights = table.pad_batch([0, 1, 2], [[0, 1], [0], [0]])
    assert words_in.tolist() == [
        [[2, 4, 5, 8], [2, 4, 5, 0]],  # <start> a dog runs; <start> a dog
        [[2, 4, 6, 9], [0, 0, 0, 0]],  # <start> a cat sleeps; this picture has no second caption
        [[2, 4, 7, 0], [0, 0, 0, 0]],
    ]
    assert words_out.tolist() == [
        [[4, 5, 8, 3], [4, 5, 3, 0]],  # a dog runs <end>; a dog <end>
        [[4, 6, 9, 3], [0, 0, 0, 0]],
        [[4, 7, 3, 0], [0, 0, 0, 0]],
    ]
    assert weights.tolist() == [
        [[1, 1, 1, 1], [1, 1, 1, 0]],
        [[1, 1, 1, 1], [0, 0, 0, 0]],
        [[1, 1, 1, 0], [0, 0, 0, 0]],
    ]
    assert (words_in.dtype, words_out.dtype, weights.dtype) == (np.int32, np.int32, np.float32)


def test_a_batch_is_what_the_table_says_beside_the_pictures_features():
    table = table_of(TOY)
    ((features, words_in), words_out, weights) = next(iter(batches_of(table).batches(0)))
    pictures = features.numpy()[:, 0, 0].astype(int).tolist()
    assert sorted(pictures) == [0, 1, 2] and pictures[-1] == 2, "longest caption first"
    chosen = [range(len(table.captions[p])) for p in pictures]
    assert same((words_in, words_out, weights), table.pad_batch(pictures, chosen))


def test_long_captions_are_cut_and_unknown_words_are_unk():
    vocabulary = Vocabulary.build(["a dog"])
    captions = ("a dog chases a ball", "a dog runs")
    table = TokenizedCaptions(records({"a.png": captions}), vocabulary, max_words=3)
    words_in, words_out, weights = table.pad_batch([0], [[0, 1]])
    assert words_in.tolist() == [[[2, 4, 5, 1]] * 2]
    # The first goes on after its third word: it does not teach that a caption ends there.
    assert words_out.tolist() == [[[4, 5, 1, 0], [4, 5, 1, 3]]]
    assert weights.tolist() == [[[1, 1, 1, 0], [1, 1, 1, 1]]]


def test_a_picture_more_costs_a_kilobyte_of_memory() -> None:
    """Five captions of ten words, as word ids and as references of the reward; features stay on the disk."""
    draw = np.random.default_rng(0)
    words = [f"w{number}" for number in range(2000)]

    def kept(pictures: int) -> int:
        captions = {
            f"{i}": tuple(" ".join(draw.choice(words, 10)) for _ in range(5)) for i in range(pictures)
        }
        given, vocabulary = records(captions), Vocabulary.build(words)
        assert all(record.words for record in given)
        gc.collect()
        tracemalloc.start()
        table = TokenizedCaptions(given, vocabulary, max_words=30)
        tables = table, CaptionReward(table.captions, table.languages, table.cut)
        gc.collect()
        size, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert len(tables[0].ids) == pictures
        return size

    few, many = kept(100), kept(1100)
    assert (many - few) / 1000 < 1000


def test_nothing_to_train_on_is_said():
    with pytest.raises(DataError, match="no captioned picture"):
        TokenizedCaptions([], Vocabulary.build([]), max_words=9)


# Order.


def test_the_order_is_a_matter_of_seed_and_epoch_alone():
    table = many()
    one, other = batches_of(table), batches_of(table)
    for _ in one.batches(0):
        pass  # having been used changes nothing
    for epoch in (0, 3):
        assert all(map(np.array_equal, one.batch_order(epoch), other.batch_order(epoch)))
    for different in (one.batch_order(1), batches_of(table, seed=1).batch_order(0)):
        assert not all(map(np.array_equal, one.batch_order(0), different))
    for epoch in range(3):
        assert sorted(np.concatenate(one.batch_order(epoch))) == list(range(150)), "each picture once"
        assert len(one.batch_order(epoch)) == one.steps == 19


def test_pictures_of_like_length_share_a_batch_longest_first():
    table = many(8 * WINDOW)
    plan = batches_of(table).batch_order(0)
    lengths = [table.longest[batch] for batch in plan]
    assert all((np.diff(row) <= 0).all() for row in lengths)
    in_order = sorted(lengths, key=lambda row: -row[0])
    assert np.concatenate(in_order).tolist() == sorted(table.longest, reverse=True), "one window: all sorted"
    firsts = [row[0] for row in lengths]
    assert firsts != sorted(firsts, reverse=True), "but the batches themselves are shuffled"


@pytest.mark.parametrize("phase", [{}, {"captions_per_picture": 2}], ids=str)
def test_an_epoch_left_in_the_middle_goes_on_with_the_same_batches(phase):
    batches = batches_of(many(40, captions=5), **phase)
    whole = list(batches.batches(2))
    assert len(whole) == 5
    for skip in (1, 4, 5):
        rest = list(batches.batches(2, skip=skip))
        assert len(rest) == 5 - skip and all(map(same, rest, whole[skip:]))


def test_as_many_captions_a_picture_as_asked_for_others_each_epoch():
    table = many(40, captions=5)
    batches = batches_of(table, captions_per_picture=2)
    first, second = ([batch[0][1].numpy() for batch in batches.batches(e)] for e in (0, 1))
    assert all(words.shape[:2] == (8, 2) and words[:, :, 0].all() for words in first + second)
    words = [sum(int((batch != 0).sum()) for batch in epoch) for epoch in (first, second)]
    assert words[0] != words[1]


@pytest.mark.parametrize("parts", [2, 3])
def test_shards_share_out_every_batch(parts):
    table = many(64)
    whole = batches_of(table).batch_order(1)
    shards = [batches_of(table, worker_shard=(part, parts)).batch_order(1) for part in range(parts)]
    for step, batch in enumerate(whole):
        dealt = [shard[step] for shard in shards]
        assert sorted(np.concatenate(dealt)) == sorted(batch)
        assert max(map(len, dealt)) - min(map(len, dealt)) <= 1
        assert all((np.diff(table.longest[part]) <= 0).all() for part in dealt)


def test_features_that_have_become_unreadable_say_so_themselves():
    class Failing(Numbers):
        def read(self, ids: Sequence[str]) -> np.ndarray:
            if len(ids) > 1:  # the first look, at one picture, still works
                raise CacheError("shard-3: damaged")
            return super().read(ids)

    table = table_of(TOY)
    batches = TrainingBatches(table, Failing(table.ids), phase=PhaseConfig(), seed=0)
    with pytest.raises(CacheError, match="^shard-3: damaged$"):
        list(batches.batches(0))


# Pixels.


def test_a_picture_that_cannot_be_read_has_no_weight(tmp_path):
    for name in ("a.png", "c.png"):
        Image.new("RGB", (20, 30), (200, 10, 10)).save(tmp_path / name)
    (tmp_path / "b.png").write_bytes(b"not a picture")
    source = PixelSource(records(TOY, tmp_path), (16, 24))
    batches = TrainingBatches(table_of(TOY), source, phase=PhaseConfig(pictures_per_batch=3), seed=0)
    (pixels, words_in), words_out, weights = next(iter(batches.batches(0)))
    assert pixels.shape == (3, 16, 24, 3) and pixels.dtype == tf.uint8
    row = next(r for r in range(3) if not pixels.numpy()[r].any())
    assert not words_in.numpy()[row].any() and not words_out.numpy()[row].any()
    assert weights.numpy().any((1, 2)).sum() == 2 and not weights.numpy()[row].any()
    assert list(source.failures) == ["b.png"] and "b.png" in source.failures["b.png"]


def drawn(pictures: int = 64, size: int = 24) -> np.ndarray:
    """Dark on the left, bright on the right."""
    row = np.linspace(0, 255, size).astype(np.uint8)
    return np.broadcast_to(row[None, None, :, None], (pictures, size, size, 3)).copy()


def test_augmented_pictures_keep_shape_and_range_and_depend_on_the_seed_alone():
    pixels, allowed = drawn(), np.ones(64, bool)
    found = augment(pixels, allowed, tf.constant([3, 4])).numpy()
    assert found.shape == pixels.shape and found.dtype == np.float32
    assert found.min() >= 0 and found.max() <= 255
    np.testing.assert_array_equal(found, augment(pixels, allowed, tf.constant([3, 4])))
    assert np.abs(found - augment(pixels, allowed, tf.constant([3, 5]))).max() > 10
    assert np.abs(found - pixels).max(axis=(1, 2, 3)).min() > 1, "every picture is changed"
    assert np.abs(found.mean() - pixels.mean()) < 25, "but not beyond recognition"


def test_a_picture_is_mirrored_only_where_its_captions_stay_true():
    def share(allowed: bool) -> float:
        found = augment(drawn(), np.full(64, allowed), tf.constant([1, 2])).numpy()
        return float((found[:, :, 0].mean((1, 2)) > found[:, :, -1].mean((1, 2))).mean())

    assert share(False) == 0
    assert 0.3 < share(True) < 0.7


@pytest.mark.parametrize(
    "caption",
    [
        "A dog on the LEFT.",
        "the right-hand side",
        "der rechte Kreis",
        "links ein Stern",
        "왼쪽에 빨간 원",
        "左に赤い円",
        "un chien à gauche",
    ],
)
def test_captions_that_tell_the_sides_apart(caption):
    assert not can_be_mirrored([["a", "dog"], words_of(caption)])


def test_other_captions_stay_true_in_the_mirror():
    assert can_be_mirrored([words_of("bright leftovers on a plate")])
    assert table_of({"a": ("a dog",), "b": ("a dog", "left of a cat")}).can_flip.tolist() == [True, False]


def test_augmented_batches_are_the_same_again(tmp_path):
    for name in TOY:
        Image.fromarray(drawn(1)[0]).save(tmp_path / name)
    phase = PhaseConfig(pictures_per_batch=1, augment=True)
    table = table_of(TOY)

    def epoch(number: int, skip: int = 0) -> list:
        source = PixelSource(records(TOY, tmp_path), (24, 24))
        return list(TrainingBatches(table, source, phase=phase, seed=4).batches(number, skip=skip))

    first = epoch(0)
    assert all(map(same, first, epoch(0))) and all(map(same, first[1:], epoch(0, skip=1)))
    assert len({batch[0][0].numpy().tobytes() for batch in first + epoch(1)}) == 6
