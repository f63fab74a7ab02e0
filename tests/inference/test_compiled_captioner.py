"""Captions without TensorFlow: the same as with it, or a word why not."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from captioner.apps.export.export import ExportPlan, export
from captioner.config import Config, DecodeConfig, DecoderConfig, EncoderConfig
from captioner.data.vocabulary import Vocabulary
from captioner.errors import ConfigError, RunError
from captioner.inference import beam_search as search
from captioner.inference import numpy_beam_search
from captioner.inference.caption import Caption
from captioner.inference.captioner import Captioner
from captioner.inference.compiled_captioner import COMPILED, GRAPH, MANIFEST, CompiledCaptioner, NotExported
from captioner.inference.compiled_weights import put_back, take_out
from captioner.inference.loading import load_captioner
from captioner.inference.numpy_decoder import NumPyDecoder
from captioner.inference.search_options import SearchOptions
from captioner.models.decoder import CaptionDecoder
from captioner.models.encoder import load_encoder
from captioner.runs.run_folder import BEST, Run
from captioner.system.manifest import read_manifest, write_manifest
from tests.conftest import give_opinions, same_caption

WORDS = "a red blue circle square star is above below two three"
CONFIG = Config(
    encoder=EncoderConfig("small_cnn", weights="none", size=32, flip_augmented=True),
    decoder=DecoderConfig(units=16, embedding=8),
    decode=DecodeConfig(max_words=8),
)


def make_run(folder: Path, *, seed: int = 2, languages: tuple[str, ...] = ()) -> Run:
    """A finished run, untrained, but with strong opinions: what it says depends on the picture."""
    vocabulary = Vocabulary.build([WORDS], languages=languages)
    encoder = load_encoder("small_cnn", weights="none", size=32, flip_augmented=True)
    decoder = CaptionDecoder(CONFIG.decoder, vocabulary_size=len(vocabulary), channels=encoder.channels)
    give_opinions(decoder, seed)
    run = Run.create(folder, CONFIG, vocabulary, encoder)
    run.save_best(decoder, encoder, {"phase": "decoder", "epoch": 1})
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a compiled form; do not write into it."""
    folder = make_run(tmp_path_factory.mktemp("light") / "run").folder
    export(folder, ExportPlan(quiet=True))
    return folder


@pytest.fixture(scope="module")
def original(run: Path) -> Captioner:
    """What TensorFlow makes of that run."""
    return Captioner.load(run)


@pytest.fixture()
def copy(run: Path, tmp_path: Path) -> Path:
    """The same, to be written into."""
    return shutil.copytree(run, tmp_path / "run")


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    """(20, 40, 60, 3) noise of different colors and coarseness."""
    coarse = np.random.default_rng(0).integers(0, 256, (20, 4, 6, 3), dtype=np.uint8)
    return coarse.repeat(10, axis=1).repeat(10, axis=2)


# The search.


@pytest.mark.parametrize("seed", range(16))
def test_the_search_is_that_of_tensorflow(seed: int) -> None:
    """Random tables (B, V, V): a picture's logits after each word. Words 4 and 5 tie, some are impossible."""
    draw = np.random.default_rng(seed)
    pictures, size = int(draw.integers(1, 6)), int(draw.integers(6, 400 if seed % 3 else 9))
    tables = (draw.normal(size=(pictures, size, size)) * draw.choice([0.5, 3])).astype(np.float32)
    tables[..., 5] = tables[..., 4]
    if seed % 4 == 0:
        tables[draw.random(tables.shape) < 0.3] = -np.inf
    beam = int(draw.integers(1, 6))
    options = SearchOptions(
        beam=beam,
        n_best=int(draw.integers(0, beam + 1)),
        max_words=int(draw.integers(1, 12)),
        length_normalization=float(draw.choice([0, 0.7, 1.3])),
        no_repeat=int(draw.integers(0, 4)),
        banned=() if seed % 5 == 0 else (0, 1, 2),
        return_attention=True,
    )

    def step(words: np.ndarray, state: np.ndarray) -> Any:
        return tables[state[:, 0], words], state, np.eye(400, 7, dtype=np.float32)[words]

    def tensor_step(words: Any, state: Any) -> Any:
        found = step(words.numpy(), state.numpy())
        return tuple(map(tf.constant, found))

    numbers = np.arange(pictures)[:, None]
    expected = search.beam_search(tensor_step, tf.constant(numbers), pictures=pictures, options=options)
    found = numpy_beam_search.beam_search(step, numbers, pictures=pictures, options=options)
    narrowed = numpy_beam_search.beam_search(
        step, numbers, pictures=pictures, options=options, narrow=lambda numbers: step
    )
    for whole, part in zip(found, narrowed, strict=True):
        np.testing.assert_array_equal(part, whole)
    np.testing.assert_array_equal(found.words, expected.words)
    np.testing.assert_array_equal(found.lengths, expected.lengths)
    np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-5)
    np.testing.assert_array_equal(found.attention, expected.attention)
    real = np.isfinite(found.scores)
    totals = found.log_probabilities[real], np.asarray(expected.log_probabilities)[real]
    np.testing.assert_allclose(*totals, rtol=1e-5)


def test_a_state_of_several_parts_follows_its_hypotheses() -> None:
    """The first part counts words, the second sums them: each hypothesis keeps its own."""

    def step(words: np.ndarray, state: Any) -> Any:
        count, total = state
        total = total + words[:, None]
        wanted = 4 + (total[:, 0] + count[:, 0]) % 3  # what comes next depends on all that was written
        logits = np.full((len(words), 8), -5, np.float32)
        logits[np.arange(len(words)), wanted] = 3
        logits[np.arange(len(words)), 4 + (wanted - 3) % 3] = 2.5
        return logits, (count + 1, total), None

    options = SearchOptions(beam=3, max_words=5)
    (best, *_), *_ = numpy_beam_search.beam_search(
        step, (np.zeros((1, 1), int), np.zeros((1, 1), int)), pictures=1, options=options
    )
    words, state, last = [], (np.zeros((1, 1), int), np.zeros((1, 1), int)), 2
    for _ in range(5):  # greedily: every step's best is 0.5 better than its second
        logits, state, _ = step(np.array([last]), state)
        last = int(logits[0].argmax())
        words.append(last)
    assert best[0].tolist() == words


# The decoder.


@pytest.mark.parametrize(
    "kind",
    [
        {},
        {"heads": 4},
        {"attention": "additive"},
        {"sentinel": True, "heads": 2},
        {"tied": True},
        {"l2_normalize_features": True},
        {"attention": "additive", "sentinel": True, "tied": True, "l2_normalize_features": True},
    ],
    ids=str,
)
def test_the_decoder_is_that_of_tensorflow(kind: dict[str, Any]) -> None:
    config = DecoderConfig(units=32, embedding=16, **kind)
    decoder = CaptionDecoder(config, vocabulary_size=50, channels=24)
    draw = np.random.default_rng(0)
    arrays = {name: draw.normal(0, 0.3, a.shape).astype("f4") for name, a in decoder.weights_dict().items()}
    decoder.load_weights_dict(arrays)
    features, words = draw.normal(size=(5, 9, 24)).astype(np.float16), draw.integers(0, 50, 15, np.int32)
    memory = decoder.project_memory(features)
    state = np.repeat(decoder.initial_state(memory), 3, axis=0)
    light = NumPyDecoder(config, arrays)
    prepared = light.project_memory(features)
    np.testing.assert_allclose(np.repeat(light.initial_state(prepared), 3, axis=0), state, atol=1e-5)
    found = light.make_step_fn(prepared)(words, state)
    for ours, theirs in zip(found, decoder.step(words, state, memory), strict=True):
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


# Whole captions.


@pytest.fixture(scope="module")
def speaking(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a compiled form that knows languages."""
    folder = make_run(tmp_path_factory.mktemp("languages") / "run", languages=("en", "de", "ko")).folder
    export(folder, ExportPlan(quiet=True))
    return folder


def test_each_language_has_captions_of_its_own_by_both_ways(speaking: Path, pictures: np.ndarray) -> None:
    compiled, original = CompiledCaptioner.load(speaking), Captioner.load(speaking)
    found = compiled.caption(pictures, language="all")
    for language in ("en", "de", "ko"):
        alone = compiled.caption(pictures, language=language)
        theirs = original.caption(pictures, language=language)
        assert [caption.text for caption in alone] == [caption.text for caption in theirs]
        assert {caption.language for caption in (*alone, *theirs)} == {language}
        assert [caption.by_language[language].text for caption in found] == [c.text for c in alone]
        assert not any("<" in caption.text for caption in alone)  # what stands for a language is not written
    assert [caption.text for caption in compiled.caption(pictures)] == [c.text for c in found]
    differing = sum(len({own.text for own in c.by_language.values()}) > 1 for c in found)
    assert differing >= len(found) / 4
    line = found[0].to_dict()
    assert list(line) == ["path", "caption", "score", "language", "captions"]
    assert list(line["captions"]) == ["en", "de", "ko"]


@pytest.mark.parametrize("captioner", [CompiledCaptioner, Captioner])
def test_a_language_that_a_model_does_not_know(
    run: Path, speaking: Path, pictures: np.ndarray, captioner: Any
) -> None:
    with pytest.raises(ConfigError, match='unknown language "fr"; known: de, en, ko'):
        captioner.load(speaking).caption(pictures[0], language="fr")
    for name in ("en", "all"):
        with pytest.raises(ConfigError, match="learned from captions without languages"):
            captioner.load(run).caption(pictures[0], language=name)


@pytest.mark.parametrize(
    "options", [{}, {"beam": 1}, {"n_best": 4, "attention": True}, {"max_words": 3, "no_repeat": 1}], ids=str
)
def test_captions_are_those_of_tensorflow(
    run: Path, original: Captioner, pictures: np.ndarray, options: dict[str, Any]
) -> None:
    expected = original.caption(pictures, **options)
    found = CompiledCaptioner.load(run).caption(pictures, **options)
    assert len({caption.text for caption in found}) > 1
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours.text, ours.words) == (theirs.text, theirs.words)
        assert ours.score == pytest.approx(theirs.score, abs=2e-3)  # features are rounded to float16
        assert [one.text for one in ours.alternatives] == [one.text for one in theirs.alternatives]
        if options.get("attention"):
            assert ours.attention is not None and theirs.attention is not None
            np.testing.assert_allclose(ours.attention, theirs.attention, atol=2e-3)


@pytest.mark.machines
@pytest.mark.parametrize("beam", [1, 3])
def test_a_picture_alone_is_as_among_others(run: Path, pictures: np.ndarray, beam: int) -> None:
    captioner = CompiledCaptioner.load(run)
    together = captioner.caption(pictures, beam=beam)
    for picture, caption in zip(pictures, together, strict=True):
        assert same_caption(captioner.caption(picture, beam=beam)[0], caption)
    in_threes = captioner.caption(pictures, beam=beam, batch_size=3)
    assert all(map(same_caption, in_threes, together))


def test_features_that_are_known_need_no_cnn(run: Path, pictures: np.ndarray) -> None:
    captioner = CompiledCaptioner.load(run)
    features = captioner.encode(pictures[:3, :32, :32])
    assert features.dtype == np.float16 and features.shape == (3, 8, 128)  # 2 x 2, and mirrored
    found = captioner.caption_features(features)
    expected = captioner.caption(pictures[:3, :32, :32])
    assert [(one.text, one.score) for one in found] == [(one.text, one.score) for one in expected]


def test_a_bad_picture_is_a_record(run: Path, pictures: np.ndarray, tmp_path: Path) -> None:
    Image.fromarray(pictures[0]).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_text("<html>", encoding="utf-8")
    bad, good = CompiledCaptioner.load(run).caption([tmp_path / "bad.png", tmp_path / "good.png"])
    assert (bad.error or "").startswith("is no picture") and good.error is None


def test_the_encoder_serves_many_threads(run: Path, pictures: np.ndarray) -> None:
    encoder = CompiledCaptioner.load(run).encoder
    alone = [encoder.encode(picture[:32, :32]) for picture in pictures]
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda picture: encoder.encode(picture[:32, :32]), [*pictures] * 3))
    np.testing.assert_array_equal(found, alone * 3)


def test_words_are_not_drawn(run: Path, pictures: np.ndarray) -> None:
    with pytest.raises(ConfigError, match="drawn"):
        CompiledCaptioner.load(run).caption(pictures[0], temperature=0.5)


# Which form of a run is used.


def test_a_compiled_form_of_other_weights_is_not_used(copy: Path) -> None:
    make_run(copy.parent / "other", seed=3)
    for name in ("weights.safetensors", "best.json"):
        shutil.copy(copy.parent / "other" / BEST / name, copy / BEST / name)
    with pytest.raises(NotExported, match="not of its present weights"):
        CompiledCaptioner.load(copy)
    export(copy, ExportPlan(quiet=True))
    assert CompiledCaptioner.load(copy)


def test_a_run_without_or_with_a_foreign_compiled_form(copy: Path) -> None:
    manifest = read_manifest(copy / COMPILED / MANIFEST)
    for key, value, reason in (("format", 9, "another version"), ("vocabulary", "", "another vocabulary")):
        write_manifest(copy / COMPILED / MANIFEST, {**manifest, key: value})
        with pytest.raises(NotExported, match=reason):
            CompiledCaptioner.load(copy)
    shutil.rmtree(copy / COMPILED)
    with pytest.raises(NotExported, match="has no compiled form"):
        CompiledCaptioner.load(copy)
    with pytest.raises(RunError, match="no such folder"):
        CompiledCaptioner.load(copy / "nowhere")


def test_a_damaged_compiled_form_is_named(copy: Path) -> None:
    path = copy / COMPILED / GRAPH
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(RunError, match="encoder.graph: cut short"):
        CompiledCaptioner.load(copy)


# The compiled form holds no weights of its own.


def test_arrays_are_taken_out_of_a_model_and_put_back() -> None:
    rng = np.random.default_rng(0)
    arrays = {
        "kernel": rng.standard_normal((3, 3, 4, 8)).astype(np.float16),
        "depthwise": rng.standard_normal((3, 3, 16, 1)).astype(np.float16),
        "elsewhere": rng.standard_normal((64,)).astype(np.float16),
        "zeros": np.zeros((64,), np.float16),
        "short": np.ones((2,), np.float16),
    }
    kernel = arrays["kernel"].transpose(3, 0, 1, 2).tobytes()
    model = (
        b"head" + kernel + arrays["short"].tobytes() + arrays["depthwise"].tobytes() + bytes(128) + b"tail"
    )
    rest, places = take_out(model, arrays)
    assert places == [
        {"name": "kernel", "offset": 4, "order": [3, 0, 1, 2]},
        {"name": "depthwise", "offset": 4 + len(kernel) + 4, "order": []},
    ]
    assert zlib.decompress(rest).startswith(b"head" + bytes(len(kernel)))
    assert put_back(rest, places, arrays) == model
    with pytest.raises(RunError, match="the weights lack kernel"):
        put_back(rest, places, {})


def test_a_compiled_form_takes_little_room(run: Path) -> None:
    weights = (run / BEST / "weights.safetensors").stat().st_size
    assert (run / COMPILED / GRAPH).stat().st_size < 0.1 * weights


def test_without_litert_tensorflow_is_used(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    with pytest.raises(NotExported, match="pip install ai-edge-litert"):
        CompiledCaptioner.load(run)


def test_what_captions_is_said_where_it_takes_longer(
    run: Path, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert isinstance(load_captioner(run, {"beam": 2}), CompiledCaptioner)
    assert capsys.readouterr().err == ""
    assert isinstance(load_captioner(run, {"top_k": 5}), Captioner)
    assert "TensorFlow is loaded: words are drawn at random" in capsys.readouterr().err
    shutil.rmtree(copy / COMPILED)
    assert isinstance(load_captioner(copy, {}), Captioner)
    assert f"`captioner export --run {copy}` makes" in capsys.readouterr().err
    load_captioner(copy, {}, quiet=True)
    assert capsys.readouterr().err == ""
    with pytest.raises(ConfigError, match="beam 0"):
        load_captioner(run, {"beam": 0})
    with pytest.raises(ConfigError, match="beam 100 with max_words 31: .* may be 3,000 at most"):
        load_captioner(run, {"beam": 100, "max_words": 31})


def test_one_caption_loads_nothing_that_it_does_not_need(
    run: Path, original: Captioner, pictures: np.ndarray, tmp_path: Path
) -> None:
    Image.fromarray(pictures[0]).save(tmp_path / "a.png")
    arguments = ["caption", str(tmp_path / "a.png"), "--run", str(run), "--json"]
    code = (
        "import sys\n"
        "from captioner.cli.main import main\n"
        f"code = main({arguments!r})\n"
        "heavy = {'tensorflow', 'keras', 'matplotlib', 'nltk', 'tqdm', 'h5py', 'scipy'} & set(sys.modules)\n"
        "sys.exit(f'loaded: {sorted(heavy)}' if heavy else code)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    expected: Caption = original.caption(pictures[0])[0]
    line = json.loads(done.stdout)
    assert line["caption"] == expected.text and line["score"] == pytest.approx(expected.score, abs=2e-3)


@pytest.mark.slow
def test_the_model_that_comes_along_says_the_same(flickr8k: Path) -> None:
    """On dev: 99 captions of 100 word for word."""
    from captioner.data.datasets import load_split
    from captioner.errors import CaptionerError
    from captioner.runs.locate import find_run

    try:
        folder = find_run(None)
        light = CompiledCaptioner.load(folder)
    except CaptionerError as error:
        pytest.skip(str(error))
    paths = [record.path for record in load_split(flickr8k, "dev").records]
    pairs = list(zip(light.captions_of(paths), Captioner.load(folder).captions_of(paths), strict=True))
    assert sum(one.text == other.text for one, other in pairs) >= 0.99 * len(pairs)


def test_words_of_other_languages_are_never_written(tmp_path: Path, pictures: np.ndarray) -> None:
    made = make_run(tmp_path / "run", languages=("en", "de"))
    decoder, encoder = made.load_best()
    words = made.vocabulary.words
    german = {"red", "blue", "circle"}
    spoken = np.array([[word not in german for word in words], [word in german for word in words]])
    decoder.set_spoken(spoken)
    made.save_best(decoder, encoder, {"phase": "decoder", "epoch": 2}, half=True)
    export(made.folder, ExportPlan(quiet=True))
    compiled, original = CompiledCaptioner.load(made.folder), Captioner.load(made.folder)
    for language, own in (("en", set(words) - german), ("de", german)):
        ours = compiled.caption(pictures, language=language)
        theirs = original.caption(pictures, language=language)
        assert {word for caption in ours for word in caption.words} <= own
        assert [caption.text for caption in ours] == [caption.text for caption in theirs]
        for one, other in zip(ours, theirs, strict=True):
            assert one.score == pytest.approx(other.score, rel=1e-3)


def test_a_run_that_notes_no_words_of_languages_may_write_all(speaking: Path) -> None:
    decoder, _ = Run.open(speaking).load_best()
    arrays = {name: array for name, array in decoder.weights_dict().items() if name != "spoken"}
    decoder.load_weights_dict(arrays)
    assert np.asarray(decoder.spoken).all()
