"""The run folder: what is in it, what is said when it is damaged, and that nothing kills it."""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from captioner.config import load_config
from captioner.data.vocabulary import Vocabulary
from captioner.errors import CaptionerError, ConfigError, RunError
from captioner.runs import weights as best
from captioner.runs.run_folder import Run
from captioner.system import files
from captioner.system import manifest as manifests

ROOT = Path(__file__).resolve().parents[2]
CONFIG = load_config("", ["encoder.name=small_cnn", "decoder.units=8", "decoder.embedding=4"])
VOCABULARY = Vocabulary.build(["a dog runs", "ein großer Hund"])
ENCODER_INFO = {
    "name": "small_cnn",
    "size": [32, 32],
    "grid": [2, 2],
    "cells": 4,
    "channels": 3,
    "preprocessing": "1",
    "digest": "0",
}


def network(**arrays: Any) -> Any:
    """Something with weights, as `save_best` asks for."""
    plain = {name: np.asarray(array) for name, array in arrays.items()}
    return SimpleNamespace(weights_dict=lambda: plain)


def save(run: Run, value: float, epoch: int = 1, size: int = 4, **options: Any) -> None:
    weights = np.full(size, value, np.float32)
    info = {"epoch": epoch, "cider": 40 + epoch}
    run.save_best(network(kernel=weights), network(bias=weights), info, **options)


def arrays_of(run: Run) -> dict[str, np.ndarray]:
    found = best.read_best(run.folder / "best")
    assert found is not None
    return found[0]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.create(tmp_path / "run", CONFIG, VOCABULARY, ENCODER_INFO, {"train": ["a", "b"], "dev": ["c"]})


@contextmanager
def files_no_larger_than(size: int) -> Iterator[None]:
    """A real limit that writes fail at half-way, in TensorFlow's C++ as in Python."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


# What a run is.


def test_a_run_is_found_again_wherever_it_is_moved(run: Run, tmp_path: Path) -> None:
    save(run, 1.5)
    shutil.move(run.folder, tmp_path / "elsewhere")
    again = Run.open(tmp_path / "elsewhere")
    assert again.config == CONFIG
    assert again.vocabulary.words == VOCABULARY.words
    assert again.seeded_splits == {"train": ["a", "b"], "dev": ["c"]}
    assert again.encoder_info == ENCODER_INFO
    assert again.best_info() is not None and again.best_info()["epoch"] == 1
    assert set(arrays_of(again)) == {"decoder/kernel", "encoder/bias"}
    assert str(tmp_path) not in "".join(
        path.read_text(encoding="utf-8") for path in again.folder.rglob("*.json")
    )


def test_a_run_without_made_splits(tmp_path: Path) -> None:
    run = Run.create(tmp_path, CONFIG, VOCABULARY, ENCODER_INFO)
    assert run.seeded_splits is None and not (tmp_path / "splits.json").exists()
    assert run.best_info() is None
    with pytest.raises(RunError, match="no finished epoch yet"):
        run.load_best()


def test_a_second_run_does_not_replace_the_first(run: Run) -> None:
    with pytest.raises(RunError, match="holds a run already; go on with --resume"):
        Run.create(run.folder, CONFIG, VOCABULARY, ENCODER_INFO)


def test_a_run_that_was_killed_while_being_made_can_be_made(run: Run) -> None:
    (run.folder / "config.json").unlink()
    Run.create(run.folder, CONFIG, VOCABULARY, ENCODER_INFO)


def test_folders_that_are_no_runs(run: Run, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no such folder"):
        Run.open(tmp_path / "nothing")
    with pytest.raises(RunError, match=r"not a run folder.*did you mean .*run\?"):
        Run.open(tmp_path)


def test_a_run_of_another_format_names_the_version(run: Run) -> None:
    content = manifests.read_manifest(run.folder / "config.json")
    manifests.write_manifest(run.folder / "config.json", {**content, "format": 7})
    with pytest.raises(RunError, match="run format 7 of captioner .*use that version"):
        Run.open(run.folder)


def test_the_configuration_may_change_but_not_the_network(run: Run) -> None:
    longer = dataclasses.replace(CONFIG, train=dataclasses.replace(CONFIG.train, max_to_keep=5))
    run.replace_config(longer)
    assert Run.open(run.folder).config == longer
    with pytest.raises(ConfigError, match="decoder: differs from the run"):
        run.replace_config(load_config("", ["encoder.name=small_cnn", "decoder.units=16"]))
    assert Run.open(run.folder).config == longer


def test_info_is_plain(run: Run) -> None:
    save(run, 1.0, epoch=2)
    run.append_history({"phase": "decoder", "epoch": 1, "loss": 3.5})
    info = json.loads(files.json_text(run.info()))
    assert info["words"] == len(VOCABULARY) and info["epochs"] == 1 and info["last"]["loss"] == 3.5
    assert info["best"]["cider"] == 42 and info["splits"] == {"train": 2, "dev": 1}
    assert info["bytes"] == sum(info["files"].values()) > 0


def test_looking_into_a_run_loads_no_tensorflow(run: Run) -> None:
    save(run, 1.0)
    code = (
        "import sys; from captioner.runs.run_folder import Run; Run.open(sys.argv[1]).info()\n"
        "sys.exit('tensorflow' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code, run.folder], cwd=ROOT).returncode == 0


# History.


def test_history_survives_a_torn_line_and_counts_a_repeated_epoch_once(run: Run) -> None:
    assert run.history() == []
    for epoch in (1, 2, 3):
        run.append_history({"phase": "decoder", "epoch": epoch, "loss": np.float32(1 / epoch)})
    with (run.folder / "history.jsonl").open("a") as file:
        file.write('{"phase": "decoder", "ep')
    assert [entry["epoch"] for entry in run.history()] == [1, 2, 3]
    run.append_history({"phase": "decoder", "epoch": 2, "loss": float("nan")})
    run.append_history({"phase": "reward", "epoch": 1, "loss": 0.1})
    assert [(e["phase"], e["epoch"], e["loss"]) for e in run.history()] == [
        ("decoder", 1, 1.0),
        ("decoder", 2, None),
        ("reward", 1, 0.1),
    ]


# The best weights.


def test_best_weights_come_back_as_they_were(run: Run) -> None:
    kernel, steps = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32), np.array(7)
    run.save_best(network(**{"gru/kernel": kernel.T.T, "steps": steps}), network(bias=kernel.T), {"epoch": 3})
    arrays = arrays_of(run)
    assert list(sorted(arrays)) == ["decoder/gru/kernel", "decoder/steps", "encoder/bias"]
    np.testing.assert_array_equal(arrays["decoder/gru/kernel"], kernel)
    np.testing.assert_array_equal(arrays["encoder/bias"], kernel.T)
    assert arrays["decoder/steps"] == 7 and arrays["decoder/steps"].dtype.kind == "i"
    assert run.best_info() == {"epoch": 3}


def test_half_the_size_but_nothing_becomes_infinite(run: Run) -> None:
    kernel, variance = np.linspace(-1, 1, 1000, dtype=np.float32), np.array([1e6], np.float32)
    run.save_best(network(kernel=kernel), network(variance=variance), {}, half=True)
    arrays = arrays_of(run)
    assert (run.folder / "best" / "weights.safetensors").stat().st_size < 2500
    assert {array.dtype for array in arrays.values()} == {np.dtype(np.float32)}
    np.testing.assert_allclose(arrays["decoder/kernel"], kernel, atol=3e-4)
    assert arrays["encoder/variance"] == 1e6


def test_the_same_weights_give_the_same_bytes(run: Run) -> None:
    save(run, 1.0)
    first = (run.folder / "best" / "weights.safetensors").read_bytes()
    save(run, 2.0)
    save(run, 1.0)
    assert (run.folder / "best" / "weights.safetensors").read_bytes() == first


def test_weights_of_another_run_are_refused(run: Run, tmp_path: Path) -> None:
    save(run, 1.0)
    other = Run.create(tmp_path / "other", CONFIG, Vocabulary.build(["a cat"]), ENCODER_INFO)
    shutil.copytree(run.folder / "best", other.folder / "best")
    with pytest.raises(RunError, match=r"do not fit this run's vocabulary\.txt"):
        Run.open(other.folder)


def test_the_networks_come_back_from_the_folder_alone(tmp_path: Path) -> None:
    from captioner.models.decoder import CaptionDecoder
    from captioner.models.encoder import load_encoder

    encoder = load_encoder("small_cnn", weights="none", size=32, seed=3)
    sizes = {"vocabulary_size": len(VOCABULARY), "channels": encoder.channels}
    decoder = CaptionDecoder(CONFIG.decoder, **sizes, seed=3)
    run = Run.create(tmp_path / "run", CONFIG, VOCABULARY, encoder)
    run.save_best(decoder, encoder, {"epoch": 1})
    decoder_again, encoder_again = Run.open(run.folder).load_best()

    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    features = encoder.encode(pixels)
    np.testing.assert_array_equal(encoder_again.encode(pixels), features)
    words = np.array([[[2, 4, 5, 0]], [[2, 6, 0, 0]]], np.int32)
    np.testing.assert_array_equal(decoder_again((features, words)), decoder((features, words)))


def test_an_encoder_that_has_changed_since_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from captioner.models.encoder import Encoder, load_encoder

    encoder = load_encoder("small_cnn", weights="none", size=32)
    run = Run.create(tmp_path / "run", CONFIG, VOCABULARY, encoder)
    run.save_best(network(kernel=[1.0]), encoder, {})
    monkeypatch.setattr(Encoder, "channels", property(lambda _: 7, lambda *_: None), raising=False)
    with pytest.raises(RunError, match=r"small_cnn had channels \d+, in this version .* has 7; use version"):
        run.load_best()


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize(("stopped_at", "expected"), [("weights.safetensors", 1), ("best.json", 2)])
def test_stopped_inside_a_save_the_best_is_whole(
    run: Run, monkeypatch: pytest.MonkeyPatch, stopped_at: str, expected: int, first: bool
) -> None:
    if not first:
        save(run, 1.0, epoch=1)
    rename = os.replace

    def dies(source: Any, target: Any) -> None:
        if Path(target).name == stopped_at:
            raise KeyboardInterrupt  # not an Exception: nothing is tidied up, as after a kill
        rename(source, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", dies)
        save(run, 2.0, epoch=2)
    for _ in range(2):
        again = Run.open(run.folder)
        if first and expected == 1:
            assert again.best_info() is None
        else:
            assert again.best_info() is not None and again.best_info()["epoch"] == expected
            assert arrays_of(again)["decoder/kernel"][0] == expected
        with files_no_larger_than(0), pytest.raises(CaptionerError):
            save(again, 3.0, epoch=3)  # a failing save settles what the killed one began, and changes nothing
    save(again, 4.0, epoch=4)
    assert sorted(os.listdir(run.folder / "best")) == ["best.json", "weights.safetensors"]
    assert arrays_of(Run.open(run.folder))["decoder/kernel"][0] == 4


def test_a_full_disk_leaves_the_best_as_it_was(run: Run) -> None:
    save(run, 1.0, epoch=1)
    told = r"weights\.safetensors: cannot be written"
    with files_no_larger_than(50_000), pytest.raises(CaptionerError, match=told):
        save(run, 2.0, epoch=2, size=100_000)
    again = Run.open(run.folder)
    assert again.best_info() is not None and again.best_info()["epoch"] == 1
    assert sorted(os.listdir(run.folder / "best")) == ["best.json", "weights.safetensors"]


# Damage.


def bit_flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def empty(path: Path) -> None:
    path.write_bytes(b"")


NEEDED = [
    *("config.json", "vocabulary.txt", "encoder.json", "splits.json"),
    *("best/weights.safetensors", "best/best.json"),
]


@pytest.mark.parametrize("damage", [bit_flip, truncate, empty, Path.unlink])
@pytest.mark.parametrize("name", NEEDED)
def test_every_damage_is_noticed_and_named(run: Run, name: str, damage: Callable[[Path], None]) -> None:
    save(run, 1.0)
    damage(run.folder / name)
    with pytest.raises(RunError) as told:
        Run.open(run.folder)
    assert str(run.folder / name) in str(told.value)
    assert "restore it from a copy" in str(told.value)


def test_every_single_bit_matters(run: Run) -> None:
    save(run, 1.0)
    for name in NEEDED:
        content = (run.folder / name).read_bytes()
        for position in range(0, len(content), max(1, len(content) // 40)):
            damaged = bytearray(content)
            damaged[position] ^= 1 << position % 8
            (run.folder / name).write_bytes(damaged)
            with pytest.raises(RunError):
                Run.open(run.folder)
        (run.folder / name).write_bytes(content)
    Run.open(run.folder)


# Two trainings, and killed ones.


def test_two_trainings_in_one_folder(run: Run) -> None:
    with run.training(), pytest.raises(RunError, match="in use by another process"), run.training():
        pass
    with run.training():
        Run.open(run.folder)  # looking is always possible


def test_what_a_killed_training_left_is_cleared(run: Run) -> None:
    (run.folder / ".tmp-123-abc.json").write_text("half")
    with run.training():
        assert not list(run.folder.glob(".tmp*"))


SAVE_FOR_EVER = """
import sys
import numpy as np
from types import SimpleNamespace
from captioner.runs.run_folder import Run
run = Run.open(sys.argv[1])
with run.training():
    for epoch in range((run.best_info() or {"epoch": 0})["epoch"] + 1, 10**6):
        weights = SimpleNamespace(weights_dict=lambda: {"kernel": np.full(300_000, epoch, np.float32)})
        run.save_best(weights, weights, {"epoch": epoch})
        run.append_history({"epoch": epoch})
        print(epoch, flush=True)
"""


def test_killed_ten_times_while_saving(run: Run) -> None:
    saved = 0
    for attempt in range(10):
        writer = subprocess.Popen(
            [sys.executable, "-c", SAVE_FOR_EVER, run.folder], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        assert writer.stdout is not None
        writer.stdout.readline()
        time.sleep(0.013 * attempt)
        writer.send_signal(signal.SIGKILL)
        printed = writer.stdout.read().split()
        writer.communicate()
        again = Run.open(run.folder)
        assert again.best_info() is not None
        epoch = again.best_info()["epoch"]
        assert epoch >= max([saved, *map(int, printed)])
        assert set(arrays_of(again)["decoder/kernel"]) == {epoch}
        done = [entry["epoch"] for entry in again.history()]
        assert done == sorted(set(done))
        saved = epoch
    assert saved >= 10
