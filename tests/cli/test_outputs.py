"""What a command is to write never replaces what a person has; output that cannot be written is said."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from captioner.cli.commands.completion import SHELLS
from captioner.cli.main import main

ROOT = Path(__file__).resolve().parents[2]
PICTURES = {
    "a.jpg": "JPEG",
    "a.png": "PNG",
    "a.webp": "WEBP",
    "a.tif": "TIFF",
    "a.avif": "AVIF",
    "a.gif": "GIF",
}
TABLES = {
    "captions.csv": b"image,caption\na.jpg,by hand\n",
    "Flickr8k.token.txt": b"a.jpg#0\tby hand\n",
    "metadata.jsonl": b'{"file_name": "a.jpg", "text": "by hand"}\n',
    "dataset.json": b'{"images": []}',
    "notes.html": b"<html>by hand</html>",
    "plot.svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "plot.pdf": b"%PDF-1.4 by hand",
}


@pytest.fixture
def kept(tmp_path: Path) -> dict[Path, bytes]:
    """Files of a person, of every kind."""
    for name, form in PICTURES.items():
        Image.new("RGB", (8, 6), "red").save(tmp_path / name, form)
    for name, content in TABLES.items():
        (tmp_path / name).write_bytes(content)
    return {path: path.read_bytes() for path in tmp_path.iterdir()}


def commands(file: Path) -> dict[str, list[str]]:
    """Every command that writes one file, told to write this one."""
    photo, data = str(file.parent / "photo.jpg"), str(file.parent / "set")
    return {
        "caption --attention": ["caption", photo, "--attention", str(file)],
        "data --sheet": ["data", data, "--sheet", str(file)],
        "evaluate --report": ["evaluate", "--run", "no-run", "--data", data, "--report", str(file)],
    }


@pytest.mark.parametrize("name", [*PICTURES, *TABLES])
@pytest.mark.parametrize("command", commands(Path("x")))
def test_a_file_of_a_person_is_refused_as_output(
    name: str, command: str, kept: dict[Path, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(commands(tmp_path / name)[command]) == 2
    said = capsys.readouterr().err
    kind = "a picture" if name in PICTURES else "a file"
    assert f"{name}: is {kind} that captioner did not write" in said and "--force" in said
    assert {path: path.read_bytes() for path in kept} == kept and len(list(tmp_path.iterdir())) == len(kept)


def test_through_a_link_and_as_a_swallowed_pattern(
    kept: dict[Path, bytes],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("looks.png").symlink_to("a.jpg")
    for words in (["a.png", "--attention", "looks.png"], ["--attention", "a.jpg", "a.png", "a.gif"]):
        if words[0] == "--attention":
            Path("a-a.jpg").write_bytes(b"by hand")  # what one of several drawings would be called
        assert main(["caption", *words]) == 2
        assert "captioner did not write" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in kept} == kept and Path("a-a.jpg").read_bytes() == b"by hand"


@pytest.mark.parametrize("name", ["scores.json", "predictions.jsonl", "report.html"])
def test_the_folder_of_an_evaluation_may_hold_other_files(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_text('{"my": "own"}\n')
    wanted = ["evaluate", "--run", "no-run", "--data", "d", "--out", str(tmp_path), "--report"]
    assert main(wanted) == 2
    assert f"{name}: is a file that captioner did not write" in capsys.readouterr().err
    assert main([*wanted, "--force"]) == 2  # now it gets to the run, which is not there
    assert "no-run" in capsys.readouterr().err and (tmp_path / name).read_text() == '{"my": "own"}\n'


def test_what_captioner_wrote_may_be_written_again(
    tiny_run: Path, scenes_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = str(next((scenes_folder / "images").iterdir()))
    wanted = ["--run", str(tiny_run), "--data", str(scenes_folder), "--split", "dev", "--out", str(tmp_path)]
    looks = str(tmp_path / "looks.png")
    for _ in range(2):
        assert main(["caption", picture, "--run", str(tiny_run), "--attention", looks]) == 0
        for ending in ("png", "svg", "jpg", "pdf"):
            sheet = ["data", str(scenes_folder), "--sheet", str(tmp_path / f"sheet.{ending}")]
            assert main([*sheet, "--pictures", "2"]) == 0
        assert main(["evaluate", *wanted, "--report"]) == 0, capsys.readouterr().err


def test_an_empty_file_and_force_are_an_invitation(scenes_folder: Path, tmp_path: Path) -> None:
    empty, full = tmp_path / "empty.png", tmp_path / "full.png"
    empty.touch()
    Image.new("RGB", (8, 6)).save(full)
    small = ["--pictures", "1"]
    assert main(["data", str(scenes_folder), "--sheet", str(empty), *small]) == 0 and empty.stat().st_size
    assert main(["data", str(scenes_folder), "--sheet", str(full), *small, "--force"]) == 0
    assert Image.open(full).size != (8, 6)


@pytest.mark.parametrize(
    ("output", "said"),
    [
        ("", "is a folder"),
        ("file/sheet.png", "is a file and not a folder"),
        ("x" * 260 + ".png", "the name is too long"),
        ("locked/sheet.png", "cannot be written"),
    ],
)
def test_an_output_that_cannot_be_is_refused_at_once(
    output: str,
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "locked").mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: not str(path).endswith("locked"))  # root may all
    assert main(["data", "no-such-set", "--sheet", str(tmp_path / output)]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("name", ["vocabulary.txt", "data.json", "log.txt", "best", "history.jsonl"])
def test_a_training_does_not_write_into_a_folder_of_other_files(
    name: str, scenes_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_text("by hand")
    assert main(["train", "sample", "--data", str(scenes_folder), "--run", str(tmp_path)]) == 2
    assert f"would be written over there: {name}" in capsys.readouterr().err
    assert os.listdir(tmp_path) == [name] and (tmp_path / name).read_text() == "by hand"


@pytest.mark.parametrize("shell", SHELLS)
def test_a_completion_of_another_program_stays(
    shell: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    path = Path(SHELLS[shell]).expanduser()
    path.parent.mkdir(parents=True)
    path.write_text("by hand")
    assert main(["completion", shell, "--install"]) == 2 and path.read_text() == "by hand"
    assert main(["completion", shell, "--install", "--force"]) == 0
    assert main(["completion", shell, "--install"]) == 0
    assert "written" in capsys.readouterr().out


def test_names_of_many_drawings_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["x" * 240 + ".jpg", "X" * 240 + ".jpg", "é" * 120 + ".jpg"]
    for name in names:
        Image.new("RGB", (8, 6)).save(tmp_path / name)
    looks = str(tmp_path / "looks.png")
    assert (
        main(["caption", *(str(tmp_path / name) for name in names), "--attention", looks, "--run", "no"]) == 2
    )
    assert "no: no such folder" in capsys.readouterr().err


# Standard streams.


def started(code: str, command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    script = "import sys; from captioner.cli.main import main; sys.exit(main(sys.argv[1:]))"
    shell = command.replace("captioner", f"'{sys.executable}' -c '{script}'")
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        ["bash", "-c", code.replace("COMMAND", shell)], cwd=cwd, env=env, capture_output=True, text=True
    )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize(
    "command", ["captioner", "captioner --help", "captioner data --help", "captioner info RUN"]
)
@pytest.mark.parametrize(
    ("redirected", "said"),
    [
        ("COMMAND > /dev/full", "what is printed cannot be written (No space left on device)"),
        ("COMMAND >&-", "standard output is closed"),
        ("COMMAND > /dev/full 2>&1", ""),
        ("COMMAND >&- 2>&-", ""),
    ],
)
def test_output_that_cannot_be_written_is_said(
    command: str, redirected: str, said: str, tiny_run: Path, tmp_path: Path
) -> None:
    done = started(redirected, command.replace("RUN", str(tiny_run)), tmp_path)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert said in done.stderr and done.stderr.count("\n") == (1 if said else 0)


def test_a_folder_that_was_deleted_is_said(tmp_path: Path) -> None:
    done = started("mkdir gone; cd gone; rmdir ../gone; COMMAND", "captioner info run", tmp_path)
    assert done.returncode == 2 and "has been deleted" in done.stderr


def test_without_standard_input_a_list_is_empty(tmp_path: Path) -> None:
    done = started("COMMAND <&-", "captioner caption -", tmp_path)
    assert done.returncode == 2 and "the list is empty" in done.stderr


def test_a_closed_stream_gets_no_file_of_ours(tmp_path: Path, tiny_run: Path) -> None:
    """The first file that is opened would have its number, and what is printed would land there."""
    code = "import os; assert os.fstat(1).st_rdev == os.stat(os.devnull).st_rdev"
    script = f"from captioner.cli.main import main; main([]); {code}"
    done = subprocess.run(
        ["bash", "-c", f"'{sys.executable}' -c '{script}' >&-"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and "standard output is closed" in done.stderr
    assert json.loads((tiny_run / "config.json").read_text())  # as it was
