"""A run in the forms that other programs load, and in the one that captions without TensorFlow.

In: a run folder. Out, once its captions of some pictures were compared with the run's own:

    litert       RUN/compiled/ (see inference/compiled_captioner.py), what `captioner caption` uses;
                 or, in a folder named, encoder.tflite, decoder.tflite (`start`, `step`), vocabulary.txt
    onnx         encoder.onnx, start.onnx, step.onnx, vocabulary.txt
    savedmodel   1/, as TensorFlow Serving expects it: whole pictures in, sentences out

and with them export.json: what it was made from, what was compared. A form that captions otherwise than
the run is not kept.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from captioner.apps.export.parity_check import Check, Variants, compare, comparison_pictures
from captioner.errors import CaptionerError, ConfigError, RunError, load_object, unknown_name
from captioner.inference.compiled_captioner import COMPILED
from captioner.runs.run_folder import VOCABULARY, Run
from captioner.system import console
from captioner.system.files import storing, write_json
from captioner.version import __version__

EXPORT = "export.json"
# Writes into an empty folder: (ExportJob, folder) → the variants of what was written.
FORMATS = {
    "litert": "captioner.apps.export.litert:write",
    "onnx": "captioner.apps.export.onnx:write",
    "savedmodel": "captioner.apps.export.savedmodel:write",
}
PRECISIONS = ("float32", "float16", "int8")  # of weights


@dataclass(frozen=True)
class ExportPlan:
    """What to make, and what to compare it on."""

    format: str = "litert"  # a row of FORMATS
    out: Path | None = None  # folder to be made; None: a place within the run
    precision: str = ""  # one of PRECISIONS, for litert; empty: float16 where that loses nothing
    data: Path | None = None  # data set to compare on; None: drawn pictures
    pictures: int = 32  # compared
    quiet: bool = False  # nothing on stderr


@dataclass(frozen=True)
class ExportJob:
    """What a writer works from."""

    run: Run
    captioner: Any  # captioner.Captioner
    precision: str
    alone: bool  # without the run
    data: Path | None


@dataclass(frozen=True)
class Exported:
    """What was made."""

    folder: Path
    bytes: int
    checks: tuple[Check, ...]


def export(folder: str | Path, plan: ExportPlan) -> Exported:
    """Makes one form of a run and compares it with the run.

    Args:
        folder: of the run.
        plan: see there.

    Raises:
        ConfigError: an unknown format or precision.
        CaptionerError: the form captions otherwise than the run; there is something at `out` already.
        MissingExtra: a converter is not installed.
        RunError: no such run, or one without a finished epoch.

    Example:
        >>> export("runs/flickr8k", ExportPlan("onnx", out=Path("onnx"))).checks  # doctest: +SKIP
        (Check(variant='onnx', pictures=32, same_text=32, same_score=32, score_error=1.4e-06),)
    """
    if plan.format not in FORMATS:
        raise ConfigError(unknown_name("format", plan.format, FORMATS))
    run = Run.open(folder)
    target = _target(run, plan)
    from captioner.inference.captioner import Captioner

    best = run.best_info()
    captioner = Captioner.of(run)
    job = ExportJob(run, captioner, _precision(captioner, plan), alone=plan.out is not None, data=plan.data)
    with storing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        # Beside its place, so that it moves there in one step, or not at all.
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".tmp-") as parent:
            made = Path(parent) / plan.format
            made.mkdir(mode=0o755)
            checks = _make(job, plan, made)
            if run.best_info() != best:
                raise RunError(
                    f"{folder}: has new weights since this began; export again when the training has ended"
                )
            size = sum(path.stat().st_size for path in made.rglob("*") if path.is_file())
            if target.exists():  # a form of earlier weights, or an empty folder
                shutil.rmtree(target)
            made.rename(target)
    return Exported(target, size, checks)


def _make(job: ExportJob, plan: ExportPlan, folder: Path) -> tuple[Check, ...]:
    write = load_object(FORMATS[plan.format], "format")
    console.info(f"{plan.format}: conversion takes up to a few minutes", quiet=plan.quiet)
    variants: Variants = write(job, folder)
    console.info(f"{plan.format}: captions are compared with the run's own", quiet=plan.quiet)
    with comparison_pictures(plan.data, plan.pictures) as pictures:
        checks = tuple(compare(job.captioner, variants, pictures))
    if job.alone or plan.format != "litert":
        (folder / VOCABULARY).write_bytes((job.run.folder / VOCABULARY).read_bytes())
    write_json(folder / EXPORT, _about(job, plan, checks))
    return checks


def _target(run: Run, plan: ExportPlan) -> Path:
    if plan.out is None:
        own = run.folder / (COMPILED if plan.format == "litert" else plan.format)
        if own.exists() and not (own / EXPORT).is_file() and (not own.is_dir() or any(own.iterdir())):
            raise CaptionerError(f"{own}: holds what was not exported; name a new folder with --out")
        return own
    if plan.out.exists() and (not plan.out.is_dir() or any(plan.out.iterdir())):
        raise CaptionerError(f"{plan.out}: exists already; name a new folder, or remove this one")
    return plan.out


def _precision(captioner: Any, plan: ExportPlan) -> str:
    """The one asked for, or the shortest that loses nothing: runs to give away have float16 weights."""
    if plan.precision not in ("", *PRECISIONS):
        raise ConfigError(unknown_name("precision", plan.precision, PRECISIONS))
    if plan.precision not in ("", "float32") and plan.format != "litert":
        raise ConfigError(f"precision {plan.precision}: only litert has it, {plan.format} is float32")
    if plan.precision == "int8" and plan.data is None:
        raise ConfigError("precision int8: needs --data, pictures like those to come, to learn their range")
    if plan.precision or plan.format != "litert":
        return plan.precision or "float32"
    arrays = captioner.encoder.weights_dict().values()
    with np.errstate(over="ignore"):
        lossless = all(np.array_equal(array, array.astype(np.float16)) for array in arrays)
    return "float16" if lossless else "float32"


def _languages(job: ExportJob) -> dict[str, Any]:
    """The word that captions in each language start with, where the run knows any."""
    known = job.run.vocabulary
    return {"languages": {name: known.start(name) for name in known.languages}} if known.languages else {}


def _about(job: ExportJob, plan: ExportPlan, checks: Sequence[Check]) -> dict[str, Any]:
    """What export.json says: all that a program needs beside the models."""
    decode = job.run.config.decode
    return {
        "captioner": __version__,
        "format": plan.format,
        "precision": job.precision,
        "run": job.run.folder.resolve().name,
        "best": job.run.best_info(),
        "encoder": job.run.encoder_info,
        "decode": asdict(decode),
        "words": {"pad": 0, "unknown": 1, "start": 2, "end": 3, **_languages(job)},
        "compared": [
            {
                "way": check.variant,
                "pictures": check.pictures,
                "alike": check.same_text,
                "agreeing": check.same_score,
                "score_error": check.score_error,
            }
            for check in checks
        ],
    }
