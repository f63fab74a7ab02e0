"""The cache of features: what is in it, what nothing needs any more, and that nothing else is removed."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from captioner.cli.main import main
from captioner.data.feature_cache import FORMAT
from captioner.runs.run_folder import Run
from captioner.system.files import lock

OLD = time.time() - 40 * 86_400


def cache(folder: Path, *pictures: Path, weights: str = "0" * 32, form: int = FORMAT, age: float = 0) -> Path:
    folder.mkdir(parents=True)
    (folder / "cache.json").write_text(
        json.dumps({"format": form, "encoder": "small_cnn", "weights": weights})
    )
    (folder / "00000.npy").write_bytes(b"x" * 1000)
    seen = {str(path): [1, 2, 3, "d"] for path in pictures}
    (folder / "pictures.json").write_text(json.dumps(seen))
    if age:
        for path in folder.iterdir():
            os.utime(path, (age, age))
    return folder


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Caches that are needed, and others."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CAPTIONER_CACHE", str(tmp_path / "caches"))
    (tmp_path / "a.jpg").touch()
    caches = tmp_path / "caches"
    cache(caches / "needed", tmp_path / "a.jpg", tmp_path / "gone.jpg")
    cache(caches / "gone", tmp_path / "gone.jpg", tmp_path / "also.jpg")
    cache(caches / "another", tmp_path / "a.jpg", form=FORMAT + 1)
    cache(caches / "old", tmp_path / "a.jpg", age=OLD)
    (cache(caches / "damaged", tmp_path / "a.jpg") / "cache.json").write_text("{")
    (caches / "remote" / "s3" / "bucket").mkdir(parents=True)
    (caches / "mine").mkdir()
    (caches / "mine" / "photo.npy").write_text("by hand")
    return caches


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_list_removes_nothing(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = names(base)
    assert main(["cache"]) == main(["cache", "list"]) == 0
    said = capsys.readouterr().out
    assert names(base) == before
    for name, why in {
        "gone": "its pictures are gone",
        "another": "of another version",
        "damaged": "damaged",
    }.items():
        assert f"{base / name}: " in said and f"not needed: {why}" in said
    assert "needed: 0 MiB, 2 pictures, 1 of them gone" in said
    assert "3 of 5 are not needed" in said and "mine" not in said


def test_clean_removes_what_is_not_needed_and_nothing_else(base: Path) -> None:
    assert main(["cache", "clean"]) == 0
    assert names(base) == {"needed", "old", "remote", "mine"}
    assert main(["cache", "clean", "--unused", "30"]) == 0
    assert names(base) == {"needed", "remote", "mine"}
    assert (base / "mine" / "photo.npy").read_text() == "by hand"


def test_what_a_run_needs_stays(base: Path, tiny_run: Path, tmp_path: Path) -> None:
    digest = Run.open(tiny_run, weights=False).encoder_info["digest"]
    cache(base / "of-a-run", tmp_path / "a.jpg", weights=digest, age=OLD)
    assert main(["cache", "clean", "--unused", "30", "--runs", str(tiny_run)]) == 0
    assert names(base) == {"needed", "of-a-run", "remote", "mine"}
    assert main(["cache", "clean", "--unused", "30", "--runs", str(tiny_run.parent)]) == 0
    assert (base / "of-a-run").is_dir()


def test_one_that_is_being_filled_stays(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with lock(base / "gone"):
        assert main(["cache", "clean"]) == 1
    assert "stays: " in capsys.readouterr().out and (base / "gone" / "00000.npy").exists()


def test_no_caches_and_a_wrong_word(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cache", "--cache", str(tmp_path / "none")]) == 0
    assert "no caches" in capsys.readouterr().out
    assert main(["cache", "claen"]) == 2
    assert 'did you mean "clean"?' in capsys.readouterr().err
