"""`captioner score`: captions from files, scored and compared. Loads no TensorFlow.

In: the parsed arguments. Out: scores on stdout, and files where the arguments say.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

from captioner.cli.arguments import apply_limits, format_argument, limit_arguments
from captioner.cli.outputs import check_files, force_argument

MORE = (
    "The same scores as `captioner evaluate`, beside what the captions score with the pictures shuffled.\n"
    'A file is COCO results ([{"image_id", "caption"}]), JSON lines or a CSV table (image,caption).\n'
    "Several files are compared by a paired bootstrap: is one better, or only luckier?"
)
EXAMPLES = (
    "  captioner score results.json --data coco --split dev\n"
    "  captioner score runs/mine/test/predictions.jsonl other.csv --data my-photos --out scores --report\n"
    "  captioner score results.json --data flickr8k --java"
)


def add_arguments(add: Any) -> None:
    """Adds the arguments of `captioner score`."""
    add("files", nargs="+", metavar="FILE", help="captions: COCO results JSON, JSON lines, CSV or TSV")
    add("--data", required=True, metavar="ROOT", help="folder of captioned pictures, or its captions file")
    format_argument(add)
    add("--split", default="test", metavar="S", help="train, dev, test or all (test)")
    add("--out", metavar="DIR", help="folder for scores.json; else nothing is written")
    add(
        "--report",
        nargs="?",
        const="",
        metavar="HTML",
        help="also a page to look at: scores side by side, pictures, mistakes (OUT/report.html)",
    )
    force_argument(add)
    add("--java", action="store_true", help="also METEOR 1.5 and SPICE, by coco-caption's own Java programs")
    limit_arguments(add)


def run(arguments: Namespace) -> int:
    """`captioner score`: scores of files of captions, and their differences."""
    apply_limits(arguments)
    out = Path(arguments.out or ".")
    scores = [out / "scores.json"] if arguments.out else []
    check_files(scores, "--out", force=arguments.force, ours=lambda text: b'"protocol"' in text)
    report = [] if arguments.report is None else [Path(arguments.report or out / "report.html")]
    check_files(report, "--report", force=arguments.force)
    from captioner.cli.text import score_lines
    from captioner.evaluation.compare import compare, verdicts

    found = compare(
        arguments.files,
        arguments.data,
        split=arguments.split,
        format=arguments.format,
        java=arguments.java,
    )
    for name, evaluation in found.evaluations.items():
        print(f"{name}: ", end="")
        for line in score_lines(evaluation.scores):
            print(line)
    for pair in found.pairs:
        print(f"{pair.first} against {pair.second}")
        for line in verdicts(pair):
            print(f"  {line}")
    if scores:
        found.write(out)
    for path in report:
        from captioner.evaluation.html_report import write_comparison

        write_comparison(found, path)
    if written := [*scores, *report]:
        print(f"written: {', '.join(map(str, written))}")
    for note in found.notes:
        print(f"note: {note}", file=sys.stderr)
    for name, evaluation in found.evaluations.items():
        for warning in evaluation.warnings:
            print(f"warning: {name}: {warning}", file=sys.stderr)
    return 0
