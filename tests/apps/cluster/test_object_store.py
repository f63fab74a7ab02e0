"""Object stores: against a server that speaks S3, on this machine."""

from __future__ import annotations

import json
import os
import sys
import threading
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from captioner.cli.main import main
from captioner.cli.sharding import staging
from captioner.errors import CaptionerError, MissingExtra
from captioner.system.files import is_url

pytest.importorskip("fsspec", reason="the extra captioner[remote] is not installed")

from captioner.apps.cluster import object_store as remote  # noqa: E402
from captioner.apps.cluster.object_store import LEDGER, Mirror  # noqa: E402


@pytest.fixture(scope="module")
def store() -> Iterator[Any]:
    """A bucket of moto's server."""
    pytest.importorskip("s3fs", reason="the extra captioner[remote] is not installed")
    server = pytest.importorskip("moto.server", reason="moto[server] is not installed")
    import s3fs

    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    running.start()
    host, port = running.get_host_and_port()
    settings = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        fs = s3fs.S3FileSystem(endpoint_url=settings["AWS_ENDPOINT_URL"], skip_instance_cache=True)
        fs.mkdir("bucket")
        yield fs
    running.stop()


@pytest.fixture
def place(store: Any, request: pytest.FixtureRequest) -> str:
    """A URL of its own for each test."""
    return f"s3://bucket/{request.node.name}"


def there(store: Any, url: str) -> dict[str, bytes]:
    store.invalidate_cache()
    root = url.removeprefix("s3://")
    return {key.removeprefix(root + "/"): store.cat_file(key) for key in store.find(root)}


def test_what_is_written_arrives_and_comes_back(place: str, store: Any, tmp_path: Path) -> None:
    one = Mirror(place, tmp_path / "one")
    one.pull(needed=False)
    with one.uploading():
        (one.folder / "deep").mkdir()
        (one.folder / "deep" / "a.npy").write_bytes(b"aaa")
        (one.folder / "deep" / "a.json").write_bytes(b"{}")
        (one.folder / ".tmp-1-0badcafe.npy").write_bytes(b"half")
    assert there(store, place) == {"deep/a.npy": b"aaa", "deep/a.json": b"{}"}
    two = Mirror(place, tmp_path / "two")
    two.pull()
    assert (two.folder / "deep" / "a.npy").read_bytes() == b"aaa"
    with two.uploading():
        (two.folder / "deep" / "a.npy").unlink()
        (two.folder / "b.txt").write_bytes(b"new")
    assert there(store, place) == {"deep/a.json": b"{}", "b.txt": b"new"}
    one.pull()
    assert not (one.folder / "deep" / "a.npy").exists() and (one.folder / "b.txt").read_bytes() == b"new"


def test_only_what_changed_is_carried(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: Any
) -> None:
    mirror = Mirror(place, tmp_path)
    mirror.pull(needed=False)
    for name in "ab":
        (mirror.folder / name).write_text(name, encoding="utf-8")
    mirror.push()
    carried: list[str] = []
    upload, fetch = Mirror._upload, Mirror._fetch

    def uploading(self: Mirror, name: str) -> None:
        carried.append(name)
        upload(self, name)

    def fetching(self: Mirror, names: list[str], *rest: Any) -> None:
        carried.extend(names)
        fetch(self, names, *rest)

    monkeypatch.setattr(Mirror, "_upload", uploading)
    monkeypatch.setattr(Mirror, "_fetch", fetching)
    mirror.push()
    again = Mirror(place, tmp_path)
    again.pull()
    assert carried == []
    (again.folder / "a").write_text("changed", encoding="utf-8")
    again.push()
    assert carried == ["a"]
    store.pipe_file(f"{place}/b", b"by another")
    again.pull()
    assert carried == ["a", "b"] and (again.folder / "b").read_bytes() == b"by another"


def test_marks_come_after_what_they_vouch_for(place: str, tmp_path: Path, monkeypatch: Any) -> None:
    """Also if a shard is finished while an upload is under way: its record waits for the next."""
    mirror = Mirror(place, tmp_path)
    mirror.pull(needed=False)
    (mirror.folder / "0.npy").write_bytes(b"0")
    (mirror.folder / "0.json").write_bytes(b"vouches for 0")
    order: list[str] = []
    upload, pipe = Mirror._upload, mirror._store.pipe_file

    def uploading(self: Mirror, name: str) -> None:
        order.append(name)
        upload(self, name)
        (mirror.folder / "1.npy").write_bytes(b"1")
        (mirror.folder / "1.json").write_bytes(b"vouches for 1")
        (mirror.folder / "0.json").write_bytes(b"vouches for 0 and 1")

    def piping(key: str, content: bytes) -> None:
        order.append(f"{key.rsplit('/', 1)[-1]}: {content.decode()}")
        pipe(key, content)

    monkeypatch.setattr(Mirror, "_upload", uploading)
    monkeypatch.setattr(mirror._store, "pipe_file", piping)
    mirror.push()
    assert order == ["0.npy", "0.json: vouches for 0"]
    order.clear()
    mirror.push()
    assert order == ["1.npy", "0.json: vouches for 0 and 1", "1.json: vouches for 1"]


def test_a_killed_upload_leaves_a_run_that_opens(
    place: str, store: Any, tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights of the next best epoch are there, what vouches for them not yet."""
    import shutil

    from captioner.runs.run_folder import Run

    mirror = Mirror(place, tmp_path / "one")
    shutil.copytree(tiny_run, mirror.folder)
    mirror.push()
    run = Run.open(mirror.folder)
    decoder, encoder = run.load_best()
    run.save_best(decoder, encoder, {**(run.best_info() or {}), "epoch": 77}, half=True)

    def killed(key: str, content: bytes, pipe: Any = mirror._store.pipe_file) -> None:
        if key.endswith("best.json"):
            raise SystemExit
        pipe(key, content)

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(mirror._store, "pipe_file", killed)
        mirror.push()
    reader = Mirror(place, tmp_path / "two")
    reader.pull()
    best = Run.open(reader.folder).best_info()
    assert best is not None and best["epoch"] == 77
    mirror.push()
    assert not any(name.endswith("next.json") for name in there(store, place))


def test_a_store_in_trouble_is_said_plainly(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(CaptionerError, match="nothing is there"):
        Mirror(f"{place}/nothing", tmp_path).pull()
    mirror = Mirror("s3://no-such-bucket-at-all/x", tmp_path)
    mirror.pull(needed=False)
    (mirror.folder / "a").write_bytes(b"a")
    with pytest.raises(CaptionerError, match="the store cannot be used .* then run the same command again"):
        mirror.push()
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(MissingExtra, match=r"captioner\[remote\]"):
        Mirror(place, tmp_path)
    assert main(["caption", place, "--engine", "ray"]) == 2
    assert "mount the store" in capsys.readouterr().err
    assert not is_url("C:\\photos") and is_url("gs://bucket")


def test_captioning_a_bucket(
    place: str, store: Any, tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAPTIONER_CACHE", str(tmp_path))
    random = np.random.default_rng(0)
    for name in ("a.png", "b.png", "sub/c.png", "sub/d.png"):
        path = tmp_path / "made" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (20, 24, 3), np.uint8)).save(path)
        store.put_file(str(path), f"{place}/photos/{name}")
    store.put(str(tiny_run) + "/", f"{place}/run/", recursive=True)
    command = ["caption", f"{place}/photos", "--recursive", "--run", f"{place}/run", "--write", "txt"]
    out = ["--out", f"{place}/captions"]
    fetched: list[str] = []
    get = Mirror.fetch

    def fetching(self: Mirror, paths: list[Path], **more: Any) -> None:
        fetched.extend(path.name for path in paths)
        get(self, paths, **more)

    monkeypatch.setattr(remote.Mirror, "fetch", fetching)
    assert main([*command, *out, "--shard", "2/2", "--quiet"]) == 0
    assert fetched == ["c.png", "d.png"]  # of the others, the names will do
    written = there(store, f"{place}/captions")
    assert sorted(name for name in written if name.endswith(".txt")) == ["sub/c.txt", "sub/d.txt"]
    assert main([*command, *out, "--shard", "1/2", "--quiet"]) == 0
    assert main([*command, *out, "--quiet"]) == 0
    written = there(store, f"{place}/captions")
    assert sorted(written) == sorted(
        [
            *(".captioner-roots.jsonl", ".captioner.jsonl", "a.txt", "b.txt"),
            *("sub/.captioner.jsonl", "sub/c.txt", "sub/d.txt"),
        ]
    )
    # Beside the pictures: these stay as they are.
    before = there(store, f"{place}/photos")
    assert main([*command, "--quiet"]) == 0
    after = there(store, f"{place}/photos")
    assert after["sub/d.txt"] == written["sub/d.txt"]
    assert {name: after[name] for name in before} == before


def test_every_argument_that_names_a_folder_may_be_a_url(place, store, tmp_path, monkeypatch):
    monkeypatch.setenv("CAPTIONER_CACHE", str(tmp_path / "cache"))
    store.pipe(f"{place}/one/captions.csv", b"image,caption\n")
    store.pipe(f"{place}/two/config.json", b"{}")
    arguments = Namespace(
        data=[f"de={place}/one*5", "en=here"], start=f"{place}/two", run=f"{place}/new", out=None, quiet=True
    )
    with staging(arguments):
        (data, here), start, run = arguments.data, Path(arguments.start), Path(arguments.run)
        assert data.startswith("de=") and data.endswith("/one*5") and here == "en=here"
        assert (Path(data[len("de=") : -len("*5")]) / "captions.csv").is_file()
        assert (start / "config.json").is_file() and arguments.out is None
        run.mkdir(parents=True, exist_ok=True)
        (run / "log.txt").write_text("done", encoding="utf-8")
    assert there(store, f"{place}/new")["log.txt"] == b"done"


@pytest.mark.slow
def test_training_into_a_bucket(
    place: str,
    store: Any,
    tiny_recipe: Path,
    scenes_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Data, cache and run all at URLs; another machine (another mirror) goes on and evaluates."""
    monkeypatch.setenv("CAPTIONER_CACHE", str(tmp_path / "one"))
    monkeypatch.setattr(remote, "UPLOAD_SECONDS", 0.5)
    store.put(str(scenes_folder) + "/", f"{place}/data/", recursive=True)
    data, run = ["--data", f"{place}/data"], ["--run", f"{place}/run"]
    cache = ["--cache", f"{place}/cache", "--set", "phases.frozen.epochs=1"]
    assert main(["features", str(tiny_recipe), *data, *cache[:2], "--quiet"]) == 0
    names = there(store, f"{place}/cache")
    assert {"cache.json", "00000.json", "00000.npy"} <= set(names)
    assert json.loads(names["00000.json"])["bytes"] == len(names["00000.npy"])
    assert main(["train", str(tiny_recipe), *data, *run, "--quiet"]) == 0
    assert LEDGER not in there(store, f"{place}/run")
    assert threading.active_count() < 50
    monkeypatch.setenv("CAPTIONER_CACHE", str(tmp_path / "two"))
    out = ["--out", f"{place}/scores"]
    assert main(["evaluate", *run, *data, *out, "--split", "dev", "--quiet"]) == 0
    assert "cider" in there(store, f"{place}/scores")["scores.json"].decode()
    assert not os.path.exists("s3:")
