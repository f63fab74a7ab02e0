#!/usr/bin/env python3
"""How long one picture takes from a cold shell, beside the import of TensorFlow alone.

    python scripts/bench_start.py                             the checkpoint that comes with captioner
    python scripts/bench_start.py --run runs/flickr8k         another one
    python scripts/bench_start.py --photo dog.jpg             another picture than the one it draws

Each measurement is a process of its own, from its start to its end; both are started once beforehand, so that
their files are in memory. The last line is JSON.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import measure

LONGER = 500  # side, in pixels, of the drawn picture


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", help="run folder; default: the checkpoint that comes with captioner")
    parser.add_argument("--photo", help="picture to caption; default: one is drawn")
    parser.add_argument("--rounds", type=int, default=7, help="measurements of each; default: %(default)s")
    parser.add_argument("--quick", action="store_true", help="one round: shows that it runs")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        return measure.serve(SIDES[arguments.side], arguments)
    with tempfile.TemporaryDirectory() as scratch:
        photo = arguments.photo or str(draw(Path(scratch)))
        found = measure.take_turns(
            list(SIDES), 1 if arguments.quick else arguments.rounds, ["--photo", photo]
        )
    ours, whole = found["ours"], found["tensorflow"]
    reference = [('python -c "import tensorflow"', whole, "seconds")]
    figures = measure.compared("captioner caption PHOTO", "s", ours, "seconds", reference)
    figures.append(measure.Figure("its peak memory", ours.median("gigabytes"), "GB"))
    measure.report("start", figures, ours=ours, more={"seconds": ours.median("seconds")})
    return 0


def draw(folder: Path) -> Path:
    """One JPEG."""
    import material

    (path,), _ = material.picture_files(None, 1, folder=folder, size=LONGER)
    return path


def ours(arguments: argparse.Namespace) -> tuple[measure.Facts, measure.Round]:
    """`captioner caption` as a shell starts it."""
    command = [sys.executable, "-m", "captioner", "caption", arguments.photo, "--quiet"]
    command += ["--run", arguments.run] if arguments.run else []
    said = started(command)
    return {"caption": said.strip().splitlines()[-1]}, lambda: timed(command)


def tensorflow(arguments: argparse.Namespace) -> tuple[measure.Facts, measure.Round]:
    """The import that everything else would come after."""
    command = [sys.executable, "-c", "import tensorflow"]
    started(command)
    return {}, lambda: timed(command)


def timed(command: list[str]) -> dict[str, float]:
    """Seconds from start to end, and the most memory that any process so far had."""
    began = time.perf_counter()
    started(command)
    took = time.perf_counter() - began
    return {"seconds": took, "gigabytes": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e9}


def started(command: list[str]) -> str:
    """What it prints."""
    path = os.pathsep.join([str(measure.ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        sys.exit(f"error: {' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


SIDES: dict[str, measure.Side] = {"ours": ours, "tensorflow": tensorflow}

if __name__ == "__main__":
    sys.exit(main())
