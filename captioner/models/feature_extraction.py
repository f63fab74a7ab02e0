"""Pictures through the CNN, once, into the feature cache: read from disk ever after.

In: records (id and path) and an encoder. Out: a `FeatureStore` that reads rows by id; on disk, the folder
that `data.feature_cache` describes. A row is found by the digest of the picture's bytes, in a folder that is
the encoder's own (name, weights, size, preprocessing): nothing stale can be read. After an interruption or a
full disk what is complete stays, and the next call computes the rest. Several workers may compute parts of
it, see `extract_part`; the next `extract` takes in what they made. Threads read and decode ahead, the CNN
runs on batches of one size, a thread writes.

Bit-equal: batches always have the same size (the last is filled up), so an interrupted extraction ends with
the same files as an unbroken one. Another batch size, number of threads, machine or TensorFlow may change the
last bits.
"""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from captioner.data.datasets import CaptionedImage
from captioner.data.feature_cache import (
    FORMAT,
    WORKERS,
    Failure,
    FeatureCache,
    FeatureStore,
    FileStat,
    cache_base,
    fingerprint,
)
from captioner.data.images import default_limits, read_image
from captioner.errors import EncoderError, ImageError
from captioner.models.device import find_device, memory_advice
from captioner.models.encoder import Encoder
from captioner.system import console
from captioner.system.files import digest_bytes, lock, remove_leftovers
from captioner.system.shard_spec import ShardSpec, shard_order

BATCH_SIZE = 32  # pictures per pass through the CNN
SHARD_PICTURES = 512
_SHARD_BYTES = 64 * 2**20  # whichever is less: two shards are held in memory
_BATCHES_AHEAD = 3


def cache_folder(encoder: Encoder) -> Path:
    """Where the features of an encoder are kept unless said otherwise: a folder for each fingerprint.

    Below $CAPTIONER_CACHE, or ~/.cache/captioner.
    """
    name = re.sub(r"[^\w.-]", "-", encoder.name)  # hub:FOLDER has slashes
    return cache_base() / f"{name}-{fingerprint(_identity(encoder))[:16]}"


def extract(
    records: Iterable[CaptionedImage],
    encoder: Encoder,
    *,
    folder: str | Path | None = None,
    batch_size: int = 0,
    quiet: bool = False,
) -> FeatureStore:
    """The features of all pictures; those that the cache does not hold are computed first.

    Args:
        records: pictures; only id and path are looked at.
        encoder: the CNN, in inference mode.
        folder: of the cache; default `cache_folder(encoder)`.
        batch_size: pictures per pass through the CNN; 0: as many as suit the device.
        quiet: no bar, no words.

    Raises:
        CacheError: the folder belongs to another encoder.
        EncoderError: the CNN gives numbers that float16 cannot hold.
        CaptionerError: the disk is full, …
    """
    records = list(records)
    shards = shard_folder(encoder, folder)
    digests = known_digests(shards, records)
    failures: list[Failure] = []
    if missing := without_features(shards, records, digests):
        with lock(shards.folder, waiting=lambda: _say_waiting(shards, quiet=quiet)):
            repair_and_merge(shards, quiet=quiet)
            digests |= known_digests(shards, missing)
            if missing := without_features(shards, missing, digests):
                work = Extraction(shards, encoder, batch_size=batch_size or find_device().extraction_batch)
                with console.progress_bar(len(missing), "pictures", "features", quiet) as progress:
                    for record, outcome in work.run(missing):
                        if isinstance(outcome, ImageError):
                            failures.append(Failure(record.id, record.path, outcome.reason))
                        else:
                            digests[record.id] = outcome
                        progress.update(1, **({"failed": len(failures)} if failures else {}))
                shards.write_seen()
    return open_store(shards, digests, failures)


def extract_part(
    records: Sequence[CaptionedImage],
    encoder: Encoder,
    part: ShardSpec,
    *,
    folder: str | Path | None = None,
    quiet: bool = False,
) -> FeatureStore:
    """One worker's part of the features, in a folder of its own within that of the cache.

    Any number of workers may do this at a time, on any machines that see the folder. Any of them may be
    stopped and started again. `extract` then takes in what they made: the rows of one worker alone, and if
    every picture can be read and none is there twice, its very files.

    Args:
        records: of the whole job, in the order that all workers see.
        encoder: the CNN.
        part: which of how many.
        folder: of the cache, as in `extract`.
        quiet: no bar, no words.

    Raises:
        CaptionerError: as `extract`.
    """
    shards = shard_folder(encoder, folder)
    mine = part.of(records, block=shard_pictures(encoder))
    missing = without_features(shards, mine, known_digests(shards, mine))
    return extract(missing, encoder, folder=shards.folder / WORKERS / part.name, quiet=quiet)


def _say_waiting(shards: FeatureCache, *, quiet: bool) -> None:
    console.info(f"{shards.folder}: another process is computing features there; waiting for it", quiet=quiet)


def shard_folder(encoder: Encoder, folder: str | Path | None = None) -> FeatureCache:
    """The cache of an encoder, opened; errors as in `extract`."""
    path = Path(folder) if folder is not None else cache_folder(encoder)
    return FeatureCache(path, _identity(encoder), shape=(encoder.num_cells, encoder.channels))


def known_digests(shards: FeatureCache, records: Iterable[CaptionedImage]) -> dict[str, str]:
    """The digest of each picture by id; empty if the file is new or has changed since it was read."""
    return {record.id: shards.digest_of(record.path) for record in records}


def without_features(
    shards: FeatureCache, records: Iterable[CaptionedImage], digests: Mapping[str, str]
) -> list[CaptionedImage]:
    """The records of whose pictures the cache is not known to hold a row."""
    return [record for record in records if digests[record.id] not in shards.locations]


def repair_and_merge(shards: FeatureCache, *, quiet: bool) -> None:
    """Removes damaged shards and merges those of workers; the caller holds the folder's lock."""
    remove_leftovers(shards.folder)
    shards.refresh()
    for sentence in shards.damaged:
        console.info(sentence.partition(";")[0] + "; its pictures are computed anew", quiet=quiet)
    shards.discard_damaged()
    for path in sorted((shards.folder / WORKERS).glob("*"), key=lambda path: shard_order(path.name)):
        with lock(path):
            worker = FeatureCache(path, shards.identity, shape=shards.shape)
            console.info(f"{path}: {shards.take_over(worker)} pictures taken in", quiet=quiet)


def open_store(shards: FeatureCache, digests: Mapping[str, str], failures: Sequence[Failure]) -> FeatureStore:
    """A `FeatureStore` of the pictures that the cache holds, in this order."""
    locations = {
        name: shards.locations[digest] for name, digest in digests.items() if digest in shards.locations
    }
    return FeatureStore(shards, locations, failures=failures)


def _identity(encoder: Encoder) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "encoder": encoder.name,
        "weights": encoder.digest,
        "size": list(encoder.size),
        "grid": list(encoder.grid),
        "mirrored": encoder.flip_augmented,
        "channels": encoder.channels,
        "preprocessing": encoder.preprocessing,
        "numbers": "float16",
    }


class Extraction:
    """Computes the rows of records that the cache lacks.

    Args:
        shards: where they go; what it holds is not computed.
        encoder: the CNN.
        batch_size: pictures per pass through the CNN.
    """

    def __init__(self, shards: FeatureCache, encoder: Encoder, *, batch_size: int) -> None:
        self._shards = shards
        self._encoder = encoder
        self._pixels = np.zeros((batch_size, *encoder.size, 3), np.uint8)
        self._shard_batches = shard_pictures(encoder, batch_size) // batch_size
        self._batch: list[tuple[str, str]] = []  # (digest, id) of the pictures in `_pixels`
        self._rows: list[np.ndarray] = []
        self._pictures: list[tuple[str, str]] = []  # (digest, id) of the rows
        self._written: Future[None] | None = None

    def run(self, records: Sequence[CaptionedImage]) -> Iterator[tuple[CaptionedImage, str | ImageError]]:
        """Computes the missing rows; yields each record with its digest, or what is wrong with it."""
        taken: set[str] = set()
        readers = ThreadPoolExecutor(find_device().reading_threads, "decode")
        writer = ThreadPoolExecutor(1, "write")
        try:
            for record, picture in self._read_ahead(records, readers):
                if isinstance(picture, ImageError):
                    yield record, picture
                    continue
                if picture.pixels is not None and picture.digest not in taken:
                    taken.add(picture.digest)
                    self._add((picture.digest, record.id), picture.pixels, writer)
                self._shards.seen[str(record.path.absolute())] = picture.seen
                yield record, picture.digest
            self._encode()
            self._store(writer)
            self._wait()
        finally:
            readers.shutdown(wait=True, cancel_futures=True)
            writer.shutdown(wait=True)

    def _read_ahead(
        self, records: Sequence[CaptionedImage], readers: ThreadPoolExecutor
    ) -> Iterator[tuple[CaptionedImage, Picture | ImageError]]:
        waiting: deque[tuple[CaptionedImage, Future[Picture | ImageError]]] = deque()
        for record in records:
            waiting.append((record, readers.submit(self._read, record.path)))
            if len(waiting) > _BATCHES_AHEAD * len(self._pixels):
                first, picture = waiting.popleft()
                yield first, picture.result()
        for record, picture in waiting:
            yield record, picture.result()

    def _read(self, path: Path) -> Picture | ImageError:
        return read_picture(path, self._encoder.size, self._shards.locations)

    def _add(self, key: tuple[str, str], pixels: np.ndarray, writer: ThreadPoolExecutor) -> None:
        self._pixels[len(self._batch)] = pixels
        self._batch.append(key)
        if len(self._batch) == len(self._pixels):
            self._encode()
            if len(self._rows) == self._shard_batches:
                self._store(writer)

    def _encode(self) -> None:
        if not self._batch:
            return
        remedy = (
            "extract where no other program holds it, or on the processor: CUDA_VISIBLE_DEVICES= captioner …"
        )
        with memory_advice(remedy):
            rows = encode_rows(self._encoder, self._pixels)
        self._rows.append(rows[: len(self._batch)])
        self._pictures += self._batch
        self._batch = []

    def _store(self, writer: ThreadPoolExecutor) -> None:
        self._wait()
        if self._rows:
            rows, pictures = np.concatenate(self._rows), self._pictures
            self._rows, self._pictures = [], []
            self._written = writer.submit(self._shards.write, rows, pictures=pictures)

    def _wait(self) -> None:
        if self._written is not None:
            self._written.result()
            self._written = None


def shard_pictures(encoder: Encoder, batch_size: int = BATCH_SIZE) -> int:
    """How many pictures a shard holds, in whole batches."""
    row_bytes = 2 * encoder.num_cells * encoder.channels
    return max(1, min(SHARD_PICTURES, _SHARD_BYTES // row_bytes) // batch_size) * batch_size


def encode_rows(encoder: Encoder, pixels: np.ndarray) -> np.ndarray:
    """(B, P, C) float16 of a batch of pictures (B, H, W, 3).

    Raises:
        EncoderError: the CNN gives numbers that float16 cannot hold.
    """
    features = encoder.encode(pixels)  # (B, P, C)
    rows: np.ndarray = tf.cast(features, tf.float16).numpy()
    if (rows.view(np.uint16) & 0x7FFF).max() >= 0x7C00:  # infinite or no number
        raise EncoderError(
            f"encoder {encoder.name}: a feature of {np.abs(features).max():g} cannot be cached in "
            "float16; its weights may be damaged or untrained"
        )
    return rows


class Picture(NamedTuple):
    """A picture's file as it was read."""

    digest: str
    pixels: np.ndarray | None  # (H, W, 3) uint8; None: it is known already
    seen: FileStat


def read_picture(path: Path, size: tuple[int, int], known: Container[str] = ()) -> Picture | ImageError:
    """Reads and digests a picture, and decodes it unless its digest is among the known ones."""
    try:
        with open(path, "rb") as file:
            before = os.fstat(file.fileno())
            content = file.read(default_limits().file_bytes + 1)
            settled = os.fstat(file.fileno()).st_mtime_ns == before.st_mtime_ns
    except OSError:
        content, settled = b"", False
    try:
        if not content or len(content) > default_limits().file_bytes:
            read_image(path)  # says what is wrong with it
        digest = digest_bytes(content)
        seen = FileStat.of(before, digest if settled else "")
        if digest in known:
            return Picture(digest, None, seen)
        return Picture(digest, read_image(content, size=size), seen)
    except ImageError as error:
        return ImageError(path, error.reason)
