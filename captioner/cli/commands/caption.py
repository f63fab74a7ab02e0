"""`captioner caption`: pictures described, line by line or into files.

In: the parsed arguments. Out: captions on stdout, or sidecars and sheets; drawings of where the model looked.
"""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from captioner.cli import sharding
from captioner.cli.arguments import apply_limits, decoding_arguments, limit_arguments
from captioner.cli.outputs import check_files, force_argument
from captioner.errors import ConfigError, unknown_name
from captioner.system import console

if TYPE_CHECKING:
    from captioner.data.image_files import Pictures

MORE = (
    "One line a picture. One that cannot be read is reported on stderr, does not disturb the others,\n"
    "and makes the exit code 1. With --write the captions go into files; repeat the command, whatever\n"
    "happened, and it does what is missing. Pictures are only read; metadata is added to, never lost."
)
EXAMPLES = (
    "  captioner caption dog.jpg\n"
    "  captioner caption photos --run runs/flickr8k --beam 5 --n-best 3\n"
    "  captioner caption photos --recursive --json > captions.jsonl\n"
    "  captioner caption photos --recursive --write txt,xmp\n"
    "  captioner caption photos --recursive --write txt --shard 2/8\n"
    "  find photos -name '*.jpg' -print0 | captioner caption - --write csv --out captions\n"
    "  captioner caption dog.jpg --attention looks.png\n"
    "  captioner caption dog.jpg --n-best 5 --temperature 0.8 --seed 1"
)

_LONGEST_NAME = 255
_SHOWN = 3  # of the folders that were left out


def add_arguments(add: Any) -> None:
    """Adds the arguments of `captioner caption`."""
    add("paths", nargs="*", metavar="IMAGE_OR_FOLDER", help="pictures, folders of pictures; - reads a list")
    add("--list", metavar="FILE", help="a file with paths, one a line; - is standard input")
    add(
        "--run",
        metavar="DIR",
        help="run folder; else $CAPTIONER_RUN, else the model that comes with captioner",
    )
    add("--language", metavar="L", help="such as de; all: a caption in each that the model knows (its first)")
    decoding_arguments(add, ("beam", "n_best", "max_words", "length_normalization", "no_repeat"))
    add(
        "--json", action="store_true", help="one JSON object a picture a line: path, caption, score, or error"
    )
    add("--attention", metavar="PNG", help="draw where the model looked at each word")
    add("--recursive", action="store_true", help="also look into folders within folders")
    add(
        "--exclude",
        action="append",
        default=[],
        metavar="PATTERN",
        help="leave out files and folders of this name or path, such as '*_edited*'; may be repeated",
    )
    _writing_arguments(add)
    decoding_arguments(add, ("temperature", "top_k", "top_p", "seed"))
    sharding.add_arguments(add)
    limit_arguments(add)


def _writing_arguments(add: Any) -> None:
    add(
        "--write",
        action="append",
        default=[],
        metavar="KIND",
        help="write files instead of lines: txt, json, csv, xmp, or several: txt,xmp",
    )
    add("--out", metavar="DIR", help="with --write: into DIR, in the same tree; else beside the pictures")
    add(
        "--if-exists",
        metavar="DO",
        help="with --write: skip, renew, overwrite or append where there is a caption already (skip)",
    )
    add("--names", metavar="HOW", help="with --write: photo.txt (short) or photo.jpg.txt (full) (short)")
    add(
        "--for",
        dest="program",
        metavar="PROGRAM",
        help="with --write xmp: names as darktable, digikam or lightroom wants them",
    )
    force_argument(add)


def run(arguments: Namespace) -> int:
    """`captioner caption`: a line a picture, good or bad; or files."""
    from captioner.runs.locate import find_run

    apply_limits(arguments)
    if not arguments.paths and not arguments.list:
        raise ConfigError("no picture was named; name pictures or folders; - or --list reads a list of them")
    if arguments.write:
        return _caption_into_files(arguments)
    for name in ("out", "if_exists", "names", "for"):
        if getattr(arguments, "program" if name == "for" else name):
            raise ConfigError(f"--{name.replace('_', '-')} says how files are written: --write is missing")
    part = sharding.shard_from_args(arguments)
    pictures = _gathered(arguments)
    paths = part.of(list(pictures.paths()))
    drawings = _drawing_names(arguments.attention, paths)
    check_files(drawings.values(), "--attention", force=arguments.force)
    folder = find_run(arguments.run)
    options = {**_caption_options(arguments), "attention": bool(arguments.attention)}
    found = _captions_of(folder, options, arguments)(paths)
    failed = len(pictures.problems)
    for unlisted, reason in pictures.problems:
        print(f"error: {unlisted}: {reason}", file=sys.stderr)
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


def _gathered(arguments: Namespace) -> Pictures:
    """The pictures that were named, in the order named."""
    from captioner.data.image_files import gather, named_paths

    named = named_paths(arguments.paths, arguments.list)
    pictures = gather(named, recursive=arguments.recursive, exclude=arguments.exclude)
    if pictures.left_out:
        shown = ", ".join(pictures.left_out[:_SHOWN]) + (", …" if len(pictures.left_out) > _SHOWN else "")
        console.info(
            f"left out: {shown} (other programs' folders, and --exclude); one that is named is not left out",
            quiet=arguments.quiet,
        )
    return pictures


def _caption_options(arguments: Namespace) -> dict[str, Any]:
    names = ("beam", "n_best", "max_words", "temperature", "top_k", "top_p", "seed")
    options = {name: getattr(arguments, name) for name in names}
    # Younger options only where given: what was captioned before there were any is not out of date.
    younger = {name: getattr(arguments, name) for name in ("language", "length_normalization", "no_repeat")}
    return options | {name: value for name, value in younger.items() if value is not None}


def _captions_of(
    run: Path, options: dict[str, Any], arguments: Namespace
) -> Callable[[Iterable[Path]], Iterator[Any]]:
    """The function that captions paths: a model in this process, or an engine on other machines."""
    from captioner.inference.loading import load_captioner

    if arguments.engine:
        from captioner.apps.cluster.ray_driver import RayCaptions

        return RayCaptions(run, options, address=arguments.address, quiet=arguments.quiet)
    return lambda paths: load_captioner(run, options, quiet=arguments.quiet).captions_of(paths, **options)


def _caption_into_files(arguments: Namespace) -> int:
    """`captioner caption --write`: sidecars, sheets, and a report."""
    from captioner.apps.sidecars.job import caption_folders
    from captioner.apps.sidecars.plan import FolderPlan
    from captioner.runs.locate import find_run
    from captioner.runs.run_folder import Run

    for name in ("json", "attention"):
        if getattr(arguments, name):
            raise ConfigError(f"--{name} shows captions, --write puts them into files: choose one of them")
    folder, options = find_run(arguments.run), _caption_options(arguments)
    write = tuple(dict.fromkeys(",".join(arguments.write).split(",")))
    plan = FolderPlan(
        write=write,
        out=Path(arguments.out) if arguments.out else None,
        if_exists=arguments.if_exists or "skip",
        names=_naming(arguments, write),
        force=arguments.force,
        part=sharding.shard_from_args(arguments),
        job=Run.open(folder).identity(options),
    )
    plan.check()
    pictures = _gathered(arguments)
    captions_of = _captions_of(folder, options, arguments)
    outcomes = caption_folders(pictures, plan, captions_of, quiet=arguments.quiet)
    if not arguments.quiet:
        print("\n".join(outcomes.lines()))
    return 1 if outcomes.failed else 0


def _naming(arguments: Namespace, write: Sequence[str]) -> str:
    """How sidecars are named, by --names or as the program of --for wants it."""
    from captioner.apps.sidecars.plan import PROGRAMS

    if arguments.program is None:
        return arguments.names or "short"
    if arguments.program not in PROGRAMS:
        raise ConfigError(unknown_name("program", arguments.program, PROGRAMS))
    if "xmp" not in write:
        raise ConfigError("--for says how a program wants its XMP files named: --write xmp is missing")
    wanted = PROGRAMS[arguments.program]
    if arguments.names not in (None, wanted.names):
        raise ConfigError(f"--for {arguments.program} means --names {wanted.names}: leave out --names")
    if wanted.note and not arguments.quiet:
        print(f"note: {wanted.note}", file=sys.stderr)
    return wanted.names


def _print_caption(result: Any, *, as_json: bool, several: bool) -> None:
    from captioner.cli.text import caption_lines
    from captioner.system.files import json_text

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
    taken: set[str] = set()
    for path in paths:
        name, count = _fitting(f"{target.stem}-{path.stem}", target.suffix), 1
        while name.casefold() in taken:  # two that differ in case alone are one file on some disks
            count += 1
            name = _fitting(f"{target.stem}-{path.stem}", f"-{count}{target.suffix}")
        taken.add(name.casefold())
        names[path] = target.with_name(name)
    return names


def _fitting(stem: str, ending: str) -> str:
    """A name of at most 255 bytes, which is what file systems allow; a longer stem is cut."""
    while len(os.fsencode(stem + ending)) > _LONGEST_NAME:
        stem = stem[:-1]
    return stem + ending


def _draw_attention(path: Path, result: Any, target: Path) -> None:
    from captioner.data.images import read_image
    from captioner.visualization.plots import plot_attention

    plot_attention(read_image(path), result.words, result.attention, path=target)
