"""The benchmarks run and say what they should; how fast anything is, no test asks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ROOT / "scripts"


@pytest.fixture(autouse=True)
def scripts_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scripts import one another as if started from their folder."""
    monkeypatch.syspath_prepend(str(SCRIPTS))


def run(script: str, *arguments: str) -> tuple[str, dict[str, Any]]:
    """What a benchmark prints, and the JSON of its last line."""
    command = [sys.executable, str(SCRIPTS / script), "--quick", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(done.stdout.splitlines()[-1])


def check(line: dict[str, Any]) -> None:
    """What every benchmark's line holds."""
    assert line["figure"] > 0 and line["ratio"] > 0 and line["unit"] and line["reference"]
    assert 0.05 < line["peak_memory_gib"] < 8
    assert line["machine"]["cores"] >= 1 and line["machine"]["cpu"] and line["commit"]


@pytest.mark.slow
def test_training() -> None:
    printed, line = run("bench_train.py")
    check(line)
    assert line["captions_per_second"] == line["figure"]
    assert line["captions_per_second"] / line["textbook_captions_per_second"] == pytest.approx(
        line["ratio"], rel=1e-2
    )
    assert 0 < line["peak_share"] < 1
    assert "random features" in printed


def test_decoding() -> None:
    _, line = run("bench_decode.py")
    check(line)
    assert line["words_per_caption"] == 4  # as many as the textbook is made to write
    assert line["images_per_second_beam"] > 0 and line["images_per_second_files"] > 0


@pytest.mark.slow
def test_start(tiny_run: Path) -> None:
    _, line = run("bench_start.py", "--run", str(tiny_run))
    check(line)
    assert line["seconds"] == line["figure"] and line["caption"]


@pytest.mark.slow
def test_features() -> None:
    _, line = run("bench_features.py")
    check(line)
    assert line["pictures_per_second_large"] > 0
    assert "500 pixels" in line["large"]


@pytest.mark.slow
def test_later_phases() -> None:
    _, line = run("bench_phases.py")
    check(line)
    assert line["finetune_share_of_cnn"] == pytest.approx(line["ratio"], rel=1e-2)
    assert -1 < line["reward_costs_more"] < 10


@pytest.mark.slow
def test_cost_of_a_larger_data_set() -> None:
    printed, line = run("bench_growth.py", "coco")
    assert line["figure"] >= 0 and [found["pictures"] for found in line["sizes"]] == [40, 80]
    assert list(line["sizes"][1]["phases"]) == ["decoder", "finetune", "reward"]
    # 2,048 bytes of features a picture; 113,287 + 5,000 pictures
    assert line["forecast"]["coco"]["cache_gb"] == pytest.approx(118_287 * 2048 / 1e9)
    assert line["forecast"]["coco"]["hours"] > line["forecast"]["flickr30k"]["hours"] > 0
    assert "memory, GiB" in printed


@pytest.mark.slow
def test_one_table_of_a_gpu() -> None:
    printed, line = run("bench_gpu.py", "--anyway", "--rounds", "1")
    check(line)
    assert set(line["benchmarks"]) == {
        f"bench_{name}.py" for name in ("train", "phases", "features", "decode")
    }
    assert all(script in printed for script in line["benchmarks"])


def test_a_gpu_is_not_made_up() -> None:
    pytest.importorskip("tensorflow")
    command = [sys.executable, str(SCRIPTS / "bench_gpu.py")]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    )
    assert (
        done.returncode == 2
        and "TensorFlow sees no GPU" in done.stderr
        and "tensorflow[and-cuda]" in done.stderr
    )


@pytest.mark.slow
def test_profiles() -> None:
    _, line = run("profile_steps.py", "--stages", "train", "finetune", "features")
    shares = {stage: found["kinds"] for stage, found in line["stages"].items()}
    assert shares["train"]["matrix products"] > 0
    assert shares["finetune"]["convolutions"] > 0 and shares["features"]["convolutions"] > 0


@pytest.mark.slow
def test_growth_and_pictures_of_a_data_set(scenes_folder: Path) -> None:
    printed, line = run("bench_train.py", "--data", str(scenes_folder), "--grow", "batch")
    assert [row["batch"] for row in line["growth"]["batch"]] == [2, 8, 32]
    assert "cached features" in printed


@pytest.mark.parametrize("attention", ["dot", "additive"])
@pytest.mark.parametrize("tied", [False, True])
def test_operations_are_those_of_the_shapes(attention: str, tied: bool) -> None:
    """U 8, E 4, V 50, C 6, P 9, counted by hand: 2 a multiplication; forward once, backward twice."""
    from bench_train import operations

    from captioner.config import DecoderConfig
    from captioner.models.decoder import CaptionDecoder

    config = DecoderConfig(units=8, embedding=4, attention=attention, tied=tied, sentinel=True)
    decoder = CaptionDecoder(config, vocabulary_size=50, channels=6)
    grid = 9 * 6 * 16 + 6 * 8  # keys and values of each cell, the first state
    width = 4 if tied else 8
    word = 4 * 24 + 8 * 32 + 8 * 24 + 2 * 9 * 8 + 16 * width + width * 50
    assert operations(decoder, 9, pictures=1, words=0) == 2 * 2 * grid  # no gradient into the CNN
    assert operations(decoder, 9, pictures=0, words=1) == 3 * 2 * word


def test_captions_are_padded_to_the_longest_and_cut() -> None:
    from textbook import padded

    assert padded([[7], [5, 6, 7]], 2).tolist() == [[2, 7, 3, 0], [2, 5, 6, 3]]


def test_the_textbook_learns() -> None:
    """A yardstick must work: it learns two captions by heart, and writes them."""
    import textbook

    captioner = textbook.Captioner(vocabulary=8, units=16, embedding=8)
    training = textbook.Training(captioner)
    features = np.eye(2, 5, dtype=np.float32)[:, None].repeat(3, axis=1)  # (2, 3, 5)
    captions = textbook.padded([[4, 5], [6, 7]], 2)
    losses = [float(training.step(features, captions)) for _ in range(200)]
    assert losses[-1] < losses[0] / 4
    assert [textbook.greedy(captioner, grid, 2) for grid in features] == [[4, 5], [6, 7]]


def test_ratios_are_of_medians_and_show_their_spread() -> None:
    from measure import Measured, compared

    ours = Measured({}, [{"rate": rate} for rate in (10.0, 20.0, 30.0)])
    theirs = Measured({}, [{"speed": speed} for speed in (10.0, 5.0, 10.0)])
    (figure,) = compared("writing", "lines/s", ours, "rate", [("theirs", theirs, "speed")])
    assert (figure.value, figure.ratio, figure.spread) == (20.0, 2.0, (1.0, 4.0))
    assert figure.reference == "theirs: 10 lines/s"


def test_drawn_material(tmp_path: Path) -> None:
    import material
    from PIL import Image

    records = material.drawn_captions(300, longest=36)
    lengths = [len(caption.split()) for record in records for caption in record.captions]
    assert max(lengths) == 36 and 10 < np.mean(lengths) < 12
    vocabulary = material.vocabulary_of(records, 5000)
    assert len(vocabulary) == 5000 and 1 not in vocabulary.ids(records[0].captions[0])
    assert len(material.vocabulary_of(records, 100)) == 100

    paths, what = material.picture_files(None, 40, folder=tmp_path, size=60)
    assert what == "40 drawn JPEGs of 60 pixels"
    assert len({path.read_bytes() for path in paths}) == 40  # the cache holds equal files once
    with Image.open(paths[0]) as picture:
        assert picture.size == (60, 60)
