"""Where run folders are: the one to caption with, a new one for a training, the newest ones.

In: what was typed, $CAPTIONER_RUN. Out: paths.
"""

from __future__ import annotations

import os
from pathlib import Path

from captioner.errors import RunError
from captioner.system import console

PACKAGE = Path(__file__).resolve().parents[1]
RUNS = Path("runs")  # where trainings go that were given no other place
SHIPPED = ("shipped", "../checkpoints/flickr8k")  # beside the package: in the wheel, in a checkout


def find_run(given: str | None) -> Path:
    """The run folder to caption with: the one given, that of $CAPTIONER_RUN, or the one that comes along.

    Raises:
        RunError: there is none; says how to come by one.
    """
    if given or os.environ.get("CAPTIONER_RUN"):
        folder = Path(given or os.environ["CAPTIONER_RUN"])
        console.debug(f"run folder {folder}, {'as asked' if given else 'from $CAPTIONER_RUN'}")
        return folder
    for place in SHIPPED:
        folder = (PACKAGE / place).resolve()
        if (folder / "config.json").is_file():
            console.debug(f"run folder {folder}, which comes with captioner")
            return folder
    raise RunError(
        "no trained model: none comes with this installation; name a run folder with --run or in "
        "$CAPTIONER_RUN, or make one: captioner sample scenes, then captioner train sample --data scenes "
        "--run runs/scenes"
    )


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
