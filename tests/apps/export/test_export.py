"""Exports: each says what its run says, in a form that others can use; what does not is not kept."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from captioner.apps.export import export as room
from captioner.apps.export.export import ExportPlan, export
from captioner.apps.export.parity_check import Answer, Variant
from captioner.apps.export.savedmodel import _joiner
from captioner.cli.commands import export as command_of_export
from captioner.cli.main import main
from captioner.data.images import read_image
from captioner.data.vocabulary import Vocabulary
from captioner.errors import CaptionerError, ConfigError, RunError
from captioner.inference.captioner import Captioner
from captioner.runs.run_folder import BEST, Run
from tests.inference.test_compiled_captioner import CONFIG, make_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; do not write into it."""
    return make_run(tmp_path_factory.mktemp("export") / "run").folder


@pytest.fixture(scope="module")
def pictures(scenes_folder: Path) -> list[Path]:
    return sorted((scenes_folder / "images").iterdir())[:8]


def plan(**wishes: Any) -> ExportPlan:
    return ExportPlan(pictures=12, quiet=True, **wishes)


def test_litert_models_stand_alone(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "models"
    assert main(["export", "--run", str(run), "--out", str(out), "--pictures", "12"]) == 0
    said = capsys.readouterr()
    assert said.out.startswith(f"{out}: ") and "litert: 12 of 12 captions are the run's own" in said.out
    assert "compared" in said.err
    files = {path.name for path in out.iterdir()}
    assert files == {"encoder.tflite", "decoder.tflite", "vocabulary.txt", "export.json"}
    about = json.loads((out / "export.json").read_text(encoding="utf-8"))
    assert about["encoder"]["size"] == [32, 32] and about["decode"]["beam"] == 3
    assert about["compared"][0]["pictures"] == 12
    assert not (run / "compiled").exists()


def test_onnx_takes_any_number_of_pictures(run: Path, pictures: list[Path], tmp_path: Path) -> None:
    pytest.importorskip("tf2onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    made = export(run, plan(format="onnx", out=tmp_path / "onnx"))
    assert made.checks[0].same_text == 12 and made.checks[0].score_error < 1e-3
    sessions = {
        name: onnxruntime.InferenceSession(str(made.folder / f"{name}.onnx"))
        for name in ("encoder", "start", "step")
    }
    pixels = np.stack([read_image(path, size=(32, 32)) for path in pictures])
    captioner = Captioner.load(run)
    (cells,) = sessions["encoder"].run(["cells"], {"pixels": pixels})
    np.testing.assert_allclose(cells, captioner.encoder.encode(pixels), atol=1e-4)
    names = ("keys", "values", "state")
    memory = dict(zip(names, sessions["start"].run(names, {"cells": cells}), strict=True))
    wanted = ("logits", "new_state", "attention")
    logits, state, looks = sessions["step"].run(wanted, {"words": np.full(8, 2, np.int32), **memory})
    assert (logits.shape, state.shape, looks.shape) == ((8, 15), (8, 16), (8, 8))


def test_a_savedmodel_serves(run: Path, pictures: list[Path], tmp_path: Path) -> None:
    made = export(run, plan(format="savedmodel", out=tmp_path / "served"))
    assert {check.variant for check in made.checks} == {"pixels", "serving_default"}
    signatures = tf.saved_model.load(str(made.folder / "1")).signatures
    served = signatures["serving_default"]
    assert set(served.structured_outputs) == {"caption", "score", "log_probability"}
    files = [path.read_bytes() for path in pictures]
    found = served(image_bytes=tf.constant(files))
    alone = served(image_bytes=tf.constant(files[:1]))
    assert found["caption"].shape == (8,) and alone["caption"].numpy()[0] == found["caption"].numpy()[0]
    captions = Captioner.load(run).caption([read_image(path, size=(32, 32)) for path in pictures])
    exact = signatures["pixels"](
        pixels=tf.constant(np.stack([read_image(path, size=(32, 32)) for path in pictures]))
    )
    assert [text.decode() for text in exact["caption"].numpy()] == [caption.text for caption in captions]


@pytest.fixture(scope="module")
def bilingual(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that writes "a red …" in English and other words in German."""
    made = make_run(tmp_path_factory.mktemp("bilingual") / "run", languages=("en", "de"))
    decoder, encoder = made.load_best()
    spoken = np.zeros((2, len(made.vocabulary)))
    spoken[0, made.vocabulary.ids("a red blue circle square")] = 1
    spoken[1, made.vocabulary.ids("star is above below two three")] = 1
    decoder.set_spoken(spoken)
    made.save_best(decoder, encoder, {"phase": "decoder", "epoch": 2})
    return made.folder


@pytest.mark.parametrize("format", ["litert", "onnx"])
def test_the_language_is_an_input_of_a_step(format: str, bilingual: Path, tmp_path: Path) -> None:
    """Each language is compared with the run's own; its start word stands in export.json."""
    if format == "onnx":
        pytest.importorskip("tf2onnx")
        onnxruntime = pytest.importorskip("onnxruntime")
    made = export(bilingual, plan(format=format, out=tmp_path / "models"))
    assert [(check.variant, check.same_text) for check in made.checks] == [(format, 12), (f"{format} de", 12)]
    about = json.loads((made.folder / "export.json").read_text(encoding="utf-8"))
    assert about["words"]["languages"] == {"en": 4, "de": 5}
    if format == "onnx":
        step = onnxruntime.InferenceSession(str(made.folder / "step.onnx"))
        assert {one.name for one in step.get_inputs()} == {"words", "state", "keys", "values", "language"}


def test_a_savedmodel_serves_each_language(bilingual: Path, pictures: list[Path], tmp_path: Path) -> None:
    made = export(bilingual, plan(format="savedmodel", out=tmp_path / "served"))
    names = ["pixels", "serving_default", "pixels_de", "serving_de"]
    assert [check.variant for check in made.checks] == names
    signatures = tf.saved_model.load(str(made.folder / "1")).signatures
    files = tf.constant([path.read_bytes() for path in pictures])
    said = {name: signatures[name](image_bytes=files)["caption"].numpy() for name in names[1::2]}
    words = {name: {word for text in texts for word in text.decode().split()} for name, texts in said.items()}
    assert words["serving_default"] <= {"a", "red", "blue", "circle", "square"}
    assert words["serving_de"] <= {"star", "is", "above", "below", "two", "three"}


@pytest.mark.parametrize("caption", ["a red circle", "빨간 원 위", "赤い円 の上", "a 赤い circle", ""])
def test_words_are_joined_in_the_graph_as_by_the_vocabulary(caption: str) -> None:
    vocabulary = Vocabulary.build([caption, "x"])
    ids = vocabulary.ids(caption)
    padded = tf.constant([ids + [0] * 3])
    (joined,) = _joiner(vocabulary.words)(padded, tf.constant([len(ids)])).numpy()
    assert joined.decode() == vocabulary.text(ids)


@pytest.fixture(scope="module")
def whole_bytes(run: Path, tmp_path_factory: pytest.TempPathFactory) -> int:
    """What the run takes in full precision."""
    return export(run, plan(out=tmp_path_factory.mktemp("whole") / "float32", precision="float32")).bytes


@pytest.mark.parametrize("precision", ["float16", "int8"])
def test_weights_may_be_shorter(
    run: Path, precision: str, tmp_path: Path, scenes_folder: Path, whole_bytes: int
) -> None:
    short = export(run, plan(out=tmp_path / "short", precision=precision, data=scenes_folder))
    assert short.bytes < 0.75 * whole_bytes


def test_nothing_is_lost_by_float16_where_the_run_has_no_more(tmp_path: Path) -> None:
    original = make_run(tmp_path / "original")
    decoder, encoder = original.load_best()
    half = Run.create(tmp_path / "half", CONFIG, original.vocabulary, encoder)
    half.save_best(decoder, encoder, {"phase": "decoder", "epoch": 1}, half=True)
    made = export(half.folder, plan())
    about = json.loads((made.folder / "export.json").read_text(encoding="utf-8"))
    assert about["precision"] == "float16"
    assert made.checks[0].same_text == 12 and made.checks[0].score_error < 1e-2


@pytest.mark.slow
def test_eight_bits_where_dev_captions_lose_nothing(
    tmp_path: Path, scenes_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not asked for, but with pictures to learn the range of activations from and captions to judge by."""
    folder = make_run(tmp_path / "run").folder
    command = ["export", "--run", str(folder), "--data", str(scenes_folder), "--pictures", "8"]
    for most_lost, precision, said in (
        (0.5, "int8", "in 8 bits, with"),
        (-1.0, "float32", "not in 8 bits: CIDEr"),
    ):
        monkeypatch.setattr(command_of_export, "MOST_LOST", most_lost)
        assert main(command) == 0
        assert said in capsys.readouterr().err
        about = json.loads((folder / "compiled" / "export.json").read_text(encoding="utf-8"))
        assert about["precision"] == precision


# What is refused.


@pytest.mark.parametrize(
    ("wishes", "message"),
    [
        ({"format": "tflite"}, 'unknown format "tflite"; did you mean "litert"?'),
        ({"precision": "float8"}, 'unknown precision "float8"'),
        ({"format": "onnx", "precision": "int8"}, "only litert has it"),
        ({"precision": "int8"}, "needs --data"),
    ],
)
def test_what_makes_no_sense_is_said(run: Path, wishes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("?", r"\?")):
        export(run, plan(**wishes))


def test_what_is_there_stays(run: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(CaptionerError, match="exists already"):
        export(run, plan(out=tmp_path))


def test_a_run_without_a_finished_epoch(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / BEST)
    with pytest.raises(RunError, match="no finished epoch yet"):
        export(tmp_path / "run", plan())


def write_lies(job: Any, folder: Path) -> Any:
    """A writer whose work captions everything alike."""

    def answers(pictures: Sequence[Path]) -> list[Answer]:
        return [Answer("a cat", -1.0) for _ in pictures]

    (folder / "model").write_text("…", encoding="utf-8")
    return {"lies": Variant(answers, 1e-3)}


def write_late(job: Any, folder: Path) -> Any:
    """A writer during whose work the training goes on."""
    decoder, encoder = job.run.load_best()
    job.run.save_best(decoder, encoder, {"phase": "decoder", "epoch": 2})
    return {}


@pytest.mark.parametrize(
    ("writer", "message"), [("write_lies", "only 0 of 12 captions"), ("write_late", "has new weights since")]
)
def test_what_says_otherwise_is_not_kept(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writer: str, message: str
) -> None:
    shutil.copytree(run, tmp_path / "run")
    monkeypatch.setitem(room.FORMATS, "litert", f"{__name__}:{writer}")  # type: ignore[misc]
    with pytest.raises(CaptionerError, match=message):
        export(tmp_path / "run", plan())
    assert {path.name for path in (tmp_path / "run").iterdir()} == {path.name for path in run.iterdir()}
