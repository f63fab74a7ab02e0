"""The feature cache: every picture goes through the CNN once, and is read from disk ever after.

In: records (id and path) and an encoder. Out: a `FeatureStore` that reads rows by id; on disk, the folder
that `shards` describes. A row is found by the digest of the picture's bytes, in a folder that is the
encoder's own (name, weights, size, preprocessing): nothing stale can be read. After an interruption or a full
disk what is complete stays, and the next call computes the rest.

Bit-equal: a row does not depend on the other pictures of its batch, and batches always have the same size
(the last is filled up), so an interrupted extraction ends with the same files as an unbroken one. Another
batch size, machine or TensorFlow may change the last bits.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from captioner.datasets import CaptionedImage
from captioner.encoders import Encoder
from captioner.errors import CacheError, EncoderError, ImageError
from captioner.files import digest_bytes, lock, remove_leftovers
from captioner.images import DEFAULT_LIMITS, read_image
from captioner.progress import bar, say
from captioner.shards import FORMAT, Location, Seen, ShardFolder, fingerprint

_SHARD_PICTURES = 512
_SHARD_BYTES = 64 * 2**20  # whichever is less: two shards are held in memory
_BATCHES_AHEAD = 3


class Failure(NamedTuple):
    """A picture that is left out."""

    id: str
    path: Path
    reason: str


class FeatureStore:
    """Rows of features by picture id, read from disk as they are asked for.

    Attributes:
        ids: of the pictures that are there, in the order of the records.
        failures: pictures that could not be read.
        folder: where the cache is.
        fingerprint: hex digest of what the rows depend on.
        shape: (P, C) of one picture.

    Example:
        >>> store = extract(records, load_encoder("mobilenet_v2"))  # doctest: +SKIP
        >>> store.read(store.ids[:16]).shape  # doctest: +SKIP
        (16, 49, 1280)
    """

    def __init__(
        self, shards: ShardFolder, locations: dict[str, Location], *, failures: Sequence[Failure] = ()
    ) -> None:
        self._shards = shards
        self._locations = locations
        self.ids = tuple(locations)
        self.failures = list(failures)
        self.folder = shards.folder
        self.fingerprint = shards.fingerprint
        self.shape = shards.shape

    def __contains__(self, picture: object) -> bool:
        return picture in self._locations

    def __len__(self) -> int:
        return len(self._locations)

    def read(self, ids: Sequence[str]) -> np.ndarray:
        """(n, P, C) float16, in the order asked; a copy. Any number of threads may read at once.

        Raises:
            CacheError: an id that is not there, or a damaged row.
        """
        try:
            locations = [self._locations[picture] for picture in ids]
        except KeyError as error:
            raise CacheError(
                f'picture "{error.args[0]}" is not among the {len(self)} whose features were extracted'
            ) from None
        return self._shards.read(locations)


def cache_folder(encoder: Encoder) -> Path:
    """Where the features of an encoder are kept unless said otherwise: a folder for each fingerprint.

    Below $CAPTIONER_CACHE, or ~/.cache/captioner.
    """
    base = os.environ.get("CAPTIONER_CACHE") or Path.home() / ".cache" / "captioner"
    return Path(base) / f"{encoder.name.replace(':', '-')}-{fingerprint(_identity(encoder))[:16]}"


def extract(
    records: Iterable[CaptionedImage],
    encoder: Encoder,
    *,
    folder: str | Path | None = None,
    batch_size: int = 32,
    quiet: bool = False,
) -> FeatureStore:
    """The features of all pictures; those that the cache does not hold are computed first.

    Args:
        records: pictures; only id and path are looked at.
        encoder: the CNN, in inference mode.
        folder: of the cache; default `cache_folder(encoder)`.
        batch_size: pictures per pass through the CNN.
        quiet: no bar, no words.

    Raises:
        CacheError: the folder belongs to another encoder.
        EncoderError: the CNN gives numbers that float16 cannot hold.
        RunError: another process is writing this cache.
        CaptionerError: the disk is full, …
    """
    records = list(records)
    path = Path(folder) if folder is not None else cache_folder(encoder)
    shards = ShardFolder(path, _identity(encoder), shape=(encoder.cells, encoder.channels))
    digests = {record.id: shards.digest_of(record.path) for record in records}
    missing = [record for record in records if digests[record.id] not in shards.locations]
    failures: list[Failure] = []
    if missing:
        with lock(path):
            remove_leftovers(path)
            shards.refresh()
            for sentence in shards.damaged:
                say(sentence.partition(";")[0] + "; its pictures are computed anew", quiet=quiet)
            shards.discard_damaged()
            work = _Extraction(shards, encoder, batch_size=batch_size)
            with bar(len(missing), "pictures", "features", quiet) as progress:
                for record, outcome in work.run(missing):
                    if isinstance(outcome, ImageError):
                        failures.append(Failure(record.id, record.path, outcome.reason))
                    else:
                        digests[record.id] = outcome
                    progress.update(1, **({"failed": len(failures)} if failures else {}))
            shards.write_seen()
    locations = {
        record.id: shards.locations[digests[record.id]]
        for record in records
        if digests[record.id] in shards.locations
    }
    return FeatureStore(shards, locations, failures=failures)


def _identity(encoder: Encoder) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "encoder": encoder.name,
        "weights": encoder.digest,
        "size": list(encoder.size),
        "grid": list(encoder.grid),
        "channels": encoder.channels,
        "preprocessing": encoder.preprocessing,
        "numbers": "float16",
    }


class _Picture(NamedTuple):
    digest: str
    pixels: np.ndarray | None  # (H, W, 3) uint8; None: the cache has it already
    seen: Seen


class _Extraction:
    """Threads read and decode ahead, this thread feeds the CNN, one more writes shards."""

    def __init__(self, shards: ShardFolder, encoder: Encoder, *, batch_size: int) -> None:
        self._shards = shards
        self._encoder = encoder
        self._pixels = np.zeros((batch_size, *encoder.size, 3), np.uint8)
        row_bytes = 2 * encoder.cells * encoder.channels
        batches = min(_SHARD_PICTURES, _SHARD_BYTES // row_bytes) // batch_size
        self._shard_batches = max(1, batches)
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
    ) -> Iterator[tuple[CaptionedImage, _Picture | ImageError]]:
        waiting: deque[tuple[CaptionedImage, Future[_Picture | ImageError]]] = deque()
        for record in records:
            waiting.append((record, readers.submit(self._read, record.path)))
            if len(waiting) > _BATCHES_AHEAD * len(self._pixels):
                first, picture = waiting.popleft()
                yield first, picture.result()
        for record, picture in waiting:
            yield record, picture.result()

    def _read(self, path: Path) -> _Picture | ImageError:
        try:
            with open(path, "rb") as file:
                before = os.fstat(file.fileno())
                content = file.read(DEFAULT_LIMITS.file_bytes + 1)
                settled = os.fstat(file.fileno()).st_mtime_ns == before.st_mtime_ns
        except OSError:
            content, settled = b"", False
        try:
            if not content or len(content) > DEFAULT_LIMITS.file_bytes:
                read_image(path)  # says what is wrong with it
            digest = digest_bytes(content)
            seen = Seen.of(before, digest if settled else "")
            if digest in self._shards.locations:
                return _Picture(digest, None, seen)
            return _Picture(digest, read_image(content, size=self._encoder.size), seen)
        except ImageError as error:
            return ImageError(path, error.reason)

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
        features = self._encoder.encode(self._pixels)  # (B, P, C)
        rows = tf.cast(features, tf.float16).numpy()
        if (rows.view(np.uint16) & 0x7FFF).max() >= 0x7C00:  # infinite or no number
            raise EncoderError(
                f"encoder {self._encoder.name}: a feature of {np.abs(features).max():g} cannot be cached in "
                "float16; its weights may be damaged or untrained"
            )
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
