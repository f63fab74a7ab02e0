"""One door for the command line, the web page and notebooks: pictures in, captions out.

In: a run folder, and pictures as `images.read_image` takes them, or the features of pictures. Out: a
`Caption` each, in the order given; a picture that cannot be used becomes a `Caption` with an `error` and
moves no other. Reads the run folder and the pictures; writes nothing.

A picture gets the same caption alone as among others, to the last bit: the CNN and the search always run on
batches of one size (the last is filled up). Features pass through float16, as they do in the feature cache.
"""

from __future__ import annotations

import dataclasses
import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from captioner.captions import Alternative, Caption, CaptionOptions
from captioner.config import DecodeConfig
from captioner.decoder import CaptionDecoder
from captioner.encoders import Encoder
from captioner.errors import ImageError
from captioner.images import read_image
from captioner.machine import cores
from captioner.search import SearchOptions, beam_search, sample
from captioner.vocabulary import Vocabulary

__all__ = ["Alternative", "Caption", "CaptionOptions", "Captioner"]

ENCODE_BATCH = (
    8  # pictures a pass through the CNN: near its full speed, and one picture alone waits for no more
)
BATCHES_AHEAD = 2  # that the threads decode before the CNN asks for them


class Captioner:
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

    @classmethod
    def load(cls, folder: str | Path) -> Captioner:
        """The best epoch of the run in a folder.

        Raises:
            RunError: there is none, it is not finished enough, or a file is damaged.
        """
        from captioner.checkpoints import Run

        return cls.of(Run.open(folder))

    @classmethod
    def of(cls, run: Any) -> Captioner:
        """The best epoch of an opened `checkpoints.Run`."""
        decoder, encoder = run.load_best()
        return cls(encoder, decoder, run.vocabulary, run.config.decode)

    def caption(self, sources: Any, **options: Any) -> list[Caption]:
        """The captions of pictures, in order.

        Args:
            sources: as `read_image` takes them (paths, bytes, arrays, Pillow images), or a single one.
            **options: fields of `CaptionOptions`.

        Raises:
            ConfigError: an unknown or impossible option. Bad pictures raise nothing: see `Caption.error`.
        """
        single = isinstance(sources, str | Path | bytes | bytearray | memoryview)
        single |= getattr(sources, "ndim", 4) < 4 or hasattr(sources, "getexif")
        return list(self.captions_of([sources] if single else sources, **options))

    def captions_of(self, sources: Iterable[Any], **options: Any) -> Iterator[Caption]:
        """As `caption`, one by one while further pictures are being read; any number of them."""
        return self._captions_of(sources, CaptionOptions.of(options))

    def caption_features(
        self, features: Any, ids: Sequence[str] | None = None, **options: Any
    ) -> list[Caption]:
        """The captions of pictures whose features are known.

        Args:
            features: (n, P, C); or what has `read(ids)`, such as a `FeatureStore`, read a batch at a time.
            ids: of the pictures to read from it.
            **options: fields of `CaptionOptions`.

        Returns:
            n captions; `path` is the id, or empty.
        """
        wanted = CaptionOptions.of(options)
        names = [""] * len(features) if ids is None else list(ids)
        captions: list[Caption] = []
        for start in range(0, len(names), wanted.batch_size):
            part = slice(start, start + wanted.batch_size)
            batch = features[part] if ids is None else features.read(names[part])
            found = self._search(np.asarray(batch), wanted)
            captions += [
                dataclasses.replace(caption, path=name)
                for caption, name in zip(found, names[part], strict=True)
            ]
        return captions

    def encode(self, pixels: np.ndarray) -> np.ndarray:
        """(n, H, W, 3) pixels of the encoder's size → (n, P, C) float16, as the feature cache holds them."""
        cells = np.zeros((len(pixels), self.encoder.cells, self.encoder.channels), np.float16)
        for start in range(0, len(pixels), ENCODE_BATCH):
            batch = pixels[start : start + ENCODE_BATCH]
            grids = self.encoder.encode(_filled(batch, ENCODE_BATCH))  # (B, P, C)
            cells[start : start + len(batch)] = grids[: len(batch)]
        return cells

    # From pictures.

    def _captions_of(self, sources: Iterable[Any], options: CaptionOptions) -> Iterator[Caption]:
        threads = ThreadPoolExecutor(cores(), thread_name_prefix="decode")
        try:
            pictures = self._read_ahead(sources, threads, ahead=BATCHES_AHEAD * options.batch_size)
            while chunk := list(islice(pictures, options.batch_size)):
                yield from self._caption_chunk(chunk, options)
        finally:
            threads.shutdown(wait=True, cancel_futures=True)

    def _read_ahead(
        self, sources: Iterable[Any], threads: ThreadPoolExecutor, *, ahead: int
    ) -> Iterator[tuple[str, np.ndarray | ImageError]]:
        waiting: deque[tuple[str, Future[np.ndarray | ImageError]]] = deque()
        for source in sources:
            waiting.append((_name_of(source), threads.submit(self._read, source)))
            if len(waiting) > ahead:
                name, picture = waiting.popleft()
                yield name, picture.result()
        while waiting:
            name, picture = waiting.popleft()
            yield name, picture.result()

    def _read(self, source: Any) -> np.ndarray | ImageError:
        try:
            return read_image(source, size=self.encoder.size)
        except ImageError as error:
            return error

    def _caption_chunk(
        self, chunk: Sequence[tuple[str, np.ndarray | ImageError]], options: CaptionOptions
    ) -> Iterator[Caption]:
        """At most one batch of pictures and failures, in order."""
        good = [picture for _, picture in chunk if isinstance(picture, np.ndarray)]
        found = iter(self._search(self.encode(np.stack(good)), options) if good else ())
        for name, picture in chunk:
            if isinstance(picture, ImageError):
                yield Caption(name, error=picture.reason)
            else:
                yield dataclasses.replace(next(found), path=name)

    # From features.

    def _search(self, features: np.ndarray, options: CaptionOptions) -> list[Caption]:
        """Captions of at most a batch of features (n, P, C)."""
        if len(features) == 0:
            return []
        graph = self._graph(self.search_options(options), options.n_best if options.drawn else 0)
        batch = _filled(features.astype(np.float16, copy=False), options.batch_size)
        # Every picture draws from the same seed: its captions depend on nothing but itself and the seed.
        found = graph(batch, np.full(len(batch), options.seed, np.int64))
        arrays = [None if part is None else part.numpy() for part in found]
        return [
            self._caption(*(None if part is None else part[row] for part in arrays))
            for row in range(len(features))
        ]

    def search_options(self, options: CaptionOptions) -> SearchOptions:
        """What is asked for as the search wants it, the run's configuration filled in."""
        decode = self.decode
        return SearchOptions(
            beam=max(_or(options.beam, decode.beam), options.n_best),
            n_best=options.n_best,
            max_words=_or(options.max_words, decode.max_words),
            length_normalisation=_or(options.length_normalisation, decode.length_normalisation),
            no_repeat=_or(options.no_repeat, decode.no_repeat),
            temperature=_or(options.temperature, 1.0),
            top_k=_or(options.top_k, 0),
            top_p=_or(options.top_p, 1.0),
            return_attention=options.attention,
        )

    def _graph(self, options: SearchOptions, samples: int) -> Any:
        """The search as a graph, traced once for all batch sizes; `samples` 0: beam search."""
        if (options, samples) not in self._graphs:
            shape = (None, self.encoder.cells, self.encoder.channels)
            signature = [tf.TensorSpec(shape, tf.float16), tf.TensorSpec((None,), tf.int64)]

            def search(features: Any, seeds: Any) -> Any:
                memory = self.decoder.prepare(features)
                start = self.decoder.initial_state(memory)
                pictures = tf.shape(features)[0]
                step = self.decoder.stepper(memory)
                if samples:
                    return sample(
                        step, start, pictures=pictures, samples=samples, options=options, seed=seeds
                    )
                return beam_search(step, start, pictures=pictures, options=options)

            self._graphs[options, samples] = tf.function(search, input_signature=signature, autograph=False)
        return self._graphs[options, samples]

    def _caption(
        self, words: Any, lengths: Any, scores: Any, log_probabilities: Any, attention: Any
    ) -> Caption:
        """The caption of one picture from its hypotheses: (K, T), (K,), (K,), (K,), (K, T, P) or None."""
        found = []
        for k, length in enumerate(lengths):
            ids = words[k, :length].tolist()
            known = tuple(self.vocabulary.words[i] for i in ids)
            text = self.vocabulary.text(ids)
            found.append(Alternative(text, float(scores[k]), float(log_probabilities[k]), known))
        best = found[0]
        looks = None
        if attention is not None:
            looks = attention[0, : len(best.words)].reshape(-1, *self.encoder.grid)  # (T, h, w)
        # A small vocabulary may have fewer captions than were asked for.
        others = tuple(other for other in found[1:] if other.score > -math.inf)
        return Caption("", best.text, best.score, best.log_probability, best.words, looks, others)


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value


def _filled(batch: np.ndarray, size: int) -> np.ndarray:
    """(n, …) → (size, …) by repeating the last row; as it is where it has so many rows."""
    missing = size - len(batch)
    return batch if missing <= 0 else np.concatenate([batch, np.repeat(batch[-1:], missing, axis=0)])


def _name_of(source: Any) -> str:
    if isinstance(source, str | Path):
        return str(source)
    if isinstance(source, bytes | bytearray | memoryview):
        return "<bytes>"
    if hasattr(source, "getexif"):
        return str(getattr(source, "filename", "") or "<image>")
    return "<array>" if hasattr(source, "__array__") else f"<{type(source).__name__}>"
