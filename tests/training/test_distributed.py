"""Several workers train as one would: real processes on this machine, held against a single one."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from captioner.config import PhaseConfig
from captioner.data.datasets import load_split
from captioner.data.vocabulary import Vocabulary
from captioner.errors import ConfigError
from captioner.runs.run_folder import Run
from captioner.training.distributed import this_worker
from captioner.training.input_pipeline import PixelSource, TokenizedCaptions, TrainingBatches
from tests.conftest import BOTH, FROZEN, REWARD, recipe_of

ROOT = Path(__file__).resolve().parents[2]
# Everything in which workers could differ: drawn captions and crops, dropout, averages, samples. Not Adam
# where the CNN is trained: it takes a full step for a weight whose gradient is nothing but rounding.
RECIPE = recipe_of(
    {
        "frozen": {**FROZEN, "pictures_per_batch": 12, "captions_per_picture": 3, "ema_decay": 0.9},
        "both": {**BOTH, "pictures_per_batch": 12, "optimizer": "momentum"},
        "reward": {**REWARD, "pictures_per_batch": 12, "optimizer": "momentum", "cross_entropy": 0.2},
    },
    train='micro_batches = 4\nprecision = "float32"\n',
)
LOSSES = ("train_loss", "train_accuracy", "dev_loss", "reward")


# Which worker this is.


@pytest.mark.parametrize(
    ("cluster", "task", "expected"),
    [
        ({"worker": ["a:1", "b:1"]}, {"type": "worker", "index": 1}, (1, 2)),
        ({"chief": ["a:1"], "worker": ["b:1", "c:1"]}, {"type": "worker", "index": 0}, (1, 3)),
        ({"chief": ["a:1"], "worker": ["b:1"]}, {"type": "chief", "index": "0"}, (0, 2)),
        ({"worker": ["a:1"]}, {"type": "worker", "index": 0}, (0, 1)),
    ],
)
def test_the_environment_tells_who_this_is(
    cluster: Any, task: Any, expected: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": cluster, "task": task}))
    assert this_worker() == expected
    monkeypatch.delenv("TF_CONFIG")
    assert this_worker() == (0, 1)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"cluster": {"worker": ["a:1"]}, "task": {"index": 0}}'])
def test_an_environment_that_cannot_be(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(ConfigError, match=r"TF_CONFIG .*: expected, on the first of two machines"):
        this_worker()


# The same batches.


@pytest.mark.parametrize("workers", [2, 3, 9])
def test_the_shares_of_all_are_the_batch_of_one(scenes_folder: Path, workers: int) -> None:
    records = list(load_split(scenes_folder, "train").records)
    words = Vocabulary.build([caption for record in records for caption in record.captions])
    phase = PhaseConfig(pictures_per_batch=7, captions_per_picture=2, augment=True)
    table, source = TokenizedCaptions(records, words, max_words=30), PixelSource(records, (32, 32))

    def batches(shard: tuple[int, int]) -> list[Any]:
        made = TrainingBatches(table, source, phase=phase, seed=5, worker_shard=shard)
        return [[np.asarray(x) for x in (*batch[0], *batch[1:])] for batch in made.batches(1)]

    whole = batches((0, 1))
    shares = [batches((part, workers)) for part in range(workers)]
    for step, batch in enumerate(whole):
        for row in range(len(batch[0])):
            share = shares[row % workers][step]
            for one, many in zip(batch, share, strict=True):
                np.testing.assert_array_equal(one[row], many[row // workers])
        # Who has no picture gets one without weight.
        for part in range(len(batch[0]), workers):
            assert len(shares[part][step][0]) == 1 and not shares[part][step][3].any()


# The same training.


def ports(count: int) -> list[int]:
    taken = [socket.socket() for _ in range(count)]
    for each in taken:
        each.bind(("127.0.0.1", 0))
    found = [each.getsockname()[1] for each in taken]
    for each in taken:
        each.close()
    return found


def start(count: int, arguments: list[str]) -> list[subprocess.Popen[bytes]]:
    """`captioner train` in so many processes that know of each other."""
    addresses = [f"127.0.0.1:{port}" for port in ports(count)]
    processes = []
    for index in range(count):
        environment = {**os.environ}
        if count > 1:
            task = {"type": "worker", "index": index}
            environment["TF_CONFIG"] = json.dumps({"cluster": {"worker": addresses}, "task": task})
        command = [sys.executable, "-m", "captioner", "train", *arguments]
        processes.append(subprocess.Popen(command, cwd=ROOT, env=environment))
    return processes


def wait(processes: list[subprocess.Popen[bytes]]) -> list[int]:
    try:
        return [process.wait(1500) for process in processes]
    finally:
        for process in processes:
            process.kill()


def outcome(run: Path, pictures: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """What each epoch gave, and captions by the run."""
    from captioner.inference.captioner import Captioner

    some = sorted((pictures / "images").iterdir())[:12]
    return Run.open(run).history(), [caption.text for caption in Captioner.load(run).caption(some)]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("group") / "group.toml"
    path.write_text(RECIPE, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def alone(
    recipe: Path, scenes_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[dict[str, Any]], list[str]]:
    run = tmp_path_factory.mktemp("alone") / "run"
    arguments = [str(recipe), "--data", str(scenes_folder), "--run", str(run)]
    assert wait(start(1, arguments)) == [0]
    return outcome(run, scenes_folder)


def check_same(
    found: tuple[list[dict[str, Any]], list[str]], alone: tuple[list[dict[str, Any]], list[str]]
) -> None:
    for one, many in zip(alone[0], found[0], strict=True):
        assert (one["phase"], one["epoch"]) == (many["phase"], many["epoch"])
        for name in LOSSES:
            wanted = pytest.approx(one[name], rel=1e-5) if name in one else None
            assert many.get(name) == wanted, (one["phase"], name)
    assert found[1] == alone[1]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [2, 4])
def test_workers_give_the_losses_and_captions_of_one(
    workers: int,
    recipe: Path,
    scenes_folder: Path,
    alone: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CAPTIONER_CACHE", str(tmp_path / "cache"))  # empty: they extract it together
    run = tmp_path / "run"
    arguments = [str(recipe), "--data", str(scenes_folder), "--run", str(run)]
    assert wait(start(workers, arguments)) == [0] * workers
    check_same(outcome(run, scenes_folder), alone)


@pytest.mark.slow
def test_stopped_by_one_and_gone_on_by_another_number(
    recipe: Path, scenes_folder: Path, alone: Any, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    arguments = [str(recipe), "--data", str(scenes_folder), "--run", str(run)]
    both = start(2, arguments)
    deadline = time.monotonic() + 900
    while not (run / "history.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    both[1].send_signal(signal.SIGTERM)  # not the first: it has to tell the other
    assert wait(both) == [128 + signal.SIGTERM] * 2
    assert len(Run.open(run).history()) < 4
    assert wait(start(4, [*arguments, "--resume"])) == [0] * 4
    check_same(outcome(run, scenes_folder), alone)


@pytest.mark.slow
def test_one_dies_and_the_others_say_so(scenes_folder: Path, tmp_path: Path, capfd: Any) -> None:
    recipe, run = tmp_path / "long.toml", tmp_path / "run"
    recipe.write_text(recipe_of({"frozen": {"epochs": 500}}), encoding="utf-8")
    both = start(2, [str(recipe), "--data", str(scenes_folder), "--run", str(run)])
    deadline = time.monotonic() + 900
    while not (run / "history.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    both[1].kill()
    assert wait(both) == [2, -signal.SIGKILL]
    said = capfd.readouterr().err
    assert "error: worker 1: another worker is gone" in said and "Traceback" not in said
    assert Run.open(run).history()  # whole


@pytest.mark.slow
def test_devices_of_one_machine(recipe: Path, scenes_folder: Path, alone: Any, tmp_path: Path) -> None:
    """MirroredStrategy; two devices made of the one processor stand for two GPUs."""
    code = f"""
import tensorflow as tf
cpu, = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from captioner.config import load_config
from captioner.training.distributed import train_distributed
train_distributed(load_config({str(recipe)!r}), {str(scenes_folder)!r}, {str(tmp_path / "run")!r},
                  devices=["CPU:0", "CPU:1"])
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=1500)
    check_same(outcome(tmp_path / "run", scenes_folder), alone)


@pytest.mark.slow
def test_parts_that_cannot_be_dealt(recipe: Path, scenes_folder: Path, tmp_path: Path) -> None:
    arguments = [
        str(recipe),
        "--data",
        str(scenes_folder),
        "--run",
        str(tmp_path),
        "--set",
        "train.micro_batches=3",
    ]
    assert wait(start(2, arguments)) == [2, 2]
