"""What computes, and what follows from it; cards that are not there are stood in for."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from captioner.errors import CaptionerError
from captioner.models.device import Device, find_device, memory_advice

pytestmark = pytest.mark.machines

T4 = Device("GPU", "Tesla T4", cores=2, memory_gib=15, capability=(7, 5))
A100 = Device("GPU", "NVIDIA A100", cores=12, memory_gib=40, capability=(8, 0))
LAPTOP = Device("processor", "a laptop", cores=16)


def test_without_a_card_it_is_the_processor():
    found = find_device()
    if not tf.config.list_physical_devices("GPU"):
        assert found.kind == "processor" and not found.on_gpu and found.cores >= 1
        assert str(found).startswith(f"{found.cores} core")


@pytest.mark.parametrize(
    ("device", "wanted", "expected"),
    [
        (T4, "auto", "float32"),
        (A100, "auto", "bfloat16"),
        (Device("GPU", "later", cores=1, capability=(12, 0)), "auto", "bfloat16"),
        (T4, "bfloat16", "bfloat16"),
        (A100, "float32", "float32"),
        (LAPTOP, "float32", "float32"),
    ],
)
def test_precision_by_compute_capability(device, wanted, expected):
    assert device.precision(wanted) == expected


@pytest.mark.parametrize(
    ("device", "wanted", "pictures", "expected"),
    [
        (LAPTOP, 0, 64, 16),
        (LAPTOP, 0, 16, 4),  # one picture a core would not pay
        (LAPTOP, 0, 1, 1),
        (LAPTOP, 16, 16, 16),  # as asked
        (LAPTOP, 16, 5, 5),
        (T4, 0, 64, 1),
        (T4, 2, 64, 2),
        (Device("processor", "small", cores=1), 0, 64, 1),
    ],
)
def test_micro_batches_are_as_many_as_pay(device, wanted, pictures, expected):
    assert device.micro_batches(wanted, pictures) == expected


def test_a_card_is_filled_and_said():
    assert (LAPTOP.extraction_batch, T4.extraction_batch, A100.extraction_batch) == (32, 128, 256)
    assert (LAPTOP.encoder_halves, T4.encoder_halves) == (2, 1)
    assert str(A100) == "GPU NVIDIA A100, 40 GiB, compute capability 8.0"
    assert LAPTOP.reading_threads == 16 and T4.reading_threads == 2


def test_memory_that_runs_out_names_the_setting_to_lower():
    with (
        pytest.raises(CaptionerError, match=r"out of memory \(OOM .*; lower phases\.decoder"),
        memory_advice("lower phases.decoder.pictures_per_batch"),
    ):
        raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor with shape [64]\n…")


def test_batches_are_copied_to_the_card_ahead(monkeypatch):
    """A stand-in whose place is the processor: the transformation is the one that a card gets."""
    from captioner.config import PhaseConfig
    from captioner.training import input_pipeline
    from tests.training.test_input_pipeline import Numbers, many

    table = many(20)
    made = input_pipeline.TrainingBatches(
        table, Numbers(table.ids), phase=PhaseConfig(pictures_per_batch=8), seed=0
    )
    plain = list(made.batches(0))
    card = Device("GPU", "stand-in", cores=2, place="/CPU:0")
    monkeypatch.setattr(input_pipeline, "find_device", lambda: card)
    for one, other in zip(plain, made.batches(0), strict=True):
        for a, b in zip(tf.nest.flatten(one), tf.nest.flatten(other), strict=True):
            np.testing.assert_array_equal(a, b)
