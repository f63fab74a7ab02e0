"""Beginning with another run: its words and rows, new ones, and how what it knew is held."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from captioner.config import Config, DecoderConfig, PhaseConfig, load_config
from captioner.data.corrections import known_share, split_corrections
from captioner.data.datasets import CaptionedImage, Problems
from captioner.data.vocabulary import Vocabulary
from captioner.errors import ConfigError, DataError
from captioner.inference.captioner import Captioner
from captioner.models.decoder import CaptionDecoder
from captioner.models.encoder import load_encoder
from captioner.models.layers.packed_forward import packed_forward
from captioner.training.adapt import AdaptStep, StartCaptions, most_alike
from captioner.training.input_pipeline import TokenizedCaptions
from captioner.training.losses import divergence
from captioner.training.new_words import FEWEST, UNUSED, fit_new_words, sink_unused_words
from captioner.training.optimizers import TrainOptimizer
from captioner.training.train import train
from captioner.training.warm_start import first_rows, grow_rows, grow_vocabulary, word_shares

OLD = Vocabulary.build(["a dog runs", "a cat"])
CELLS, CHANNELS = 3, 4


def small_decoder(words: int, *, tied: bool = False) -> CaptionDecoder:
    config = DecoderConfig(units=8, embedding=8, tied=tied)
    return CaptionDecoder(config, vocabulary_size=words, channels=CHANNELS, seed=1)


class Features:
    """Drawn features of any picture."""

    def read(self, ids: list[str]) -> np.ndarray:
        return np.stack([np.random.default_rng(len(i)).normal(size=(CELLS, CHANNELS)) for i in ids])


def pictures(*captions: tuple[str, ...]) -> list[CaptionedImage]:
    return [CaptionedImage(f"{'x' * n}.jpg", Path(), said) for n, said in enumerate(captions)]


def test_new_words_stand_behind_the_old_ones() -> None:
    captions = [text.split() for text in ("rex runs", "rex and anna", "anna and rex", "a zebra")]
    grown = grow_vocabulary(OLD, captions, min_count=2, named=["Bello !", "zebra", "dog"])
    assert grown.words == (*OLD.words, "rex", "and", "anna", "bello", "zebra")
    assert grow_vocabulary(OLD, captions, min_count=2, max_size=len(OLD) + 1).words == (*OLD.words, "rex")
    assert grow_vocabulary(OLD, [["a", "dog"]], min_count=1).words == OLD.words


@pytest.mark.parametrize("tied", [False, True])
def test_rows_for_new_words_change_nothing_of_the_old(tied: bool) -> None:
    before = small_decoder(len(OLD), tied=tied)
    shares = np.zeros((2, len(OLD)))
    shares[0, 5:7], shares[1, 4] = 0.5, 1
    arrays = grow_rows(before.weights_dict(), shares)
    after = small_decoder(len(OLD) + 2, tied=tied)
    after.load_weights_dict(arrays)
    features = np.random.default_rng(0).normal(size=(2, CELLS, CHANNELS)).astype("float32")
    words = tf.constant([4, 6])
    logits = []
    for decoder in (before, after):
        memory = decoder.project_memory(features)
        logits.append(decoder.step(words, decoder.initial_state(memory), memory)[0].numpy())
    np.testing.assert_allclose(logits[1][:, : len(OLD)], logits[0], rtol=1e-5)
    # A mixture is nowhere likelier than the likeliest word in it: the start goes on writing what it wrote.
    np.testing.assert_allclose(logits[1][:, -2], logits[0][:, 5:7].mean(1), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(logits[1][:, -1], logits[0][:, 4], rtol=1e-4)
    back = first_rows(arrays, len(OLD))
    assert all(np.array_equal(back[name], array) for name, array in before.weights_dict().items())


def test_a_new_word_begins_as_what_the_run_says_in_its_place() -> None:
    decoder = small_decoder(len(OLD))
    weights = decoder.weights_dict()
    weights["word_bias"] = np.zeros(len(OLD), "float32")
    weights["word_bias"][[3, 5]] = (
        20,
        10,
    )  # it would rather end, and would rather say "cat" than anything else
    decoder.load_weights_dict(weights)
    words = Vocabulary((*OLD.words, "rex", "unheard"))
    captions = TokenizedCaptions(pictures(("a rex runs", "rex"), ("a dog",)), words, max_words=9)
    special = np.arange(len(OLD)) < 4
    shares = word_shares(decoder, captions, Features(), special, 2)
    assert words.words[5] == "cat" and shares[0, 5] > 0.9
    np.testing.assert_allclose(shares.sum(1), 1)
    np.testing.assert_allclose(shares[1], [0, 0, 0, 0, *[1 / 4] * 4])  # no caption has it: the mean of all
    assert word_shares(decoder, captions, Features(), special, 0).shape == (0, len(OLD))


@pytest.mark.parametrize("tied", [False, True])
def test_new_words_learn_their_places_first(tied: bool) -> None:
    words = Vocabulary((*OLD.words, "rex", "unheard"))
    rex, known = words.ids("rex")[0], len(OLD)
    people = TokenizedCaptions(pictures(("a rex runs",) * FEWEST, ("an unheard dog",)), words, max_words=9)
    own = TokenizedCaptions(pictures(("a dog runs",) * FEWEST, ("a dog",)), words, max_words=9)

    def likely(word: str) -> np.ndarray:
        """How likely "rex", which may stand for that word, is after "a" of each picture."""
        shares = np.zeros((2, known), "float32")
        shares[0, OLD.ids(word)], shares[1, 4:] = 1, 1 / 4
        decoder = small_decoder(len(words), tied=tied)
        weights = small_decoder(known, tied=tied).weights_dict()
        weights["output_kernel"] = weights["output_kernel"] * 30  # an untaught one tells nothing apart
        decoder.load_weights_dict(grow_rows(weights, shares))
        before = decoder.weights_dict()
        two = ((people, Features()), (own, Features()))
        assert fit_new_words(decoder, shares, *two, seed=0) == 1, "too few captions have the other one"
        after = decoder.weights_dict()
        rows = {"embedding"} if tied else {"word_kernel"}
        changed = {name for name, x in before.items() if not np.array_equal(x, after[name])}
        assert changed == rows | {"word_bias"}
        moved = after["word_bias"] != before["word_bias"]
        assert moved.nonzero()[0].tolist() == [rex]
        memory = decoder.project_memory(Features().read(people.ids))
        step, state = decoder.make_step_fn(memory), decoder.initial_state(memory)
        for word_in in (2, OLD.ids("a")[0]):
            logits, state, _ = step(tf.constant([word_in] * 2), state)
        found: np.ndarray = tf.nn.softmax(logits).numpy()[:, rex]
        return found

    right, doubted = likely("dog"), likely("cat")
    assert right[0] > 2 * right[1]
    assert doubted[0] < right[0]  # what the start wrote in its place, "dog", is held against it


def test_words_that_another_language_does_not_use_fall_behind() -> None:
    german = Vocabulary((*OLD.words, "ein", "hund"))
    decoder = small_decoder(len(german))
    before = decoder.word_bias.numpy()
    captions = TokenizedCaptions(pictures(("ein hund a",)), german, max_words=9)
    assert sink_unused_words(decoder, len(OLD), captions) == 3
    lost = before - decoder.word_bias.numpy()
    words = [german.words[number] for number in lost.nonzero()[0]]
    assert sorted(words) == ["cat", "dog", "runs"] and set(lost[lost > 0]) == {UNUSED}


def test_divergence_is_nothing_where_nothing_has_moved() -> None:
    logits = tf.constant([[1.0, 2.0, 3.0], [0.0, 0.0, 5.0]])
    np.testing.assert_allclose(divergence(logits, logits + 7, np.zeros((0, 3), "f")), [0, 0], atol=1e-6)
    # Two words of one half each. A third takes half of both, in whose place it stands: nothing has moved.
    then, now = tf.constant([[0.0, 0.0]]), tf.math.log([[0.25, 0.25, 0.5]])
    np.testing.assert_allclose(divergence(then, now, np.array([[0.5, 0.5]], "f")), [0], atol=1e-6)
    # It stands for the first alone: the second has half of what it had.
    moved = 0.5 * np.log(0.5 / 0.75) + 0.5 * np.log(0.5 / 0.25)
    np.testing.assert_allclose(divergence(then, now, np.array([[1, 0]], "f")), [moved], rtol=1e-5)


def test_what_the_start_says_rightly_is_kept() -> None:
    drawn = ["a cat", "a dog sleeps", "a brown dog runs", "runs"]
    assert most_alike(drawn, ["the brown dog runs away", "a dog runs"]) == (
        "a brown dog runs",
        "a dog sleeps",
    )
    assert most_alike(drawn, []) == ("a cat", "a dog sleeps")


def test_steps_stay_closer_to_the_start_with_closeness() -> None:
    encoder = load_encoder("small_cnn", weights="none", size=32)
    source_records = pictures(("rex runs",) * 2, ("a rex",) * 2)
    words = grow_vocabulary(OLD, [said for r in source_records for said in r.words], min_count=2)

    class CnnFeatures:
        def read(self, ids: list[str]) -> np.ndarray:
            shape = (encoder.num_cells, encoder.channels)
            return np.stack([np.random.default_rng(len(i)).random(shape) for i in ids]).astype("float16")

    config = Config(decoder=DecoderConfig(units=8, embedding=8))
    start = CaptionDecoder(config.decoder, vocabulary_size=len(OLD), channels=encoder.channels)
    captions = StartCaptions(Captioner(encoder, start, OLD), CnnFeatures(), source_records, words, seed=3)
    batch = captions.batch(5, 16)
    assert [x.shape[0] for x in batch] == [2] * 4
    assert all(np.array_equal(x, y) for x, y in zip(batch, captions.batch(5, 16), strict=True))
    table = TokenizedCaptions(source_records, words, max_words=9)
    learned = table.pad_batch([0, 1], [range(2)] * 2)
    features = CnnFeatures().read(table.ids)
    distances, losses = [], []
    for closeness in (0.01, 10.0):
        phase = PhaseConfig(closeness=closeness, learning_rate=0.01, warmup_steps=0, use_dropout=False)
        decoder = CaptionDecoder(config.decoder, vocabulary_size=len(words), channels=encoder.channels)
        shares = np.full((len(words) - len(OLD), len(OLD)), 1 / len(OLD), "float32")
        decoder.load_weights_dict(grow_rows(start.weights_dict(), shares))
        updater = TrainOptimizer(phase, 20, decoder.trainable_variables)
        networks = (decoder, encoder, updater, words)
        step = AdaptStep(config, phase, *networks, start=start, shares=shares, captions=captions)
        losses.append(
            [step.train(((features, learned[0]), *learned[1:]), n).cross_entropy_sum for n in range(8)]
        )
        inputs = (tf.cast(batch[0], tf.float32), batch[1])
        then, now = (packed_forward(d, inputs, *batch[2:]).logits for d in (start, decoder))
        distances.append(float(tf.reduce_mean(divergence(then, now, shares))))
    assert losses[0][-1] < losses[0][0]
    assert distances[1] < distances[0] / 2


def test_closeness_needs_a_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="phases.adapt.closeness = 0.3: expected 0, except"):
        train(load_config("adapt"), tmp_path, tmp_path / "run")


def test_corrections_that_cannot_be_learned_from_are_counted_and_named() -> None:
    usual = [(f"a dog runs in the green grass number {n}",) for n in range(12)]
    records = pictures(
        *usual,
        ("...",),
        ("a dog " * 20,),
        ("개 한 마리가 풀밭을 달린다",),
        ("zwei kleine Hunde laufen schnell", "a dog runs"),
    )
    problems = Problems()
    splits = split_corrections(records, OLD, problems, max_words=30, seed=0)
    names = [record.id for split in splits.values() for record in split.records]
    assert len(names) == len(set(names)) == 13 and len(splits["dev"].records) == 3
    assert problems.counts == {
        "corrections without a word": 1,
        "corrections of more than 30 words": 1,
        "corrections in another language than the rest": 2,
    }
    made = splits["train"].made
    assert made and sorted(made["dev"]) == sorted(record.id for record in splits["dev"].records)
    # Pictures that come later are learned from; those kept aside stay there.
    more = split_corrections(records[2:], OLD, Problems(), max_words=30, seed=9, pinned=made)
    assert {r.id for r in more["dev"].records} == set(made["dev"]) & {r.id for r in records[2:]}
    with pytest.raises(DataError, match="1 corrections can be learned from, at least 2 are needed"):
        split_corrections(records[:1], OLD, Problems(), max_words=30, seed=0)


def test_a_whole_set_in_another_language_is_no_exception() -> None:
    german = [(f"ein kleiner Hund läuft auf Wiese {n}",) for n in range(12)]
    problems = Problems()
    splits = split_corrections(pictures(*german), OLD, problems, max_words=30, seed=0)
    assert not problems and sum(len(split.records) for split in splits.values()) == 12
    assert known_share([said for (said,) in german], OLD) == 0
