"""Training: what it leaves behind, that it learns, and that nothing that stops it changes its outcome."""

from __future__ import annotations

import csv
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from captioner.cli.main import main
from captioner.config import load_config
from captioner.inference.captioner import Captioner
from captioner.runs.run_folder import Run
from captioner.runs.weights import read_best
from captioner.training.checkpoints import CheckpointManager
from captioner.training.train import train
from captioner.training.train_step import TrainStep
from tests.conftest import FROZEN, REWARD, TINY_NETWORKS, TWO_PHASES, recipe_of

ROOT = Path(__file__).resolve().parents[2]


def command(recipe: Path, data: Path, run: Path, *more: str) -> list[str]:
    return ["train", str(recipe), "--data", str(data), "--run", str(run), "--quiet", *more]


def latest_values(run: Path) -> dict[str, np.ndarray]:
    """Everything in the newest checkpoint, the optimizer's moments too, but for the time it took."""
    folder = max((run / "latest").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    newest = max(folder.glob("ckpt-*.index"), key=lambda path: int(path.stem.partition("-")[2]))
    reader = tf.train.load_checkpoint(str(newest.with_suffix("")))
    names = [name for name in reader.get_variable_to_shape_map() if "OBJECT_GRAPH" not in name]
    timeless = [name for name in names if "state/seconds" not in name and "save_counter" not in name]
    return {name: reader.get_tensor(name) for name in timeless}


def best_values(run: Path) -> dict[str, np.ndarray]:
    found = read_best(run / "best")
    assert found is not None
    return found[0]


def timeless(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What must be the same again."""
    return [{k: v for k, v in e.items() if k not in ("seconds", "captions_per_second")} for e in history]


def assert_same_training(one: Path, other: Path) -> None:
    """To the last bit."""
    assert timeless(Run.open(one).history()) == timeless(Run.open(other).history())
    for read in (latest_values, best_values):
        values, others = read(one), read(other)
        assert values.keys() == others.keys()
        assert [name for name in values if not np.array_equal(values[name], others[name])] == []


def by_heart(folder: Path) -> Path:
    """A data set whose dev pictures are its training pictures: eight colored patterns, a sentence each."""
    folder.mkdir()
    colors = np.random.default_rng(1).integers(0, 256, (8, 2, 2, 3), dtype=np.uint8)
    rows = [("image", "caption", "split")]
    for number, (pattern, sentence) in enumerate(zip(colors, SENTENCES, strict=True)):
        for copy in range(25):  # an epoch is 24 steps: many small epochs would take longer
            name = f"{number}-{copy}.png"
            Image.fromarray(pattern.repeat(16, 0).repeat(16, 1)).save(folder / name)
            rows.append((name, sentence, "train" if copy else "dev"))
    with open(folder / "captions.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return folder


# What a training leaves behind.


def test_a_run_folder_holds_all_of_it(tiny_run):
    names = {path.name for path in tiny_run.iterdir()}
    files = {
        "config.json",
        "vocabulary.txt",
        "encoder.json",
        "data.json",
        "history.jsonl",
        "log.txt",
        "loss.png",
    }
    assert files | {"best", "latest"} <= names and not any(name.startswith(".tmp") for name in names)
    assert [path.name for path in (tiny_run / "latest").iterdir()] == ["reward"], (
        "earlier phases are done with"
    )
    log = (tiny_run / "log.txt").read_text(encoding="utf-8")
    assert re.search("phase frozen: .* 16 pictures each", log), "few pictures: not the 64 of the recipe"
    assert "units = 16" in log and "phase both: cross_entropy, trains the decoder and encoder" in log
    assert "reward epoch 1: reward " in log and "nats per word, BLEU-4" in log
    assert not (tiny_run / "tensorboard").exists()
    assert json.loads((tiny_run / "data.json").read_text(encoding="utf-8")) == {
        "name": "scenes0",
        "pictures": {"train": 40, "dev": 4},
        "captions": {"train": 200, "dev": 20},
    }


def test_the_best_epoch_is_kept_and_captions(tiny_run, scenes_folder):
    run = Run.open(tiny_run)
    best = min(run.history(), key=lambda entry: entry["dev_loss"])
    assert run.best_info() is not None and (run.best_info()["phase"], run.best_info()["epoch"]) == (
        best["phase"],
        best["epoch"],
    )
    assert best["phase"] != "frozen", "so the encoder was trained"
    assert run.encoder_info["digest"] != run.load_best()[1].digest
    picture = sorted((scenes_folder / "images").glob("test*"))[0]
    caption = Captioner.load(tiny_run).caption(picture)[0]
    assert caption.error is None and set(caption.words) <= set(run.vocabulary.words)


def test_a_finished_training_has_nothing_to_go_on_with(tiny_run, tiny_recipe, scenes_folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(tiny_run, copy)
    assert main(command(tiny_recipe, scenes_folder, copy, "--resume")) == 0
    assert_same_training(copy, tiny_run)
    assert len((copy / "history.jsonl").read_text(encoding="utf-8").splitlines()) == 4


def test_history_says_what_each_epoch_of_each_phase_gave(tiny_run):
    lines = (tiny_run / "history.jsonl").read_text(encoding="utf-8").splitlines()
    history = [json.loads(line) for line in lines]
    assert [(e["phase"], e["epoch"]) for e in history] == [
        ("frozen", 1),
        ("frozen", 2),
        ("both", 1),
        ("reward", 1),
    ]
    for entry in history:
        # In nats per word: no worse than guessing among the words, no better than knowing.
        assert 0 < entry["dev_loss"] < np.log(len(Run.open(tiny_run).vocabulary))
        assert 0 < entry["dev_accuracy"] < 1 and 0 < entry["learning_rate"] < 0.01
        assert entry["seconds"] > 0 and entry["captions_per_second"] > 0 and entry["unreadable"] == 0
        assert {"bleu1", "bleu2", "bleu3", "bleu4", "rouge_l", "cider"} <= set(entry)
        assert 0 < entry["mean_words"] <= 12 and 0 < entry["distinct"] <= 100
        # Rewarded are whole captions, so there is no loss per word.
        assert ("train_loss" in entry, "reward" in entry) == (
            (False, True) if entry["phase"] == "reward" else (True, False)
        )
    rates = [entry["learning_rate"] for entry in history]
    assert rates[0] > rates[1], "it falls along its schedule"


# It learns.

BY_HEART = {
    "trains": ["decoder", "encoder"],
    "epochs": 6,
    "pictures_per_batch": 8,
    "learning_rate": 0.01,
    "encoder_learning_rate": 0.002,
    "warmup_steps": 0,
    "label_smoothing": 0.0,
    "use_dropout": False,
}
SENTENCES = (
    "a red circle in the middle",
    "two blue stars side by side",
    "nothing but a large green square here",
    "one yellow triangle above a small heart",
    "there are four orange rings in total",
    "the sun goes down behind some hills",
    "a man who holds his old black hat",
    "snow falls on the roof of this house",
)


def test_eight_pictures_are_learnt_by_heart(tmp_path):
    data, recipe, run = by_heart(tmp_path / "data"), tmp_path / "recipe.toml", tmp_path / "run"
    recipe.write_text(recipe_of({"both": BY_HEART}), encoding="utf-8")
    larger = ["decoder.units=64", "decoder.embedding=32", "train.select=bleu4"]
    assert main(command(recipe, data, run, *(word for one in larger for word in ("--set", one)))) == 0
    history = Run.open(run).history()
    for name in ("train_loss", "dev_loss"):
        losses = [entry[name] for entry in history]
        assert losses[0] > losses[1] > losses[2] > losses[-1] and losses[-1] < 0.3, (name, losses)
    assert history[-1]["bleu4"] == pytest.approx(100), "of captions it wrote itself, word by word"
    pictures = [data / f"{number}-0.png" for number in range(len(SENTENCES))]
    assert [caption.text for caption in Captioner.load(run).caption(pictures)] == list(SENTENCES)


OWN_PARTS = """
import keras
import tensorflow as tf

CALLS = []


def loss(logits, words, weights):
    CALLS.append("loss")
    nats = tf.nn.sparse_softmax_cross_entropy_with_logits(words, logits)
    return tf.reduce_sum(nats * weights) / tf.reduce_sum(weights)


def optimizer(rate):
    CALLS.append("optimizer")
    return keras.optimizers.SGD(rate, momentum=0.9)


def regularizer(strength):
    CALLS.append(f"regularizer {strength}")
    return keras.regularizers.L2(strength)
"""
OVERFITTING = """
[phases.decoder]
objective = "own_parts:loss"
optimizer = "own_parts:optimizer"
epochs = 40
patience = 2
pictures_per_batch = 4
learning_rate = 1.0
schedule = "constant"
warmup_steps = 0
use_dropout = false
"""


def test_parts_of_ones_own_and_an_early_stop(scenes_folder, tmp_path, monkeypatch):
    (tmp_path / "own_parts.py").write_text(OWN_PARTS, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    recipe = tmp_path / "own.toml"
    recipe.write_text(TINY_NETWORKS + OVERFITTING, encoding="utf-8")
    parts = [
        "--set",
        "decoder.regularizer=own_parts:regularizer",
        "--set",
        "decoder.regularizer_strength=1e-6",
    ]
    assert main(command(recipe, scenes_folder, tmp_path / "run", *parts)) == 0
    import own_parts  # type: ignore[import-not-found]

    assert {"loss", "optimizer", "regularizer 1e-06"} <= set(own_parts.CALLS)
    run = Run.open(tmp_path / "run")
    history, best = run.history(), run.best_info()
    losses = [entry["dev_loss"] for entry in history]
    assert best is not None and best["epoch"] == int(np.argmin(losses)) + 1
    assert len(history) == best["epoch"] + 2 < 40, "two epochs without a better one, then it stops"
    best_bias = best_values(tmp_path / "run")["decoder/word_bias"]
    latest = latest_values(tmp_path / "run")
    biases = [latest[name] for name in latest if latest[name].shape == best_bias.shape]
    assert biases and not any(np.array_equal(bias, best_bias) for bias in biases), "best is not latest"


def test_a_loss_that_is_no_number_ends_the_training(
    tiny_recipe, scenes_folder, tmp_path, monkeypatch, capsys
):
    step = TrainStep.train
    monkeypatch.setattr(TrainStep, "train", lambda *a: step(*a)._replace(cross_entropy_sum=float("nan")))
    assert main(command(tiny_recipe, scenes_folder, tmp_path / "run")) == 2
    said = capsys.readouterr().err
    assert "frozen epoch 1, step 1: the loss is no number any more" in said and "learning_rate" in said
    assert Run.open(tmp_path / "run").history() == []


def test_tensorboard_gets_the_figures_of_each_epoch(tmp_path):
    pytest.importorskip("tensorboard")
    from captioner.training.train_loop import _summarize

    for epoch in (1, 2):
        _summarize(
            {"phase": "decoder", "epoch": epoch, "dev_loss": 3.0 - epoch, "cider": 10 * epoch}, str(tmp_path)
        )
    found = {}
    for file in sorted(tmp_path.glob("events*")):
        for event in tf.compat.v1.train.summary_iterator(str(file)):
            for value in event.summary.value:
                found[value.tag, event.step] = float(tf.make_ndarray(value.tensor))
    assert found == {("dev_loss", 1): 2, ("dev_loss", 2): 1, ("cider", 1): 10, ("cider", 2): 20}


# Stopped and gone on with.


class Killed(BaseException):
    """Stands for a process that ends where it is."""


def at_call(number: int, of: Callable[..., Any], do: Callable[[], None]) -> Callable[..., Any]:
    """A function that does something before its n-th call."""
    calls = 0

    def wrapped(*args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number:
            do()
        return of(*args, **options)

    return wrapped


def die() -> None:
    raise Killed


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_a_signal_lets_the_step_finish_and_saves(
    number, two_phases, scenes_folder, tmp_path, monkeypatch, capsys
):
    """That what is saved is gone on with, to the same weights, the tests below say."""
    folder = tmp_path / "run"
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    with monkeypatch.context() as patch:
        patch.setattr(TrainStep, "train", at_call(3, TrainStep.train, lambda: os.kill(os.getpid(), number)))
        assert main(command(two_phases, scenes_folder, folder)) == 128 + number
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers
    said = capsys.readouterr().err
    assert "go on with the same command and --resume" in said and "error" not in said
    values = latest_values(folder)
    assert [int(values[f"state/{name}/.ATTRIBUTES/VARIABLE_VALUE"]) for name in ("epoch", "step")] == [0, 3]


def test_whatever_moment_it_dies_at_it_ends_with_the_weights_of_the_unbroken_run(
    two_phases, two_phase_run, scenes_folder, tmp_path, monkeypatch
):
    folder = tmp_path / "run"
    often = ["--set", "train.save_minutes=0"]
    moments = [
        (TrainStep, "train", 8),  # in the second epoch, after a checkpoint in the middle of it
        (CheckpointManager, "save", 4),  # that epoch is in the history and among the best, but not in latest
        (CheckpointManager, "save", 2),  # the next phase has begun
        (Run, "save_best", 1),  # the last epoch is in the history alone
    ]
    for number, (owner, name, call) in enumerate(moments):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, at_call(call, getattr(owner, name), die))
            with pytest.raises(Killed):
                main(command(two_phases, scenes_folder, folder, *often, *(["--resume"] if number else [])))
    assert main(command(two_phases, scenes_folder, folder, *often, "--resume")) == 0
    assert_same_training(folder, two_phase_run)


def test_a_frozen_encoder_that_an_earlier_phase_trained_is_the_same_after_a_resume(
    scenes_folder, tmp_path, monkeypatch
):
    recipe = tmp_path / "recipe.toml"
    phases = {"both": {"trains": ["decoder", "encoder"], "epochs": 1}, "frozen": {"epochs": 1}}
    recipe.write_text(recipe_of(phases), encoding="utf-8")
    assert main(command(recipe, scenes_folder, tmp_path / "unbroken")) == 0
    with monkeypatch.context() as patch:
        patch.setattr(
            TrainStep, "train", at_call(5, TrainStep.train, lambda: os.kill(os.getpid(), signal.SIGINT))
        )
        assert main(command(recipe, scenes_folder, tmp_path / "run")) == 130
    assert main(command(recipe, scenes_folder, tmp_path / "run", "--resume")) == 0
    assert_same_training(tmp_path / "run", tmp_path / "unbroken")


def test_going_on_for_longer_and_with_another_network(tiny_run, tiny_recipe, scenes_folder, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(tiny_run, copy)
    longer = ["--resume", "--set", "phases.reward.epochs=2"]
    assert main(command(tiny_recipe, scenes_folder, copy, *longer)) == 0
    assert [e["epoch"] for e in Run.open(copy).history()] == [1, 2, 1, 1, 2]
    assert Run.open(copy).config.phases["reward"].epochs == 2
    for change in ("decoder.units=32", "train.select=cider"):
        assert main(command(tiny_recipe, scenes_folder, copy, "--resume", "--set", change)) == 2
        assert change.partition(".")[0] in capsys.readouterr().err


def test_training_may_be_called_from_a_thread(scenes_folder, tmp_path):
    """As a notebook or a server does; there are no signals there."""
    import threading

    recipe = tmp_path / "recipe.toml"
    recipe.write_text(recipe_of({"frozen": {**FROZEN, "epochs": 1}}), encoding="utf-8")
    config = load_config(recipe)
    found: list[Run] = []
    worker = threading.Thread(
        target=lambda: found.append(train(config, scenes_folder, tmp_path / "run", quiet=True))
    )
    worker.start()
    worker.join()
    assert found and len(found[0].history()) == 1


# Real processes.


def start(*arguments: str) -> subprocess.Popen[str]:
    code = "import sys; from captioner.cli.main import main; sys.exit(main(sys.argv[1:]))"
    quiet = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        env=quiet,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def wait_for(path: Path, process: subprocess.Popen[str], seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None and time.monotonic() < end, process.stderr and process.stderr.read()
        time.sleep(0.05)


def test_ctrl_c_on_a_real_process(two_phases, scenes_folder, tmp_path):
    folder = tmp_path / "run"
    process = start(*command(two_phases, scenes_folder, folder, "--set", "phases.frozen.epochs=5000"))
    wait_for(folder / "history.jsonl", process)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 130 and said.count("\n") == 1, said
    assert said.startswith("stopped and saved; go on with the same command and --resume")
    last = Run.open(folder).history()[-1]
    assert latest_values(folder)["state/epoch/.ATTRIBUTES/VARIABLE_VALUE"] == last["epoch"]


@pytest.mark.slow
def test_sigterm_on_a_real_process_and_on(two_phases, scenes_folder, tmp_path):
    arguments = command(two_phases, scenes_folder, tmp_path / "run", "--set", "train.save_minutes=0")
    process = start(*arguments)
    wait_for(tmp_path / "run" / "latest" / "frozen" / "ckpt-2.index", process)
    process.terminate()
    assert "--resume" in process.communicate(timeout=300)[1] and process.returncode == 143
    again, whole = (
        start(*arguments, "--resume"),
        start(*command(two_phases, scenes_folder, tmp_path / "unbroken", "--set", "train.save_minutes=0")),
    )
    assert [process.wait(600) for process in (again, whole)] == [0, 0]
    assert_same_training(tmp_path / "run", tmp_path / "unbroken")


@pytest.mark.slow
def test_ten_times_sigkill_at_random_moments(scenes_folder, tmp_path):
    """Each time the process has come further than the time before, or at least not lost anything."""
    recipe = tmp_path / "recipe.toml"
    longer = {name: {**TWO_PHASES[name], "epochs": 6 * TWO_PHASES[name]["epochs"]} for name in TWO_PHASES}
    recipe.write_text(recipe_of({**longer, "reward": {**REWARD, "epochs": 4}}), encoding="utf-8")
    often = ("--set", "train.save_minutes=0")
    began = time.monotonic()
    whole = start(*command(recipe, scenes_folder, tmp_path / "unbroken", *often))
    assert whole.wait(1800) == 0
    seconds = time.monotonic() - began
    seed = int.from_bytes(os.urandom(4), "big")
    print(f"unbroken: {seconds:.1f} s; moments from seed {seed}")
    draw = random.Random(seed)
    folder, kills = tmp_path / "run", 0
    while kills < 10:
        resume = ["--resume"] if (folder / "config.json").exists() else []
        process = start(*command(recipe, scenes_folder, folder, *often, *resume))
        try:
            process.wait(draw.uniform(0.1, 0.6) * seconds)
        except subprocess.TimeoutExpired:
            process.kill()
        kills += 1
        process.communicate()
        assert process.returncode in (0, -signal.SIGKILL), "never an error of its own"
    assert start(*command(recipe, scenes_folder, folder, *often, "--resume")).wait(1800) == 0
    assert_same_training(folder, tmp_path / "unbroken")
    lines = [json.loads(line) for line in (folder / "history.jsonl").read_text(encoding="utf-8").splitlines()]
    print(f"{len(lines)} lines of history for {len(Run.open(folder).history())} epochs")
