#!/usr/bin/env python3
"""Trains a captioner: what `captioner train` does, as a program to read and change.

python scripts/train_captioner.py flickr8k-frozen --data DATA --run runs/frozen --set decoder.units=256
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a checkout, installed or not

from captioner.cli.text import epoch_name, scores_line  # noqa: E402
from captioner.config import load_config  # noqa: E402
from captioner.errors import CaptionerError  # noqa: E402
from captioner.inference.loading import load_tensorflow  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", help="name of a recipe, or a .toml file")
    parser.add_argument("--data", required=True, help="folder of captioned pictures")
    parser.add_argument("--run", required=True, help="folder for what the training leaves behind")
    parser.add_argument("--resume", action="store_true", help="go on where a stopped training was")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    arguments = parser.parse_args()
    load_tensorflow()  # now: --help need not wait for it
    from captioner.training.train import train

    config = load_config(arguments.recipe, arguments.set)
    run = train(config, arguments.data, arguments.run, resume=arguments.resume)
    for epoch in run.history():
        print(f"{epoch_name(epoch)}: {scores_line(epoch)}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except CaptionerError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
