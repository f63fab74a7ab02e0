"""The captioner: one caption a picture, whatever the company, the kind of source, or what ails the others."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from captioner.config import Config, DecodeConfig, DecoderConfig, EncoderConfig
from captioner.data.vocabulary import Vocabulary
from captioner.errors import ConfigError, RunError
from captioner.inference.base import BATCHES_AHEAD, searches_at_once
from captioner.inference.caption import Caption
from captioner.inference.captioner import Captioner
from captioner.models.decoder import CaptionDecoder
from captioner.models.encoder import load_encoder
from captioner.runs.run_folder import Run
from tests.conftest import give_opinions, same_caption

WORDS = "a red blue circle square star is above below two three"
SIZE = DecoderConfig(units=16, embedding=8)


@pytest.fixture(scope="module")
def captioner() -> Captioner:
    """Untrained, but with strong opinions: what it says depends on the picture."""
    vocabulary = Vocabulary.build([WORDS])
    encoder = load_encoder("small_cnn", weights="none", size=48)
    decoder = CaptionDecoder(SIZE, vocabulary_size=len(vocabulary), channels=encoder.channels)
    give_opinions(decoder)
    return Captioner(encoder, decoder, vocabulary, DecodeConfig(max_words=8))


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    """(20, 40, 60, 3) noise of different colors and coarseness."""
    draw = np.random.default_rng(0)
    coarse = draw.integers(0, 256, (20, 4, 6, 3), dtype=np.uint8)
    return coarse.repeat(10, axis=1).repeat(10, axis=2)


@pytest.mark.machines
@pytest.mark.parametrize(
    "options",
    [{}, {"beam": 1}, {"n_best": 4, "attention": True}, {"temperature": 1.2, "n_best": 3, "seed": 5}],
    ids=str,
)
def test_a_picture_alone_gets_the_caption_it_gets_among_others(
    captioner: Captioner, pictures: np.ndarray, options: dict[str, Any]
) -> None:
    together = captioner.caption(pictures, batch_size=8, **options)
    assert len({caption.text for caption in together}) > 3  # not one caption for all
    for picture, caption in zip(pictures, together, strict=True):
        assert same_caption(captioner.caption(picture, batch_size=8, **options)[0], caption)
    backwards = captioner.caption(pictures[::-1], batch_size=8, **options)
    assert all(map(same_caption, backwards[::-1], together))


def test_a_caption_says_what_it_is(captioner: Captioner, pictures: np.ndarray) -> None:
    caption = captioner.caption(pictures[0], beam=1)[0]
    assert caption.text == " ".join(caption.words)
    assert set(caption.words) <= set(WORDS.split())
    tokens = len(caption.words) + (len(caption.words) < 8)  # the end counts where it was written
    assert caption.score == pytest.approx(caption.log_probability / tokens**0.7, rel=1e-5)
    assert 0 < caption.probability == math.exp(caption.log_probability) < 1
    assert caption.attention is None and caption.alternatives == () and caption.error is None


def test_every_kind_of_source_gives_the_same_caption(
    captioner: Captioner, pictures: np.ndarray, tmp_path: Path
) -> None:
    file = tmp_path / "사진.png"
    Image.fromarray(pictures[0]).save(file)
    stream = io.BytesIO()
    Image.open(file).save(stream, "PNG")  # and left at its end
    sources = [file, str(file), file.read_bytes(), pictures[0], Image.open(file), stream]
    captions = captioner.caption(sources)
    assert all(same_caption(caption, captions[0]) for caption in captions)
    names = [str(file), str(file), "<bytes>", "<array>", str(file), "<BytesIO>"]
    assert [caption.path for caption in captions] == names
    for source in sources:
        assert same_caption(captioner.caption(source)[0], captions[0])
    with open(file, "rb") as opened:
        assert same_caption(captioner.caption(opened)[0], captions[0])
    assert "cannot be read" in (captioner.caption([opened])[0].error or "")  # closed by now


def test_bad_pictures_keep_their_place_and_say_why(
    captioner: Captioner, pictures: np.ndarray, tmp_path: Path
) -> None:
    empty = tmp_path / "empty.jpg"
    empty.touch()
    sources = [empty, pictures[0], b"no picture", pictures[1], tmp_path / "nowhere.png", 7]
    found = captioner.caption(sources, batch_size=2)
    good = captioner.caption(pictures[:2], batch_size=2)
    assert same_caption(found[1], good[0]) and same_caption(found[3], good[1])
    bad = [found[i] for i in (0, 2, 4, 5)]
    assert [caption.path for caption in bad] == [
        str(empty),
        "<bytes>",
        str(tmp_path / "nowhere.png"),
        "<int>",
    ]
    assert "0 bytes" in str(bad[0].error) and "no such file" in str(bad[2].error)
    assert all(caption.text == "" and caption.words == () for caption in bad)
    assert captioner.caption([empty, empty])[1].error == bad[0].error
    assert captioner.caption([]) == []


def test_pictures_are_taken_a_few_batches_at_a_time(captioner: Captioner, pictures: np.ndarray) -> None:
    taken = 0

    def endless() -> Iterator[np.ndarray]:
        nonlocal taken
        while True:
            taken += 1
            yield pictures[taken % len(pictures)]

    captions = captioner.captions_of(endless(), batch_size=4)
    assert taken == 0
    next(captions)
    assert taken <= (searches_at_once() + BATCHES_AHEAD) * 4 + 1
    assert taken < 100
    captions.close()  # ends the threads


def test_known_features_give_the_same_captions(captioner: Captioner, pictures: np.ndarray) -> None:
    pixels = np.stack([np.asarray(Image.fromarray(picture).resize((48, 48))) for picture in pictures])
    features = captioner.encode(pixels)
    assert features.shape == (20, captioner.encoder.num_cells, captioner.encoder.channels)
    assert features.dtype == np.float16
    wanted = captioner.caption(pixels, attention=True)
    assert all(map(same_caption, captioner.caption_features(features, attention=True), wanted))

    class Store:
        def read(self, ids: list[str]) -> np.ndarray:
            return features[[int(name) for name in ids]]

    ids = ["3", "1", "19"]
    stored = captioner.caption_features(Store(), ids, batch_size=2)
    assert [caption.path for caption in stored] == ids
    assert [caption.text for caption in stored] == [wanted[int(name)].text for name in ids]


def test_attention_is_a_share_of_every_cell_for_every_word(
    captioner: Captioner, pictures: np.ndarray
) -> None:
    for caption in captioner.caption(pictures[:4], attention=True):
        assert caption.attention is not None
        assert caption.attention.shape == (len(caption.words), *captioner.encoder.grid)
        np.testing.assert_allclose(caption.attention.sum((1, 2)), 1, rtol=1e-5)


def test_n_best_are_different_and_ordered(captioner: Captioner, pictures: np.ndarray) -> None:
    for caption in captioner.caption(pictures[:4], n_best=6):
        found = [caption, *caption.alternatives]
        assert len({one.words for one in found}) == len(found) == 6
        scores = [one.score for one in found]
        assert scores == sorted(scores, reverse=True)
        assert 0 < sum(one.probability for one in found) <= 1


def test_drawing_depends_on_the_seed_and_nothing_else(captioner: Captioner, pictures: np.ndarray) -> None:
    def drawn(**options: Any) -> list[str]:
        captions = captioner.caption(pictures[:3], n_best=4, **options)
        return [one.text for caption in captions for one in (caption, *caption.alternatives)]

    first = drawn(temperature=1.0, seed=1)
    assert first == drawn(temperature=1.0, seed=1)
    assert first != drawn(temperature=1.0, seed=2)
    greedy = [caption.text for caption in captioner.caption(pictures[:3], beam=1)]
    assert drawn(top_k=1)[::4] == greedy
    assert drawn(top_p=1e-6)[::4] == greedy


def test_the_search_is_traced_once_and_reads_the_present_weights(pictures: np.ndarray) -> None:
    vocabulary = Vocabulary.build([WORDS])
    encoder = load_encoder("small_cnn", weights="none", size=48)
    decoder = CaptionDecoder(SIZE, vocabulary_size=len(vocabulary), channels=encoder.channels)
    captioner = Captioner(encoder, decoder, vocabulary)
    for count in (1, 7, 8, 20):
        captioner.caption(pictures[:count], batch_size=8)
    (graph,) = captioner._graphs.values()
    assert graph.experimental_get_tracing_count() == 1
    for word in ("star", "circle"):
        decoder.word_bias.assign(np.eye(len(vocabulary))[vocabulary.ids(word)[0]] * 100)
        assert captioner.caption(pictures[0], max_words=3)[0].words == (word, word, word)
        assert captioner.caption(pictures[0], max_words=3, no_repeat=1)[0].words.count(word) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"baem": 3}, 'unknown option "baem"; did you mean "beam"?'),
        ({"beam": 0}, "beam 0: expected a whole number from 1 to 100"),
        ({"n_best": 100_000}, "n_best 100000: expected a whole number from 1 to 100"),
        ({"max_words": 10**9}, "max_words 1000000000: expected a whole number from 1 to 1000"),
        ({"max_words": 1000, "n_best": 4}, "with beam 4 expected max_words up to 750"),
        ({"n_best": 0}, "n_best 0"),
        ({"temperature": 0.0}, "temperature 0.0: expected a number above 0"),
        ({"top_p": 1.5}, "top_p 1.5: expected a number above 0 to 1"),
        ({"top_k": -1}, "top_k -1"),
        ({"batch_size": 0}, "batch_size 0"),
        ({"seed": -1}, "seed -1"),
    ],
)
def test_options_that_make_no_sense_are_named(
    captioner: Captioner, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        captioner.captions_of([], **options)  # at once, not when the first caption is asked for
    assert message in str(caught.value)


def test_a_run_folder_is_all_that_is_needed(
    captioner: Captioner, pictures: np.ndarray, tmp_path: Path
) -> None:
    config = Config(encoder=EncoderConfig("small_cnn", "none"), decoder=SIZE, decode=captioner.decode)
    run = Run.create(tmp_path / "run", config, captioner.vocabulary, captioner.encoder)
    with pytest.raises(RunError, match="no finished epoch"):
        Captioner.load(run.folder)
    run.save_best(captioner.decoder, captioner.encoder, {"epoch": 1, "phase": "decoder"})
    moved = run.folder.rename(tmp_path / "moved")
    loaded = Captioner.load(moved)
    assert all(map(same_caption, loaded.caption(pictures[:5]), captioner.caption(pictures[:5])))


def test_a_caption_as_json() -> None:
    assert Caption("a.jpg", "a dog", -1.25).to_dict() == {"path": "a.jpg", "caption": "a dog", "score": -1.25}
    assert Caption("a.jpg", error="is empty").to_dict() == {"path": "a.jpg", "error": "is empty"}
