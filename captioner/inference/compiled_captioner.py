"""Captions without TensorFlow: the CNN compiled for LiteRT, decoder and search in NumPy.

In: a run folder that holds a compiled form of its best epoch,

    compiled/compiled.json      what it was made from; vouches for the next one; written last
    compiled/encoder.graph      pixels (1, H, W, 3) uint8 → cells (1, P, C) float32: a LiteRT model without
                                its weights, see compiled_weights.py

and pictures. Out: captions as `captioner.Captioner` writes them, the first before TensorFlow would be
imported. All arrays are those of `best/`: a compiled form made from other weights than are there now is not
used. `captioner export` makes it. Each picture is decoded and seen by the CNN in one thread.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from captioner.errors import ConfigError, RunError
from captioner.inference.base import BaseCaptioner
from captioner.inference.compiled_weights import put_back
from captioner.inference.familiarity import Familiarity
from captioner.inference.numpy_beam_search import beam_search
from captioner.inference.numpy_decoder import NumPyDecoder
from captioner.inference.search_options import CaptionOptions, Hypotheses
from captioner.runs.run_folder import BEST, Run
from captioner.runs.weights import WEIGHTS, arrays_in, floats, select_prefix
from captioner.system.console import silent_stderr
from captioner.system.manifest import read_checked, read_manifest

COMPILED, MANIFEST, GRAPH = "compiled", "compiled.json", "encoder.graph"
FORMAT = 2


class NotExported(RunError):
    """The run has no compiled form that can be used; the message says why."""


class LiteRTEncoder:
    """The compiled CNN. Any number of threads may use it: each has an interpreter to itself.

    Args:
        model: a LiteRT model, pixels (1, H, W, 3) uint8 → cells (1, P, C) float32.
        info: `Run.encoder_info`.
    """

    def __init__(self, model: bytes, info: Mapping[str, Any]) -> None:
        self.size: tuple[int, int] = tuple(info["size"])
        self.grid: tuple[int, int] = tuple(info["grid"])
        self._model = model
        self._idle = [self._interpreter()]

    def encode(self, pixels: np.ndarray) -> np.ndarray:
        """(H, W, 3) uint8 → (P, C) float16."""
        try:
            interpreter = self._idle.pop()
        except IndexError:  # all are at work
            interpreter = self._interpreter()
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], pixels[None])
        interpreter.invoke()
        cells = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])[0].astype(np.float16)
        self._idle.append(interpreter)
        return cells

    def _interpreter(self) -> Any:
        from ai_edge_litert.interpreter import Interpreter

        interpreter = Interpreter(model_content=self._model, num_threads=1)
        interpreter.allocate_tensors()
        return interpreter


class CompiledCaptioner(BaseCaptioner):
    """Writes captions like `captioner.Captioner`, but draws none at random.

    A picture gets the same caption alone as among others.

    Example:
        >>> captioner = CompiledCaptioner.load("runs/flickr8k")  # doctest: +SKIP
        >>> captioner.caption(["dog.jpg", "cat.png"], beam=5)[0].text  # doctest: +SKIP
        'a brown dog runs through the grass'
    """

    def __init__(self, encoder: LiteRTEncoder, decoder: NumPyDecoder, run: Run) -> None:
        self.encoder, self.decoder = encoder, decoder
        self.vocabulary, self.decode = run.vocabulary, run.config.decode
        self.familiarity = Familiarity.load(run.folder)

    @classmethod
    def load(cls, folder: str | Path) -> CompiledCaptioner:
        """The best epoch of a run, by its compiled form.

        Raises:
            NotExported: it has none of its present weights, or LiteRT is not installed.
            RunError: there is no such run, or a file is damaged.
        """
        run = Run.open(folder, weights=False)
        manifest = _manifest(run)
        # The weights are read and digested while the other thread imports LiteRT.
        with ThreadPoolExecutor(1) as threads:
            arrays = threads.submit(_arrays, run.folder, manifest["weights"])
            graph = read_checked(run.folder / COMPILED / GRAPH, manifest["files"][GRAPH])
            try:
                import ai_edge_litert.interpreter  # noqa: F401
            except ImportError as error:
                raise NotExported(f"LiteRT is not there: pip install ai-edge-litert ({error})") from error
            encoder_arrays, decoder_arrays = arrays.result()
        with silent_stderr():
            model = put_back(graph, manifest["weights_in_graph"], encoder_arrays)
            encoder = LiteRTEncoder(model, run.encoder_info)
        return cls(encoder, NumPyDecoder(run.config.decoder, decoder_arrays), run)

    def encode(self, pixels: np.ndarray) -> np.ndarray:
        """(n, H, W, 3) pixels of the encoder's size → (n, P, C) float16, as the feature cache holds them."""
        return np.stack([self.encoder.encode(one) for one in pixels])

    def _preprocess(self, pixels: np.ndarray) -> np.ndarray:
        return self.encoder.encode(pixels)

    def _encode_batch(self, rows: np.ndarray) -> np.ndarray:
        return rows

    def _decode(self, features: np.ndarray, options: CaptionOptions) -> Hypotheses:
        if options.drawn:
            raise ConfigError("temperature, top_k, top_p: words are drawn by captioner.Captioner alone")
        memory, wanted = self.decoder.project_memory(features), self.search_options(options)
        return beam_search(
            self.decoder.make_step_fn(memory, wanted.start),
            self.decoder.initial_state(memory),
            pictures=len(features),
            options=wanted,
            narrow=lambda numbers: self.decoder.make_step_fn(memory.of(numbers), wanted.start),
        )


def _manifest(run: Run) -> dict[str, Any]:
    path = run.folder / COMPILED / MANIFEST
    if not path.is_file():
        raise NotExported(f"{run.folder} has no compiled form")
    manifest = read_manifest(path)
    if manifest["format"] != FORMAT:
        raise NotExported(f"{path} is of another version of captioner")
    if manifest["vocabulary"] != run.vocabulary.digest:
        raise NotExported(f"{path} was made for another vocabulary")
    return manifest


def _arrays(folder: Path, entry: Mapping[str, Any]) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The best weights, if they are those of a manifest's entry: the encoder's as stored, the decoder's."""
    path = folder / BEST / WEIGHTS
    try:
        content = read_checked(path, entry)
    except (
        RunError
    ) as error:  # trained on since; or damaged, which is found out and said by who reads it next
        raise NotExported(f"the compiled form of {folder} is not of its present weights") from error
    stored = arrays_in(content, path)
    return select_prefix(stored, "encoder/"), floats(select_prefix(stored, "decoder/"))
