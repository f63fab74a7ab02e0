"""Checkpoints that a training goes on from: kept, checked, fallen back on, never lost."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tensorflow as tf

from captioner.errors import CaptionerError, RunError
from captioner.training import checkpoints as latest_room
from captioner.training.checkpoints import CheckpointManager

ROOT = Path(__file__).resolve().parents[2]


def state_of(value: float, size: int = 1000) -> dict[str, tf.Variable]:
    return {"weights": tf.Variable(tf.fill([size], float(value))), "step": tf.Variable(int(value))}


def numbers(folder: Path) -> list[int]:
    return sorted(int(path.stem.split("-")[1]) for path in folder.glob("ckpt-*.index"))


def filled(folder: Path, saves: int, keep: int = 3) -> None:
    state = state_of(0)
    latest = CheckpointManager(folder, state, keep)
    for value in range(1, saves + 1):
        state["weights"].assign(tf.fill([1000], float(value)))
        state["step"].assign(value)
        latest.save()


def restored(folder: Path) -> int:
    """The step that a fresh start restores; its weights must be of the same step."""
    state = state_of(-1)
    CheckpointManager(folder, state).restore()
    assert set(state["weights"].numpy()) == {float(state["step"].numpy())}
    return int(state["step"])


def test_the_newest_are_kept_and_the_newest_is_restored(tmp_path: Path) -> None:
    filled(tmp_path, saves=5, keep=2)
    assert numbers(tmp_path) == [4, 5]
    assert {path.name.split(".")[0] for path in tmp_path.iterdir()} == {"ckpt-4", "ckpt-5", "checkpoint"}
    assert restored(tmp_path) == 5
    assert tf.train.latest_checkpoint(str(tmp_path)) == str(tmp_path / "ckpt-5")


def test_nothing_to_restore(tmp_path: Path) -> None:
    assert CheckpointManager(tmp_path / "latest", state_of(1)).restore() is None


def damage_data(folder: Path) -> None:
    path = folder / "ckpt-3.data-00000-of-00001"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut_data(folder: Path) -> None:
    path = folder / "ckpt-3.data-00000-of-00001"
    path.write_bytes(path.read_bytes()[:100])


def lose_data(folder: Path) -> None:
    (folder / "ckpt-3.data-00000-of-00001").unlink()


def cut_index(folder: Path) -> None:
    (folder / "ckpt-3.index").write_bytes(b"")


def damage_manifest(folder: Path) -> None:
    path = folder / "ckpt-3.json"
    path.write_text(path.read_text().replace("bytes", "bites"))


@pytest.mark.parametrize("damage", [damage_data, cut_data, lose_data, cut_index, damage_manifest])
@pytest.mark.parametrize("sealed", [True, False])
def test_a_damaged_newest_is_said_and_passed_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: object, sealed: bool
) -> None:
    filled(tmp_path, saves=3)
    if damage is not damage_manifest and not sealed:  # killed before the manifest was there
        (tmp_path / "ckpt-3.json").unlink()
    damage(tmp_path)  # type: ignore[operator]
    assert restored(tmp_path) == 2
    said = capsys.readouterr().err
    assert "ckpt-3: not usable, going back to the one before" in said


def test_unsealed_but_whole_is_used(tmp_path: Path) -> None:
    filled(tmp_path, saves=3)
    (tmp_path / "ckpt-3.json").unlink()
    assert restored(tmp_path) == 3


def test_a_lost_index_is_a_checkpoint_never_finished(tmp_path: Path) -> None:
    filled(tmp_path, saves=3)
    (tmp_path / "ckpt-3.index").unlink()
    assert restored(tmp_path) == 2


def test_all_damaged_is_an_error_and_changes_nothing(tmp_path: Path) -> None:
    filled(tmp_path, saves=2)
    for path in tmp_path.glob("*.data*"):
        path.write_bytes(b"")
    state = state_of(9)
    with pytest.raises(RunError, match="no checkpoint is whole"):
        CheckpointManager(tmp_path, state).restore()
    assert int(state["step"]) == 9


def test_damaged_ones_go_at_the_next_save_and_are_never_overwritten(tmp_path: Path) -> None:
    filled(tmp_path, saves=3)
    damage_data(tmp_path)
    state = state_of(0)
    latest = CheckpointManager(tmp_path, state, max_to_keep=2)
    restored_from = latest.restore()
    assert restored_from is not None and restored_from.name == "ckpt-2"
    assert numbers(tmp_path) == [1, 2, 3]
    assert latest.save().name == "ckpt-4"
    assert numbers(tmp_path) == [2, 4]
    assert restored(tmp_path) == 2


def test_a_damaged_state_file_does_not_matter(tmp_path: Path) -> None:
    filled(tmp_path, saves=2)
    for rubbish in (b"", b"\xff\xfe\x00", b"model_checkpoint_path: {"):
        (tmp_path / "checkpoint").write_bytes(rubbish)
        assert restored(tmp_path) == 2
        CheckpointManager(tmp_path, state_of(2)).save()


def test_another_shape_or_another_set_of_objects(tmp_path: Path) -> None:
    filled(tmp_path, saves=1)
    with pytest.raises(RunError, match=r"ckpt-1: was saved by a training of another shape"):
        CheckpointManager(tmp_path, state_of(1, size=7)).restore()
    with pytest.raises(RunError, match="another shape"):
        CheckpointManager(tmp_path, {"step": tf.Variable(1)}).restore()
    with pytest.raises(RunError, match="another shape"):
        CheckpointManager(tmp_path, {**state_of(1), "encoder": tf.Variable(1.0)}).restore()


def test_models_and_optimizers_come_back(tmp_path: Path) -> None:
    keras = pytest.importorskip("keras")

    def objects() -> dict[str, object]:
        model = keras.Sequential([keras.Input([3]), keras.layers.Dense(2)])
        optimizer = keras.optimizers.Adam(0.1)
        optimizer.build(model.trainable_variables)
        return {"decoder": model, "optimizer": optimizer, "step": tf.Variable(0, dtype=tf.int64)}

    first, second = objects(), objects()
    gradients = [tf.ones_like(value) for value in first["decoder"].trainable_variables]  # type: ignore[attr-defined]
    first["optimizer"].apply(gradients)  # type: ignore[attr-defined]
    CheckpointManager(tmp_path, first).save()
    CheckpointManager(tmp_path, second).restore()
    for name in ("decoder", "optimizer"):
        for a, b in zip(first[name].variables, second[name].variables, strict=True):  # type: ignore[attr-defined]
            assert (a.numpy() == b.numpy()).all()


def test_a_full_disk_leaves_the_checkpoints_as_they_were(tmp_path: Path) -> None:
    filled(tmp_path, saves=2, keep=2)
    before = sorted(os.listdir(tmp_path))
    big = {**state_of(7), "more": tf.Variable(tf.ones(100_000))}
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limit[1]))
    try:
        with pytest.raises(CaptionerError, match=r"ckpt-3: cannot be written .*make room.*--resume"):
            CheckpointManager(tmp_path, big, max_to_keep=2).save()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    assert sorted(os.listdir(tmp_path)) == before
    assert restored(tmp_path) == 2


def test_a_manifest_that_cannot_be_written_undoes_the_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise CaptionerError("disk is full")

    filled(tmp_path, saves=2, keep=1)
    with monkeypatch.context() as patch, pytest.raises(CaptionerError, match="disk is full"):
        patch.setattr(latest_room, "write_manifest", full)
        CheckpointManager(tmp_path, state_of(3), max_to_keep=1).save()
    assert numbers(tmp_path) == [2] and restored(tmp_path) == 2


SAVE_FOR_EVER = """
import os, sys
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
from pathlib import Path
import tensorflow as tf
from captioner.training.checkpoints import CheckpointManager
state = {"weights": tf.Variable(tf.fill([300_000], -1.0)), "step": tf.Variable(0)}
latest = CheckpointManager(Path(sys.argv[1]), state, max_to_keep=1)
latest.restore()
while True:
    state["step"].assign_add(1)
    state["weights"].assign(tf.fill([300_000], float(state["step"].numpy())))
    latest.save()
    print(state["step"].numpy(), flush=True)
"""


@pytest.mark.slow
def test_killed_ten_times_while_saving(tmp_path: Path) -> None:
    saved = 0
    for attempt in range(10):
        writer = subprocess.Popen(
            [sys.executable, "-c", SAVE_FOR_EVER, tmp_path], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        assert writer.stdout is not None
        writer.stdout.readline()
        time.sleep(0.017 * attempt)
        writer.send_signal(signal.SIGKILL)
        printed = writer.stdout.read().split()
        writer.communicate()
        state = {"weights": tf.Variable(tf.fill([300_000], -1.0)), "step": tf.Variable(0)}
        assert CheckpointManager(tmp_path, state).restore() is not None
        step = int(state["step"])
        assert step >= max([saved, *map(int, printed)])
        assert set(state["weights"].numpy()) == {float(step)}
        saved = step
    assert saved >= 10
    CheckpointManager(tmp_path, state, max_to_keep=1).save()
    assert len(numbers(tmp_path)) == 1 and not list(tmp_path.glob("*_temp*"))
