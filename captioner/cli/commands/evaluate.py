"""`captioner evaluate`: a split captioned and its captions scored.

In: the parsed arguments. Out: scores on stdout; predictions.jsonl, scores.json and perhaps a report in files;
unreadable pictures on stderr.
"""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from captioner.cli.arguments import (
    SEARCHING,
    apply_limits,
    decoding_arguments,
    format_argument,
    limit_arguments,
    whole,
)
from captioner.cli.outputs import check_files, force_argument

MORE = (
    "BLEU-1 to 4, ROUGE-L and CIDEr-D in per cent, beside what the captions score with the pictures\n"
    "shuffled. Writes predictions.jsonl and scores.json, and with --report a page that opens offline."
)
EXAMPLES = (
    "  captioner evaluate --run runs/flickr8k --data flickr8k --out runs/flickr8k/test --report\n"
    "  captioner evaluate --run runs/flickr8k --data flickr8k --split dev --beam 1 --out greedy"
)


def add_arguments(add: Any) -> None:
    """Adds the arguments of `captioner evaluate`."""
    add("--run", required=True, metavar="DIR", help="run folder of a training")
    add("--data", required=True, metavar="ROOT", help="folder of captioned pictures")
    format_argument(add, default=None, usual="that of the training data; auto: recognized")
    add("--split", default="test", metavar="SPLIT", help="train, dev, test or all (test)")
    add("--out", metavar="DIR", help="folder for predictions.jsonl and scores.json (RUN/SPLIT)")
    add(
        "--report",
        nargs="?",
        const="",
        metavar="HTML",
        help="also a page to look at: scores, curves, pictures, mistakes (OUT/report.html)",
    )
    force_argument(add)
    add("--coco-results", metavar="FILE", help="also the captions in the form that the COCO server takes")
    add(
        "--language",
        metavar="L",
        help="of captions and references; the captions need not say that it is theirs (each that they carry)",
    )
    decoding_arguments(add, SEARCHING)
    add("--batch-size", type=whole(1), default=64, metavar="N", help="pictures searched at a time (64)")
    limit_arguments(add)


def run(arguments: Namespace) -> int:
    """`captioner evaluate`: predictions.jsonl and scores.json."""
    apply_limits(arguments)
    arguments.out = arguments.out or str(Path(arguments.run) / arguments.split)
    out = Path(arguments.out)
    report = [] if arguments.report is None else [arguments.report or out / "report.html"]
    check_files(report, "--report", force=arguments.force)
    coco_results = [arguments.coco_results] if arguments.coco_results else []
    check_files(coco_results, "--coco-results", force=arguments.force, ours=_are_results)
    check_files([out / "scores.json"], "--out", force=arguments.force, ours=_are_scores)
    check_files([out / "predictions.jsonl"], "--out", force=arguments.force, ours=_are_predictions)
    from captioner.cli.text import score_lines
    from captioner.inference.loading import load_tensorflow
    from captioner.runs.run_folder import Run

    if arguments.format is None:
        arguments.format = Run.open(arguments.run, weights=False).config.data.format
    load_tensorflow()
    from captioner.evaluation.evaluate import EvaluationOptions
    from captioner.evaluation.evaluate import evaluate as evaluate_run
    from captioner.inference.search_options import CaptionOptions

    names = ("language", *SEARCHING, "batch_size")
    decoding = CaptionOptions.of({name: getattr(arguments, name) for name in names})
    plan = EvaluationOptions(arguments.split, arguments.format, decoding, arguments.coco_results)
    result = evaluate_run(arguments.run, arguments.data, arguments.out, plan=plan, quiet=arguments.quiet)
    for line in score_lines(result.scores):
        print(line)
    written = [out / "scores.json", out / "predictions.jsonl", *map(Path, coco_results)]
    for path in report:
        from captioner.evaluation.html_report import write_review

        write_review(result, arguments.run, path)
        written.append(Path(path))
    print(f"written: {', '.join(map(str, written))}")
    for warning in result.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    return _report_failures(result.failures)


def _are_results(content: bytes) -> bool:
    """Whether this begins like results for the COCO server: a list; captions to learn from are an object."""
    return content.lstrip().startswith(b"[") and b'"image_id"' in content


def _are_scores(content: bytes) -> bool:
    return b'"protocol"' in content


def _are_predictions(content: bytes) -> bool:
    """Whether this begins like the lines of `predictions.jsonl`."""
    try:
        line = json.loads(content.partition(b"\n")[0])
    except ValueError:
        return False
    return isinstance(line, dict) and {"id", "path", "caption"} <= line.keys()


def _report_failures(failures: Sequence[tuple[str, str]]) -> int:
    for path, reason in failures:
        print(f"error: {path}: {reason}", file=sys.stderr)
    return 1 if failures else 0
