"""Finished runs teach another: what they find likely is what it comes to find likely."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from captioner.cli.main import main
from captioner.config import Config, DecoderConfig, EncoderConfig, PhaseConfig, TrainConfig
from captioner.data.vocabulary import Vocabulary
from captioner.errors import ConfigError
from captioner.models.decoder import CaptionDecoder
from captioner.models.encoder import Encoder, load_encoder
from captioner.models.layers.packed_forward import packed_forward
from captioner.runs.run_folder import Run
from captioner.training.distill import DistillStep, Teachers
from captioner.training.losses import distillation_loss
from captioner.training.optimizers import TrainOptimizer
from captioner.training.train_step import trained_variables
from tests.conftest import TINY_NETWORKS

WORDS = Vocabulary.build(["a b c d"])
CONFIG = Config(
    encoder=EncoderConfig("small_cnn", weights="none", size=32),
    decoder=DecoderConfig(units=8, embedding=4),
    train=TrainConfig(precision="float32"),
)


def decoder_of(seed: int, channels: int) -> CaptionDecoder:
    decoder = CaptionDecoder(CONFIG.decoder, vocabulary_size=len(WORDS), channels=channels)
    draw = np.random.default_rng(seed)
    for variable in decoder.variables:
        variable.assign(draw.normal(0, 0.4, variable.shape))
    return decoder


def make_run(folder: Any, encoder: Encoder, seed: int) -> str:
    run = Run.create(folder, CONFIG, WORDS, encoder)
    run.save_best(decoder_of(seed, encoder.channels), encoder, {"phase": "decoder", "epoch": 1})
    return str(run.folder)


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return load_encoder("small_cnn", weights="none", size=32)


@pytest.fixture(scope="module")
def folders(encoder: Encoder, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two finished runs of one encoder and the same words."""
    return [make_run(tmp_path_factory.mktemp("teacher") / "run", encoder, seed) for seed in (1, 2)]


@pytest.fixture
def batch() -> tuple[Any, ...]:
    draw = np.random.default_rng(0)
    pixels = draw.integers(0, 256, (2, 32, 32, 3)).astype(np.uint8)
    words_in = np.array([[[2, 4, 5, 6]], [[2, 7, 4, 0]]], np.int32)
    words_out = np.array([[[4, 5, 6, 3]], [[7, 4, 3, 0]]], np.int32)
    return tf.constant(pixels), words_in, words_out, (words_out > 0).astype(np.float32)


def test_probabilities_are_the_mean_of_the_teachers(folders, encoder, batch):
    alone = [Teachers([folder], WORDS, encoder).probabilities(*batch) for folder in folders]
    together = Teachers(folders, WORDS, encoder).probabilities(*batch)
    np.testing.assert_allclose(together, (alone[0] + alone[1]) / 2, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(tf.reduce_sum(together, 1), np.ones(len(together)), rtol=1e-5)


def test_pixels_and_their_features_are_taught_alike(folders, encoder, batch):
    teachers, (pixels, *captions) = Teachers(folders, WORDS, encoder), batch
    features = encoder.encode_graph(pixels)
    np.testing.assert_allclose(
        teachers.probabilities(features, *captions), teachers.probabilities(*batch), atol=1e-5
    )


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_the_target_is_a_mixture_of_teachers_and_caption(folders, encoder, batch, share):
    student = decoder_of(3, encoder.channels)
    packed = packed_forward(student, (encoder.encode_graph(batch[0]), batch[1]), *batch[2:])
    taught = Teachers(folders, WORDS, encoder).probabilities(*batch).numpy()
    loss = distillation_loss(packed, tf.constant(taught), share)
    likely = np.log(tf.nn.softmax(packed.logits).numpy())
    rows, words = np.asarray(packed.weights) != 0, packed.words.numpy()
    target = share * taught + (1 - share) * np.eye(len(WORDS))[words]
    assert float(loss.objective) == pytest.approx(-(target * likely).sum(1)[rows].mean(), rel=1e-4)
    plain = -likely[np.arange(len(words)), words][rows].sum()
    assert float(loss.cross_entropy_sum) == pytest.approx(plain, rel=1e-4), "a person reads the plain one"
    assert float(loss.correct) == (likely.argmax(1) == words)[rows].sum() and float(loss.words) == 7


@pytest.mark.parametrize("trains", [("decoder",), ("decoder", "encoder")])
def test_a_student_comes_closer_to_its_teachers(folders, encoder, batch, trains):
    teachers, student = Teachers(folders, WORDS, encoder), decoder_of(3, encoder.channels)
    learner = load_encoder("small_cnn", weights=encoder.weights_dict(), size=32)
    phase = PhaseConfig(
        objective="distill",
        trains=trains,
        augment=True,
        teacher_share=0.99,
        learning_rate=0.02,
        warmup_steps=0,
        use_dropout=False,
    )
    updater = TrainOptimizer(phase, 40, *trained_variables(phase, student, learner))
    steps = DistillStep(CONFIG, phase, student, learner, updater, WORDS, teachers=teachers)

    def distance() -> float:
        packed = packed_forward(student, (learner.encode_graph(batch[0]), batch[1]), *batch[2:])
        return float(tf.reduce_sum(tf.abs(tf.nn.softmax(packed.logits) - teachers.probabilities(*batch))))

    before = distance()
    for number in range(40):
        figures = steps.train(((batch[0], batch[1]), *batch[2:]), number)
    assert distance() < before / 2
    assert figures.words == 7 and figures.captions == 2


def test_what_cannot_teach_is_refused(folders, encoder, batch, tmp_path):
    with pytest.raises(ConfigError, match="teachers"):
        Teachers([], WORDS, encoder)
    with pytest.raises(ConfigError, match=r"other words \(8\) than the run it should teach \(6\)"):
        Teachers(folders, Vocabulary.build(["a b"]), encoder)
    with pytest.raises(ConfigError, match="pictures of"):
        Teachers(folders, WORDS, load_encoder("small_cnn", weights="none", size=64))
    other = make_run(tmp_path / "other", load_encoder("small_cnn", weights="none", size=32, seed=7), 1)
    teachers = Teachers([other], WORDS, encoder)
    teachers.probabilities(*batch)
    with pytest.raises(ConfigError, match="augment = true"):
        teachers.probabilities(encoder.encode_graph(batch[0]), *batch[1:])
    with pytest.raises(ConfigError, match=r"phases.decoder.teachers = \[\]: nothing would be learned"):
        dataclasses.replace(CONFIG, phases={"decoder": PhaseConfig(objective="distill")}).check_phases()


TAUGHT = """
[phases.taught]
objective = "distill"
augment = true
epochs = 2
pictures_per_batch = 16
learning_rate = 1e-3
"""


@pytest.mark.slow
def test_a_stopped_lesson_goes_on_where_it_was(tiny_run, scenes_folder, tmp_path, monkeypatch):
    recipe = tmp_path / "taught.toml"
    recipe.write_text(
        TINY_NETWORKS + TAUGHT + f"teachers = [{json.dumps(str(tiny_run))}]\n", encoding="utf-8"
    )

    def command(run: Path, *more: str) -> list[str]:
        words = ["train", str(recipe), "--from", str(tiny_run), "--data", str(scenes_folder)]
        return [*words, "--run", str(run), "--quiet", *more]

    assert main(command(tmp_path / "whole")) == 0
    with monkeypatch.context() as patch:
        lesson, calls = DistillStep.train, []

        def interrupted(self: DistillStep, *arguments: Any) -> Any:
            calls.append(1)
            if len(calls) == 3:
                os.kill(os.getpid(), signal.SIGINT)
            return lesson(self, *arguments)

        patch.setattr(DistillStep, "train", interrupted)
        assert main(command(tmp_path / "broken")) == 130
    going_on = [
        "train",
        "--resume",
        "--data",
        str(scenes_folder),
        "--run",
        str(tmp_path / "broken"),
        "--quiet",
    ]
    assert main(going_on) == 0
    whole, broken = (Run.open(tmp_path / name).load_best()[0].weights_dict() for name in ("whole", "broken"))
    assert [name for name in whole if not np.array_equal(whole[name], broken[name])] == []
