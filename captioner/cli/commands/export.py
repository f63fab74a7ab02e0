"""`captioner export`: what can be typed after it, and what it does. Loads nothing slow until it does.

In: the parsed arguments. Out: a folder, and what came of the comparison. It is an extra: `apps.export`.
"""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

from captioner.cli.arguments import apply_limits, limit_arguments, whole

MORE = (
    "Without --out the run gets a compiled form, with which `captioner caption` starts in a fraction of the\n"
    "time. Whatever is made is kept only if it captions pictures as the run itself does."
)
EXAMPLES = (
    "  captioner export --run runs/flickr8k\n"
    "  captioner export --run runs/flickr8k --format savedmodel --out serving/captioner\n"
    "  captioner export --run runs/flickr8k --format onnx --out onnx --data flickr8k"
)


def add_arguments(add: Any) -> None:
    """Adds the arguments of `captioner export`."""
    add("--run", required=True, metavar="DIR", help="run folder of a training")
    add("--format", default="litert", metavar="F", help="litert, onnx or savedmodel (litert)")
    add("--out", metavar="DIR", help="a new folder; else within the run, where `captioner caption` looks")
    add("--precision", default="", metavar="P", help="litert: float32, float16 or int8 (what loses nothing)")
    add("--data", metavar="ROOT", help="data set whose pictures are compared; else drawn ones")
    add("--pictures", type=whole(1), default=32, metavar="N", help="how many are compared (32)")
    limit_arguments(add)


def run(arguments: Namespace) -> int:
    """`captioner export`: a run in another form, once that is known to say the same."""
    from captioner.inference.loading import load_tensorflow

    apply_limits(arguments)
    load_tensorflow()
    from captioner.apps.export.export import ExportPlan
    from captioner.apps.export.export import export as export_run

    plan = ExportPlan(
        format=arguments.format,
        out=Path(arguments.out) if arguments.out else None,
        precision=arguments.precision,
        data=Path(arguments.data) if arguments.data else None,
        pictures=arguments.pictures,
        quiet=arguments.quiet,
    )
    made = export_run(arguments.run, plan)
    size = f"{made.bytes / 1e6:.1f} MB" if made.bytes >= 1e6 else f"{made.bytes / 1e3:.0f} kB"
    print(f"{made.folder}: {size}")
    for check in made.checks:
        print(
            f"  {check.variant}: {check.same_text} of {check.pictures} captions are the run's own, "
            f"their scores differ by {check.score_error:.1g} at most"
        )
    return 0
