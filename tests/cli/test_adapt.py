"""The circle: captions written, some corrected, a run adapted to them, captions written anew."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from captioner.cli.main import main
from captioner.data.datasets import load_split
from captioner.runs.run_folder import Run

ROOT = Path(__file__).resolve().parents[2]


def digests(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock")
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture
def photos(tmp_path: Path, scenes_folder: Path, tiny_run: Path) -> Path:
    """30 pictures that the tiny run has captioned; 22 captions are corrected, with a new word."""
    folder = tmp_path / "photos"
    folder.mkdir()
    records = load_split(scenes_folder, "all").records[:30]
    for record in records:
        shutil.copy(record.path, folder)
    assert main(["caption", str(folder), "--write", "txt", "--run", str(tiny_run), "--quiet"]) == 0
    for record in records[:22]:
        caption = record.captions[0].replace("red", "rexred")
        (folder / record.path.name).with_suffix(".txt").write_text(f"{caption}\n", encoding="utf-8")
    return folder


def adapt(photos: Path, start: Path, run: Path, *more: str) -> list[str]:
    epochs = ["--set", "phases.adapt.epochs=2"] if "--resume" not in more else []
    return ["adapt", str(photos), "--from", str(start), "--run", str(run), *epochs, *more]


@pytest.mark.slow
def test_from_corrections_to_a_run(
    photos: Path, tiny_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (photos / "gone.txt").write_text("its picture is gone", encoding="utf-8")
    (photos / "words.lst").write_text("Bello\n", encoding="utf-8")
    before, capfd_before = digests(tiny_run), capfd.readouterr()
    assert "error" not in capfd_before.err
    run = tmp_path / "mine"
    assert main(adapt(photos, tiny_run, run, "--words", str(photos / "words.lst"))) == 0
    said = capfd.readouterr()
    assert "corrections: 22 captions of 22 pictures, 4 of which are kept aside" in said.err
    assert "not learned from: 8 captions that captioner wrote and nobody has changed" in said.err
    assert "captions whose picture is gone: 1 (gone.txt)" in said.err
    assert "2 new words: rexred, bello" in said.out
    assert "on 4 pictures kept aside (so few that CIDEr is mostly chance):" in said.out
    assert f"captioner caption {photos} --recursive --write txt --if-exists renew --run {run}" in said.out
    assert said.out.count("\n  before  ") == 4
    assert digests(tiny_run) == before, "the run that one starts from is never changed"
    opened = Run.open(run)
    assert (
        opened.vocabulary.words[: len(Run.open(tiny_run).vocabulary)] == Run.open(tiny_run).vocabulary.words
    )
    assert (run / "compiled").is_dir()
    assert main(["info", str(run)]) == 0
    assert f"start        {tiny_run.name} (" in capfd.readouterr().out
    shutil.rmtree(run / "start")  # what captioning needs does not lie there
    assert main(["caption", str(photos), "--run", str(run), "--quiet"]) == 0
    assert main(["review", str(photos)]) == 0
    counts = [
        line.split()[:2] for line in capfd.readouterr().out.splitlines() if "captioner wrote it" in line
    ]
    assert counts == [["corrected", "22"], ["accepted", "0"], ["untouched", "8"]]


@pytest.mark.slow
def test_killed_and_resumed_it_ends_as_if_nothing_had_been(
    photos: Path, tiny_run: Path, tmp_path: Path
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert main([*adapt(photos, tiny_run, whole), "--quiet"]) == 0
    kill = (
        "import os, signal, sys\n"
        "from captioner.cli.main import main\n"
        "from captioner.training import new_words\n"
        "from captioner.training.adapt import AdaptStep\n"
        "train = AdaptStep.train\n"
        "def once(self, batch, step):\n"
        "    if step == 3: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return train(self, batch, step)\n"
        "def never(*given): os.kill(os.getpid(), signal.SIGKILL)\n"
        "if sys.argv.pop(1) == 'words': new_words._fitted = never\n"
        "else: AdaptStep.train = once\n"
        "main(sys.argv[1:])\n"
    )
    for place, more in (("words", ()), ("steps", ("--resume",))):
        command = [sys.executable, "-c", kill, place, *adapt(photos, tiny_run, broken, *more), "--quiet"]
        killed = subprocess.run(command, cwd=ROOT, env=dict(os.environ), check=False)
        assert killed.returncode == -signal.SIGKILL
    assert main([*adapt(photos, tiny_run, broken, "--resume"), "--quiet"]) == 0
    weights = [(run / "best" / "weights.safetensors").read_bytes() for run in (whole, broken)]
    assert weights[0] == weights[1]


def test_nothing_to_learn_from_is_said(
    photos: Path, tiny_run: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for path in photos.glob("*.txt"):
        path.unlink()
    assert main(["caption", str(photos), "--write", "txt", "--run", str(tiny_run), "--quiet"]) == 0
    assert main(["adapt", str(photos), "--from", str(tiny_run), "--run", str(photos / "run")]) == 2
    said = capfd.readouterr().err
    assert "30 captions that captioner wrote, none that a person has written or changed" in said
    assert "--accept" in said and not (photos / "run").exists()
    assert main(["adapt", str(photos), "--resume"]) == 2
    assert "--resume: which run? name it with --run" in capfd.readouterr().err


def test_what_the_model_was_least_sure_of_comes_first(
    photos: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["review", str(photos), "--most", "2", "--paths"]) == 0
    least = capfd.readouterr().out.split()
    entries = [json.loads(line) for line in (photos / ".captioner.jsonl").read_text("utf-8").splitlines()]
    untouched = sorted(entries[22:], key=lambda entry: float(entry["found"]["score"]))
    assert [Path(path).name for path in least] == [entry["picture"] for entry in untouched[:2]]
    assert main(["review", str(photos), "--accept", *least]) == 0
    assert "accepted: 2 of 2" in capfd.readouterr().out
    assert main(["review", str(photos)]) == 0
    assert "accepted         2" in capfd.readouterr().out
