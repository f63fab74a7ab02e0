"""The feature cache: every picture goes through the CNN once, and is read from disk ever after.

In: records (id and path) and an encoder. Out: a `FeatureStore` that reads rows by id; on disk, the folder
that `shards` describes. A row is found by the digest of the picture's bytes, in a folder that is the
encoder's own (name, weights, size, preprocessing): nothing stale can be read. After an interruption or a full
disk what is complete stays, and the next call computes the rest. Several workers may compute parts of it, see
`extract_part`; the next `extract` takes in what they made.

Bit-equal: a row does not depend on the other pictures of its batch, and batches always have the same size
(the last is filled up), so an interrupted extraction ends with the same files as an unbroken one. Another
batch size, machine or TensorFlow may change the last bits.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from captioner.data.datasets import CaptionedImage
from captioner.data.feature_cache import FORMAT, WORKERS, FeatureCache, Location, cache_base, fingerprint
from captioner.errors import CacheError, ImageError
from captioner.models.encoder import Encoder
from captioner.models.extraction import BATCH_SIZE, Extraction, shard_pictures
from captioner.system import console
from captioner.system.files import lock, remove_leftovers
from captioner.system.shard_spec import ShardSpec, shard_order


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
        self, shards: FeatureCache, locations: dict[str, Location], *, failures: Sequence[Failure] = ()
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
    name = re.sub(r"[^\w.-]", "-", encoder.name)  # hub:FOLDER has slashes
    return cache_base() / f"{name}-{fingerprint(_identity(encoder))[:16]}"


def extract(
    records: Iterable[CaptionedImage],
    encoder: Encoder,
    *,
    folder: str | Path | None = None,
    batch_size: int = BATCH_SIZE,
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
    shards = shard_folder(encoder, folder)
    digests = known_digests(shards, records)
    failures: list[Failure] = []
    if missing := without_features(shards, records, digests):
        with lock(shards.folder):
            repair_and_merge(shards, quiet=quiet)
            digests |= known_digests(shards, missing)
            if missing := without_features(shards, missing, digests):
                work = Extraction(shards, encoder, batch_size=batch_size)
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


def shard_folder(encoder: Encoder, folder: str | Path | None = None) -> FeatureCache:
    """The cache of an encoder, opened; errors as in `extract`."""
    path = Path(folder) if folder is not None else cache_folder(encoder)
    return FeatureCache(path, _identity(encoder), shape=(encoder.num_cells, encoder.channels))


def known_digests(shards: FeatureCache, records: Iterable[CaptionedImage]) -> dict[str, str]:
    """By id the digest of each picture that has not changed since it was read; else an empty string."""
    return {record.id: shards.digest_of(record.path) for record in records}


def without_features(
    shards: FeatureCache, records: Iterable[CaptionedImage], digests: Mapping[str, str]
) -> list[CaptionedImage]:
    """The records of whose pictures the cache is not known to hold a row."""
    return [record for record in records if digests[record.id] not in shards.locations]


def repair_and_merge(shards: FeatureCache, *, quiet: bool) -> None:
    """Clears away what is damaged and takes in what workers have made; under the folder's lock."""
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
    """The pictures, by id and in this order, that the cache holds."""
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
