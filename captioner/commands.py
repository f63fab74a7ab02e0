"""What each command does: calls one room of the house, prints what came of it, gives the exit code.

In: the parsed arguments. Out: text on stdout; files where the arguments say. One function a command, of the
command's name; TensorFlow is loaded only inside a command that needs it.
"""

from __future__ import annotations

import os
import random
import sys
import tempfile
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import captioner
from captioner.errors import CaptionerError, ConfigError, RunError
from captioner.files import json_text
from captioner.progress import bar
from captioner.reports import caption_lines, epoch_name, info_lines, score_lines, scores_line

SHIPPED = ("shipped", "../checkpoints/flickr8k")  # beside this file: in the wheel, in a checkout


def data(arguments: Namespace) -> int:
    """`captioner data`: a data set in figures, and on a sheet."""
    from captioner.datasets import load_split
    from captioner.summaries import summarise

    for line in summarise(arguments.root, arguments.format, arguments.seed).lines():
        print(line)
    if arguments.sheet:
        from captioner.plots import plot_records

        records = load_split(arguments.root, "all", format=arguments.format).records
        chosen = random.Random(arguments.seed).sample(records, min(arguments.pictures, len(records)))
        plot_records(chosen, arguments.sheet)
        print(f"{arguments.sheet}: {len(chosen)} of its pictures")
    return 0


def sample(arguments: Namespace) -> int:
    """`captioner sample`: the set that draws itself."""
    from captioner.scenes import draw_dataset

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
    print(f"  captioner train scenes --data {arguments.folder} --run runs/scenes")
    return 0


def train(arguments: Namespace) -> int:
    """`captioner train`: from a recipe to a run."""
    config = _training_config(arguments)
    load_tensorflow()
    from captioner.train import train as train_run

    run = train_run(config, arguments.data, arguments.run, resume=arguments.resume, quiet=arguments.quiet)
    best = run.best or {}
    print(f"{arguments.run}: {scores_line(best)} on dev, at its best ({epoch_name(best)})")
    print(f"  captioner caption PICTURE --run {arguments.run}")
    print(f"  captioner evaluate --run {arguments.run} --data {arguments.data} --out {arguments.run}/test")
    return 0


def caption(arguments: Namespace) -> int:
    """`captioner caption`: a line a picture, good or bad."""
    paths = _pictures(arguments.paths, arguments.recursive)
    run = find_run(arguments.run)
    load_tensorflow()
    from captioner.predict import Captioner

    names = ("beam", "n_best", "max_words", "temperature", "top_k", "top_p", "seed")
    options = {name: getattr(arguments, name) for name in names}
    found = Captioner.load(run).captions_of(paths, attention=bool(arguments.attention), **options)
    drawings = _drawing_names(arguments.attention, paths)
    failed = 0
    # On a terminal the captions themselves show how far it is.
    with bar(len(paths), "pictures", "captions", sys.stdout.isatty() or not sys.stderr.isatty()) as progress:
        for path, result in zip(paths, found, strict=True):
            failed += result.error is not None
            _print_caption(result, as_json=arguments.json, several=len(paths) > 1)
            if drawings and result.error is None:
                _draw_attention(path, result, drawings[path])
            progress.update(1)
    return 1 if failed else 0


def evaluate(arguments: Namespace) -> int:
    """`captioner evaluate`: predictions.jsonl and scores.json."""
    load_tensorflow()
    from captioner.evaluate import Protocol
    from captioner.evaluate import evaluate as evaluate_run

    names = ("split", "format", "beam", "max_words", "batch_size")
    plan = Protocol(**{name: getattr(arguments, name) for name in names})
    result = evaluate_run(arguments.run, arguments.data, arguments.out, plan=plan, quiet=arguments.quiet)
    for line in score_lines(result.scores):
        print(line)
    print(f"written: {Path(arguments.out) / 'scores.json'}, {Path(arguments.out) / 'predictions.jsonl'}")
    for warning in result.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    return _report_failures(result.failures)


def features(arguments: Namespace) -> int:
    """`captioner features`: the cache, filled beforehand."""
    from captioner.config import load_config
    from captioner.datasets import load_split

    config = load_config(arguments.recipe, arguments.set)
    records = load_split(arguments.data, arguments.split, format=config.data.format, seed=config.seed).records
    load_tensorflow()
    from captioner.encoders import load_encoder
    from captioner.features import extract

    wanted = config.encoder
    encoder = load_encoder(wanted.name, weights=wanted.weights, size=wanted.size, seed=config.seed)
    store = extract(records, encoder, folder=arguments.cache, quiet=arguments.quiet)
    cells, channels = store.shape
    print(f"{store.folder}: {len(store.ids)} of {len(records)} pictures, {cells} cells of {channels} each")
    return _report_failures([(str(failure.path), failure.reason) for failure in store.failures])


def info(arguments: Namespace) -> int:
    """`captioner info`: what a run folder holds."""
    from captioner.checkpoints import Run

    run = Run.open(arguments.run)
    if arguments.config:
        print(run.config, end="")
    elif arguments.json:
        print(json_text({**run.info(), "history": run.history()}))
    else:
        for line in info_lines(run):
            print(line)
    return 0


def find_run(given: str | None) -> Path:
    """The run folder to caption with: the one given, that of $CAPTIONER_RUN, or the one that comes along.

    Raises:
        RunError: there is none; says how to come by one.
    """
    if given or os.environ.get("CAPTIONER_RUN"):
        return Path(given or os.environ["CAPTIONER_RUN"])
    for place in SHIPPED:
        folder = (Path(captioner.__file__).parent / place).resolve()
        if (folder / "config.json").is_file():
            return folder
    raise RunError(
        "no trained model: none comes with this installation; name a run folder with --run or in "
        "$CAPTIONER_RUN, or make one: captioner sample scenes, then captioner train scenes --data scenes "
        "--run runs/scenes"
    )


def load_tensorflow() -> None:
    """Imports TensorFlow without what its C++ libraries say of themselves; it is shown if that fails."""
    if "tensorflow" in sys.modules:
        return
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if os.environ["TF_CPP_MIN_LOG_LEVEL"] < "2":  # somebody wants to see it
        import tensorflow  # noqa: F401
    with _silent_stderr():
        import tensorflow  # noqa: F401, F811


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Keeps back what is written to file descriptor 2, below Python; gives it out if the block fails."""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield
        except Exception:
            file.seek(0)
            os.write(kept, file.read())
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)


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
    from captioner.checkpoints import Run

    return Run.open(arguments.run).config


def _pictures(paths: Sequence[str], recursive: bool) -> list[Path]:
    """Files as named, even if they are not there: each is a record of its own; folders as what is in them."""
    from captioner.images import IMAGE_SUFFIXES, find_images

    found: list[Path] = []
    for path in map(Path, paths):
        inside = find_images(path, recursive) if path.is_dir() else [path]
        if not inside:
            deeper = "" if recursive else "; --recursive looks into folders within it, too"
            raise CaptionerError(
                f"{path}: no picture in this folder ({', '.join(sorted(IMAGE_SUFFIXES))}){deeper}"
            )
        found += inside
    return list(dict.fromkeys(found))


def _print_caption(result: Any, *, as_json: bool, several: bool) -> None:
    if as_json:
        print(json_text(result.to_dict()), flush=True)
    elif result.error is not None:
        sys.stdout.flush()
        print(f"error: {result.path}: {result.error}", file=sys.stderr)
    else:
        print("\n".join(caption_lines(result, named=several)), flush=True)


def _drawing_names(wanted: str | None, paths: Sequence[Path]) -> dict[Path, Path]:
    """Where each picture's attention is drawn: the file given, or beside it one named after each picture."""
    if not wanted:
        return {}
    target = Path(wanted)
    if len(paths) == 1:
        return {paths[0]: target}
    names: dict[Path, Path] = {}
    for path in paths:
        name, count = f"{target.stem}-{path.stem}", 1
        while target.with_name(name + target.suffix) in names.values():
            count += 1
            name = f"{target.stem}-{path.stem}-{count}"
        names[path] = target.with_name(name + target.suffix)
    return names


def _draw_attention(path: Path, result: Any, target: Path) -> None:
    from captioner.images import read_image
    from captioner.plots import plot_attention

    plot_attention(read_image(path), result.words, result.attention, path=target)


def _report_failures(failures: Sequence[tuple[str, str]]) -> int:
    for path, reason in failures:
        print(f"error: {path}: {reason}", file=sys.stderr)
    return 1 if failures else 0
