"""The captioner that runs on TensorFlow: for the command line, the server and notebooks.

In: a run folder, and pictures as `images.read_image` takes them, or the features of pictures. Out: a
`Caption` each, in the order given; a picture that cannot be used becomes a `Caption` with an `error` and
moves no other. Reads the run folder and the pictures; writes nothing.

A picture gets the same caption alone as among others: the same words, and scores to 1e-5. The CNN and the
search always run on batches of one size (the last is filled up); where in a batch a picture stands may change
the last bits of its products on processors without AVX-512. Features pass through float16, as they do in the
feature cache.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from captioner.config import DecodeConfig
from captioner.data.vocabulary import Vocabulary
from captioner.inference.base import BaseCaptioner
from captioner.inference.beam_search import beam_search, sample
from captioner.inference.familiarity import Familiarity
from captioner.inference.search_options import CaptionOptions, Hypotheses, SearchOptions
from captioner.models.decoder import CaptionDecoder
from captioner.models.encoder import Encoder

ENCODE_BATCH = (
    8  # pictures a pass through the CNN: near its full speed, and one picture alone waits for no more
)
MOST_GRAPHS = 24  # of different options, the oldest goes: clients of a server may ask for any


class Captioner(BaseCaptioner):
    """Writes captions: an encoder that looks, a decoder that writes, and the words it knows.

    The decoder's and encoder's weights are read anew at every call, so one captioner serves a whole training.

    Args:
        encoder: the CNN.
        decoder: of the same number of channels and words.
        vocabulary: its words.
        decode: how captions are searched for unless a call says otherwise.

    Example:
        >>> captioner = Captioner.load("runs/flickr8k")  # doctest: +SKIP
        >>> captioner.caption(["dog.jpg", "cat.png"], beam=5)[0].text  # doctest: +SKIP
        'a brown dog runs through the grass'
    """

    def __init__(
        self,
        encoder: Encoder,
        decoder: CaptionDecoder,
        vocabulary: Vocabulary,
        decode: DecodeConfig | None = None,
    ) -> None:
        self.encoder, self.decoder, self.vocabulary = encoder, decoder, vocabulary
        self.decode = decode or DecodeConfig()
        self._graphs: dict[tuple[SearchOptions, int], Any] = {}
        self._tracing = threading.Lock()  # batches are searched side by side

    @classmethod
    def load(cls, folder: str | Path) -> Captioner:
        """The best epoch of the run in a folder.

        Raises:
            RunError: there is none, it is not finished enough, or a file is damaged.
        """
        from captioner.runs.run_folder import Run

        return cls.of(Run.open(folder))

    @classmethod
    def of(cls, run: Any) -> Captioner:
        """The best epoch of an opened `run_folder.Run`."""
        decoder, encoder = run.load_best()
        captioner = cls(encoder, decoder, run.vocabulary, run.config.decode)
        captioner.familiarity = Familiarity.load(run.folder)
        return captioner

    def encode(self, pixels: np.ndarray) -> np.ndarray:
        """(n, H, W, 3) pixels of the encoder's size → (n, P, C) float16, as the feature cache holds them."""
        cells = np.zeros((len(pixels), self.encoder.num_cells, self.encoder.channels), np.float16)
        for start in range(0, len(pixels), ENCODE_BATCH):
            batch = pixels[start : start + ENCODE_BATCH]
            grids = self.encoder.encode(_filled(batch, ENCODE_BATCH))  # (B, P, C)
            cells[start : start + len(batch)] = grids[: len(batch)]
        return cells

    def _decode(self, features: np.ndarray, options: CaptionOptions) -> Hypotheses:
        graph = self.search_graph(self.search_options(options), options.n_best if options.drawn else 0)
        batch = _filled(features.astype(np.float16, copy=False), options.batch_size)
        # Every picture draws from the same seed: its captions depend on nothing but itself and the seed.
        found = graph(batch, np.full(len(batch), options.seed, np.int64))
        return Hypotheses(*(None if part is None else part.numpy() for part in found))

    def search_graph(self, options: SearchOptions, samples: int) -> Any:
        """The search as a graph, of features (B, P, C) float16 and seeds (B,); `samples` 0: beam search."""
        with self._tracing:
            if (options, samples) not in self._graphs:
                if len(self._graphs) >= MOST_GRAPHS:
                    self._graphs.pop(next(iter(self._graphs)))
                self._graphs[options, samples] = self._new_graph(options, samples)
            return self._graphs[options, samples]

    def _new_graph(self, options: SearchOptions, samples: int) -> Any:
        shape = (None, self.encoder.num_cells, self.encoder.channels)
        signature = [tf.TensorSpec(shape, tf.float16), tf.TensorSpec((None,), tf.int64)]

        def search(features: Any, seeds: Any) -> Any:
            memory = self.decoder.project_memory(features)
            start = self.decoder.initial_state(memory)
            pictures = tf.shape(features)[0]
            step = self.decoder.make_step_fn(memory, options.start)
            if samples:
                return sample(step, start, pictures=pictures, samples=samples, options=options, seed=seeds)
            return beam_search(step, start, pictures=pictures, options=options)

        return tf.function(search, input_signature=signature, autograph=False)


def _filled(batch: np.ndarray, size: int) -> np.ndarray:
    """(n, …) → (size, …) by repeating the last row; as it is where it has so many rows."""
    missing = size - len(batch)
    return batch if missing <= 0 else np.concatenate([batch, np.repeat(batch[-1:], missing, axis=0)])
