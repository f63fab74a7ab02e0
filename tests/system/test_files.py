"""Files are whole or not there; a full disk, a crash or a second process loses nothing."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from captioner.errors import CaptionerError, RunError
from captioner.system import files

ROOT = Path(__file__).resolve().parents[2]


def full_disk(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_text_and_bytes_are_written_as_they_are(tmp_path: Path) -> None:
    files.atomic_write(tmp_path / "deep" / "a.txt", "Straße\r\n강아지")
    assert (tmp_path / "deep" / "a.txt").read_bytes().decode("utf-8") == "Straße\r\n강아지"
    files.atomic_write(tmp_path / "b", b"\x00\xff")
    assert (tmp_path / "b").read_bytes() == b"\x00\xff"


def test_no_temporary_file_stays_and_rights_are_usual(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    files.atomic_write(tmp_path / "a", "x")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "plain"]
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


def test_an_error_while_writing_keeps_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "scores.json"
    target.write_text("old")
    with pytest.raises(ZeroDivisionError), files.replacing(target) as temporary:
        assert temporary.suffix == ".json"
        temporary.write_text("half")
        1 / 0  # noqa: B018
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_a_full_disk_keeps_the_old_file_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(CaptionerError, match=r"a\.txt: .*disk is full.*make room"):
        files.atomic_write(target, "new")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_wrong_targets_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CaptionerError, match="is a file and not a folder"):
        files.atomic_write(tmp_path / "file" / "a", "")
    with pytest.raises(CaptionerError, match="it is a folder"):
        files.atomic_write(tmp_path, "")
    with pytest.raises(CaptionerError, match="shorter name"):
        files.atomic_write(tmp_path / ("a" * 300), "")


def test_trouble_with_another_file_is_not_blamed_on_the_target(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), files.replacing(tmp_path / "out" / "a") as temporary:
        temporary.write_bytes((tmp_path / "elsewhere" / "no.jpg").read_bytes())


def test_long_names_and_links_and_devices(tmp_path: Path) -> None:
    files.atomic_write(tmp_path / ("n" * 255), "x")
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    files.atomic_write(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"
    files.atomic_write("/dev/null", "gone")
    assert not Path("/dev/null").is_file()


def test_json_is_strict_and_readable(tmp_path: Path) -> None:
    scores = {"bleu4": np.float32(0.5), "nan": float("nan"), 1: (Path("a/b"), np.arange(2)), "ü": True}
    plain = {"bleu4": 0.5, "nan": None, "1": ["a/b", [0, 1]], "ü": True}
    files.write_json(tmp_path / "a.json", scores)
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert "ü" in text and text.endswith("}\n")
    assert files.read_json(tmp_path / "a.json") == plain


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists))
def test_json_comes_back(value: object) -> None:
    assert json.loads(files.json_text(value)) == value


def test_reading_what_is_not_json(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"a\.json: missing"):
        files.read_json(tmp_path / "a.json", error=RunError)
    for content in (b"", b"{", b"\xff\xfe\x00"):
        (tmp_path / "a.json").write_bytes(content)
        with pytest.raises(CaptionerError, match=r"a\.json: damaged, not JSON"):
            files.read_json(tmp_path / "a.json")
    with pytest.raises(CaptionerError, match="cannot be read"):
        files.read_json(tmp_path)


def test_digests_agree_and_notice_one_bit(tmp_path: Path) -> None:
    data = bytearray(os.urandom(3_000_000))
    (tmp_path / "a").write_bytes(data)
    assert files.digest_file(tmp_path / "a") == files.digest_bytes(bytes(data))
    assert len(files.digest_bytes(b"")) == 32
    data[2_500_000] ^= 1
    assert files.digest_file(tmp_path / "a") != files.digest_bytes(bytes(data))


def test_append_line_after_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "history.jsonl"
    files.append_line(path, "one")
    with path.open("a") as file:
        file.write('{"torn": ')
    files.append_line(path, "zwei ü")
    assert path.read_text(encoding="utf-8") == 'one\n{"torn": \nzwei ü\n'


def test_append_line_on_a_full_disk_takes_its_half_line_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files.append_line(tmp_path / "a", "one")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full_disk)
        with pytest.raises(CaptionerError, match="disk is full"):
            files.append_line(tmp_path / "a", "two")
    files.append_line(tmp_path / "a", "three")
    assert (tmp_path / "a").read_text() == "one\nthree\n"


def test_a_second_process_is_refused_and_a_dead_one_holds_nothing(tmp_path: Path) -> None:
    code = (
        "import sys, time; from captioner.system.files import lock\n"
        "with lock(sys.argv[1]): print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, tmp_path], cwd=ROOT, stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        told = f"in use by another process .pid {holder.pid}"
        with pytest.raises(RunError, match=told), files.lock(tmp_path):
            pass
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.communicate()
    with files.lock(tmp_path):
        pass


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError("22528 requested and 10176 written"), "the disk is full (22528 requested"),
        (OSError(errno.EFBIG, "File too large"), "raise the limit (ulimit -f)"),
        (OSError(errno.EROFS, "Read-only file system"), "choose a folder you may write to"),
    ],
)
def test_what_is_to_be_done_about_a_disk_is_said(error: OSError, told: str, tmp_path: Path) -> None:
    with pytest.raises(CaptionerError, match=re.escape(told)), files.storing(tmp_path / "a"):
        raise error


def test_a_folder_can_be_locked_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full_disk)
        with files.lock(tmp_path), pytest.raises(RunError, match="in use"), files.lock(tmp_path):
            pass


def test_killed_at_any_moment_a_file_is_old_or_new(tmp_path: Path) -> None:
    target = tmp_path / "a"
    target.write_bytes(b"0" * 100_000)
    code = (
        "import sys; from captioner.system.files import atomic_write\n"
        "for i in range(10**6): atomic_write(sys.argv[1], str(i % 10).encode() * 100_000)"
    )
    for attempt in range(5):
        writer = subprocess.Popen([sys.executable, "-c", code, target], cwd=ROOT)
        time.sleep(0.25 + 0.05 * attempt)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        content = target.read_bytes()
        assert len(content) == 100_000 and len(set(content)) == 1
    files.remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
