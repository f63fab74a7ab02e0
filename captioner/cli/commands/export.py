"""`captioner export`: what can be typed after it, and what it does. Loads nothing slow until it does.

In: the parsed arguments. Out: a folder, and what came of the comparison. It is an extra: `apps.export`.
"""

from __future__ import annotations

import dataclasses
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from captioner.cli.arguments import apply_limits, limit_arguments, whole
from captioner.errors import CaptionerError, DataError
from captioner.system import console

if TYPE_CHECKING:
    from captioner.apps.export.export import Exported, ExportPlan

MOST_LOST = 0.5  # CIDEr that 8 bits may cost
JUDGED = 1000  # dev pictures at most

MORE = (
    "Without --out the run gets a compiled form, with which `captioner caption` starts in a fraction of the\n"
    "time. Whatever is made is kept only if it captions pictures as the run itself does. With --data, the\n"
    "compiled form is in 8 bits, with which a picture takes less time, unless dev captions lose by that."
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
    made = _in_eight_bits(arguments.run, plan) or export_run(arguments.run, plan)
    size = f"{made.bytes / 1e6:.1f} MB" if made.bytes >= 1e6 else f"{made.bytes / 1e3:.0f} kB"
    print(f"{made.folder}: {size}")
    for check in made.checks:
        print(
            f"  {check.variant}: {check.same_text} of {check.pictures} captions are the run's own, "
            f"their scores differ by {check.score_error:.1g} at most"
        )
    return 0


def _in_eight_bits(folder: str, plan: ExportPlan) -> Exported | None:
    """The compiled form in 8 bits, where nothing else was asked for and its dev captions are as good.

    Pictures of the data set tell the range of activations, its dev captions what is lost. None: they lose
    more than `MOST_LOST`, or it cannot be said.
    """
    if plan.precision or plan.data is None or plan.out is not None or plan.format != "litert":
        return None
    from captioner.apps.export.export import export as export_run
    from captioner.data.datasets import load_split
    from captioner.evaluation.scoring import score_captions
    from captioner.inference.captioner import Captioner
    from captioner.inference.compiled_captioner import CompiledCaptioner
    from captioner.runs.run_folder import Run

    run = Run.open(folder)  # what is wrong with it is no matter of bits
    language = next(iter(run.vocabulary.languages), None)
    try:
        split = load_split(plan.data, "dev", seed=run.config.seed, made=run.seeded_splits)
        told = [(record.path, record.in_language(language)) for record in split.records]
        judged = [(path, captions) for path, captions in told if captions][:JUDGED]
        if not judged:
            raise DataError(f"{plan.data}: no dev captions in the language {language} to judge by")
        made = export_run(folder, dataclasses.replace(plan, precision="int8"))
    except CaptionerError as error:
        console.info(f"not in 8 bits: {error}", quiet=plan.quiet)
        return None
    pictures, references = zip(*judged, strict=True)
    own, its = (
        score_captions(references, [caption.text for caption in kind.load(folder).caption(pictures)])["cider"]
        for kind in (Captioner, CompiledCaptioner)
    )
    figures = f"CIDEr {its:.1f} on dev captions, {own:.1f} without"
    if its < own - MOST_LOST:
        console.info(f"not in 8 bits: {figures}", quiet=plan.quiet)
        return None
    console.info(f"in 8 bits, with which a picture takes less time: {figures}", quiet=plan.quiet)
    return made
