"""What each command does: calls one room of the house, prints what came of it, gives the exit code.

In: the parsed arguments. Out: text on stdout; files where the arguments say. One function a command, of the
command's name; TensorFlow is loaded only inside a command that needs it.
"""

from __future__ import annotations

import random
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from captioner.cli.caption import caption as caption
from captioner.cli.completion import completion as completion
from captioner.cli.doctor import doctor as doctor
from captioner.cli.export import export as export
from captioner.cli.features import features as features
from captioner.cli.serve import serve as serve
from captioner.cli.text import epoch_name, info_lines, score_lines, scores_line
from captioner.errors import ConfigError
from captioner.inference.loading import load_tensorflow
from captioner.runs.locate import new_run, newest_runs
from captioner.system.files import json_text


def data(arguments: Namespace) -> int:
    """`captioner data`: a data set in figures, and on a sheet."""
    from captioner.data.datasets import load_split
    from captioner.data.statistics import summarize

    for line in summarize(arguments.root, arguments.format, arguments.seed).lines():
        print(line)
    if arguments.sheet:
        from captioner.visualization.plots import plot_records

        records = load_split(arguments.root, "all", format=arguments.format).records
        chosen = random.Random(arguments.seed).sample(records, min(arguments.pictures, len(records)))
        plot_records(chosen, arguments.sheet)
        print(f"{arguments.sheet}: {len(chosen)} of its pictures")
    return 0


def sample(arguments: Namespace) -> int:
    """`captioner sample`: the set that draws itself."""
    from captioner.data.synthetic.scenes import draw_dataset

    draw_dataset(
        arguments.folder,
        pictures=arguments.pictures,
        seed=arguments.seed,
        language=arguments.language,
        size=arguments.size,
    )
    print(
        f"{arguments.folder}: {arguments.pictures} pictures with captions; look at them, then train on them:"
    )
    print(f"  captioner data {arguments.folder} --sheet sheet.png")
    print(f"  captioner train sample --data {arguments.folder}")
    return 0


def train(arguments: Namespace) -> int:
    """`captioner train`: from a recipe to a run."""
    arguments.run = arguments.run or _run_folder(arguments)
    config = _training_config(arguments)
    load_tensorflow()
    from captioner.training.distributed import train as train_run

    if arguments.resume and arguments.budget:
        raise ConfigError("--budget is for a training that begins; --resume goes on with what it planned")
    run = train_run(
        config,
        arguments.data,
        arguments.run,
        resume=arguments.resume,
        minutes=arguments.budget or 0,
        quiet=arguments.quiet,
    )
    if run is None:  # one of several workers, and not the first
        return 0
    best = run.best or {}
    print(f"{arguments.run}: {scores_line(best)} on dev, at its best ({epoch_name(best)})")
    print(f"  captioner caption PICTURE --run {arguments.run}")
    print(f"  captioner evaluate --run {arguments.run} --data {arguments.data} --report")
    unreadable = run.history()[-1].get("unreadable", 0)
    if unreadable:
        print(f"pictures left out: {unreadable}, see {arguments.run}/log.txt", file=sys.stderr)
    return 1 if unreadable else 0


def evaluate(arguments: Namespace) -> int:
    """`captioner evaluate`: predictions.jsonl and scores.json."""
    arguments.out = arguments.out or str(Path(arguments.run) / arguments.split)
    load_tensorflow()
    from captioner.evaluation.evaluate import EvaluationOptions
    from captioner.evaluation.evaluate import evaluate as evaluate_run

    names = ("split", "format", "beam", "max_words", "batch_size")
    plan = EvaluationOptions(**{name: getattr(arguments, name) for name in names})
    result = evaluate_run(arguments.run, arguments.data, arguments.out, plan=plan, quiet=arguments.quiet)
    for line in score_lines(result.scores):
        print(line)
    written = [Path(arguments.out) / "scores.json", Path(arguments.out) / "predictions.jsonl"]
    if arguments.report is not None:
        from captioner.evaluation.html_report import write_review

        written.append(Path(arguments.report or Path(arguments.out) / "report.html"))
        write_review(result, arguments.run, written[-1])
    print(f"written: {', '.join(map(str, written))}")
    for warning in result.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    return _report_failures(result.failures)


def info(arguments: Namespace) -> int:
    """`captioner info`: what a run folder holds."""
    from captioner.runs.run_folder import Run

    run = Run.open(arguments.run)
    if arguments.config:
        print(run.config, end="")
    elif arguments.json:
        print(json_text({**run.info(), "history": run.history()}))
    else:
        for line in info_lines(run):
            print(line)
    return 0


def _run_folder(arguments: Namespace) -> str:
    """Where a training goes that was not told where."""
    if arguments.resume:
        known = ", ".join(map(str, newest_runs())) or "none here"
        raise ConfigError(f"--resume: which run? name it with --run; newest in runs/: {known}")
    return str(new_run(arguments.recipe, arguments.data)) if arguments.recipe else ""


def _training_config(arguments: Namespace) -> Any:
    from captioner.config import load_config

    if arguments.recipe:
        return load_config(arguments.recipe, arguments.set)
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


def _report_failures(failures: Sequence[tuple[str, str]]) -> int:
    for path, reason in failures:
        print(f"error: {path}: {reason}", file=sys.stderr)
    return 1 if failures else 0
