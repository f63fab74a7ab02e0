"""A run for ONNX Runtime and whatever else reads ONNX: three graphs for any number of pictures.

In: a run's networks. Out: `encoder.onnx`, `start.onnx`, `step.onnx`: what they take and give is said in
signatures.py.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from captioner.apps.export.export import ExportJob
from captioner.apps.export.parity_check import TOLERANCES, Variants, variants_of
from captioner.apps.export.signatures import ExportedCaptioner, Networks, networks
from captioner.errors import MissingExtra

NAMES = ("encoder", "start", "step")  # of the files
OPSET = 18  # ONNX Runtime from 1.14 on, of 2023


def write(job: ExportJob, folder: Path) -> Variants:
    """Writes the graphs; see `export.FORMATS`."""
    try:
        import onnxruntime
        import tf2onnx
    except ImportError as error:
        raise MissingExtra("export", "writing ONNX") from error

    def convert(function: Any, name: str) -> Callable[..., dict[str, Any]]:
        path = folder / f"{name}.onnx"
        tf2onnx.convert.from_function(
            function, input_signature=function.input_signature, opset=OPSET, output_path=str(path)
        )
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        return lambda **arrays: dict(zip(names, session.run(None, arrays), strict=True))

    functions = networks(job.captioner)
    made = Networks(*(convert(function, name) for function, name in zip(functions, NAMES, strict=True)))
    return variants_of("onnx", ExportedCaptioner(job.captioner, made), TOLERANCES["float32"])
