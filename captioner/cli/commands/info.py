"""`captioner info`: what a run folder holds.

In: the parsed arguments. Out: text, one JSON object or a recipe on stdout.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from typing import Any

MORE = "Encoder, words, epochs, scores, sizes, and the checkpoints kept."
EXAMPLES = "  captioner info runs/flickr8k\n  captioner info runs/flickr8k --config > my-recipe.toml"


def add_arguments(add: Any) -> None:
    """Adds the arguments of `captioner info`."""
    add("run", metavar="DIR", help="run folder of a training")
    add("--json", action="store_true", help="everything, as one JSON object")
    add("--config", action="store_true", help="only its configuration, as a recipe to train from")


def run(arguments: Namespace) -> int:
    """`captioner info`: what a run folder holds."""
    from captioner.cli.text import info_lines
    from captioner.runs.run_folder import Run
    from captioner.system.files import json_text

    run = Run.open(arguments.run)
    if arguments.config:
        print(run.config, end="")
    elif arguments.json:
        print(json_text({**run.info(), "history": run.history()}))
    else:
        # At one go: whoever reads only the first lines (`| head`) makes it no failure.
        sys.stdout.write("".join(f"{line}\n" for line in info_lines(run)))
    return 0
