"""Pictures through the CNN into the shards of a feature cache.

In: records and an encoder. Out: shards, and for each record the digest of its picture, or what is wrong with
it. Threads read and decode ahead, the CNN runs on batches of one size, a thread writes.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Container, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from captioner.data.datasets import CaptionedImage
from captioner.data.feature_cache import FeatureCache, FileStat
from captioner.data.images import default_limits, read_image
from captioner.errors import EncoderError, ImageError
from captioner.models.encoder import Encoder
from captioner.system.files import digest_bytes

BATCH_SIZE = 32  # pictures per pass through the CNN
SHARD_PICTURES = 512
_SHARD_BYTES = 64 * 2**20  # whichever is less: two shards are held in memory
_BATCHES_AHEAD = 3


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
        """Goes through records in order and says of each its digest, or what is wrong with it."""
        taken: set[str] = set()
        readers = ThreadPoolExecutor(min(8, os.cpu_count() or 1), "decode")
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
        rows = rows_of(self._encoder, self._pixels)
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


def rows_of(encoder: Encoder, pixels: np.ndarray) -> np.ndarray:
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
