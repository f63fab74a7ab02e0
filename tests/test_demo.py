"""scripts/demo: what it runs, that it goes on where it was, and (slow) that it keeps what it promises."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "scripts" / "demo"

# Stands in for Python: notes the captioner commands it gets, does what FAKE says in training, else nothing.
FAKE_PYTHON = """#!/bin/bash
case "$1 $2" in
"-m captioner") echo "${@:3}" >>"$NOTES" ;;
esac
[ "$3" = train ] && eval "${FAKE:-:}"
exit 0
"""


def demo(folder: Path, *arguments: str, python: str | Path, **environment: str) -> subprocess.Popen[str]:
    """The script, started with an interpreter of our choice, in a process group of its own."""
    return subprocess.Popen(
        [str(DEMO), str(folder), *arguments],
        env={**os.environ, "CAPTIONER_PYTHON": str(python), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


@pytest.fixture
def fake(tmp_path: Path) -> Path:
    """An interpreter that only takes notes, in `notes` beside it."""
    path = tmp_path / "python"
    path.write_text(FAKE_PYTHON, encoding="utf-8")
    path.chmod(0o755)
    return path


def noted(fake: Path) -> list[str]:
    return [line.split()[0] for line in (fake.parent / "notes").read_text(encoding="utf-8").splitlines()]


def test_it_runs_the_whole_line(tmp_path: Path, fake: Path) -> None:
    process = demo(tmp_path / "out", "--set", "seed=1", python=fake, NOTES=str(tmp_path / "notes"))
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert noted(fake) == ["sample", "data", "train", "evaluate", "caption"]
    assert f"train sample --data {tmp_path}/out/scenes --run {tmp_path}/out/run --set seed=1" in output
    assert "Try next" in output


def test_again_it_draws_nothing_anew_and_goes_on_training(tmp_path: Path, fake: Path) -> None:
    for left in ("scenes/captions.csv", "run/config.json"):
        (tmp_path / "out" / left).parent.mkdir(parents=True)
        (tmp_path / "out" / left).touch()
    output, _ = demo(tmp_path / "out", python=fake, NOTES=str(tmp_path / "notes")).communicate(timeout=60)
    assert noted(fake) == ["data", "train", "evaluate", "caption"]
    assert "train --resume --data" in output


def test_what_fails_ends_it_and_says_so(tmp_path: Path, fake: Path) -> None:
    process = demo(tmp_path / "out", python=fake, NOTES=str(tmp_path / "notes"), FAKE="exit 2")
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 2
    assert noted(fake)[-1] == "train"
    assert "that did not work" in output and "Done" not in output


def test_ctrl_c_ends_it_after_the_command_has_saved(tmp_path: Path, fake: Path) -> None:
    saving = 'trap "echo saved; exit 130" INT; touch "$NOTES.ready"; while :; do sleep 0.1; done'
    process = demo(tmp_path / "out", python=fake, NOTES=str(tmp_path / "notes"), FAKE=saving)
    while not (tmp_path / "notes.ready").exists() and process.poll() is None:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the script and to what it runs
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "saved" in output and "run scripts/demo again" in output
    assert "that did not work" not in output


@pytest.mark.slow
def test_it_reaches_its_score(tmp_path: Path) -> None:
    process = demo(tmp_path / "out", python=sys.executable)
    output, _ = process.communicate(timeout=3600)
    assert process.returncode == 0, output
    scores = json.loads((tmp_path / "out/test/scores.json").read_text(encoding="utf-8"))
    assert scores["bleu4"] > 80
    assert scores["shuffled"]["bleu4"] < scores["bleu4"] / 2
    for name in ("sheet.png", "captions.png", "attention-test_00000.png", "run/loss.png"):
        assert (tmp_path / "out" / name).stat().st_size > 5000
