#!/usr/bin/env python3
"""Captions a split and prints its BLEU: what `captioner evaluate` does, as a program to read and change.

python scripts/evaluate_bleu.py --run runs/frozen --data DATA --split test --beam 3
"""

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a checkout, installed or not

from captioner.errors import CaptionerError  # noqa: E402
from captioner.inference.loading import load_tensorflow  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", required=True, help="run folder of a training")
    parser.add_argument("--data", required=True, help="folder of captioned pictures")
    parser.add_argument("--split", default="test", help="train, dev, test or all")
    parser.add_argument("--beam", type=int, help="hypotheses kept; 1 is greedy")
    parser.add_argument("--out", help="keep predictions.jsonl and scores.json here")
    arguments = parser.parse_args()
    load_tensorflow()  # now: --help need not wait for it
    from captioner.evaluation.evaluate import EvaluationOptions, evaluate
    from captioner.inference.search_options import CaptionOptions

    with tempfile.TemporaryDirectory() as unkept:
        decoding = CaptionOptions.of({"beam": arguments.beam, "batch_size": 64})
        plan = EvaluationOptions(split=arguments.split, decoding=decoding)
        found = evaluate(arguments.run, arguments.data, arguments.out or unkept, plan=plan)
    for name in ("bleu1", "bleu2", "bleu3", "bleu4"):
        print(f"{name} {found.scores[name]:.2f}")
    for warning in found.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except CaptionerError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
