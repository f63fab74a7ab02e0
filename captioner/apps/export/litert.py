"""A run for LiteRT: the compiled form that captions without TensorFlow, or models for other devices.

In: a run's networks. Out: in the run's `compiled/` the encoder's graph and what vouches for it; or
`encoder.tflite` and `decoder.tflite` (signatures `start` and `step`, see signatures.py) for one picture
and the run's beam.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from captioner.apps.export.export import ExportJob
from captioner.apps.export.parity_check import TOLERANCES, Variants, variants_of
from captioner.apps.export.signatures import ExportedCaptioner, Networks, networks, save
from captioner.data.datasets import load_split
from captioner.data.images import read_image
from captioner.errors import ImageError, MissingExtra
from captioner.inference.compiled_captioner import FORMAT, GRAPH, MANIFEST, CompiledCaptioner, LiteRTEncoder
from captioner.inference.compiled_weights import put_back, take_out
from captioner.inference.numpy_decoder import NumPyDecoder
from captioner.runs.run_folder import BEST
from captioner.runs.weights import WEIGHTS, arrays_in, select_prefix
from captioner.system.console import silent_stderr
from captioner.system.manifest import entries, write_manifest
from captioner.version import __version__

ENCODER, DECODER = "encoder.tflite", "decoder.tflite"
CALIBRATION_PICTURES = 200  # from which int8 learns the range of activations


def write(job: ExportJob, folder: Path) -> Variants:
    """Writes the models; see `export.FORMATS`."""
    beam = job.run.config.decode.beam
    functions = networks(job.captioner, pictures=1, beam=beam)
    pixels = _pixels(job) if job.precision == "int8" else None
    encoder = _convert(job, {"encode": functions.encode}, pixels)
    if not job.alone:
        return variants_of("compiled", _compiled(job, folder, encoder), TOLERANCES[job.precision])
    (folder / ENCODER).write_bytes(encoder)
    # The decoder's activations range further than 8 bits resolve: its weights alone are kept in them.
    signatures = {"start": functions.start, "step": functions.step}
    (folder / DECODER).write_bytes(_convert(job, signatures))
    made = ExportedCaptioner(job.captioner, _loaded(folder), batch_size=1)
    return variants_of("litert", made, TOLERANCES[job.precision])


def _compiled(job: ExportJob, folder: Path, encoder: bytes) -> CompiledCaptioner:
    """Writes graph and manifest, and gives what `captioner caption` will use."""
    run = job.run
    weights = run.folder / BEST / WEIGHTS
    stored = select_prefix(arrays_in(weights.read_bytes(), weights), "encoder/")
    graph, places = take_out(encoder, stored)
    (folder / GRAPH).write_bytes(graph)
    made_from = {
        "format": FORMAT,
        "captioner": __version__,
        "precision": job.precision,
        "vocabulary": run.vocabulary.digest,
        "weights": entries(weights.parent, [WEIGHTS])[WEIGHTS],
        "files": entries(folder, [GRAPH]),
        "weights_in_graph": places,
    }
    write_manifest(folder / MANIFEST, made_from)
    with silent_stderr():
        light = LiteRTEncoder(put_back(graph, places, stored), run.encoder_info)
    decoder = NumPyDecoder(run.config.decoder, job.captioner.decoder.weights_dict())
    return CompiledCaptioner(light, decoder, run)


def _convert(
    job: ExportJob, functions: Mapping[str, Any], pixels: Callable[[], Iterator[Any]] | None = None
) -> bytes:
    """A LiteRT model with a signature for each function."""
    with tempfile.TemporaryDirectory() as folder, silent_stderr():
        save(job.captioner, functions, folder)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=list(functions))
        if job.precision != "float32":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if job.precision == "float16":
            converter.target_spec.supported_types = [tf.float16]
        if pixels is not None:
            converter.representative_dataset = pixels
        return bytes(converter.convert())


def _pixels(job: ExportJob) -> Callable[[], Iterator[dict[str, np.ndarray]]]:
    """Training pictures one by one, as the converter asks for them."""
    records = load_split(job.data, "all").records if job.data else ()
    step = max(1, len(records) // CALIBRATION_PICTURES)

    def read() -> Iterator[dict[str, np.ndarray]]:
        for record in records[::step]:
            try:
                yield {"pixels": read_image(record.path, size=job.captioner.encoder.size)[None]}
            except ImageError:
                continue

    return read


def _loaded(folder: Path) -> Networks:
    """The models as functions, by their signatures."""
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError as error:
        raise MissingExtra("export", "comparing a LiteRT model") from error

    with silent_stderr():
        encoder, decoder = (Interpreter(str(folder / name)) for name in (ENCODER, DECODER))
        encode = encoder.get_signature_runner("encode")
        start, step = (decoder.get_signature_runner(name) for name in ("start", "step"))
    return Networks(encode, start, step)
