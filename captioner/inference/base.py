"""From pictures of any kind to captions in their order, whatever computes them.

What `captioner.Captioner` (TensorFlow) and `compiled_captioner.CompiledCaptioner` (without) share: threads
that read ahead, batches, pictures that cannot be read, hypotheses put into words. Reads the pictures; writes
nothing.
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from captioner.config import DecodeConfig
from captioner.data.images import read_image
from captioner.data.vocabulary import Vocabulary
from captioner.errors import ImageError
from captioner.inference.caption import Alternative, Caption
from captioner.inference.familiarity import Familiarity
from captioner.inference.search_options import ALL_LANGUAGES, CaptionOptions, Hypotheses, SearchOptions
from captioner.system.hardware import cores

_Batch = TypeVar("_Batch")

BATCHES_AHEAD = 2  # that the threads read before they are asked for


def searches_at_once() -> int:
    """Batches that are encoded and searched side by side: while one waits for a core, another has work."""
    return max(2, cores() // 4)


class BaseCaptioner(ABC):
    """Writes captions with an encoder, a search and the words it knows.

    Attributes:
        encoder: has `size` (H, W) and `grid` (h, w).
        vocabulary: the words.
        decode: how captions are searched for unless a call says otherwise.
        familiarity: says how far captions may be trusted, if that was measured.
    """

    encoder: Any
    vocabulary: Vocabulary
    decode: DecodeConfig
    familiarity: Familiarity | None = None

    @abstractmethod
    def encode(self, pixels: np.ndarray) -> np.ndarray:
        """(n, H, W, 3) pixels of the encoder's size → (n, P, C) float16, as the feature cache holds them."""

    @abstractmethod
    def _decode(self, features: np.ndarray, options: CaptionOptions) -> Hypotheses:
        """What the search finds for features (n, P, C), n > 0: NumPy arrays of n rows or more."""

    def caption(self, sources: Any, **options: Any) -> list[Caption]:
        """The captions of pictures, in order.

        Args:
            sources: as `read_image` takes them (paths, bytes, open files, arrays, Pillow images), or a single
                one.
            **options: fields of `CaptionOptions`.

        Raises:
            ConfigError: an unknown or impossible option. Bad pictures raise nothing: see `Caption.error`.
        """
        single = isinstance(sources, str | Path | bytes | bytearray | memoryview)
        single |= getattr(sources, "ndim", 4) < 4 or hasattr(sources, "getexif") or hasattr(sources, "read")
        return list(self.captions_of([sources] if single else sources, **options))

    def captions_of(self, sources: Iterable[Any], **options: Any) -> Iterator[Caption]:
        """As `caption`, one by one while further pictures are being read; any number of them."""
        wanted = CaptionOptions.of(options)
        wanted.check_search(self.decode)
        return self._captions_of(sources, wanted)

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

        def batches() -> Iterator[np.ndarray]:
            for start in range(0, len(names), wanted.batch_size):
                part = slice(start, start + wanted.batch_size)
                yield np.asarray(features[part] if ids is None else features.read(names[part]))

        found = _side_by_side(lambda batch: self._search(batch, wanted), batches())
        return [dataclasses.replace(caption, path=name) for caption, name in zip(found, names, strict=True)]

    # From pictures.

    def _captions_of(self, sources: Iterable[Any], options: CaptionOptions) -> Iterator[Caption]:
        threads = ThreadPoolExecutor(cores(), thread_name_prefix="decode")
        try:
            pictures = self._read_ahead(sources, threads, ahead=BATCHES_AHEAD * options.batch_size)
            chunks = iter(lambda: list(islice(pictures, options.batch_size)), [])
            yield from _side_by_side(lambda chunk: list(self._caption_chunk(chunk, options)), chunks)
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
            return self._preprocess(read_image(source, size=self.encoder.size))
        except ImageError as error:
            return error

    def _caption_chunk(
        self, chunk: Sequence[tuple[str, np.ndarray | ImageError]], options: CaptionOptions
    ) -> Iterator[Caption]:
        """Captions of at most one batch, in order; of pictures that cannot be read, their errors."""
        good = [picture for _, picture in chunk if isinstance(picture, np.ndarray)]
        found = iter(self._search(self._encode_batch(np.stack(good)), options) if good else ())
        for name, picture in chunk:
            if isinstance(picture, ImageError):
                yield Caption(name, error=picture.reason)
            else:
                yield dataclasses.replace(next(found), path=name)

    def _preprocess(self, pixels: np.ndarray) -> np.ndarray:
        """Runs in a reading thread: from pixels (H, W, 3) to one row of what `_encode_batch` takes."""
        return pixels

    def _encode_batch(self, rows: np.ndarray) -> np.ndarray:
        """Features (n, P, C) from n rows of `_preprocess`, stacked to (n, …)."""
        return self.encode(rows)

    # From features.

    def _search(self, features: np.ndarray, options: CaptionOptions) -> list[Caption]:
        """Captions of at most a batch of features (n, P, C)."""
        if len(features) == 0:
            return []
        spoken = [
            self._search_in(language, features, dataclasses.replace(options, language=language))
            for language in self._languages(options)
        ]
        if len(spoken) == 1 and options.language != ALL_LANGUAGES:
            return spoken[0]
        return [
            dataclasses.replace(captions[0], by_language={caption.language: caption for caption in captions})
            for captions in zip(*spoken, strict=True)
        ]

    def _search_in(self, language: str, features: np.ndarray, options: CaptionOptions) -> list[Caption]:
        found = self._decode(features, options)
        captions = [
            self._to_caption(language, *(None if part is None else part[row] for part in found))
            for row in range(len(features))
        ]
        return self.familiarity.judged(captions, features) if self.familiarity else captions

    def _languages(self, options: CaptionOptions) -> Sequence[str]:
        """The languages that are asked for, "" where the model knows none.

        Raises:
            ConfigError: one that the model does not know.
        """
        known = self.vocabulary.languages
        if options.language == ALL_LANGUAGES and known:
            return known
        start = self.vocabulary.start(options.language)
        return [self.vocabulary.words[start][1:-1]] if known else [""]

    def search_options(self, options: CaptionOptions) -> SearchOptions:
        """The options of one search: what the call asks for, and the run's configuration for the rest.

        Raises:
            ConfigError: the search would take too many steps, see `config.check_search`.
        """
        decode = self.decode
        options.check_search(decode)
        return SearchOptions(
            beam=max(_or(options.beam, decode.beam), options.n_best),
            n_best=options.n_best,
            max_words=_or(options.max_words, decode.max_words),
            length_normalization=_or(options.length_normalization, decode.length_normalization),
            no_repeat=_or(options.no_repeat, decode.no_repeat),
            temperature=_or(options.temperature, 1.0),
            top_k=_or(options.top_k, 0),
            top_p=_or(options.top_p, 1.0),
            return_attention=options.attention,
            start=self.vocabulary.start(options.language),
            banned=self.vocabulary.unwritten,
        )

    def _to_caption(
        self, language: str, words: Any, lengths: Any, scores: Any, log_probabilities: Any, attention: Any
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
            looks = attention[0, : len(best.words)]  # (T, P)
            # A mirror image has its cells behind the picture's own, in the same order.
            height, width = self.encoder.grid
            views = looks.shape[1] // (height * width)  # stated: T may be 0
            looks = looks.reshape(len(looks), views, height, width).sum(1)  # (T, h, w)
        # A small vocabulary may have fewer captions than were asked for.
        others = tuple(other for other in found[1:] if other.score > -math.inf)
        caption = Caption("", best.text, best.score, best.log_probability, best.words, looks, others)
        return dataclasses.replace(caption, language=language)


def _side_by_side(work: Callable[[_Batch], list[Caption]], batches: Iterable[_Batch]) -> Iterator[Caption]:
    """What `work` makes of each batch, in order; a few are worked on while the next is taken."""
    threads = ThreadPoolExecutor(searches_at_once(), thread_name_prefix="search")
    waiting: deque[Future[list[Caption]]] = deque()
    try:
        for batch in batches:
            waiting.append(threads.submit(work, batch))
            if len(waiting) >= searches_at_once():
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()
    finally:
        threads.shutdown(wait=True, cancel_futures=True)


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value


def _name_of(source: Any) -> str:
    if isinstance(source, str | Path):
        return str(source)
    if isinstance(source, bytes | bytearray | memoryview):
        return "<bytes>"
    if hasattr(source, "getexif"):
        return str(getattr(source, "filename", "") or "<image>")
    if isinstance(getattr(source, "name", None), str) and hasattr(source, "read"):
        return str(source.name)
    return "<array>" if hasattr(source, "__array__") else f"<{type(source).__name__}>"
