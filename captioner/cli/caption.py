"""The command `caption`: pictures described, line by line or into files.

In: the parsed arguments. Out: captions on stdout, or sidecars and sheets; drawings of where the model looked.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from captioner.cli.features import shard_from_args
from captioner.cli.text import caption_lines
from captioner.config import former_key
from captioner.data.image_files import gather, named_paths, no_picture_in
from captioner.data.images import find_images
from captioner.errors import CaptionerError, ConfigError, RunError
from captioner.inference.loading import load_captioner
from captioner.runs.locate import find_run
from captioner.system import console
from captioner.system.files import digest_bytes, digest_file, json_text


def caption(arguments: Namespace) -> int:
    """`captioner caption`: a line a picture, good or bad; or files."""
    if not arguments.paths and not arguments.list:
        raise ConfigError("no picture was named; name pictures or folders; - or --list reads a list of them")
    if arguments.write:
        return _caption_into_files(arguments)
    for name in ("out", "if_exists", "names"):
        if getattr(arguments, name):
            raise ConfigError(f"--{name.replace('_', '-')} says how files are written: --write is missing")
    part = shard_from_args(arguments)
    paths = part.of(_pictures(named_paths(arguments.paths, arguments.list), arguments.recursive))
    run = find_run(arguments.run)
    options = {**_caption_options(arguments), "attention": bool(arguments.attention)}
    found = _captions_of(run, options, arguments)(paths)
    drawings = _drawing_names(arguments.attention, paths)
    failed = 0
    # On a terminal the captions themselves show how far it is.
    quiet = arguments.quiet or sys.stdout.isatty() or not sys.stderr.isatty()
    with console.progress_bar(len(paths), "pictures", "captions", quiet) as progress:
        for path, result in zip(paths, found, strict=True):
            failed += result.error is not None
            _print_caption(result, as_json=arguments.json, several=len(paths) > 1)
            if drawings and result.error is None:
                _draw_attention(path, result, drawings[path])
            progress.update(1)
    return 1 if failed else 0


def _caption_options(arguments: Namespace) -> dict[str, Any]:
    names = ("beam", "n_best", "max_words", "temperature", "top_k", "top_p", "seed")
    return {name: getattr(arguments, name) for name in names}


def _captions_of(
    run: Path, options: dict[str, Any], arguments: Namespace
) -> Callable[[Iterable[Path]], Iterator[Any]]:
    """What captions: a model in this process, or an engine."""
    if arguments.engine:
        from captioner.apps.cluster.ray_driver import RayCaptions

        return RayCaptions(run, options, address=arguments.address, quiet=arguments.quiet)
    return lambda paths: load_captioner(run, options, quiet=arguments.quiet).captions_of(paths, **options)


def _caption_into_files(arguments: Namespace) -> int:
    """`captioner caption --write`: sidecars, sheets, and a report."""
    from captioner.apps.sidecars.job import FolderPlan, caption_folders

    for name in ("json", "attention"):
        if getattr(arguments, name):
            raise ConfigError(f"--{name} shows captions, --write puts them into files: choose one of them")
    run, options = find_run(arguments.run), _caption_options(arguments)
    plan = FolderPlan(
        write=tuple(dict.fromkeys(",".join(arguments.write).split(","))),
        out=Path(arguments.out) if arguments.out else None,
        if_exists=arguments.if_exists or "skip",
        names=arguments.names or "short",
        part=shard_from_args(arguments),
        job=_job(run, options),
    )
    plan.check()
    pictures = gather(named_paths(arguments.paths, arguments.list), recursive=arguments.recursive)
    captions_of = _captions_of(run, options, arguments)
    outcomes = caption_folders(pictures, plan, captions_of, quiet=arguments.quiet)
    if not arguments.quiet:
        print("\n".join(outcomes.lines()))
    return 1 if outcomes.failed else 0


def _job(folder: Path, options: dict[str, Any]) -> str:
    """Stands for all that a caption depends on, but for the picture."""
    from captioner.runs.run_folder import BEST, Run
    from captioner.runs.weights import WEIGHTS

    run = Run.open(folder)
    if run.best is None:
        raise RunError(f"{folder}: no finished epoch yet; go on with `captioner train … --resume`")
    decode = run.config.to_dict()["decode"]
    # Under the names that they had first: what an earlier version captioned is not out of date.
    settings = {former_key(f"decode.{key}"): value for key, value in decode.items()}
    parts = [digest_file(folder / BEST / WEIGHTS), run.vocabulary.digest, settings]
    return digest_bytes(json_text([*parts, options]).encode())[:16]


def _pictures(paths: Iterable[str], recursive: bool) -> list[Path]:
    """Files as named, even if they are not there: each is a record of its own; folders as what is in them."""
    found: list[Path] = []
    for path in map(Path, paths):
        inside = find_images(path, recursive) if path.is_dir() else [path]
        if not inside:
            raise CaptionerError(no_picture_in(path, recursive))
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
    from captioner.data.images import read_image
    from captioner.visualization.plots import plot_attention

    plot_attention(read_image(path), result.words, result.attention, path=target)
