"""`captioner train`: from a recipe and captioned pictures to a run folder.

In: the parsed arguments. Out: the run folder; the scores of its best epoch on stdout.
"""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from typing import Any

from captioner.cli.arguments import apply_limits, limit_arguments, number, set_argument
from captioner.cli.outputs import check_run_folder
from captioner.errors import ConfigError

MORE = "Writes a run folder that holds all that captioning needs. Ctrl-C finishes the step and saves."
EXAMPLES = (
    "  captioner train sample --data scenes\n"
    "  captioner train flickr8k-frozen --data flickr8k --run runs/flickr8k --set decoder.units=256\n"
    "  captioner train --resume --data flickr8k --run runs/flickr8k\n"
    "  captioner train flickr8k --data en=flickr8k --data de=flickr8k-de --data zh=flickr8k-zh"
)


def add_arguments(add: Any) -> None:
    """Adds the arguments of `captioner train`."""
    add(
        "recipe",
        nargs="?",
        metavar="RECIPE",
        help="name of a recipe, or a .toml file; not needed with --resume",
    )
    add(
        "--data",
        required=True,
        action="append",
        metavar="[LANGUAGE=]ROOT[*TIMES]",
        help="folder of captioned pictures, their language, looks at each in an epoch; several are one set",
    )
    add("--language", metavar="L", help="of captions that carry none, such as de")
    add("--from", dest="start", metavar="RUN", help="begin with another run's networks and words")
    add("--run", metavar="DIR", help="folder for all the training leaves behind (a new runs/DATA-RECIPE)")
    add("--resume", action="store_true", help="go on where a stopped training in DIR was")
    add(
        "--budget",
        type=number(0, 1e6, "a number of minutes above 0"),
        metavar="MINUTES",
        help="leave out as many epochs as must be for the training to take no longer",
    )
    set_argument(add)
    limit_arguments(add)


def run(arguments: Namespace) -> int:
    """`captioner train`: from a recipe to a run."""
    from captioner.cli.text import epoch_name, scores_line
    from captioner.data.data_folders import DataFolder
    from captioner.inference.loading import load_tensorflow
    from captioner.runs.run_folder import RUN_FILES

    apply_limits(arguments)
    arguments.run = arguments.run or _run_folder(arguments)
    config = _training_config(arguments)
    if not arguments.resume:
        check_run_folder(arguments.run, RUN_FILES)
    load_tensorflow()
    from captioner.training.distributed import train_distributed

    if arguments.resume and arguments.budget:
        raise ConfigError("--budget is for a training that begins; --resume goes on with what it planned")
    run = train_distributed(
        config,
        arguments.data,
        arguments.run,
        language=arguments.language,
        resume=arguments.resume,
        minutes=arguments.budget or 0,
        quiet=arguments.quiet,
    )
    if run is None:  # one of several workers, and not the first
        return 0
    best = run.best_info() or {}
    print(f"{arguments.run}: {scores_line(best)} on dev, at its best ({epoch_name(best)})")
    print(f"  captioner caption PICTURE --run {arguments.run}")
    data = DataFolder.of(arguments.data[0]).path
    print(f"  captioner evaluate --run {arguments.run} --data {data} --report")
    unreadable = run.history()[-1].get("unreadable", 0)
    if unreadable:
        print(f"pictures left out: {unreadable}, see {arguments.run}/log.txt", file=sys.stderr)
    return 1 if unreadable else 0


def _run_folder(arguments: Namespace) -> str:
    """Where a training goes that was not told where."""
    from captioner.data.data_folders import DataFolder
    from captioner.runs.locate import new_run, newest_runs

    if arguments.resume:
        known = ", ".join(map(str, newest_runs())) or "none here"
        raise ConfigError(f"--resume: which run? name it with --run; newest in runs/: {known}")
    return str(new_run(arguments.recipe, DataFolder.of(arguments.data[0]).path)) if arguments.recipe else ""


def _training_config(arguments: Namespace) -> Any:
    from captioner.config import load_config

    if arguments.recipe:
        start = [f"start={json.dumps(arguments.start)}"] if arguments.start else []
        return load_config(arguments.recipe, [*start, *arguments.set])
    if not arguments.resume:
        from captioner.config import recipes

        raise ConfigError(
            f"a recipe is missing; known: {', '.join(recipes())}; or give the path of a .toml file"
        )
    if arguments.set:
        raise ConfigError(
            "--set with --resume needs the recipe, too: captioner train RECIPE --resume --set …"
        )
    from captioner.runs.run_folder import Run

    return Run.open(arguments.run).config
