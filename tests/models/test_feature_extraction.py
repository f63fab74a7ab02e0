"""The feature cache: computed once, found again, never stale, whole after any interruption."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from captioner.data import feature_cache as shards
from captioner.data.datasets import CaptionedImage
from captioner.data.feature_cache import FeatureStore
from captioner.data.images import read_image
from captioner.errors import CacheError, CaptionerError, EncoderError
from captioner.models import feature_extraction
from captioner.models.backbones import ENCODERS
from captioner.models.encoder import Encoder, load_encoder
from captioner.models.feature_extraction import cache_folder, extract
from captioner.system import files

SIZE = 32
SHAPE = (4, 128)


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    """A small network; what it computes does not matter here."""
    return load_encoder("small_cnn", weights="none", size=SIZE)


@pytest.fixture
def records(tmp_path: Path) -> list[CaptionedImage]:
    """22 pictures of various sizes."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(22):
        pixels = random.integers(0, 256, (20 + number, 40 - number, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02}.png")
    return [CaptionedImage(f"picture {path.stem}", path, ("a caption",)) for path in sorted(folder.iterdir())]


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight rows a shard, so that there are several."""
    monkeypatch.setattr(feature_extraction, "SHARD_PICTURES", 8)


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts the pictures that go through the CNN; the list grows by one entry a batch."""
    batches: list[int] = []
    encode = feature_extraction.Extraction._encode

    def counting(self: Any) -> None:
        batches.append(len(self._batch))
        encode(self)

    monkeypatch.setattr(feature_extraction.Extraction, "_encode", counting)
    return batches


def computed(records: Sequence[CaptionedImage], encoder: Encoder) -> np.ndarray:
    pixels = np.stack([read_image(record.path, size=encoder.size) for record in records])
    return encoder.encode(pixels).numpy().astype(np.float16)


def content(folder: Path) -> dict[str, bytes]:
    """All that matters for later reading, by file name."""
    return {path.name: path.read_bytes() for path in folder.glob("0*")}


def everything(store: FeatureStore) -> np.ndarray:
    return store.read(store.ids)


def test_rows_are_what_the_encoder_computes(
    records: list[CaptionedImage], encoder: Encoder, cache: Path
) -> None:
    store = extract(records, encoder, folder=cache, batch_size=4, quiet=True)
    assert store.ids == tuple(record.id for record in records)
    assert len(store) == 22 and records[3].id in store and "another" not in store
    assert store.shape == SHAPE and store.folder == cache and store.failures == []
    rows = everything(store)
    assert rows.shape == (22, *SHAPE) and rows.dtype == np.float16
    # Within a step of float16: the batches were others.
    np.testing.assert_allclose(rows, computed(records, encoder), rtol=2e-3, atol=1e-4)
    order = np.random.default_rng(1).integers(0, 22, 50)
    np.testing.assert_array_equal(store.read([store.ids[i] for i in order]), rows[order])
    assert store.read([]).shape == (0, *SHAPE)
    with pytest.raises(CacheError, match='"picture o3" is not among the 22'):
        store.read(["picture o3"])


def test_a_second_time_nothing_is_computed(
    records: list[CaptionedImage], encoder: Encoder, cache: Path, encoded: list[int]
) -> None:
    first = extract(records, encoder, folder=cache, batch_size=4, quiet=True)
    assert sum(encoded) == 22
    before = content(cache)
    encoded.clear()
    again = extract(records[5:] + records[:5], encoder, folder=cache, batch_size=4, quiet=True)
    assert sum(encoded) == 0 and content(cache) == before
    assert again.fingerprint == first.fingerprint
    np.testing.assert_array_equal(again.read(first.ids), everything(first))


def test_what_is_missing_or_changed_is_computed(
    records: list[CaptionedImage], encoder: Encoder, cache: Path, encoded: list[int]
) -> None:
    old = everything(extract(records[:10], encoder, folder=cache, batch_size=4, quiet=True))
    times = os.stat(records[2].path)
    shutil.copy(records[15].path, records[2].path)
    os.utime(records[2].path, ns=(times.st_atime_ns, times.st_mtime_ns))  # as rsync and archives do
    encoded.clear()
    store = extract(records, encoder, folder=cache, batch_size=4, quiet=True)
    assert sum(encoded) == 12  # ten to twenty-one; the changed one has the bytes of the fifteenth
    rows = everything(store)
    np.testing.assert_array_equal(rows[[0, 1, 3, 4, 5, 6, 7, 8, 9]], old[[0, 1, 3, 4, 5, 6, 7, 8, 9]])
    np.testing.assert_array_equal(rows[2], rows[15])
    assert (rows[2] != old[2]).any()


def test_a_moved_or_renamed_picture_is_found_by_its_bytes(
    records: list[CaptionedImage], encoder: Encoder, cache: Path, tmp_path: Path, encoded: list[int]
) -> None:
    old = everything(extract(records, encoder, folder=cache, batch_size=4, quiet=True))
    moved = tmp_path / "elsewhere"
    shutil.copytree(records[0].path.parent, moved)
    renamed = [CaptionedImage(f"new {r.id}", moved / r.path.name, ()) for r in records]
    encoded.clear()
    store = extract(renamed, encoder, folder=cache, batch_size=4, quiet=True)
    assert sum(encoded) == 0
    np.testing.assert_array_equal(everything(store), old)


def test_an_unchanged_picture_is_not_even_opened(
    records: list[CaptionedImage], encoder: Encoder, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "_SETTLED_NS", 0)  # else these, just written, would not be trusted
    old = everything(extract(records, encoder, folder=cache, batch_size=4, quiet=True))

    def forbidden(*_: Any) -> Any:
        raise AssertionError("opened")

    monkeypatch.setattr(feature_extraction.Extraction, "_read", forbidden)
    np.testing.assert_array_equal(everything(extract(records, encoder, folder=cache, quiet=True)), old)


def test_bad_pictures_are_named_and_left_out(
    records: list[CaptionedImage], encoder: Encoder, cache: Path
) -> None:
    good = [record for number, record in enumerate(records) if number not in (0, 7, 21)]
    clean = extract(good, encoder, folder=cache / "clean", batch_size=4, quiet=True)
    records[0].path.unlink()
    records[7].path.write_bytes(b"")
    records[21].path.write_bytes(b"no picture at all")
    store = extract(records, encoder, folder=cache / "dirty", batch_size=4, quiet=True)
    assert store.ids == clean.ids
    assert [failure.id for failure in store.failures] == [records[i].id for i in (0, 7, 21)]
    assert [failure.path for failure in store.failures] == [records[i].path for i in (0, 7, 21)]
    # The path is said once; a reason names another at most, as the nearest that is there.
    assert all(failure.reason and str(failure.path) not in failure.reason for failure in store.failures)
    # What was left out leaves no trace: the files are those of the good ones alone.
    assert content(cache / "clean") == content(cache / "dirty")


@pytest.mark.parametrize("batches", [0, 1, 2, 3, 5])
def test_interrupted_and_run_again_gives_the_same_bytes(
    records: list[CaptionedImage],
    encoder: Encoder,
    cache: Path,
    batches: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    records[3].path.write_bytes(b"bad")
    unbroken = extract(records, encoder, folder=cache / "unbroken", batch_size=4, quiet=True)
    encode = feature_extraction.Extraction._encode
    done = []

    def interrupting(self: Any) -> None:
        if len(done) == batches:
            raise KeyboardInterrupt
        done.append(1)
        encode(self)

    with monkeypatch.context() as patch:
        patch.setattr(feature_extraction.Extraction, "_encode", interrupting)
        with pytest.raises(KeyboardInterrupt):
            extract(records, encoder, folder=cache / "broken", batch_size=4, quiet=True)
    store = extract(records, encoder, folder=cache / "broken", batch_size=4, quiet=True)
    assert content(cache / "broken") == content(cache / "unbroken")
    np.testing.assert_array_equal(everything(store), everything(unbroken))


def test_a_full_disk_leaves_what_is_complete(
    records: list[CaptionedImage],
    encoder: Encoder,
    cache: Path,
    encoded: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write = np.lib.format.write_array

    def full(file: Any, *arguments: Any, **options: Any) -> None:
        if len(list(cache.glob("0*.json"))) == 1:
            file.write(b"half")
            raise OSError(28, "No space left on device")
        write(file, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(np.lib.format, "write_array", full)
        with pytest.raises(CaptionerError, match="full"):
            extract(records, encoder, folder=cache, batch_size=4, quiet=True)
    assert sorted(content(cache)) == ["00000.json", "00000.npy"]
    assert not list(cache.glob(".tmp*"))
    encoded.clear()
    store = extract(records, encoder, folder=cache, batch_size=4, quiet=True)
    assert sum(encoded) == 14 and len(store) == 22


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "truncated": lambda folder: os.truncate(folder / "00001.npy", 1000),
    "missing": lambda folder: (folder / "00001.npy").unlink(),
    "no record": lambda folder: (folder / "00001.json").unlink(),
    "half a record": lambda folder: os.truncate(folder / "00001.json", 100),
    "another record": lambda folder: (folder / "00001.json").write_text('{"rows": 3}', encoding="utf-8"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_shard_is_computed_anew(
    records: list[CaptionedImage],
    encoder: Encoder,
    cache: Path,
    kind: str,
    encoded: list[int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    old = everything(extract(records, encoder, folder=cache, batch_size=4, quiet=True))
    DAMAGE[kind](cache)
    encoded.clear()
    store = extract(records, encoder, folder=cache, batch_size=4)
    assert sum(encoded) == 8
    np.testing.assert_array_equal(everything(store), old)
    said = capsys.readouterr().err
    assert kind == "no record" or ("00001" in said and "damaged" in said)


def test_a_flipped_bit_is_noticed(records: list[CaptionedImage], encoder: Encoder, cache: Path) -> None:
    store = extract(records, encoder, folder=cache, batch_size=4, quiet=True)
    path = cache / "00002.npy"
    damaged = bytearray(path.read_bytes())
    damaged[-5] ^= 1
    path.write_bytes(damaged)
    store = extract(records, encoder, folder=cache, batch_size=4, quiet=True)
    store.read(store.ids[:16])
    with pytest.raises(CacheError, match="00002.npy.*delete it and run again"):
        store.read(store.ids)
    path.unlink()  # as it says
    assert everything(extract(records, encoder, folder=cache, batch_size=4, quiet=True)).shape == (22, *SHAPE)


def test_each_encoder_has_a_cache_of_its_own(
    records: list[CaptionedImage], encoder: Encoder, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = [
        load_encoder("small_cnn", weights="none", size=SIZE, seed=1),
        load_encoder("small_cnn", weights="none", size=48),
    ]
    monkeypatch.setenv("CAPTIONER_CACHE", str(cache))
    folders = {cache_folder(one) for one in (encoder, *others)}
    assert len(folders) == 3 and all(folder.parent == cache for folder in folders)
    store = extract(records[:3], encoder, quiet=True)
    assert store.folder == cache_folder(encoder)
    with pytest.raises(CacheError, match=r"made for something else.*weights"):
        extract(records[:3], others[0], folder=store.folder, quiet=True)
    (store.folder / "cache.json").write_text("{", encoding="utf-8")
    with pytest.raises(CacheError, match=r"cache.json"):
        extract(records[:3], encoder, quiet=True)
    monkeypatch.delenv("CAPTIONER_CACHE")
    assert cache_folder(encoder).parent == Path.home() / ".cache" / "captioner"


def test_who_finds_another_computing_the_same_features_waits_for_it(
    records: list[CaptionedImage], encoder: Encoder, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if files.fcntl is None:
        pytest.skip("no locks on this system")
    with ThreadPoolExecutor(1) as threads:
        with files.lock(cache):
            waiting = threads.submit(extract, records, encoder, folder=cache, batch_size=4)
            with pytest.raises(TimeoutError):
                waiting.result(timeout=2)
        assert len(waiting.result(timeout=100)) == len(extract(records, encoder, folder=cache, quiet=True))
    assert "another process is computing features there; waiting for it" in capsys.readouterr().err


def test_numbers_too_large_for_the_cache(records: list[CaptionedImage], cache: Path) -> None:
    wild = load_encoder("small_cnn", weights="none", size=SIZE)
    for value in (1e6, np.nan):
        arrays = wild.weights_dict()
        arrays["grid_position/embedding"][0, 0, 0] = value
        wild.load_weights_dict(arrays)
        with pytest.raises(EncoderError, match="float16"):
            extract(records[:2], wild, folder=cache / str(value), quiet=True)


def test_nothing_at_all(encoder: Encoder, cache: Path) -> None:
    store = extract([], encoder, folder=cache, quiet=True)
    assert store.ids == () and len(store) == 0 and store.read([]).shape == (0, *SHAPE)


def test_one_picture_twice(
    records: list[CaptionedImage], encoder: Encoder, cache: Path, encoded: list[int]
) -> None:
    twice = [*records[:3], CaptionedImage("again", records[1].path, ())]
    store = extract(twice, encoder, folder=cache, batch_size=4, quiet=True)
    assert sum(encoded) == 3
    np.testing.assert_array_equal(store.read(["again"]), store.read([records[1].id]))


def test_the_last_batch_is_filled_up(records: list[CaptionedImage], encoder: Encoder, cache: Path) -> None:
    """A row is the same to the bit whatever stands beside it."""
    whole = extract(records[:8], encoder, folder=cache / "a", batch_size=8, quiet=True)
    part = extract(records[5:6], encoder, folder=cache / "b", batch_size=8, quiet=True)
    np.testing.assert_array_equal(whole.read([records[5].id]), part.read([records[5].id]))


def test_memory_stays_flat(tmp_path: Path) -> None:
    """A process that has read 128 MB of features, in any order, is no larger than before."""
    cache = shards.FeatureCache(tmp_path, {"encoder": "none"}, shape=(98, 1280))
    for first in (0, 256):
        names = [f"{number}" for number in range(first, first + 256)]
        cache.write(np.ones((256, 98, 1280), np.float16), pictures=[(name, name) for name in names])
    script = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from captioner.data.feature_cache import FeatureCache\n"
        "cache = FeatureCache(Path(sys.argv[1]), {'encoder': 'none'}, shape=(98, 1280))\n"
        "places = list(cache.locations.values())\n"
        "cache.read(places[:16])\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "for start in range(0, 512, 16):\n"
        "    assert (cache.read(places[start::32]) == 1).all()\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 16  # MiB


def test_the_cache_says_what_it_is(records: list[CaptionedImage], encoder: Encoder, cache: Path) -> None:
    extract(records, encoder, folder=cache, batch_size=4, quiet=True)
    described = json.loads((cache / "cache.json").read_text(encoding="utf-8"))
    assert described["encoder"] == "small_cnn" and described["weights"] == encoder.digest
    assert described["preprocessing"] == ENCODERS["small_cnn"].preprocessing
    assert np.load(cache / "00000.npy").shape == (8, *SHAPE)  # readable without this program
    record = json.loads((cache / "00000.json").read_text(encoding="utf-8"))
    assert record["rows"] == 8 and record["pictures"][0][2] == records[0].id


def test_progress_is_shown(
    records: list[CaptionedImage], encoder: Encoder, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records[0].path.write_bytes(b"bad")
    extract(records, encoder, folder=cache, batch_size=4)
    said = capsys.readouterr().err
    assert "22 pictures" in said and "pictures/s" in said and "failed 1" in said
    extract(records[1:], encoder, folder=cache / "quiet", batch_size=4, quiet=True)
    assert capsys.readouterr().err == ""
