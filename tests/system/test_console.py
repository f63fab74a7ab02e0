"""Progress on a terminal, in a log file, and not at all."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from captioner.system import console


def test_quiet_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    with console.progress_bar(3, "pictures", "features", quiet=True) as bar:
        bar.update(3, loss=1.0)
    console.info("nothing", quiet=True)
    assert capfd.readouterr() == ("", "")


def test_lines_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "INTERVAL_SECONDS", 0.0)
    with console.progress_bar(40, "words", "epoch 1", done=10) as bar:
        bar.update(15, loss=2.34567, words_per_second=1234.5, state="warm")
        bar.update(15)
    out, err = capsys.readouterr()
    first, second, last = err.splitlines()
    assert out == ""
    assert re.fullmatch(
        r"epoch 1: 25/40 words, \S+ words/s, .* left, loss 2.35, words_per_second 1234, state warm", first
    )
    assert second.startswith("epoch 1: 40/40 words")
    assert re.search(r"40/40 words, \S+ words/s, \S+ s, loss", last)


def test_no_line_says_done_when_the_work_failed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ZeroDivisionError), console.progress_bar(None, "pictures", "features"):
        1 / 0  # noqa: B018
    assert capsys.readouterr().err == ""


def test_a_bar_on_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with console.progress_bar(2, "pictures", "features") as bar:
        bar.update(2, loss=0.5)
    assert "features: 100%" in capsys.readouterr().err


def test_what_is_said_is_recorded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with console.recording(tmp_path / "log.txt"):
        console.info("epoch 1: größer")
        console.info("kept from the screen", quiet=True)
    console.info("not recorded")
    lines = (tmp_path / "log.txt").read_text(encoding="utf-8").splitlines()
    assert [line.split("  ", 1)[1] for line in lines] == ["epoch 1: größer", "kept from the screen"]
    assert capsys.readouterr().err == "epoch 1: größer\nnot recorded\n"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (59.9, "60 s"), (60, "1 min 0 s"), (3599.7, "1 h 0 min")]
)
def test_durations(seconds: float, text: str) -> None:
    assert console.duration(seconds) == text
