#!/usr/bin/env python3
"""Training, extraction and captioning on this machine's GPU, beside the textbook on the same card.

    python scripts/bench_gpu.py --data FLICKR8K --weights WEIGHTS     real pictures and captions
    python scripts/bench_gpu.py                                       drawn ones

Runs the other benchmarks one after another and puts their figures into one table, ready for docs/speed.md.
Without a GPU it says so and ends; `--anyway` shows the same table of the processor. The last line is JSON.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import measure

BENCHMARKS = ("bench_train.py", "bench_phases.py", "bench_features.py", "bench_decode.py")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", metavar="ROOT", help="captioned pictures; default: drawn ones")
    parser.add_argument("--weights", metavar="FILE", help="of MobileNetV2; default: random ones, as fast")
    parser.add_argument("--rounds", type=int, default=5, help="measurements a side; default: %(default)s")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that it runs, not how fast")
    parser.add_argument("--anyway", action="store_true", help="also without a GPU")
    arguments = parser.parse_args()
    from captioner.models.device import find_device

    device = find_device()
    if not device.on_gpu and not arguments.anyway:
        print(
            f"error: TensorFlow sees no GPU, only {device}; see what `captioner doctor` says of it "
            "(pip install 'tensorflow[and-cuda]' brings what TensorFlow needs), or measure with --anyway",
            file=sys.stderr,
        )
        return 2
    lines = {script: run(script, arguments) for script in BENCHMARKS}
    rows = [("what", "measured", "compared with", "ratio")]
    for script, line in lines.items():
        for figure in line["figures"]:
            ratio = "" if figure["ratio"] is None else f"{figure['ratio']:.2f}"
            value = f"{figure['value']:.4g} {figure['unit']}"
            rows.append((f"{figure['name']} ({script})", value, figure["reference"], ratio))
    measure.table(rows)
    print(f"\n{device}; products in {device.precision('auto')}")
    first = lines[BENCHMARKS[0]]
    kept = ("figure", "unit", "reference", "ratio", "peak_memory_gib", "commit", "machine")
    summary: dict[str, Any] = {"benchmark": "gpu", "device": str(device), "rounds": arguments.rounds}
    print(json.dumps({**summary, **{key: first[key] for key in kept}, "benchmarks": lines}))
    return 0


def run(script: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """The JSON line of a benchmark; what it says on the way goes to stderr."""
    command = [sys.executable, str(Path(__file__).with_name(script)), "--rounds", str(arguments.rounds)]
    command += ["--data", arguments.data] if arguments.data else []
    # Fine-tuning has an encoder of its own, with ImageNet weights where there are real pictures.
    if script == "bench_phases.py":
        command += ["--weights", "imagenet"] if arguments.weights else []
    elif arguments.weights and script != "bench_decode.py":
        command += ["--weights", arguments.weights]
    command += ["--quick"] if arguments.quick else []
    measure.note(f"{script} …")
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"error: {script} failed; what it said is above")
    return dict(json.loads(done.stdout.splitlines()[-1]))


if __name__ == "__main__":
    sys.exit(main())
