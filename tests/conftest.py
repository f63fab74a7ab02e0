"""What tests share: quiet TensorFlow, a cache of their own, a small drawn data set, the shared folder."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest

from captioner.data.vocabulary import END

# Before TensorFlow is imported by any test: read once, at import.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("MPLBACKEND", "Agg")

# Started by a shell in the background, Python ignores Ctrl-C, and so would all that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parent.parent

# A busy machine is no fault of what is tested.
hypothesis.settings.register_profile(
    "patient", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("patient")


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Features extracted by tests go to a temporary cache, never to the user's; subprocesses inherit it."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CAPTIONER_CACHE", str(folder))
        yield folder


@pytest.fixture(autouse=True)
def narration() -> Iterator[None]:
    """What a test said of --quiet holds for no other test: it is a state of the process."""
    yield
    from captioner.system import console

    console.configure()


def give_opinions(decoder: Any, seed: int = 2) -> None:
    """Weights of an untrained decoder with which what it says depends on the picture."""
    draw = np.random.default_rng(seed)
    for variable in decoder.variables:
        if not variable.name.endswith("bias"):
            spread = 1.6 if variable is decoder.word_kernel else 0.2
            variable.assign(draw.normal(0, spread, variable.shape))
    decoder.word_bias.assign(np.eye(decoder.vocabulary_size)[END] * 2)


def same_caption(one: Any, other: Any) -> bool:
    """What is promised of a picture wherever it stands in a batch: the same words, scores to 1e-5.

    A product with another number of rows may have other last bits: on processors without AVX-512 it has.
    """
    for a, b in ((one, other), *zip(one.alternatives, other.alternatives, strict=True)):
        if a.text != b.text or not np.allclose(a.score, b.score, rtol=0, atol=1e-5):
            return False
    if (one.attention is None) != (other.attention is None):
        return False
    near = one.attention is None or np.allclose(one.attention, other.attention, atol=1e-4)
    return near and (one.words, one.error) == (other.words, other.error)


@pytest.fixture(scope="session")
def scenes_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A drawn data set of 48 small pictures with train, dev and test; do not write into it."""
    scenes = pytest.importorskip("captioner.data.synthetic.scenes")
    folder = tmp_path_factory.mktemp("scenes")
    scenes.draw_dataset(folder, pictures=48, seed=0, size=64)
    return folder


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real photographs and weights beside the checkout; the test skips where it is absent."""
    folder = Path(os.environ.get("CAPTIONER_SHARED", ROOT.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"no shared data at {folder}; say where with CAPTIONER_SHARED")
    return folder


@pytest.fixture(scope="session")
def flickr8k(shared: Path) -> Path:
    """The Flickr8k training and dev pictures."""
    return _there(shared / "flickr8k")


@pytest.fixture(scope="session")
def mobilenet_weights(shared: Path) -> Path:
    """ImageNet weights of MobileNetV2."""
    return _there(shared / "encoders" / "mobilenet_v2_1.0_224.weights.h5")


def _there(path: Path) -> Path:
    if not path.exists():
        pytest.skip(f"no {path}")
    return path


# A training that takes seconds.

TINY_NETWORKS = """
[data]
min_count = 1
[encoder]
name = "small_cnn"
weights = "none"
size = 32
[decoder]
units = 16
embedding = 8
[decode]
beam = 2
max_words = 12
[train]
select = "loss"
"""
FROZEN = {"epochs": 2, "pictures_per_batch": 64, "learning_rate": 0.01, "warmup_steps": 0}
BOTH = {
    "trains": ["decoder", "encoder"],
    "augment": True,
    "epochs": 1,
    "pictures_per_batch": 16,
    "learning_rate": 0.01,
    "encoder_learning_rate": 0.001,
    "warmup_steps": 0,
}
TWO_PHASES = {
    "frozen": {"epochs": 2, "pictures_per_batch": 8, "captions_per_picture": 2, "ema_decay": 0.9},
    "both": BOTH,
}
REWARD = {"objective": "reward", "epochs": 1, "pictures_per_batch": 16, "samples": 2}


def recipe_of(phases: dict[str, dict[str, Any]], train: str = "") -> str:
    """A recipe for tiny networks; `train` is more for its section [train]."""
    import tomli_w

    return TINY_NETWORKS + train + tomli_w.dumps({"phases": phases})


@pytest.fixture(scope="session")
def tiny_recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe of three short phases: frozen encoder, both trained, reward."""
    path = tmp_path_factory.mktemp("recipes") / "tiny.toml"
    count = os.environ.get("CAPTIONER_TEST_MICRO_BATCHES")  # see scripts/test --avx2
    more = f"micro_batches = {int(count)}\n" if count else ""
    path.write_text(recipe_of({"frozen": FROZEN, "both": BOTH, "reward": REWARD}, more), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory, tiny_recipe: Path, scenes_folder: Path) -> Path:
    """The finished run of that recipe on the drawn data set; do not write into it."""
    from captioner.cli.main import main

    folder = tmp_path_factory.mktemp("tiny") / "run"
    assert main(["train", str(tiny_recipe), "--data", str(scenes_folder), "--run", str(folder)]) == 0
    return folder


@pytest.fixture(scope="session")
def two_phases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe without reward, whose graphs take longest to compile."""
    path = tmp_path_factory.mktemp("recipes") / "two.toml"
    path.write_text(recipe_of(TWO_PHASES), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def two_phase_run(tmp_path_factory: pytest.TempPathFactory, two_phases: Path, scenes_folder: Path) -> Path:
    """The finished run of that recipe, never interrupted; do not write into it."""
    from captioner.cli.main import main

    folder = tmp_path_factory.mktemp("two") / "run"
    command = ["train", str(two_phases), "--data", str(scenes_folder), "--run", str(folder), "--quiet"]
    assert main(command) == 0
    return folder


@pytest.fixture(scope="session")
def untrained_run(tmp_path_factory: pytest.TempPathFactory, scenes_folder: Path) -> Path:
    """The run of a training that was stopped before it had learnt anything; do not write into it."""
    from captioner.config import Config, DecodeConfig, DecoderConfig, EncoderConfig
    from captioner.data.datasets import load_split
    from captioner.data.vocabulary import Vocabulary
    from captioner.models.decoder import CaptionDecoder
    from captioner.models.encoder import load_encoder
    from captioner.runs.run_folder import Run

    captions = [text for record in load_split(scenes_folder, "train").records for text in record.captions]
    vocabulary, encoder = Vocabulary.build(captions), load_encoder("small_cnn", weights="none", size=48)
    config = Config(
        encoder=EncoderConfig("small_cnn", "none", 48),
        decoder=DecoderConfig(units=16, embedding=8),
        decode=DecodeConfig(max_words=6),
    )
    decoder = CaptionDecoder(config.decoder, vocabulary_size=len(vocabulary), channels=encoder.channels)
    run = Run.create(tmp_path_factory.mktemp("untrained") / "run", config, vocabulary, encoder)
    run.save_best(decoder, encoder, {"phase": "decoder", "epoch": 1})
    run.append_history({"phase": "decoder", "epoch": 1, "train_loss": 3.0, "dev_loss": 3.5, "cider": 20.0})
    return run.folder
