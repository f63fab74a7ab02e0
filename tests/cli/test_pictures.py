"""Which pictures a command reads: how large they may be, and which ones are left out."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from captioner.cli.main import main
from captioner.cli.parser import COMMANDS, build_parser

ROOT = Path(__file__).resolve().parents[2]
READ_NONE = {"sample", "info", "cache", "doctor", "completion", "review"}


@pytest.mark.parametrize("command", [name for name in COMMANDS if name not in READ_NONE])
@pytest.mark.parametrize("option", ["--max-mib", "--max-megapixels"])
def test_every_command_that_reads_pictures_has_limits(command: str, option: str) -> None:
    rows = next(action for action in build_parser()._actions if isinstance(action.choices, dict)).choices
    assert isinstance(rows, dict)
    assert option in rows[command].options()


@pytest.mark.parametrize(
    ("limit", "code", "said"),
    [
        ("", 0, ""),
        (
            "--max-megapixels 1",
            1,
            "has 1200 x 1000 pixels, at most 1,000,000 in all are decoded (see --max-mega",
        ),
        ("--max-mib 1", 1, "MiB, at most 1 MiB are read (see --max-mib)"),
        ("--max-mib 8 --max-megapixels 2", 0, ""),
    ],
)
def test_limits_are_told_and_kept(
    limit: str, code: int, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (1200, 1000), "teal").save(tmp_path / "a.bmp")  # 3.4 MiB
    run = str(ROOT / "checkpoints" / "flickr8k")
    assert main(["caption", str(tmp_path / "a.bmp"), "--run", run, *limit.split()]) == code
    assert said in capsys.readouterr().err


def test_what_is_left_out_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.jpg", "a_edited.jpg", "@eaDir/b.jpg", "old/c.jpg", "new/d.jpg"):
        Path("photos", name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 6)).save(Path("photos", name))
    wanted = ["caption", "photos", "--run", str(ROOT / "checkpoints" / "flickr8k"), "--recursive"]
    assert main([*wanted, "--exclude", "*_edited*", "--exclude", "old", "--write", "txt"]) == 0
    assert sorted(path.as_posix() for path in Path("photos").rglob("*.txt")) == [
        "photos/a.txt",
        "photos/new/d.txt",
    ]
    said = capsys.readouterr().err
    assert "left out: " in said and "photos/@eaDir" in said and "photos/old" in said
    assert main(["caption", "photos/@eaDir", *wanted[2:], "--write", "txt"]) == 0  # it is named itself
    assert Path("photos/@eaDir/b.txt").is_file()
