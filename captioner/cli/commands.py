"""What can be typed after `captioner`: the table of commands, and the parser made from it.

In: a list of words. Out: the parsed arguments, or a ConfigError that says what was perhaps meant. A further
command is a module with what `arguments.Command` names, and a row here; its module loads nothing slow until
its `run` is called.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from captioner.cli import (
    adapt,
    cache,
    calibrate,
    caption,
    completion,
    data,
    doctor,
    evaluate,
    export,
    features,
    info,
    review,
    sample,
    score,
    serve,
    train,
)
from captioner.cli.arguments import Command, Parser
from captioner.errors import ConfigError, unknown_name
from captioner.version import __version__

COMMANDS: dict[str, Command] = {  # in the order of `captioner --help`
    "caption": caption,
    "train": train,
    "evaluate": evaluate,
    "score": score,
    "calibrate": calibrate,
    "adapt": adapt,
    "review": review,
    "data": data,
    "sample": sample,
    "features": features,
    "cache": cache,
    "info": info,
    "export": export,
    "doctor": doctor,
    "completion": completion,
    "serve": serve,
}


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The arguments as attributes, `command` among them.

    Raises:
        ConfigError: what was typed is not understood; names what comes nearest.
        SystemExit: after --help or --version.
    """
    if not arguments[0].startswith("-") and arguments[0] not in COMMANDS:
        raise ConfigError(unknown_name("command", arguments[0], COMMANDS))
    parsed, rest = build_parser().parse_known_args(arguments)
    if rest:
        raise ConfigError(parsed.parser.not_understood(rest[0]))
    if "command" not in parsed:
        raise ConfigError(f"a command is missing: {', '.join(COMMANDS)}")
    return parsed


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands; completion walks it, too."""
    parser = Parser(
        prog="captioner",
        description="Train and use networks that describe pictures.",
        epilog="example:\n  captioner caption dog.jpg\n\n`captioner COMMAND --help` explains a command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"captioner {__version__}")
    parser.set_defaults(parser=parser)
    rows = parser.add_subparsers(title="commands", metavar="COMMAND", parser_class=Parser)
    for name, command in COMMANDS.items():
        row = rows.add_parser(
            name,
            help=command.SUMMARY,
            description=f"{command.SUMMARY[0].upper()}{command.SUMMARY[1:]}.\n\n{command.MORE}",
            epilog=f"examples:\n{command.EXAMPLES}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        command.add_arguments(row.add_argument)
        row.add_argument("--quiet", action="store_true", help="no bars, no narration")
        row.add_argument(
            "--verbose", action="store_true", help="also what is found, chosen and loaded, and when"
        )
        row.set_defaults(command=name, parser=row)
    return parser
