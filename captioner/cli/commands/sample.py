"""`captioner sample`: draws the data set of colored shapes.

In: the parsed arguments. Out: a folder of pictures with captions, and on stdout what can be done with it.
"""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from captioner.cli.arguments import whole

MORE = "The test pictures show combinations that training never shows."
EXAMPLES = "  captioner sample scenes\n  captioner sample szenen --language de --pictures 600"


def add_arguments(add: Any) -> None:
    """Adds the arguments of `captioner sample`."""
    add("folder", metavar="DIR", help="a new or empty folder")
    add("--pictures", type=whole(1), default=4800, metavar="N", help="in all splits together (4800)")
    add("--seed", type=whole(0), default=0, metavar="S", help="other pictures for another number (0)")
    add("--language", default="en", metavar="L", help="of the captions: en, de, ko or ja (en)")
    add("--size", type=whole(16), default=96, metavar="PIXELS", help="height and width (96)")


def run(arguments: Namespace) -> int:
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
