"""What a command needs before it can compute: the run folder that is meant, its captioner, TensorFlow.

In: what was typed, $CAPTIONER_RUN. Out: a folder; a captioner; TensorFlow imported without its C++ chatter.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import captioner
from captioner.errors import RunError
from captioner.system.console import say, silent_stderr
from captioner.system.voice import detail, verbose

if TYPE_CHECKING:
    from captioner.inference.base import Captioning

RUNS = Path("runs")  # where trainings go that were given no other place
SHIPPED = ("shipped", "../checkpoints/flickr8k")  # beside this file: in the wheel, in a checkout


def find_run(given: str | None) -> Path:
    """The run folder to caption with: the one given, that of $CAPTIONER_RUN, or the one that comes along.

    Raises:
        RunError: there is none; says how to come by one.
    """
    if given or os.environ.get("CAPTIONER_RUN"):
        folder = Path(given or os.environ["CAPTIONER_RUN"])
        detail(f"run folder {folder}, {'as asked' if given else 'from $CAPTIONER_RUN'}")
        return folder
    for place in SHIPPED:
        folder = (Path(captioner.__file__).parent / place).resolve()
        if (folder / "config.json").is_file():
            detail(f"run folder {folder}, which comes with captioner")
            return folder
    raise RunError(
        "no trained model: none comes with this installation; name a run folder with --run or in "
        "$CAPTIONER_RUN, or make one: captioner sample scenes, then captioner train sample --data scenes "
        "--run runs/scenes"
    )


def load_captioner(folder: Path, options: Mapping[str, Any], *, quiet: bool = False) -> Captioning:
    """The captioner of a run: its compiled form where that can do what is asked, else TensorFlow with a word.

    Args:
        folder: of the run.
        options: fields of `CaptionOptions`; None: as the run says.
        quiet: no word.

    Raises:
        ConfigError: an impossible option.
        RunError: there is no such run, it is not finished enough, or a file is damaged.
    """
    from captioner.inference.caption import CaptionOptions
    from captioner.inference.compiled_captioner import LightCaptioner, NotCompiled

    if CaptionOptions.of(options).drawn:
        reason = "words are drawn at random"
    else:
        try:
            light = LightCaptioner.load(folder)
            detail("its compiled form is loaded; TensorFlow is not needed")
            return light
        except NotCompiled as error:
            reason = f"{error}, which `captioner export --run {folder}` makes"
    say(f"TensorFlow is loaded: {reason}", quiet=quiet)
    load_tensorflow()
    from captioner.inference.captioner import Captioner

    return Captioner.load(folder)


def load_tensorflow() -> None:
    """Imports TensorFlow without what its C++ libraries say of themselves; it is shown if that fails."""
    if "tensorflow" in sys.modules:
        return
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "0" if verbose() else "3")
    if os.environ["TF_CPP_MIN_LOG_LEVEL"] < "2":  # somebody wants to see it
        import tensorflow  # noqa: F401
    with silent_stderr():
        import tensorflow  # noqa: F401, F811
    detail(f"TensorFlow {tensorflow.__version__} is loaded")


def new_run(recipe: str, data: str) -> Path:
    """A folder for a training that was given none: `runs/DATA-RECIPE`, with a number if that is taken.

    >>> new_run("my/sample.toml", "no such/place/").as_posix()
    'runs/place-sample'
    """
    source = Path(os.path.abspath(data))
    name = f"{source.stem if source.suffix else source.name}-{Path(recipe).stem}"
    folder, count = RUNS / name, 1
    while folder.exists():
        count += 1
        folder = RUNS / f"{name}-{count}"
    return folder


def newest_runs(most: int = 3) -> list[Path]:
    """Run folders in `runs/`, the one worked on last first."""
    found = [(path.parent.stat().st_mtime, path.parent) for path in RUNS.glob("*/config.json")]
    return [folder for _, folder in sorted(found, reverse=True)[:most]]
