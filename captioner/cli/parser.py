"""What can be typed after `captioner`: the table of commands, and the parser made from it.

In: a list of words. Out: the parsed arguments, or a ConfigError that says what was perhaps meant. A further
command is a module in `cli/commands/` with what `Command` names, and a row here. A command's module is loaded
when its name was typed, and loads nothing slow itself until its `run` is called.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Collection, Sequence
from typing import Any, NoReturn, Protocol, cast

from captioner.errors import ConfigError, unknown_name
from captioner.version import __version__

COMMANDS = {  # name → what `captioner --help` says of it, in this order
    "caption": "describe pictures",
    "train": "train a model on captioned pictures",
    "evaluate": "caption a split and score the captions",
    "score": "score captions that were written elsewhere, and say which are better",
    "calibrate": "teach a run to say how sure it is, and when a picture is unlike those it knows",
    "adapt": "learn from corrected captions: a model of one's own, in minutes",
    "review": "count corrected captions, and name those to correct next",
    "data": "look at a data set: sizes, lengths, vocabulary, what is wrong with it",
    "sample": "draw a small data set of colored shapes, to try things on",
    "features": "run the CNN over a data set and keep what it gives",
    "cache": "list what is kept of the CNN's features, and remove what nothing needs any more",
    "info": "say what a run folder holds",
    "export": "make a run caption without TensorFlow, or give it to other programs",
    "doctor": "say what this machine has, what is missing, and what to install",
    "completion": "let the shell complete commands, options and recipes with Tab",
    "serve": "a web page and an HTTP API around trained models",
}


class Command(Protocol):
    """What the module of a command holds."""

    MORE: str  # what else to know
    EXAMPLES: str  # what to type, line by line

    def add_arguments(self, add: Any) -> None:
        """Adds the command's arguments to a parser by its `add_argument`."""

    def run(self, arguments: argparse.Namespace) -> int:
        """Does what was asked for and returns the exit code."""


def load_command(name: str) -> Command:
    """The module of a command."""
    return cast(Command, importlib.import_module(f"captioner.cli.commands.{name}"))


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The arguments as attributes, `command` among them.

    Raises:
        ConfigError: what was typed is not understood; names what comes nearest.
        SystemExit: after --help or --version.
    """
    if not arguments[0].startswith("-") and arguments[0] not in COMMANDS:
        raise ConfigError(unknown_name("command", arguments[0], COMMANDS))
    typed = [word for word in arguments if word in COMMANDS][:1]
    parsed, rest = build_parser(typed).parse_known_args(arguments)
    if rest:
        raise ConfigError(parsed.parser.not_understood(rest[0]))
    if "command" not in parsed:
        raise ConfigError(f"a command is missing: {', '.join(COMMANDS)}")
    return parsed


def build_parser(complete: Collection[str] = COMMANDS.keys()) -> argparse.ArgumentParser:
    """The parser of all commands; only those in `complete` are loaded and know their arguments."""
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
    for name, summary in COMMANDS.items():
        row = rows.add_parser(
            name, help=summary, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
        )
        if name not in complete:
            continue
        command = load_command(name)
        row.description = f"{summary[0].upper()}{summary[1:]}.\n\n{command.MORE}"
        row.epilog = f"examples:\n{command.EXAMPLES}"
        command.add_arguments(row.add_argument)
        row.add_argument("--quiet", action="store_true", help="no bars, no narration")
        row.add_argument(
            "--verbose", action="store_true", help="also what is found, chosen and loaded, and when"
        )
        row.set_defaults(command=name, parser=row)
    return parser


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are `ConfigError`s."""

    def _print_message(self, message: str, file: Any = None) -> None:
        # argparse would pass over a disk that is full.
        if message:
            (file or sys.stderr).write(message)
            (file or sys.stderr).flush()

    _typed: Sequence[str] = ()

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse's; remembers what was typed, for `error`."""
        self._typed = list(args or ())
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Raises a ConfigError: a misspelt option rather than the one that is missing for it."""
        known = self.options()
        for word in self._typed:
            if word == "--":
                break
            name = word.partition("=")[0]
            if name.startswith("--") and name not in known:
                raise ConfigError(unknown_name("option", name, known))
        raise ConfigError(f"{message}; `{self.prog} --help` shows how")

    def not_understood(self, word: str) -> str:
        """What to say of a word that no argument took."""
        if not word.startswith("-"):
            return f'"{word}" is one argument too many; `{self.prog} --help` shows how'
        return unknown_name("option", word.partition("=")[0], self.options())

    def options(self) -> list[str]:
        """The names of all options, long and short."""
        return [name for action in self._actions for name in action.option_strings if name != "-h"]
