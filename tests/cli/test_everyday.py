"""Everyday use: the greeting, typing errors, how much is said, colors, names of runs, Tab, the doctor."""

from __future__ import annotations

import io
import json
import os
import shlex
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from captioner.cli.commands.completion import SHELLS, WORDS
from captioner.cli.main import main
from captioner.cli.parser import COMMANDS, build_parser, load_command, parse
from captioner.runs.locate import new_run, newest_runs
from captioner.system import console

ROOT = Path(__file__).resolve().parents[2]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(console, "_state", {"quiet": False, "verbose": False})


def test_alone_it_says_what_can_be_done_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([]) == 0
    first = capsys.readouterr().out
    assert "captioner caption dog.jpg" in first and "captioner sample scenes" in first
    for name, seconds in (("old", 100), ("young", 200)):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "config.json").touch()
        os.utime(tmp_path / "runs" / name, (seconds, seconds))
    assert main([]) == 0
    assert "--run runs/young" in capsys.readouterr().out
    assert newest_runs() == [Path("runs/young"), Path("runs/old")]


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        ("capton dog.jpg", 'unknown command "capton"; did you mean "caption"?'),
        ("caption dog.jpg --beem 5", 'unknown option "--beem"; did you mean "--beam"?'),
        ("caption dog.jpg --if-exist=skip", 'did you mean "--if-exists"?'),
        # The option that is missing was only misspelt.
        ("train sample --date scenes", 'unknown option "--date"; did you mean "--data"?'),
        ("evaluate --rum r --data d", 'unknown option "--rum"; did you mean "--run"?'),
        ("doctor --jsn", 'did you mean "--json"?'),
        ("completion bsh", 'unknown shell "bsh"; did you mean "bash"?'),
        ("evaluate --data d", "--run"),
        ("caption dog.jpg --beam 0", "from 1 to 100"),
    ],
)
def test_a_typing_error_is_answered_with_what_was_meant(
    words: str, meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words.split()) == 2
    said = capsys.readouterr().err
    assert meant in said and said.startswith("error: ") and said.count("\n") == 1


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_takes_quiet_and_verbose(name: str) -> None:
    examples = (line for line in load_command(name).EXAMPLES.splitlines() if f"captioner {name}" in line)
    example = next(examples).partition("captioner ")[2]
    words = shlex.split(example.partition(" > ")[0], comments=True)
    parsed = parse([*words, "--quiet", "--verbose"])
    assert parsed.command == name and parsed.quiet and parsed.verbose


def test_quiet_silences_bars_and_narration_everywhere(capsys: pytest.CaptureFixture[str]) -> None:
    console.configure(quiet=True)
    console.info("something")
    with console.progress_bar(3, "pictures", "captions") as bar:
        bar.update(3)
    console.debug("something")
    assert capsys.readouterr().err == ""


def test_verbose_tells_details_and_shows_where_an_error_came_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["info", str(tmp_path)]) == 2
    assert "Traceback" not in capsys.readouterr().err
    assert main(["info", str(tmp_path), "--verbose"]) == 2
    said = capsys.readouterr().err
    assert "Traceback" in said and "error: " in said.splitlines()[-1]


def test_colors_only_where_they_are_seen_and_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    assert console.styled("x", "red", io.StringIO()) == "x"
    assert console.styled("x", "red", Terminal()) == "\033[31mx\033[0m"
    for name, value in (("NO_COLOR", "1"), ("TERM", "dumb")):
        with monkeypatch.context() as changed:
            changed.setenv(name, value)
            assert console.styled("x", "red", Terminal()) == "x"


def test_an_error_is_red_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert main(["capton"]) == 2
    assert terminal.getvalue().startswith("\033[31merror:\033[0m unknown command")


def test_a_run_is_named_after_data_and_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert new_run("sample", "scenes/") == Path("runs/scenes-sample")
    assert new_run("my/tuned.toml", "photos/captions.csv") == Path("runs/captions-tuned")
    assert new_run("sample", ".").name == f"{tmp_path.name}-sample"
    Path("runs/scenes-sample").mkdir(parents=True)
    assert new_run("sample", "scenes") == Path("runs/scenes-sample-2")


def test_resume_asks_which_run_and_names_the_newest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    (tmp_path / "runs" / "mine" / "config.json").touch()
    assert main(["train", "--resume", "--data", "d"]) == 2
    assert "runs/mine" in capsys.readouterr().err


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with the command `captioner`, as an installation makes it."""
    folder = tmp_path_factory.mktemp("bin")
    script = folder / "captioner"
    script.write_text(
        f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(ROOT)!r})\n"
        "from captioner.cli.main import main\nsys.exit(main())\n"
    )
    script.chmod(0o755)
    return str(folder)


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("cap", ["caption"]),
        ("train fl", ["flickr30k", "flickr8k", "flickr8k-frozen"]),
        ("evaluate --rep", ["--report"]),
        ("caption --write ", ["txt", "json", "csv", "xmp"]),
        ("completion ", list(SHELLS)),
    ],
)
def test_tab_completes_in_bash(command: str, tmp_path: Path, typed: str, offered: list[str]) -> None:
    words = ["captioner", *typed.split(), *([""] if typed.endswith(" ") else [])]
    line = f"captioner {typed}"
    script = (
        'eval "$(captioner completion bash)"\n'
        f"COMP_WORDS=({' '.join(repr(word) for word in words)}); COMP_CWORD={len(words) - 1}\n"
        f"COMP_LINE='{line}'; COMP_POINT={len(line)}; COMP_TYPE=9; COMP_KEY=9\n"
        f"_python_argcomplete captioner '{words[-1]}' '{words[-2]}'\n"
        'printf "%s\\n" "${COMPREPLY[@]}"\n'
    )
    environment = {**os.environ, "PATH": f"{command}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    found = [word.strip() for word in done.stdout.split("\n") if word.strip()]
    assert set(offered) <= set(found), done.stderr
    assert not any(word.startswith("-") for word in found) or typed.endswith("--rep")


@pytest.mark.parametrize("words", COMMANDS)
def test_tab_offers_only_what_fits(words: str) -> None:
    """Metavars choose what is offered: those of numbers and names have none of the words of others."""
    parser = build_parser()
    rows = next(action for action in parser._actions if isinstance(action.choices, dict)).choices
    assert isinstance(rows, dict)
    for action in rows[words]._actions:
        if action.type is not None:  # a number
            assert str(action.metavar) not in WORDS, action.option_strings


@pytest.mark.parametrize("shell", SHELLS)
def test_completion_is_written_where_the_shell_looks(
    shell: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SHELL", f"/usr/bin/{shell}")
    assert main(["completion"]) == 0
    printed = capsys.readouterr().out
    assert main(["completion", "--install"]) == 0
    path = Path(SHELLS[shell]).expanduser()
    assert path.is_relative_to(tmp_path) and path.read_text().strip() == printed.strip() != ""
    if shutil.which(shell):
        assert subprocess.run([shell, "-n", str(path)]).returncode == 0


def test_the_doctor_names_what_is_missing_and_the_remedy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    needed = ["numpy>=1", "no-such-thing>=2", "numpy>=999; extra == 'serve'", 'numpy; extra == "xmp"']
    needed.append("nothing; extra == 'dev'")
    monkeypatch.setattr(metadata, "requires", lambda name: list(needed))
    monkeypatch.setenv("CAPTIONER_RUN", "no-such-run")
    assert main(["doctor", "--json"]) == 1
    found = {finding["what"]: finding for finding in json.loads(capsys.readouterr().out)}
    assert found["packages"]["state"] == "bad"
    assert found["packages"]["remedy"] == "pip install 'no-such-thing>=2'"
    assert found["[serve]"]["remedy"] == "pip install 'captioner[serve]'"
    assert found["[xmp]"]["state"] == "good" and "[dev]" not in found
    assert found["TensorFlow"]["state"] == "good"
    assert "no-such-run" in found["model"]["found"]
    del needed[1]
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    assert "cores" in said and "bfloat16" in said and "pip install 'captioner[serve]'" in said


@pytest.mark.parametrize(
    ("needed", "met"),
    [("numpy>=1.9", True), ("numpy>=1,<2", False), ("numpy[extra]>1!0", False), ("NumPy>=2.0rc1", True)],
)
def test_the_doctor_compares_versions_as_pip_does(
    needed: str, met: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(metadata, "requires", lambda name: [needed])
    assert main(["doctor", "--json"]) == (0 if met else 1)
    capsys.readouterr()


def test_the_doctor_works_in_a_checkout_that_is_not_installed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def absent(name: str) -> list[str]:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", absent)
    main(["doctor", "--json"])
    found = {finding["what"]: finding for finding in json.loads(capsys.readouterr().out)}
    assert found["packages"]["state"] == "good" and "[xmp]" in found
