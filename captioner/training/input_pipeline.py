"""Records and features (or pictures) in, `tf.data` batches of ((features, words_in), words_out, weights) out.

    features  (B, P, C) float16 from a feature store, or (B, H, W, 3) pixels from pictures
    words_in  (B, R, T) int32   <start> a dog runs, or <en> a dog runs where captions carry languages
    words_out (B, R, T) int32           a dog runs <end>
    weights   (B, R, T) float32 1 where there is a word to write, 0 elsewhere

A batch is B pictures with R captions each, so that a picture is read and projected once for all of them; a
caption that a picture lacks is an empty row. Pictures stand longest caption first, and pictures with captions
of like length share a batch. The order of epoch e depends on (seed, e) alone.
"""

from __future__ import annotations

import dataclasses
from array import array
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import tensorflow as tf

from captioner.config import PhaseConfig
from captioner.data.datasets import CaptionedImage
from captioner.data.images import read_image
from captioner.data.vocabulary import END, Vocabulary
from captioner.errors import CaptionerError, DataError, ImageError
from captioner.models.device import find_device
from captioner.system import console
from captioner.training.augmentation import augment, can_be_mirrored

WINDOW = 8  # batches within which pictures are sorted by length
STEPS = 64  # of an epoch; where there would be fewer, batches shrink
FEWEST = 16  # pictures that they shrink to


class FeatureSource(Protocol):
    """Gives features or pixels of pictures by id; a `FeatureStore` is one."""

    def read(self, ids: Sequence[str]) -> np.ndarray:
        """(n, …) features or pixels of these pictures."""


class PixelSource:
    """Pixels straight from the picture files, for encoders in training.

    A picture that cannot be read comes out black and is listed in `failures`; the batches give it no weight.

    Args:
        records: the pictures.
        size: (height, width) the encoder wants.
        quiet: say nothing of pictures that cannot be read.
    """

    def __init__(
        self, records: Sequence[CaptionedImage], size: tuple[int, int], *, quiet: bool = False
    ) -> None:
        self._paths = {record.id: record.path for record in records}
        self._size, self._quiet = size, quiet
        self._threads = ThreadPoolExecutor(find_device().reading_threads, "pictures")
        self.failures: dict[str, str] = {}

    def read(self, ids: Sequence[str]) -> np.ndarray:
        """(n, H, W, 3) uint8."""
        return np.stack(list(self._threads.map(self._read_one, ids)))

    def _read_one(self, name: str) -> np.ndarray:
        try:
            return read_image(self._paths[name], size=self._size)
        except ImageError as error:
            if name not in self.failures:
                console.info(f"{error}; left out", quiet=self._quiet)
            self.failures[name] = str(error)
            return np.zeros((*self._size, 3), np.uint8)


class CaptionWords(Sequence[list[np.ndarray]]):
    """Word ids of all captions in one array: per picture a list of (words,) int32, made when asked for.

    >>> words = CaptionWords([[[4, 5], [6]], [[7, 8, 9]]])
    >>> [caption.tolist() for caption in words[0]], len(words), words.longest.tolist()
    ([[4, 5], [6]], 2, [2, 3])
    """

    def __init__(self, pictures: Iterable[Iterable[Sequence[int]]]) -> None:
        words, ends, rows, longest = array("i"), array("q", [0]), array("q", [0]), array("i")
        for captions in pictures:
            most = 0
            for caption in captions:
                words.extend(caption)
                ends.append(len(words))
                most = max(most, len(caption))
            rows.append(len(ends) - 1)
            longest.append(most)
        self._words, self._ends, self._rows = np.array(words, np.int32), np.array(ends), np.array(rows)
        self.longest = np.array(longest)  # (pictures,) words of each one's longest caption

    def __len__(self) -> int:
        return len(self._rows) - 1

    def __getitem__(self, picture: Any) -> Any:
        first, last = self._rows[picture], self._rows[picture + 1]
        ends = self._ends[first : last + 1]
        return [self._words[start:end] for start, end in pairwise(ends)]


class TokenizedCaptions:
    """The captions of pictures as word ids, ready to be laid into batches.

    Args:
        records: pictures with their captions.
        vocabulary: its words.
        max_words: longer captions are cut.

    Attributes:
        ids: picture ids, in the records' order.
        captions: per picture a list of (words,) int32 arrays, without <start> and <end>.
        cut: per picture a tuple of bool: the caption goes on after `max_words`, so its last word here is not
            followed by <end>.
        languages: per picture the language of each caption, "" where the vocabulary knows none.
        starts: per picture the word that each caption starts with: <start>, or that of its language.
        times: (pictures,) how often an epoch looks at each picture.
        longest: (pictures,) words of each picture's longest caption.
        can_flip: (pictures,) bool, pictures that may be mirrored.
    """

    def __init__(self, records: Sequence[CaptionedImage], vocabulary: Vocabulary, *, max_words: int) -> None:
        if not records:
            raise DataError("no captioned picture to train on")
        self.ids = [record.id for record in records]
        self.captions = CaptionWords(
            [vocabulary.ids(words[:max_words]) for words in record.words] for record in records
        )
        known: dict[Any, Any] = {}  # most pictures have the same of what follows: each is kept once
        cut = (tuple(len(words) > max_words for words in record.words) for record in records)
        self.cut: list[tuple[bool, ...]] = [known.setdefault(own, own) for own in cut]
        self.longest = self.captions.longest
        told = (
            (vocabulary.languages and record.languages) or ("",) * len(record.captions) for record in records
        )
        self.languages: list[tuple[str, ...]] = [known.setdefault(own, own) for own in told]
        starts = {own: tuple(map(vocabulary.start, own)) for own in set(self.languages)}
        self.starts = [starts[own] for own in self.languages]
        self.times = np.array([record.times for record in records])
        self.can_flip = np.array([can_be_mirrored(record.words) for record in records])

    def pad_batch(
        self, pictures: Iterable[int], chosen: Iterable[Iterable[int]]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """words_in, words_out (B, R, T) int32 and weights (B, R, T) float32 of the chosen captions."""
        pairs = [[(p, c) for c in which] for p, which in zip(pictures, chosen, strict=True)]
        rows = [[self.captions[p][c] for p, c in row] for row in pairs]
        lengths = np.full((len(rows), max(map(len, rows))), -1)  # (B, R) words; -1: none
        for b, row in enumerate(rows):
            lengths[b, : len(row)] = [len(caption) for caption in row]
        place, lengths = np.arange(lengths.max() + 1), lengths[:, :, None]
        is_word = place < lengths  # (B, R, T)
        words = np.concatenate([caption for row in rows for caption in row])
        words_in, words_out = (np.zeros(is_word.shape, np.int32) for _ in range(2))
        words_in[:, :, :1][lengths >= 0] = [self.starts[p][c] for row in pairs for p, c in row]
        words_in[:, :, 1:][is_word[:, :, :-1]] = words
        words_out[is_word] = words
        words_out[place == lengths] = END
        for b, choices in enumerate(pairs):
            for r, (p, c) in enumerate(choices):
                if self.cut[p][c]:
                    words_out[b, r, lengths[b, r, 0]] = 0
        return words_in, words_out, (words_out > 0).astype(np.float32)


class TrainingBatches:
    """The batches of a phase, epoch by epoch.

    Args:
        table: the captions.
        source: features or pixels of the same pictures.
        phase: batch size, captions a picture, augmentation.
        seed: of the order.
        worker_shard: (i, n): of every batch each n-th picture, from the i-th on. What is drawn at random is
            drawn for the whole batch, so that the n parts together are the batch of one worker.
    """

    def __init__(
        self,
        table: TokenizedCaptions,
        source: FeatureSource,
        *,
        phase: PhaseConfig,
        seed: int,
        worker_shard: tuple[int, int] = (0, 1),
    ) -> None:
        self.table, self.source, self.phase = table, source, phase
        self.seed, self.worker_shard = seed, worker_shard
        self._looks = np.repeat(np.arange(len(table.ids)), table.times)  # pictures of an epoch
        self.steps = -(-len(self._looks) // phase.pictures_per_batch)
        self._trouble: CaptionerError | None = None

    def batch_order(self, epoch: int) -> list[np.ndarray]:
        """Which pictures (rows of the table) make each batch of an epoch, longest caption first."""
        return [pictures[self._mine(len(pictures))] for pictures in self._global_batch_order(epoch)]

    def _mine(self, pictures: int) -> slice:
        """The rows of a batch that belong to this worker; the first if there are fewer rows than workers."""
        part, parts = self.worker_shard
        return slice(part, None, parts) if part < pictures else slice(1)

    def _global_batch_order(self, epoch: int) -> list[np.ndarray]:
        rng = np.random.default_rng([self.seed, epoch, 1])
        B = self.phase.pictures_per_batch
        order = self._looks[rng.permutation(len(self._looks))]
        windows = [order[i : i + B * WINDOW] for i in range(0, len(order), B * WINDOW)]
        order = np.concatenate([w[np.argsort(-self.table.longest[w], kind="stable")] for w in windows])
        batches = [order[i : i + B] for i in range(0, len(order), B)]
        return [batches[i] for i in rng.permutation(len(batches))]

    def batches(self, epoch: int, skip: int = 0) -> Iterator[Any]:
        """The batches of one epoch, from batch `skip` on.

        Raises:
            CaptionerError: features that have become unreadable.
        """
        self._trouble = None
        try:
            yield from self.dataset(epoch, skip)
        except tf.errors.OpError:
            if self._trouble is None:
                raise
            raise self._trouble from None  # what TensorFlow wraps into an error of its own

    def dataset(self, epoch: int, skip: int = 0) -> tf.data.Dataset:
        """The batches of one epoch as a `tf.data.Dataset`."""
        plan = self._global_batch_order(epoch)
        sizes = [len(pictures) for pictures in plan]
        spec = self._spec(plan[0])
        seed = (self.seed * 7919 + epoch) % 2**31

        def build(step: np.ndarray) -> tuple[np.ndarray, ...]:
            try:
                return self._batch(plan[int(step)], np.random.default_rng([self.seed, epoch, 2, int(step)]))
            except CaptionerError as error:
                self._trouble = error
                raise

        def element(step: Any) -> Any:
            features, *words, mirrored = tf.numpy_function(build, [step], [s.dtype for s in spec])
            parts = [
                tf.ensure_shape(x, s.shape) for x, s in zip((features, *words, mirrored), spec, strict=True)
            ]
            features, words_in, words_out, weights, mirrored = parts
            if self.phase.augment:
                drawn = tf.stack([seed, tf.cast(step, tf.int32)])
                features = augment(features, mirrored, drawn, (tf.gather(sizes, step), *self.worker_shard))
            return (features, words_in), words_out, weights

        steps = tf.data.Dataset.range(skip, len(plan))
        options = tf.data.Options()
        options.autotune.enabled = False  # nothing to tune; its thread ends a second after the last batch
        device = find_device()
        batches = steps.map(element, num_parallel_calls=max(2, device.cores // 2), deterministic=True)
        batches = batches.prefetch(4).with_options(options)
        if device.on_gpu:  # copied there while the step before is computed; the features stay on the disk
            batches = batches.apply(tf.data.experimental.prefetch_to_device(device.place, 2))
        return batches

    def _batch(self, pictures: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
        limit = self.phase.captions_per_picture
        counts = [len(self.table.captions[p]) for p in pictures]
        chosen = [
            np.sort(rng.permutation(n)[:limit]) if limit and n > limit else np.arange(n) for n in counts
        ]
        words_in, words_out, weights = self.table.pad_batch(pictures, chosen)
        if self.worker_shard != (0, 1):
            mine, spare = self._mine(len(counts)), self.worker_shard[0] >= len(counts)
            pictures, words_in, words_out = pictures[mine], words_in[mine], words_out[mine]
            weights = np.zeros_like(weights[mine]) if spare else weights[mine]  # a spare one has no weight
        names = [self.table.ids[p] for p in pictures]
        features = self.source.read(names)
        failures = getattr(self.source, "failures", ())
        for row, name in enumerate(names):
            if name in failures and isinstance(self.source, PixelSource):
                words_in[row], words_out[row], weights[row] = 0, 0, 0
        return features, words_in, words_out, weights, self.table.can_flip[pictures]

    def _spec(self, pictures: np.ndarray) -> list[tf.TensorSpec]:
        first = self.source.read([self.table.ids[pictures[0]]])
        words = [tf.TensorSpec([None, None, None], dtype) for dtype in (tf.int32, tf.int32, tf.float32)]
        return [tf.TensorSpec([None, *first.shape[1:]], first.dtype), *words, tf.TensorSpec([None], tf.bool)]


def shrink_batch(phase: PhaseConfig, pictures: int) -> PhaseConfig:
    """The phase with batches small enough for the pictures there are.

    Large batches are faster, but few steps teach little (docs/speed.md has figures).

    >>> [shrink_batch(PhaseConfig(pictures_per_batch=64), n).pictures_per_batch for n in (400, 3000, 6000)]
    [16, 46, 64]
    """
    enough = max(FEWEST, pictures // STEPS)
    return dataclasses.replace(phase, pictures_per_batch=min(phase.pictures_per_batch, enough))
