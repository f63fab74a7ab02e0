#!/usr/bin/env python3
"""Make a small copy of a run to give away: float16 weights, no resumable checkpoints, no local paths.

    scripts/ship_run.py runs/flickr8k checkpoints/flickr8k --data FLICKR8K

The copy has a compiled form, too, so that it captions without TensorFlow. Captions the dev pictures with run,
copy and compiled form and says how many captions differ; 1 in 100 is the most that passes.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import sys
from pathlib import Path

from captioner.apps.export.export import ExportPlan, export
from captioner.data.datasets import load_split
from captioner.errors import CaptionerError
from captioner.inference.captioner import Captioner
from captioner.inference.compiled_captioner import CompiledCaptioner
from captioner.runs.run_folder import DATA, Run


def ship(source: Path, target: Path) -> None:
    """Write the copy."""
    run = Run.open(source)
    decoder, encoder = run.load_best()
    config = dataclasses.replace(
        run.config, encoder=dataclasses.replace(run.config.encoder, weights="imagenet")
    )
    copy = Run.create(target, config, run.vocabulary, encoder, run.seeded_splits)
    if (source / DATA).exists():
        shutil.copy(source / DATA, target / DATA)
    for entry in run.history():
        copy.append_history(entry)
    told = {key: value for key, value in (run.best_info() or {}).items() if key not in ("weights", "fits")}
    copy.save_best(decoder, encoder, told, half=True)


def agreement(source: Path, target: Path, data: Path) -> dict[str, float]:
    """Share of dev pictures that copy and compiled form caption like the run."""
    pictures = [record.path for record in load_split(data, "dev").records]
    captioners = {"run": Captioner.load(source), "copy": Captioner.load(target)}
    captioners["compiled form"] = CompiledCaptioner.load(target)
    texts = {name: [c.text for c in captioner.caption(pictures)] for name, captioner in captioners.items()}
    ours = texts.pop("run")
    return {
        name: sum(a == b for a, b in zip(ours, theirs, strict=True)) / len(pictures)
        for name, theirs in texts.items()
    }


def main() -> int:
    """Parse, copy, compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--data", type=Path, help="data set whose dev pictures are captioned by both")
    arguments = parser.parse_args()
    try:
        ship(arguments.source, arguments.target)
        export(arguments.target, ExportPlan())
        size = sum(file.stat().st_size for file in arguments.target.rglob("*") if file.is_file())
        print(f"{arguments.target}: {size / 1e6:.1f} MB")
        if arguments.data:
            shares = agreement(arguments.source, arguments.target, arguments.data)
            for name, share in shares.items():
                print(f"{name}: {100 * share:.1f} % of the dev captions are the run's")
            return 0 if min(shares.values()) >= 0.99 else 1
    except CaptionerError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
