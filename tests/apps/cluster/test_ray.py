"""The Ray engine on a real cluster of several nodes of this machine: the files of one, whatever dies."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from captioner.apps.sidecars.journal import Journal
from captioner.cli.main import main
from captioner.data import feature_cache as shards
from captioner.data.datasets import CaptionedImage
from captioner.data.feature_cache import FeatureStore
from captioner.errors import ConfigError, MissingExtra
from captioner.models import feature_extraction
from captioner.models.feature_extraction import extract

ROOT = Path(__file__).resolve().parents[3]
RECIPE = """
[encoder]
name = "small_cnn"
weights = "none"
size = 32
"""


def test_without_ray_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from captioner.apps.cluster.ray_driver import RayCaptions

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtra, match=r"pip install 'captioner\[ray\]'"):
        next(RayCaptions(tmp_path, {})([tmp_path / "a.jpg"]))
    with pytest.raises(ConfigError, match="leave out --engine"):
        RayCaptions(tmp_path, {"attention": True})


# On a cluster.

MINUTES = 8  # for one test


@pytest.fixture(autouse=True)
def time_limit() -> Iterator[None]:
    """A job that never ends fails its test, wherever it waits."""

    def give_up(*_: Any) -> None:
        raise TimeoutError(f"not done after {MINUTES} minutes")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(60 * MINUTES)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head without processors and two nodes with one each; ten nodes would be the same to the engine."""
    pytest.importorskip("ray", reason="the extra captioner[ray] is not installed")
    from ray.cluster_utils import Cluster

    # Actors import captioner from this checkout.
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    made.kept = [made.add_node(num_cpus=1) for _ in range(2)]
    made.wait_for_nodes(timeout=120)
    yield made
    made.shutdown()


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2,000 pictures in four folders; three cannot be read, two are the same."""
    folder = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    for number in range(2000):
        path = folder / f"{number % 4}" / f"{number:04}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(random.integers(0, 256, (20, 24, 3), np.uint8)).save(path)
    for number in (5, 700, 1999):
        (folder / f"{number % 4}" / f"{number:04}.png").write_bytes(b"no picture")
    (folder / "0" / "0004.png").write_bytes((folder / "0" / "0000.png").read_bytes())
    return folder


@pytest.fixture
def records(photos: Path) -> list[CaptionedImage]:
    return [CaptionedImage(path.stem, path, ("a",)) for path in sorted(photos.rglob("*.png"))]


def when(condition: Callable[[], bool], do: Callable[[], None]) -> threading.Thread:
    """Does something once a condition holds."""

    def wait() -> None:
        deadline = time.monotonic() + 400
        while time.monotonic() < deadline:
            if condition():
                do()
                return
            time.sleep(0.05)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


def check_same_rows(store: FeatureStore, other: FeatureStore) -> None:
    """The same pictures with the same features; an actor has one core, so their last bits may differ."""
    assert store.ids == other.ids
    np.testing.assert_allclose(store.read(store.ids), other.read(store.ids), rtol=2e-3, atol=1e-3)


@pytest.fixture
def victim(cluster: Any) -> Iterator[Any]:
    """A node that the test takes away; another one comes in its place, also if the test fails."""
    yield cluster.kept.pop()
    cluster.kept.append(cluster.add_node(num_cpus=1))


@pytest.mark.slow
def test_features_while_a_node_dies(
    cluster: Any,
    victim: Any,
    records: list[CaptionedImage],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from captioner.apps.cluster.ray_driver import extract_on_ray
    from captioner.config import load_config
    from captioner.models.encoder import load_encoder

    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE, encoding="utf-8")
    config = load_config(recipe)
    encoder = load_encoder("small_cnn", weights="none", size=32)
    monkeypatch.setattr(shards, "_SETTLED_NS", 0)
    monkeypatch.setattr(feature_extraction, "SHARD_PICTURES", 64)
    alone = extract(records, encoder, folder=tmp_path / "alone", quiet=True)
    made = tmp_path / "made"
    killing = when(
        lambda: len(list(made.glob("workers/ray/0*.json"))) >= 3,
        lambda: cluster.remove_node(victim, allow_graceful=False),
    )
    store = extract_on_ray(records, encoder, config, address=cluster.address, folder=made, quiet=True)
    killing.join(1)
    assert not killing.is_alive(), "the job was over before the node could be killed"
    assert len(store) == 1997
    check_same_rows(store, alone)
    assert sorted(f.id for f in store.failures) == ["0005", "0700", "1999"]
    assert "no picture" in store.failures[0].reason
    assert not (made / "workers" / "ray").exists()
    # One machine finds it complete: nothing is read again, nothing computed.
    forbidden = pytest.MonkeyPatch()
    with forbidden.context() as patch:
        patch.setattr(feature_extraction.Extraction, "_encode", None)
        good = [record for record in records if record.id in store]
        check_same_rows(extract(good, encoder, folder=made, quiet=True), alone)


@pytest.mark.slow
def test_captions_while_a_node_dies(
    cluster: Any, victim: Any, photos: Path, tiny_run: Path, tmp_path: Path
) -> None:
    one, many = tmp_path / "one", tmp_path / "many"
    command = ["caption", str(photos), "--recursive", "--run", str(tiny_run), "--quiet", "--write", "txt,csv"]
    assert main([*command, "--out", str(one)]) == 1  # three cannot be read
    killing = when(
        lambda: sum(1 for _ in many.rglob("*.txt")) >= 200,
        lambda: cluster.remove_node(victim, allow_graceful=False),
    )
    engine = ["--engine", "ray", "--address", cluster.address]
    assert main([*command, "--out", str(many), *engine]) == 1
    killing.join(1)
    assert not killing.is_alive(), "the job was over before the node could be killed"
    found = {path.relative_to(one): path.read_bytes() for path in one.rglob("*.txt")}
    assert found == {path.relative_to(many): path.read_bytes() for path in many.rglob("*.txt")}
    assert len(found) == 1997
    sheets = [(place / "captions.csv").read_text(encoding="utf-8").splitlines() for place in (one, many)]
    for row, other in zip(*map(csv.DictReader, sheets), strict=True):
        assert (row["file_name"], row["caption"]) == (other["file_name"], other["caption"])
        # An actor has one core, and another number of cores adds up in another order.
        assert float(row["score"]) == pytest.approx(float(other["score"]), abs=3e-5)
    for folder in "0123":
        for path in (photos / folder).iterdir():
            entries = [Journal(place / folder).entry(path.name) for place in (one, many)]
            for entry in entries:
                entry.get("found", {}).pop("score", None)
            assert entries[0] == entries[1]


@pytest.mark.slow
def test_a_killed_job_goes_on(cluster: Any, photos: Path, tiny_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "captioner", "caption", str(photos), "--recursive", "--quiet"]
    command += ["--run", str(tiny_run), "--write", "json", "--out", str(out)]
    engine = ["--engine", "ray", "--address", cluster.address]
    job = subprocess.Popen([*command, *engine], cwd=ROOT, start_new_session=True)
    deadline = time.monotonic() + 400
    while sum(1 for _ in out.rglob("[0-9]*.json")) < 300 and time.monotonic() < deadline:
        time.sleep(0.1)
    os.killpg(job.pid, signal.SIGKILL)
    job.wait()
    left = {path: path.stat().st_mtime_ns for path in out.rglob("[0-9]*.json")}
    assert 300 <= len(left) < 1997
    done = subprocess.run([*command, *engine], cwd=ROOT, timeout=400)
    assert done.returncode == 1
    assert sum(1 for _ in out.rglob("[0-9]*.json")) == 1997
    unchanged = [path for path, written in left.items() if path.stat().st_mtime_ns == written]
    assert len(unchanged) == len(left)
    assert all("caption" in json.loads(path.read_text(encoding="utf-8")) for path in out.rglob("[0-9]*.json"))


@pytest.mark.slow
def test_gpus_have_pictures_read_for_them(
    cluster: Any, records: list[CaptionedImage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node that says it has a GPU: tasks read, the actor there computes the same rows."""
    from captioner.apps.cluster.ray_driver import extract_on_ray
    from captioner.config import load_config
    from captioner.models.encoder import load_encoder

    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE, encoding="utf-8")
    encoder = load_encoder("small_cnn", weights="none", size=32)
    monkeypatch.setattr(feature_extraction, "SHARD_PICTURES", 64)
    node = cluster.add_node(num_cpus=1, num_gpus=1)
    place = {"address": cluster.address, "folder": tmp_path / "made", "quiet": True}
    store = extract_on_ray(records[:300], encoder, load_config(recipe), **place)
    alone = extract(records[:300], encoder, folder=tmp_path / "alone", quiet=True)
    assert len(store) >= 298
    check_same_rows(store, alone)
    # Another seed: another encoder, which the actors refuse.
    other = load_config(recipe, ["seed=1"])
    with pytest.raises(Exception, match="is another one here"):
        extract_on_ray(records[300:400], encoder, other, **place)
    cluster.remove_node(node)
