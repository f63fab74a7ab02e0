"""Several workers at one job: who does what, and that together they leave what one leaves."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from captioner.apps.sidecars.job import FolderPlan, caption_folders
from captioner.apps.sidecars.journal import JOURNAL, Journal, folder_lock
from captioner.apps.sidecars.summary import Outcomes
from captioner.cli.main import main
from captioner.data import feature_cache as shards
from captioner.data.datasets import CaptionedImage
from captioner.data.feature_cache import FeatureStore
from captioner.data.image_files import gather
from captioner.errors import ConfigError, RunError
from captioner.inference.caption import Caption
from captioner.models import feature_extraction
from captioner.models.encoder import Encoder, load_encoder
from captioner.models.feature_extraction import extract, extract_part
from captioner.system.files import lock
from captioner.system.shard_spec import ShardSpec

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("total", [1, 2, 3, 7, 50])
@pytest.mark.parametrize("block", [1, 4])
def test_parts_are_the_whole_and_of_like_size(total: int, block: int) -> None:
    items = list(range(41))
    parts = [ShardSpec(number, total).of(items, block=block) for number in range(1, total + 1)]
    assert [item for part in parts for item in part] == items
    assert max(map(len, parts)) - min(map(len, parts)) <= 2 * block - 1
    assert all(part[0] % block == 0 for part in parts if part)


@pytest.mark.parametrize("text", ["0/4", "5/4", "1", "1/0", "a/b", "1/2/3", "-1/2", ""])
def test_a_part_that_cannot_be(text: str) -> None:
    with pytest.raises(ConfigError, match="expected i/n, such as 1/4"):
        ShardSpec.parse(text)


# Features.


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return load_encoder("small_cnn", weights="none", size=32)


@pytest.fixture
def records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[CaptionedImage]:
    """150 pictures, none twice; 32 a shard, so that there are five."""
    monkeypatch.setattr(feature_extraction, "SHARD_PICTURES", 32)
    monkeypatch.setattr(shards, "_SETTLED_NS", 0)
    folder = tmp_path / "pictures"
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(150):
        Image.fromarray(random.integers(0, 256, (24, 20, 3), np.uint8)).save(folder / f"{number:03}.png")
    return [CaptionedImage(path.stem, path, ("a caption",)) for path in sorted(folder.iterdir())]


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def rows(store: FeatureStore) -> dict[str, bytes]:
    return {name: store.read([name]).tobytes() for name in store.ids}


@pytest.mark.parametrize("total", [2, 4])
def test_workers_leave_the_very_files_of_one(
    records: list[CaptionedImage], encoder: Encoder, tmp_path: Path, total: int
) -> None:
    alone = extract(records, encoder, folder=tmp_path / "alone", quiet=True)
    together = tmp_path / "together"
    for number in range(total, 0, -1):  # whoever comes first
        extract_part(records, encoder, ShardSpec(number, total), folder=together, quiet=True)
    assert not list(together.glob("*.npy"))
    united = extract(records, encoder, folder=together, quiet=True)
    assert united.ids == alone.ids and rows(united) == rows(alone)
    one, many = files(alone.folder), files(together)
    assert {name: one[name] for name in one if name != ".lock"} == {
        name: many[name] for name in many if name != ".lock"
    }
    assert not list((together / "workers").iterdir())


def test_bad_and_repeated_pictures_do_no_harm(
    records: list[CaptionedImage], encoder: Encoder, tmp_path: Path
) -> None:
    records[3].path.write_bytes(b"no picture")
    records[140].path.write_bytes(records[0].path.read_bytes())
    alone = extract(records, encoder, folder=tmp_path / "alone", quiet=True)
    together = tmp_path / "together"
    failed = [
        failure
        for number in (1, 2, 3)
        for failure in extract_part(
            records, encoder, ShardSpec(number, 3), folder=together, quiet=True
        ).failures
    ]
    assert [failure.id for failure in failed] == ["003"]
    united = extract(records, encoder, folder=together, quiet=True)
    assert len(united) == 149 and rows(united) == rows(alone)
    assert [failure.id for failure in united.failures] == ["003"]


def test_a_part_goes_on_and_is_not_done_twice(
    records: list[CaptionedImage], encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, encoded = tmp_path / "cache", []
    encode = feature_extraction.Extraction._encode

    def counting(self: Any) -> None:
        encoded.append(len(self._batch))
        if len(encoded) == 2:
            raise KeyboardInterrupt
        encode(self)

    monkeypatch.setattr(feature_extraction.Extraction, "_encode", counting)
    with pytest.raises(KeyboardInterrupt):
        extract_part(records, encoder, ShardSpec(1, 2), folder=cache, quiet=True)
    assert len(list(cache.glob("workers/1-of-2/*.json"))) == 2  # cache.json, and the first shard
    encoded[:] = [0] * 5
    extract_part(records, encoder, ShardSpec(1, 2), folder=cache, quiet=True)
    assert sum(encoded) == 32  # part 1 has two shards of the five
    encoded[:] = [0] * 5
    assert len(extract(records, encoder, folder=cache, quiet=True)) == 150  # the rest, without part 2
    assert sum(encoded) == 150 - 64
    encoded[:] = [0] * 5
    extract_part(records, encoder, ShardSpec(2, 2), folder=cache, quiet=True)
    assert sum(encoded) == 0


def test_taking_in_may_be_interrupted(
    records: list[CaptionedImage], encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, opened = tmp_path / "cache", []
    for number in (1, 2):
        extract_part(records, encoder, ShardSpec(number, 2), folder=cache, quiet=True)
    link = shards._link

    def stopping(path: Path, target: Path) -> None:
        opened.append(path)
        link(path, target)
        if len(opened) == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shards, "_link", stopping)
        extract(records, encoder, folder=cache, quiet=True)
    store = extract(records, encoder, folder=cache, quiet=True)
    assert len(store) == 150 and store.failures == []
    assert sorted(path.name for path in cache.glob("*.npy")) == [f"0000{n}.npy" for n in range(5)]


def test_a_worker_that_is_still_at_it_is_waited_for(
    records: list[CaptionedImage], encoder: Encoder, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    extract_part(records, encoder, ShardSpec(1, 2), folder=cache, quiet=True)
    with lock(cache / "workers" / "1-of-2"), pytest.raises(RunError, match="1-of-2: in use by another"):
        extract(records, encoder, folder=cache, quiet=True)


# Captions of folders.


class Model:
    """Says the picture's name, and notes which pictures it was shown."""

    def __init__(self) -> None:
        self.shown: list[str] = []

    def __call__(self, paths: Iterable[Path]) -> Iterator[Caption]:
        for path in paths:
            self.shown.append(path.name)
            yield Caption(str(path), f"picture {path.stem}", score=-1.0, log_probability=-2.0)


def photos(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (6, 4), "red").save(folder / name)
    return folder


def caption(
    folder: Path, model: Any, *write: str, part: ShardSpec | None = None, job: str = "one"
) -> Outcomes:
    plan = FolderPlan(write or ("txt",), part=part or ShardSpec(), job=job)
    return caption_folders(gather([str(folder)], recursive=True), plan, model, quiet=True)


NAMES = ("a.jpg", "b.jpg", "c.jpg", "sub/d.jpg", "sub/e.jpg", "sub/deep/f.jpg", "sub/deep/g.jpg")


def left(folder: Path) -> dict[str, bytes]:
    kinds = ("*.txt", "*.json", "*.csv")
    found = (path for kind in kinds for path in folder.rglob(kind))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def test_workers_write_what_one_writes(tmp_path: Path) -> None:
    alone, together = photos(tmp_path / "alone", *NAMES), photos(tmp_path / "together", *NAMES)
    kinds = ("txt", "json", "csv")
    caption(alone, Model(), *kinds)
    models = [Model() for _ in range(3)]
    for number, model in enumerate(models, start=1):
        assert caption(together, model, *kinds, part=ShardSpec(number, 3)).failed == 0
    assert [name for model in models for name in model.shown] == [Path(name).name for name in NAMES]
    assert (together / ".captioner-1-of-3.jsonl").exists() and not (together / JOURNAL).exists()
    last = Model()
    outcomes = caption(together, last, *kinds)
    assert last.shown == [] and outcomes.captioned == 0  # nothing is captioned twice
    assert left(together) == left(alone)
    assert not list(together.rglob(".captioner-*"))
    for folder in ("", "sub", "sub/deep"):
        one, many = Journal(alone / folder), Journal(together / folder)
        for name in (Path(name).name for name in NAMES if str(Path(name).parent) == (folder or ".")):
            assert one.entry(name)["found"] == many.entry(name)["found"]
    assert caption(together, last, *kinds).done == 7 and last.shown == []


def test_each_worker_has_a_sheet_until_they_are_one(tmp_path: Path) -> None:
    photos(tmp_path, "a.jpg", "b.jpg")
    caption(tmp_path, Model(), "csv", part=ShardSpec(1, 2))
    with open(tmp_path / "captions.1-of-2.csv", encoding="utf-8", newline="") as file:
        assert [row["file_name"] for row in csv.DictReader(file)] == ["a.jpg"]
    caption(tmp_path, Model(), "csv", part=ShardSpec(2, 2))
    caption(tmp_path, Model(), "csv")
    assert sorted(left(tmp_path)) == ["captions.csv"]


def test_another_number_of_workers_may_go_on(tmp_path: Path) -> None:
    photos(tmp_path, *NAMES)
    caption(tmp_path, Model(), part=ShardSpec(2, 3))
    shown = []
    for number in (1, 2):
        model = Model()
        caption(tmp_path, model, part=ShardSpec(number, 2))
        shown += model.shown
    assert shown == ["a.jpg", "b.jpg", "e.jpg", "f.jpg", "g.jpg"]


def test_parts_side_by_side_but_not_with_the_whole(tmp_path: Path) -> None:
    photos(tmp_path, "a.jpg", "b.jpg")
    with folder_lock(tmp_path, ShardSpec(1, 2)):
        assert caption(tmp_path, Model(), part=ShardSpec(2, 2)).captioned == 1
        for part in (ShardSpec(), ShardSpec(1, 2)):
            with pytest.raises(RunError, match="another captioner is at work"):
                caption(tmp_path, Model(), part=part)
    with folder_lock(tmp_path), pytest.raises(RunError, match="another captioner is at work"):
        caption(tmp_path, Model(), part=ShardSpec(1, 2))


def test_a_newer_model_wins_over_an_older_part(tmp_path: Path) -> None:
    photos(tmp_path, "a.jpg")
    caption(tmp_path, Model(), part=ShardSpec(2, 2), job="one")
    os.utime(tmp_path / ".captioner-2-of-2.jsonl", (1, 1))
    journal = Journal(tmp_path, ShardSpec(1, 1000))
    journal.add([{**journal.entry("a.jpg"), "job": "two"}])
    assert Journal(tmp_path).entry("a.jpg")["job"] == "two"
    with folder_lock(tmp_path):
        (both := Journal(tmp_path)).merge_journals()
    assert both.entry("a.jpg")["job"] == "two" and not both.in_parts


# From the command line.


def test_shard_on_the_command_line(
    scenes_folder: Path, tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = str(scenes_folder / "images")

    def lines(*more: str) -> list[str]:
        capsys.readouterr()
        assert main(["caption", pictures, "--run", str(tiny_run), "--json", *more]) == 0
        return capsys.readouterr().out.splitlines()

    parts = [lines("--shard", f"{number}/3") for number in (1, 2, 3)]
    assert [len(part) for part in parts] == [16, 16, 16]
    assert sum(parts, []) == lines()
    assert main(["caption", pictures, "--shard", "4/3"]) == 2
    assert "expected i/n" in capsys.readouterr().err
    assert main(["caption", pictures, "--shard", "1/3", "--engine", "ray"]) == 2
    assert "leave out --shard" in capsys.readouterr().err
    assert main(["caption", pictures, "--engine", "rai"]) == 2
    assert 'did you mean "ray"' in capsys.readouterr().err


@pytest.mark.slow
def test_two_workers_of_which_one_is_killed(scenes_folder: Path, tiny_recipe: Path, tmp_path: Path) -> None:
    """Real processes: kill -9, start others, and the cache is that of one worker."""
    cache = tmp_path / "cache"

    def command(*more: str, folder: Path = cache) -> list[str]:
        data = ["--data", str(scenes_folder), "--cache", str(folder), "--quiet"]
        return [sys.executable, "-m", "captioner", "features", str(tiny_recipe), *data, *more]

    first = subprocess.Popen(command("--shard", "1/1"), cwd=ROOT)
    deadline = time.monotonic() + 120
    while first.poll() is None and not cache.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    first.send_signal(signal.SIGKILL)
    first.wait()
    workers = [subprocess.Popen(command("--shard", f"{number}/2"), cwd=ROOT) for number in (1, 2)]
    assert [worker.wait(240) for worker in workers] == [0, 0]
    for folder in (cache, tmp_path / "alone"):
        subprocess.run(command(folder=folder), cwd=ROOT, check=True, timeout=240)
    assert {name: content for name, content in files(cache).items() if name[0] == "0"} == {
        name: content for name, content in files(tmp_path / "alone").items() if name[0] == "0"
    }
