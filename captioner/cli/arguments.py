"""Arguments that several commands have, and the types of arguments: what may be typed for each."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

from captioner.inference.search_options import CaptionOptions, decoding_options
from captioner.schema import Bounds


def whole(least: int) -> Callable[[str], int]:
    """The type of an argument that is a whole number from `least` on."""

    def parse(text: str) -> int:
        if not text.lstrip("-").isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f'"{text}": expected a whole number from {least} on')
        return int(text)

    return parse


def decoding_arguments(add: Any, names: Sequence[str]) -> None:
    """Adds a flag for each of these options of `decoding_options`, with its limits and its help."""
    options, defaults = decoding_options(), CaptionOptions()
    for name in names:
        bounds, default = options[name], getattr(defaults, name)
        beside = f" ({default})" if default is not None else " (as the run says)" if name in SEARCHING else ""
        flag = f"--{name.replace('_', '-')}"
        add(flag, type=within(bounds), default=default, metavar=_METAVARS[name], help=bounds.help + beside)


SEARCHING = ("beam", "max_words", "length_normalization", "no_repeat")  # what an evaluation may set
_METAVARS = {"beam": "K", "length_normalization": "X", "temperature": "T", "top_p": "P", "seed": "S"}
_METAVARS |= dict.fromkeys(("n_best", "max_words", "no_repeat", "top_k"), "N")


def within(bounds: Bounds) -> Callable[[str], int | float]:
    """The type of an argument that is a number within bounds."""

    def parse(text: str) -> int | float:
        try:
            value = bounds.kind(text)
        except ValueError:
            value = float("nan")
        if not bounds.fits(value):
            raise argparse.ArgumentTypeError(f'"{text}": expected {bounds.expected}')
        return value

    return parse


def number(low: float, high: float, expected: str) -> Callable[[str], float]:
    """The type of an argument that is a number above `low`, up to `high`."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not low < value <= high:
            raise argparse.ArgumentTypeError(f'"{text}": expected {expected}')
        return value

    return parse


def format_argument(add: Any, *, default: str | None = "auto", usual: str = "auto: recognized") -> None:
    """Adds `--format`: in which form a data set is; `usual` says what is done without it."""
    add(
        "--format",
        default=default,
        metavar="F",
        help=f"flickr8k, karpathy, coco, csv, jsonl, … ({usual})",
    )


def limit_arguments(add: Any) -> None:
    """Adds `--max-mib` and `--max-megapixels`: how large pictures may be."""
    add("--max-mib", type=whole(1), metavar="N", help="largest file of a picture that is read, in MiB (64)")
    add("--max-megapixels", type=whole(1), metavar="N", help="largest picture that is read (80)")


def apply_limits(arguments: argparse.Namespace) -> None:
    """Applies --max-mib and --max-megapixels to all pictures that this process reads."""
    from captioner.data.images import Limits, set_default_limits

    usual = Limits()
    mib, megapixels = arguments.max_mib, arguments.max_megapixels
    set_default_limits(
        Limits(
            file_bytes=mib * 2**20 if mib else usual.file_bytes,
            pixels=megapixels * 1_000_000 if megapixels else usual.pixels,
        )
    )


def set_argument(add: Any) -> None:
    """Adds `--set`: changes to a recipe."""
    add(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="change the recipe; may be repeated",
    )
