"""`captioner data`: a data set in figures, and on a sheet of pictures.

In: the parsed arguments. Out: sizes, lengths, vocabulary and problems on stdout; the sheet, if asked for.
"""

from __future__ import annotations

import random
import sys
from argparse import Namespace
from typing import Any

from captioner.cli.arguments import apply_limits, format_argument, limit_arguments, whole
from captioner.cli.outputs import check_files, force_argument

MORE = "Reads captions and folder listings; opens pictures only for the sheet."
EXAMPLES = "  captioner data flickr8k\n  captioner data my-photos/captions.csv --sheet sheet.png"


def add_arguments(add: Any) -> None:
    """Adds the arguments of `captioner data`."""
    add("root", metavar="ROOT", help="folder of a data set, or its captions file")
    format_argument(add)
    add("--sheet", metavar="PNG", help="also draw pictures with their captions into this file")
    force_argument(add)
    add("--pictures", type=whole(1), default=12, metavar="N", help="how many on the sheet (12)")
    add(
        "--seed",
        type=whole(0),
        default=0,
        metavar="S",
        help="which ones, and how a set without splits is split",
    )
    limit_arguments(add)


def run(arguments: Namespace) -> int:
    """`captioner data`: a data set in figures, and on a sheet."""
    from captioner.data.statistics import summarize

    apply_limits(arguments)
    if arguments.sheet:
        check_files([arguments.sheet], "--sheet", force=arguments.force)
    summary = summarize(arguments.root, arguments.format, arguments.seed)
    # At one go: whoever reads only the first lines (`| head`) makes it no failure.
    sys.stdout.write("".join(f"{line}\n" for line in summary.lines()))
    if arguments.sheet:
        from captioner.visualization.plots import plot_records

        records = summary.records
        chosen = random.Random(arguments.seed).sample(records, min(arguments.pictures, len(records)))
        plot_records(chosen, arguments.sheet)
        print(f"{arguments.sheet}: {len(chosen)} of its pictures")
    return 0
