"""What is learned does not depend on the machine: the same training in one, two and sixteen micro-batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from captioner.config import load_config
from captioner.runs.run_folder import Run
from captioner.training.train import train

SAMPLE = [
    "decoder.units=32",
    "decoder.embedding=16",
    "encoder.size=64",
    "phases.scratch.epochs=2",
    "phases.scratch.warmup_steps=2",
    # Not Adam: it takes a full step for a weight whose gradient is nothing but rounding.
    "phases.scratch.optimizer=momentum",
    "phases.scratch.learning_rate=0.02",
    "phases.scratch.encoder_learning_rate=0.01",
]
FROZEN = [
    "encoder.name=small_cnn",
    "encoder.weights=none",
    "encoder.size=64",
    "decoder.units=32",
    "decoder.embedding=16",
    "phases.decoder.epochs=2",
    "phases.decoder.warmup_steps=2",
    "phases.decoder.optimizer=momentum",
    "phases.decoder.learning_rate=0.02",
]


@pytest.mark.slow
@pytest.mark.machines
@pytest.mark.parametrize(("recipe", "settings"), [("sample", SAMPLE), ("flickr8k-frozen", FROZEN)])
def test_the_number_of_micro_batches_changes_no_training(
    recipe: str, settings: list[str], scenes_folder: Path, tmp_path: Path
) -> None:
    """Dropout, batch normalization, averages, captions of the dev pictures: all as they are in one."""
    histories: list[list[dict[str, Any]]] = []
    for count in (1, 2, 16):
        config = load_config(
            recipe, [*settings, "train.precision=float32", f"train.micro_batches={count}", "data.min_count=1"]
        )
        train(config, scenes_folder, tmp_path / f"{count}", quiet=True)
        histories.append(Run.open(tmp_path / f"{count}").history())
    one, *others = histories
    for many in others:
        for epoch, other in zip(one, many, strict=True):
            for name in ("train_loss", "dev_loss"):
                assert other[name] == pytest.approx(epoch[name], rel=1e-4), (recipe, name)
            for name in ("bleu1", "bleu4", "cider"):
                assert other[name] == pytest.approx(epoch[name], rel=1e-2, abs=0.1), (recipe, name)
