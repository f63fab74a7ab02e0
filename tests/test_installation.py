"""Installations: what a light one can do, what it says where it cannot, what is in the wheel."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MOST_MEGABYTES = 200  # of a light environment
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# As if they were not installed.
WITHOUT = "import sys\nfor name in ('tensorflow', 'keras', 'nltk', 'matplotlib'): sys.modules[name] = None\n"


def run(code: str, *arguments: str, python: str = sys.executable) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [python, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300
    )


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["train", "sample", "--data", "x"], "training, and whatever else runs on TensorFlow,"),
        (["export", "--run", "checkpoints/flickr8k"], "training, and whatever else runs on TensorFlow,"),
        (["data", "{scenes}", "--sheet", "{out}"], "drawing"),
        (["score", "{scenes}/captions.csv", "--data", "{scenes}"], "scoring"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_is_not_installed_is_said_in_one_sentence(
    command: list[str], said: str, scenes_folder: Path, tmp_path: Path
) -> None:
    predictions = tmp_path / "captions.csv"
    predictions.write_text("image,caption\ntest_00000.png,a circle\ntest_00001.png,a square\n")
    places = {"{scenes}/captions.csv": predictions, "{scenes}": scenes_folder, "{out}": tmp_path / "x.png"}
    words = [str(places.get(word, word)) for word in command]
    done = run(WITHOUT + "from captioner.cli.main import main\nsys.exit(main(sys.argv[1:]))", *words)
    expected = f"error: {said} needs an optional part: pip install 'captioner[train]'\n"
    assert (done.returncode, done.stderr) == (2, expected)


def test_so_is_a_public_name_that_needs_it() -> None:
    done = run(WITHOUT + "from captioner import Captioner")
    assert "MissingExtra: training, and whatever else runs on TensorFlow," in done.stderr


def test_a_compiled_model_captions_without_tensorflow() -> None:
    picture = next((ROOT / "docs" / "photos").glob("*.jpg"))
    barely = "for name in ('tomli_w', 'packaging', 'argcomplete'): sys.modules[name] = None\n"
    code = WITHOUT + barely + "from captioner.cli.main import main\nsys.exit(main(['caption', sys.argv[1]]))"
    done = run(code, str(picture))
    assert done.returncode == 0 and len(done.stdout.split()) > 3, done.stderr


def test_extras_name_each_other_rightly() -> None:
    extras = PROJECT["optional-dependencies"]
    assert sorted(extras["light"] + extras["train"]) == sorted(PROJECT["dependencies"])
    (everything,) = extras["all"]
    assert set(everything.removeprefix("captioner[").removesuffix("]").split(",")) == (
        set(extras) - {"all", "dev", "docs", "light", "train"}
    )


@pytest.mark.slow
def test_a_light_installation_is_small_and_captions_a_photograph(tmp_path: Path) -> None:
    """What `light` lists, then `pip install --no-deps .`, into a new environment; needs a package index."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "env")], check=True)
    python = str(tmp_path / "env" / "bin" / "python")
    pip = [sys.executable, "-m", "pip", "--python", python, "--quiet", "--disable-pip-version-check"]
    install = [*pip, "install"]
    for what in (PROJECT["optional-dependencies"]["light"], ["--no-deps", str(ROOT)]):
        done = subprocess.run([*install, *what], capture_output=True, text=True)
        if "Failed to establish a new connection" in done.stderr:
            pytest.skip("no package index can be reached")
        assert done.returncode == 0 and "ERROR" not in done.stderr, done.stderr
    picture = next((ROOT / "docs" / "photos").glob("*.jpg")).resolve()
    command = [str(tmp_path / "env" / "bin" / "captioner"), "caption", str(picture)]
    said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert len(said.stdout.split()) > 3
    assert subprocess.run([python, "-c", "import tensorflow"], capture_output=True).returncode
    megabytes = _megabytes(tmp_path / "env")
    assert megabytes < MOST_MEGABYTES, f"{megabytes:.0f} MB"


@pytest.mark.slow
@pytest.mark.skipif(find_spec("build") is None, reason="no builder: pip install build")
def test_the_wheel_and_the_archive_are_as_an_index_wants_them(tmp_path: Path) -> None:
    quiet = {"capture_output": True, "text": True}
    built = subprocess.run([sys.executable, "-m", "build", "--outdir", str(tmp_path)], cwd=ROOT, **quiet)  # type: ignore[call-overload]
    assert built.returncode == 0, built.stderr
    files = [str(path) for path in sorted(tmp_path.iterdir())]
    assert [Path(file).suffix for file in files] == [".whl", ".gz"]
    tools = {"twine": ["check", "--strict", *files], "check_wheel_contents": [files[0]]}
    for module, arguments in tools.items():
        if find_spec(module) is not None:
            done = subprocess.run([sys.executable, "-m", module, *arguments], **quiet)  # type: ignore[call-overload]
            assert done.returncode == 0, done.stdout + done.stderr


def _megabytes(folder: Path) -> float:
    """What a folder takes, links not followed."""
    paths = (Path(top, name) for top, _, names in os.walk(folder) for name in names)
    return sum(path.lstat().st_size for path in paths) / 1e6
