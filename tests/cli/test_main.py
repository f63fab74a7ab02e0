"""The command line: what it answers at once, what it prints, and with which code it ends."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from captioner.cli.main import main
from captioner.cli.parser import COMMANDS, load_command, parse

ROOT = Path(__file__).resolve().parents[2]
NEW = {**os.environ, "PYTHONPATH": str(ROOT)}  # a process of its own, wherever it is started


def run(*arguments: Any, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command."""
    capsys.readouterr()
    code = main([str(argument) for argument in arguments])
    return code, *capsys.readouterr()


@pytest.fixture(scope="module")
def photos(scenes_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three good pictures, one bad one between them, one further down."""
    folder = tmp_path_factory.mktemp("photos")
    for name, picture in zip("acd", sorted((scenes_folder / "images").glob("test*")), strict=False):
        shutil.copy(picture, folder / f"{name}.png")
    (folder / "b.png").write_bytes(b"<html>404")
    (folder / "more").mkdir()
    shutil.copy(folder / "a.png", folder / "more" / "a.png")
    return folder


# Answers at once.


def test_alone_it_says_what_can_be_done(capsys: pytest.CaptureFixture[str]) -> None:
    code, said, _ = run(capsys=capsys)
    assert code == 0
    for line in said.splitlines():
        if line.startswith("  captioner "):
            parse(line.split("   ")[0].split()[1:])  # what it proposes can be typed


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_examples_that_can_be_typed(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, said, _ = run(command, "--help", capsys=capsys)
    assert code == 0
    examples = said.partition("examples:\n")[2].splitlines()
    assert len(examples) >= 2
    typed = []
    for example in (line for line in examples if "captioner " in line):  # others ask a running server
        words = shlex.split(example.split(" | ")[-1].split(" > ")[0], comments=True)
        words = [word for word in words if "TOKEN=" not in word]
        assert words[0] == "captioner"
        typed.append(parse(words[1:]).command)
    assert typed.count(command) >= 2


def test_every_command_has_its_function() -> None:
    for command in COMMANDS:
        assert load_command(command).run.__doc__


def test_help_and_wrong_use_load_nothing_slow() -> None:
    code = (
        "import sys\n"
        "from captioner.cli.main import main\n"
        f"for command in {list(COMMANDS)!r}:\n"
        "    assert main([command, '--help']) == 0\n"
        "assert main([]) == main(['--help']) == main(['--version']) == 0\n"
        "assert main(['trian']) == main(['train', '--wrong']) == 2\n"
        "slow = {'tensorflow', 'keras', 'numpy', 'PIL', 'matplotlib', 'nltk'} & set(sys.modules)\n"
        "sys.exit(f'loads {sorted(slow)}' if slow else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], env=NEW, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("trian x", 'error: unknown command "trian"; did you mean "train"?'),
        ("caption x.png --baem 3", 'error: unknown option "--baem"; did you mean "--beam"?'),
        ("caption x.png --bea 3", 'error: unknown option "--bea"; did you mean "--beam"?'),
        ("caption x.png --beam 0", 'argument --beam: "0": expected a whole number from 1 to 100'),
        ("caption x.png --beam two", 'argument --beam: "two": expected a whole number from 1 to 100'),
        ("caption x.png --temperature 0", 'argument --temperature: "0": expected a number above 0 to 100'),
        ("caption x.png --top-p 2", 'argument --top-p: "2": expected a number above 0 to 1'),
        ("info", "the following arguments are required: DIR; `captioner info --help` shows how"),
        ("info one two", '"two" is one argument too many'),
        ("--quiet", 'unknown option "--quiet"'),
        ("train --data d --run r", "a recipe is missing; known: "),
    ],
)
def test_wrong_use_is_named(typed: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(*typed.split(), capsys=capsys)
    assert (code, out) == (2, "")
    assert said in err and err.startswith("error: ") and err.count("\n") == 1


def test_without_any_model_it_says_how_to_come_by_one(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, photos: Path
) -> None:
    from captioner.runs import locate

    monkeypatch.setattr(locate, "SHIPPED", ())
    monkeypatch.delenv("CAPTIONER_RUN", raising=False)
    code, _, err = run("caption", photos / "a.png", capsys=capsys)
    assert code == 2
    assert "no trained model" in err and "--run" in err and "captioner sample" in err


@pytest.mark.parametrize("form", ["os:path", "json:loads", "captioner.data.datasets:DATASETS"])
@pytest.mark.parametrize(
    "words", ["data FOLDER --format FORM", "evaluate --run RUN --data FOLDER --format FORM --out FOLDER/out"]
)
def test_a_form_that_is_no_reader_is_named(
    words: str, form: str, tiny_run: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = words.replace("FOLDER", str(photos)).replace("RUN", str(tiny_run)).replace("FORM", form)
    code, _, err = run(*typed.split(), capsys=capsys)
    assert code == 2 and f'"{form}": expected a Reader, found ' in err


# How it ends.


def test_ctrl_c_ends_with_a_sentence(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_: Any) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("captioner.cli.commands.info.run", interrupted)
    code, out, err = run("info", "runs", capsys=capsys)
    assert (code, out) == (130, "")
    assert err.startswith("stopped (Ctrl-C)") and err.count("\n") == 1


@pytest.mark.parametrize("kind", [MemoryError, type("ResourceExhaustedError", (Exception,), {})])
def test_too_little_memory_ends_with_a_sentence(
    kind: type[Exception], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fill_up(arguments: Any) -> int:
        raise kind("Unable to allocate 8.00 TiB")

    monkeypatch.setattr("captioner.cli.commands.data.run", fill_up)
    assert main(["data", "."]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: not enough memory; fewer pictures at a time") and "Traceback" not in said


def test_a_reader_that_goes_away_is_no_error(scenes_folder: Path) -> None:
    for arguments in (["data", str(scenes_folder)], ["caption", "--help"], []):
        command = [sys.executable, "-m", "captioner", *arguments]
        process = subprocess.Popen(command, env=NEW, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        said = process.stderr.read()
        process.stderr.close()
        code = process.wait(timeout=120)
        assert said == b""
        assert code == 141 or "--help" in arguments  # there argparse itself may have noticed, and kept silent


def test_output_is_utf8_whatever_the_locale(tmp_path: Path) -> None:
    (tmp_path / "bild.png").write_bytes(b"x")
    (tmp_path / "captions.csv").write_text("image,caption\nbild.png,빨간 원\n", encoding="utf-8")
    env = {**NEW, "LC_ALL": "C", "PYTHONIOENCODING": "ascii"}
    folder = tmp_path / "그림"
    shutil.copytree(tmp_path, folder, ignore=shutil.ignore_patterns("그림"))
    done = subprocess.run(
        [sys.executable, "-m", "captioner", "data", str(folder)], env=env, capture_output=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert str(folder).encode() in done.stdout


def test_a_name_that_is_no_unicode_is_still_json(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = os.fsdecode(bytes(tmp_path) + b"/\xff.png")
    code, out, _ = run("caption", name, "--run", tiny_run, "--json", capsys=capsys)
    assert code == 1 and json.loads(out)["path"] == name


def test_tensorflow_does_not_chatter(tiny_run: Path, photos: Path) -> None:
    command = [sys.executable, "-m", "captioner", "caption", str(photos / "b.png"), "--run", str(tiny_run)]
    command.append("--quiet")
    quiet = {name: value for name, value in NEW.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
    done = subprocess.run(command, env=quiet, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (1, "")
    assert (
        done.stderr.count("\n") == 1 and "b.png: is no picture that can be read: it is a page" in done.stderr
    )


# The whole line.


def test_sample_and_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, sheet = tmp_path / "szenen", tmp_path / "sheet.png"
    code, out, _ = run("sample", folder, "--pictures", 24, "--language", "de", "--size", 32, capsys=capsys)
    assert code == 0 and f"captioner train sample --data {folder}" in out
    code, out, _ = run("data", folder, "--sheet", sheet, "--pictures", 5, capsys=capsys)
    assert code == 0 and sheet.stat().st_size > 10_000
    assert "24 pictures, 120 captions" in out and "train 20, dev 2, test 2" in out
    assert run("sample", folder, "--language", "xx", capsys=capsys)[0] == 2


def test_captions_one_line_a_picture(
    tiny_run: Path, photos: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, alone, err = run("caption", photos / "a.png", "--run", tiny_run, "--quiet", capsys=capsys)
    assert (code, err, alone.count("\n")) == (0, "", 1)
    monkeypatch.setenv("CAPTIONER_RUN", str(tiny_run))
    code, out, err = run("caption", photos, "--quiet", capsys=capsys)
    assert code == 1
    assert [line.split(": ")[0] for line in out.splitlines()] == [str(photos / f"{n}.png") for n in "acd"]
    assert out.startswith(f"{photos / 'a.png'}: {alone}")
    assert err.startswith(f"error: {photos / 'b.png'}: ") and err.count("\n") == 1
    code, out, _ = run("caption", photos, photos / "a.png", "--recursive", capsys=capsys)
    assert out.count("a.png: ") == 2  # one of them further down; none twice


def test_captions_as_json(tiny_run: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wanted = ("caption", photos, photos / "nowhere.png", "--run", tiny_run, "--json", "--n-best", 2)
    code, out, err = run(*wanted, "--quiet", capsys=capsys)
    lines = [json.loads(line) for line in out.splitlines()]
    assert (code, err) == (1, "")
    assert [Path(line["path"]).stem for line in lines] == ["a", "b", "c", "d", "nowhere"]
    assert ["error" in line for line in lines] == [False, True, False, False, True]
    assert set(lines[0]) == {"path", "caption", "score", "probability", "alternatives"}
    (other,) = lines[0]["alternatives"]
    assert other["score"] <= lines[0]["score"] and other["caption"] != lines[0]["caption"]


def test_drawing_words_and_attention(
    tiny_run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    looks = tmp_path / "looks.png"
    said = run("caption", photos / "a.png", "--run", tiny_run, "--attention", looks, capsys=capsys)
    assert said[0] == 0 and looks.stat().st_size > 5_000
    run("caption", photos, "--run", tiny_run, "--recursive", "--attention", looks, capsys=capsys)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["looks-a-2.png", "looks-a.png", "looks-c.png", "looks-d.png", "looks.png"]
    drawn = ("caption", photos / "a.png", "--run", tiny_run, "--temperature", 2, "--seed")
    first, again, other = (run(*drawn, seed, capsys=capsys)[1] for seed in (1, 1, 2))
    assert first == again != other


def test_evaluate_and_info(
    tiny_run: Path, scenes_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = ("evaluate", "--run", tiny_run, "--data", scenes_folder, "--split", "dev", "--out", tmp_path)
    code, out, _ = run(*wanted, "--quiet", capsys=capsys)
    assert code == 0
    scores = json.loads((tmp_path / "scores.json").read_text(encoding="utf-8"))
    assert f"  cider       {scores['cider']:7.1f}" in out and "shuffled" in out
    assert len((tmp_path / "predictions.jsonl").read_text(encoding="utf-8").splitlines()) == scores["images"]

    code, out, _ = run("info", tiny_run, capsys=capsys)
    assert code == 0 and "small_cnn, 32 x 32 pixels" in out and "frozen epoch 2" in out
    assert "  recipe       tiny\n" in out and ": train 40 pictures, 200 captions; dev 4 pictures, 20" in out
    assert json.loads(run("info", tiny_run, "--json", capsys=capsys)[1])["encoder"]["name"] == "small_cnn"
    recipe = tmp_path / "again.toml"
    recipe.write_text(run("info", tiny_run, "--config", capsys=capsys)[1], encoding="utf-8")
    from captioner.config import load_config
    from captioner.runs.run_folder import Run

    assert load_config(recipe) == dataclasses.replace(Run.open(tiny_run).config, recipe="again")


def test_features_beforehand(
    tiny_recipe: Path, scenes_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = ("features", tiny_recipe, "--data", scenes_folder, "--cache", tmp_path / "cache", "--quiet")
    code, out, err = run(*wanted, "--split", "dev", capsys=capsys)
    assert (code, err) == (0, "") and "4 of 4 pictures" in out
    assert any((tmp_path / "cache").iterdir())


@pytest.mark.parametrize("script", ["train_captioner.py", "evaluate_bleu.py"])
def test_scripts_show_an_example(script: str) -> None:
    command = [sys.executable, ROOT / "scripts" / script, "--help"]
    done = subprocess.run(command, env=NEW, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and f"python scripts/{script}" in done.stdout
