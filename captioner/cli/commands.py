"""What can be typed after `captioner`: the commands, their arguments, their help with examples.

In: a list of words. Out: the parsed arguments, or a ConfigError that says what was perhaps meant. Loads
nothing slow.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from captioner.cli import completion, doctor
from captioner.cli import export as exporting
from captioner.cli import features as scaling
from captioner.cli import serve as serving
from captioner.cli.arguments import Parser, number, whole
from captioner.errors import ConfigError, unknown_name
from captioner.version import __version__


@dataclass(frozen=True)
class Command:
    """One row of the table of commands; `commands` has a function of the same name."""

    summary: str  # one line for `captioner --help`
    more: str  # what else to know
    examples: str  # what to type, line by line
    arguments: Callable[[Any], None]  # told how to add them to a parser


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
            help=command.summary,
            description=f"{command.summary[0].upper()}{command.summary[1:]}.\n\n{command.more}",
            epilog=f"examples:\n{command.examples}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        command.arguments(row.add_argument)
        if "--quiet" not in row.options():
            _quiet_argument(row.add_argument)
        row.add_argument(
            "--verbose", action="store_true", help="also what is found, chosen and loaded, and when"
        )
        row.set_defaults(command=name, parser=row)
    return parser


def _data_arguments(add: Any) -> None:
    add("root", metavar="ROOT", help="folder of a data set, or its captions file")
    _format_argument(add)
    add("--sheet", metavar="PNG", help="also draw pictures with their captions into this file")
    add("--pictures", type=whole(1), default=12, metavar="N", help="how many on the sheet (12)")
    add(
        "--seed",
        type=whole(0),
        default=0,
        metavar="S",
        help="which ones, and how a set without splits is split",
    )


def _sample_arguments(add: Any) -> None:
    add("folder", metavar="DIR", help="a new or empty folder")
    add("--pictures", type=whole(1), default=4800, metavar="N", help="in all splits together (4800)")
    add("--seed", type=whole(0), default=0, metavar="S", help="other pictures for another number (0)")
    add("--language", default="en", metavar="L", help="of the captions: en, de, ko or ja (en)")
    add("--size", type=whole(16), default=96, metavar="PIXELS", help="height and width (96)")


def _train_arguments(add: Any) -> None:
    add(
        "recipe",
        nargs="?",
        metavar="RECIPE",
        help="name of a recipe, or a .toml file; not needed with --resume",
    )
    add("--data", required=True, metavar="ROOT", help="folder of captioned pictures")
    add("--run", metavar="DIR", help="folder for all the training leaves behind (a new runs/DATA-RECIPE)")
    add("--resume", action="store_true", help="go on where a stopped training in DIR was")
    add(
        "--budget",
        type=number(0, 1e6, "a number of minutes above 0"),
        metavar="MINUTES",
        help="leave out as many epochs as must be for the training to take no longer",
    )
    _set_argument(add)
    _quiet_argument(add)


def _caption_arguments(add: Any) -> None:
    add("paths", nargs="*", metavar="IMAGE_OR_FOLDER", help="pictures, folders of pictures; - reads a list")
    add("--list", metavar="FILE", help="a file with paths, one a line; - is standard input")
    add(
        "--run",
        metavar="DIR",
        help="run folder; else $CAPTIONER_RUN, else the model that comes with captioner",
    )
    add("--beam", type=whole(1), metavar="K", help="hypotheses kept; 1 is greedy (as trained: usually 3)")
    add("--n-best", type=whole(1), default=1, metavar="N", help="the N best captions, with their probability")
    add("--max-words", type=whole(1), metavar="N", help="end captions here at the latest")
    add(
        "--json", action="store_true", help="one JSON object a picture a line: path, caption, score, or error"
    )
    add("--attention", metavar="PNG", help="draw where the model looked at each word")
    add("--recursive", action="store_true", help="also look into folders within folders")
    _writing_arguments(add)
    draw = "draw words at random: "
    positive = number(0, float("inf"), "a number above 0")
    add("--temperature", type=positive, metavar="T", help=draw + "below 1 tamer, above 1 wilder")
    add("--top-k", type=whole(0), metavar="N", help=draw + "from the N likeliest")
    add("--top-p", type=number(0, 1, "a share above 0, up to 1"), metavar="P", help=draw + "from the share P")
    add("--seed", type=whole(0), default=0, metavar="S", help="of the drawing (0)")
    scaling.add_arguments(add)
    _quiet_argument(add)


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
        help="with --write: skip, overwrite or append where there is a caption already (skip)",
    )
    add("--names", metavar="HOW", help="with --write: photo.txt (short) or photo.jpg.txt (full) (short)")


def _evaluate_arguments(add: Any) -> None:
    add("--run", required=True, metavar="DIR", help="run folder of a training")
    add("--data", required=True, metavar="ROOT", help="folder of captioned pictures")
    _format_argument(add)
    add("--split", default="test", metavar="S", help="train, dev, test or all (test)")
    add("--out", metavar="DIR", help="folder for predictions.jsonl and scores.json (RUN/SPLIT)")
    add(
        "--report",
        nargs="?",
        const="",
        metavar="HTML",
        help="also a page to look at: scores, curves, pictures, mistakes (OUT/report.html)",
    )
    add("--beam", type=whole(1), metavar="K", help="hypotheses kept; 1 is greedy (as trained: usually 3)")
    add("--max-words", type=whole(1), metavar="N", help="end captions here at the latest")
    add("--batch-size", type=whole(1), default=64, metavar="N", help="pictures searched at a time (64)")
    _quiet_argument(add)


def _features_arguments(add: Any) -> None:
    add("recipe", metavar="RECIPE", help="name of a recipe, or a .toml file: whose encoder")
    add("--data", required=True, metavar="ROOT", help="folder of captioned pictures")
    add("--split", default="all", metavar="S", help="train, dev, test or all (all)")
    add("--cache", metavar="DIR", help="folder of the cache (below $CAPTIONER_CACHE, or ~/.cache/captioner)")
    scaling.add_arguments(add)
    _set_argument(add)
    _quiet_argument(add)


def _info_arguments(add: Any) -> None:
    add("run", metavar="DIR", help="run folder of a training")
    add("--json", action="store_true", help="everything, as one JSON object")
    add("--config", action="store_true", help="only its configuration, as a recipe to train from")


def _format_argument(add: Any) -> None:
    add(
        "--format",
        default="auto",
        metavar="F",
        help="flickr8k, karpathy, coco, csv, jsonl, … (auto: recognised)",
    )


def _set_argument(add: Any) -> None:
    add(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="change the recipe; may be repeated",
    )


def _quiet_argument(add: Any) -> None:
    add("--quiet", action="store_true", help="no bars, no narration")


COMMANDS = {
    "caption": Command(
        "describe pictures",
        "One line a picture. One that cannot be read is reported on stderr, does not disturb the others,\n"
        "and makes the exit code 1. With --write the captions go into files; repeat the command, whatever\n"
        "happened, and it does what is missing. Pictures are only read; metadata is added to, never lost.",
        "  captioner caption dog.jpg\n"
        "  captioner caption photos --run runs/flickr8k --beam 5 --n-best 3\n"
        "  captioner caption photos --recursive --json > captions.jsonl\n"
        "  captioner caption photos --recursive --write txt,xmp\n"
        "  captioner caption photos --recursive --write txt --shard 2/8\n"
        "  find photos -name '*.jpg' -print0 | captioner caption - --write csv --out captions\n"
        "  captioner caption dog.jpg --attention looks.png\n"
        "  captioner caption dog.jpg --n-best 5 --temperature 0.8 --seed 1",
        _caption_arguments,
    ),
    "train": Command(
        "train a model on captioned pictures",
        "Writes a run folder that holds all that captioning needs. Ctrl-C finishes the step and saves.",
        "  captioner train sample --data scenes\n"
        "  captioner train flickr8k-frozen --data flickr8k --run runs/flickr8k --set decoder.units=256\n"
        "  captioner train --resume --data flickr8k --run runs/flickr8k",
        _train_arguments,
    ),
    "evaluate": Command(
        "caption a split and score the captions",
        "BLEU-1 to 4, ROUGE-L and CIDEr-D in per cent, beside what the captions score with the pictures\n"
        "shuffled. Writes predictions.jsonl and scores.json, and with --report a page that opens offline.",
        "  captioner evaluate --run runs/flickr8k --data flickr8k --out runs/flickr8k/test --report\n"
        "  captioner evaluate --run runs/flickr8k --data flickr8k --split dev --beam 1 --out greedy",
        _evaluate_arguments,
    ),
    "data": Command(
        "look at a data set: sizes, lengths, vocabulary, what is wrong with it",
        "Reads captions and folder listings; opens pictures only for the sheet.",
        "  captioner data flickr8k\n  captioner data my-photos/captions.csv --sheet sheet.png",
        _data_arguments,
    ),
    "sample": Command(
        "draw a small data set of coloured shapes, to try things on",
        "The test pictures show combinations that training never shows.",
        "  captioner sample scenes\n  captioner sample szenen --language de --pictures 600",
        _sample_arguments,
    ),
    "features": Command(scaling.SUMMARY, scaling.MORE, scaling.EXAMPLES, _features_arguments),
    "info": Command(
        "say what a run folder holds",
        "Encoder, words, epochs, scores, sizes, and the checkpoints kept.",
        "  captioner info runs/flickr8k\n  captioner info runs/flickr8k --config > my-recipe.toml",
        _info_arguments,
    ),
    "export": Command(
        exporting.SUMMARY,
        exporting.MORE,
        exporting.EXAMPLES,
        lambda add: exporting.add_arguments(add, whole),
    ),
    "doctor": Command(doctor.SUMMARY, doctor.MORE, doctor.EXAMPLES, doctor.add_arguments),
    "completion": Command(completion.SUMMARY, completion.MORE, completion.EXAMPLES, completion.add_arguments),
    "serve": Command(
        serving.SUMMARY,
        serving.MORE,
        serving.EXAMPLES,
        lambda add: serving.add_arguments(add, whole),
    ),
}
