"""What the documentation promises: commands parse, recipes load, examples run, links lead somewhere."""

from __future__ import annotations

import csv
import importlib.util
import json
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from captioner.cli import main as cli
from captioner.cli import welcome
from captioner.cli.parser import COMMANDS, load_command, parse
from captioner.config import load_config, recipes
from captioner.evaluation.metrics import METRICS
from tests.apps.sidecars.test_job import opinionated

ROOT = Path(__file__).resolve().parent.parent
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
OTHERS = [ROOT / "docs/photos/README.md", *sorted((ROOT / "checkpoints").rglob("*.md"))]
MANUALS = {
    **{path.name: path.read_text(encoding="utf-8") for path in PAGES},
    "captioner": welcome.FIRST + welcome.AGAIN.format(run="runs/scenes"),
    **{f"captioner {name} --help": load_command(name).EXAMPLES for name in COMMANDS},
    **{f"recipe {name}": text.replace("# ", "") for name, text in recipes().items()},
}


def commands(text: str) -> Iterator[list[str]]:
    """The arguments of every `captioner …` line of a text, continued lines put together.

    >>> list(commands("Type\\n    captioner info runs/a \\\\\\n    --json   # all of it"))
    [['info', 'runs/a', '--json']]
    """
    for line in text.replace("\\\n", " ").splitlines():
        words = line.strip().removeprefix("$ ")
        if words.startswith("captioner ") and not words.startswith("captioner:"):
            words = re.split(r"  +(?=[a-z])", words)[0]  # what is explained to the right of it
            arguments = shlex.split(words, comments=True)[1:]
            ends = [arguments.index(sign) for sign in (">", "|") if sign in arguments]
            yield arguments[: min(ends, default=None)]


def code_blocks(page: str, language: str) -> list[str]:
    """The fenced blocks of one language.

    >>> code_blocks("```python\\nx = 1\\n```", "python")
    ['x = 1\\n']
    """
    return re.findall(rf"^```{language}\n(.*?)^```", page, flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """The places of a page that links can name: its headings, as code hosts and MkDocs write them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", MANUALS)
def test_every_command_in_the_manuals_parses(page: str) -> None:
    for arguments in commands(MANUALS[page]):
        if arguments[0].isupper():  # `captioner COMMAND --help`
            continue
        if "--help" in arguments:
            with pytest.raises(SystemExit):
                parse(arguments)
            continue
        parsed = parse(arguments)
        recipe = getattr(parsed, "recipe", None)
        if recipe and not recipe.endswith(".toml"):
            load_config(recipe, parsed.set)


@pytest.mark.parametrize("name", recipes())
def test_every_recipe_loads_and_begins_with_its_command(name: str) -> None:
    load_config(name)
    head = recipes()[name].splitlines()[0]
    assert head.startswith((f"# captioner train {name} ", f"# captioner {name} "))
    assert next(commands(head.removeprefix("# ")))


def test_the_readme_names_every_recipe() -> None:
    readme = MANUALS["README.md"]
    assert [name for name in recipes() if f"`{name}`" not in readme] == []


@pytest.mark.parametrize("path", [*PAGES, *OTHERS], ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_and_pictures_are_there_and_small(path: Path) -> None:
    for target, place in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]+))?\)", path.read_text(encoding="utf-8")):
        if "://" in target:
            continue
        file = path.parent / target if target else path
        assert file.exists(), f"{path.name}: {target}"
        if place and file.suffix == ".md":
            assert place in anchors(file), f"{path.name}: {target}#{place}"
        if file.suffix in (".png", ".jpg", ".jpeg"):
            assert file.stat().st_size < 300_000, target


@pytest.mark.parametrize(
    "name", [name for name, text in MANUALS.items() if "\n- [" in text.split("\n## ")[0]]
)
def test_a_list_of_contents_is_whole(name: str) -> None:
    head, *sections = re.split(r"^## ", MANUALS[name], flags=re.MULTILINE)
    listed = re.findall(r"^- \[(.+?)\]\(#", head, flags=re.MULTILINE)
    assert listed == [section.partition("\n")[0] for section in sections]


def test_the_readme_runs_as_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first steps and the Python example, on fewer pictures and for one epoch."""
    monkeypatch.chdir(tmp_path)
    lessened = {
        "sample": ["--pictures", "48"],
        "train": ["--quiet", "--set", "phases.scratch.epochs=1", "--set", "decoder.units=32"],
        "evaluate": ["--quiet"],
    }
    steps = next(block for block in code_blocks(MANUALS["README.md"], "sh") if "captioner sample" in block)
    for arguments in commands(steps):
        assert cli.main([*arguments, *lessened.get(arguments[0], [])]) == 0, arguments
    for example in code_blocks(MANUALS["README.md"], "python"):
        exec(compile(example, "README.md", "exec"), {})


def test_the_extensions_train_as_printed(
    tmp_path: Path, scenes_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`my_parts.py` and `mine.toml` from docs/extending.md, on pictures with text files beside them."""
    page = MANUALS["extending.md"]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_parts.py").write_text("".join(code_blocks(page, "python")), encoding="utf-8")
    (tmp_path / "mine.toml").write_text(code_blocks(page, "toml")[0], encoding="utf-8")
    _beside(scenes_folder, tmp_path / "my-pictures")
    monkeypatch.setitem(METRICS, "brief", METRICS["bleu"])  # so that the row goes again after the test
    for arguments in commands(code_blocks(page, "sh")[0]):
        assert cli.main([*arguments, "--quiet"]) == 0, arguments
    scores = json.loads(Path("runs/mine/test/scores.json").read_text(encoding="utf-8"))
    assert {"bleu4", "brief"} <= set(scores)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("lxml") is None, reason="pip install 'captioner[xmp]'")
def test_the_tasks_run_as_printed(
    tmp_path: Path, scenes_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """docs/tasks.md but for what serves and installs; fewer pictures, one epoch, another CNN."""
    sections = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", MANUALS["tasks.md"], re.DOTALL | re.MULTILINE))
    monkeypatch.chdir(tmp_path)
    shutil.copytree(scenes_folder, "my-photos")
    shutil.copytree(scenes_folder / "images", "photos/2024")
    quick = ["--set", "encoder.name=small_cnn", "--set", "encoder.weights=none", "--set", "decoder.units=32"]
    lessened = {
        "sample": ["--pictures", "48"],
        ("train", "sample"): [*quick, "--set", "phases.scratch.epochs=1"],
        ("train", "flickr8k-frozen"): [
            *quick,
            "--set",
            "encoder.size=48",
            "--set",
            "phases.decoder.epochs=1",
        ],
    }
    # No model need come along: one stands in that says something of every picture.
    monkeypatch.setenv("CAPTIONER_RUN", str(opinionated(tmp_path / "run", scenes_folder / "captions.csv")))
    for title in ("In Korean, or another language", "Train on my own pictures", "Caption my photo folder"):
        for arguments in commands("".join(code_blocks(sections[title], "sh"))):
            more = lessened.get(tuple(arguments[:2]), lessened.get(arguments[0], []))  # type: ignore[arg-type]
            assert cli.main([*arguments, *more, "--quiet"]) == 0, arguments
    pictures = [path.name for path in Path("photos/2024").glob("*.png")]
    assert len(pictures) > 9
    for folder, suffix in (("photos/2024", ".txt"), ("captions/2024", ".xmp")):
        assert {path.stem + ".png" for path in Path(folder).glob(f"*{suffix}")} == set(pictures)
    assert (tmp_path / "runs/my-photos-flickr8k-frozen/test/report.html").stat().st_size > 20_000


def _beside(scenes: Path, folder: Path) -> None:
    """The drawn pictures, each with its captions in a text file of its own name."""
    folder.mkdir()
    with (scenes / "captions.csv").open(encoding="utf-8", newline="") as table:
        for row in csv.DictReader(table):
            picture = folder / row["image"]
            if not picture.exists():
                picture.write_bytes((scenes / "images" / row["image"]).read_bytes())
            with picture.with_suffix(".txt").open("a", encoding="utf-8") as captions:
                captions.write(row["caption"] + "\n")
