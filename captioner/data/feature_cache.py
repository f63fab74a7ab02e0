"""The feature cache's folder: arrays in shards, found by the digest of the picture they were computed from.

    cache.json      what the rows are: encoder, digest of its weights, preprocessing, size, shape, format
    00000.npy       (n, P, C) float16, n pictures
    00000.json      n, the size of the file, and for each row the picture's digest, a checksum and its id;
                    written last: a shard without it does not exist
    pictures.json   path -> size, times and digest, so that an unchanged picture need not be read again
    workers/NAME/   the same once more: what one of several workers has made, until `take_over` takes it in

Every file is written under a temporary name and renamed. A shard never changes; whatever is missing or
changed goes into new ones. Rows are read as they are asked for, and checked against their checksum when first
read; none stays in this process, so that its memory is the same whatever the size of the set.
"""

from __future__ import annotations

import io
import os
import shutil
import time
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from captioner.errors import CacheError
from captioner.system.files import atomic_write, digest_bytes, json_text, read_json, replacing, write_json

# Also raised when images.read_image begins to give other pixels for the same file.
FORMAT = 1

WORKERS = "workers"

# A file changed this shortly before it was read may change again within one tick of the file system's clock.
_SETTLED_NS = 2 * 10**9


class Location(NamedTuple):
    """The shard, and the row in it, that holds the features of a picture."""

    shard: int
    row: int


class FileStat(NamedTuple):
    """Size, times and digest of a picture's file when it was last read."""

    size: int
    modified_ns: int
    changed_ns: int
    digest: str

    @staticmethod
    def of(status: os.stat_result, digest: str) -> FileStat:
        """From the result of `os.stat` and the digest of the bytes."""
        return FileStat(status.st_size, status.st_mtime_ns, status.st_ctime_ns, digest)

    @property
    def settled(self) -> bool:
        """Whether the file is old enough that any later change shows in its times."""
        return time.time_ns() - max(self.modified_ns, self.changed_ns) > _SETTLED_NS


@dataclass
class _Shard:
    path: Path
    checksums: list[int]
    begin: int = -1  # of the first row in the file, in bytes, once it has been opened
    checked: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))


class FeatureCache:
    """The folder of a feature cache: which pictures it holds; reads rows, adds shards.

    Args:
        folder: made when the first shard is written.
        identity: what every row depends on; a folder that says otherwise is refused.
        shape: (P, C) of a row.

    Raises:
        CacheError: the folder belongs to another encoder, or its `cache.json` is damaged.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any], *, shape: tuple[int, int]) -> None:
        self.folder = folder
        self.shape = shape
        self.identity = dict(identity)
        self.locations: dict[str, Location] = {}
        self.damaged: list[str] = []
        self._shards: dict[int, _Shard] = {}
        self.refresh()

    @property
    def fingerprint(self) -> str:
        """Hex digest of the identity."""
        return fingerprint(self.identity)

    def refresh(self) -> None:
        """Reads the folder's records again; each shard that cannot be used adds a sentence to `damaged`."""
        self._check_identity()
        self.damaged = []
        for record in sorted(self.folder.glob("[0-9]*.json")):
            if int(record.stem) not in self._shards:
                try:
                    self._open(record)
                except CacheError as error:
                    self.damaged.append(str(error))
        self.seen = self._read_seen()

    def discard_damaged(self) -> None:
        """Removes shards that cannot be used, or that a killed process left. Only under the folder's lock."""
        for record in self.folder.glob("[0-9]*.json"):
            if int(record.stem) not in self._shards:
                record.unlink(missing_ok=True)
        for array in self.folder.glob("[0-9]*.npy"):
            if int(array.stem) not in self._shards:
                array.unlink(missing_ok=True)

    def digest_of(self, path: Path) -> str:
        """The digest of a picture whose file has not changed since it was read; else an empty string."""
        known = self.seen.get(str(path.absolute()))
        if known is None:
            return ""
        with suppress(OSError):
            if FileStat.of(path.stat(), known.digest) == known:
                return known.digest
        return ""

    def take_over(self, other: FeatureCache) -> int:
        """Takes over the shards of a worker's folder; only under the locks of both.

        A shard's file is linked, not copied, where the file system can, and leaves the other folder last:
        wherever this is interrupted, it can be done again.

        Returns:
            how many pictures are new.
        """
        known = len(self.locations)
        for number in sorted(other._shards):
            path, record = other._shards[number].path, other._shards[number].path.with_suffix(".json")
            entries = read_json(record, error=CacheError)["pictures"]
            if any(digest not in self.locations for digest, _, _ in entries):
                self._begin()
                target = self.folder / f"{self._next():05}.npy"
                _link(path, target)
                atomic_write(target.with_suffix(".json"), record.read_bytes())
                self._open(target.with_suffix(".json"))
            self.seen.update(other._seen_beside(number))
        self.seen.update(other.seen)
        self.write_seen()
        shutil.rmtree(other.folder)
        return len(self.locations) - known

    def write(
        self,
        rows: np.ndarray,
        *,
        pictures: Sequence[tuple[str, str]],
        number: int | None = None,
        seen: Mapping[str, FileStat] | None = None,
    ) -> None:
        """Adds a shard.

        Args:
            rows: (n, P, C) float16.
            pictures: (digest of the picture, id) of each row.
            number: of the shard, where several processes write; else the next one.
            seen: what the files of its pictures looked like, kept beside it until `take_over`.

        Raises:
            CaptionerError: the disk is full, …; complete shards stay as they are.
        """
        self._begin()
        path = self.folder / f"{self._next() if number is None else number:05}.npy"
        checksums = [zlib.crc32(row.data) for row in rows]
        with replacing(path) as temporary, open(temporary, "wb") as file:
            np.lib.format.write_array(file, rows, allow_pickle=False)
            size = file.tell()
        entries = [
            [digest, checksum, name] for (digest, name), checksum in zip(pictures, checksums, strict=True)
        ]
        if seen:
            atomic_write(path.with_suffix(".seen"), _seen_text(seen))
        record = path.with_suffix(".json")
        atomic_write(record, json_text({"rows": len(rows), "bytes": size, "pictures": entries}) + "\n")
        self._open(record)

    def write_seen(self) -> None:
        """Saves `seen`; settled entries only."""
        atomic_write(self.folder / "pictures.json", _seen_text(self.seen))

    def read(self, locations: Sequence[Location]) -> np.ndarray:
        """Rows in the order asked, (n, P, C) float16, a copy.

        Raises:
            CacheError: a row is not what was written.
        """
        rows = np.empty((len(locations), *self.shape), np.float16)  # (n, P, C)
        by_shard: dict[int, list[int]] = {}
        for place, (number, _) in enumerate(locations):
            by_shard.setdefault(number, []).append(place)
        for number, places in by_shard.items():
            shard = self._shards[number]
            try:
                # Not mapped: the system maps much more around a page that is touched, which counts as ours.
                with open(shard.path, "rb", buffering=0) as file:
                    if shard.begin < 0:
                        shard.checked = np.zeros(len(shard.checksums), bool)
                        shard.begin = _first_row(file, shard.path, (len(shard.checksums), *self.shape))
                    for place in places:
                        self._read_row(file, shard, locations[place].row, rows[place])
            except OSError as error:
                raise CacheError(_damaged(shard.path, error.strerror or str(error))) from error
        return rows

    def _read_row(self, file: io.FileIO, shard: _Shard, row: int, target: np.ndarray) -> None:
        file.seek(shard.begin + row * target.nbytes)
        data, done = target.data.cast("B"), 0
        while done < len(data) and (count := file.readinto(data[done:])):
            done += count
        if done < len(data):
            raise CacheError(_damaged(shard.path, f"row {row} is cut off"))
        if not shard.checked[row]:
            if zlib.crc32(data) != shard.checksums[row]:
                raise CacheError(_damaged(shard.path, f"row {row} is not what was written"))
            shard.checked[row] = True

    def _begin(self) -> None:
        if not self._shards:
            write_json(self.folder / "cache.json", self.identity)

    def _next(self) -> int:
        return max(self._shards, default=-1) + 1

    def _open(self, record: Path) -> None:
        path = record.with_suffix(".npy")
        content = read_json(record, error=CacheError)
        try:
            size, entries = (
                content["bytes"],
                [(str(digest), int(sum_)) for digest, sum_, _ in content["pictures"]],
            )
        except (KeyError, TypeError, ValueError) as error:
            raise CacheError(_damaged(record, "not the record of a shard")) from error
        if not path.is_file() or path.stat().st_size != size:
            found = f"{path.stat().st_size} bytes" if path.is_file() else "nothing"
            raise CacheError(_damaged(path, f"expected {size} bytes, found {found}"))
        number = int(record.stem)
        self._shards[number] = _Shard(path, [checksum for _, checksum in entries])
        for row, (digest, _) in enumerate(entries):
            self.locations[digest] = Location(number, row)

    def _check_identity(self) -> None:
        path = self.folder / "cache.json"
        if not path.exists():
            return
        found = read_json(path, error=CacheError)
        if found != self.identity:
            ours = {key: value for key, value in self.identity.items() if dict(found).get(key) != value}
            raise CacheError(
                f"{self.folder}: this feature cache was made for something else: expected {ours}, found "
                f"{ {key: dict(found).get(key) for key in ours} }; choose another folder, or delete this one"
            )

    def _read_seen(self) -> dict[str, FileStat]:
        return _seen_in(self.folder / "pictures.json")

    def _seen_beside(self, number: int) -> dict[str, FileStat]:
        return _seen_in(self._shards[number].path.with_suffix(".seen"))


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


def cache_base() -> Path:
    """Where what can be computed or fetched again is kept: $CAPTIONER_CACHE, or ~/.cache/captioner."""
    return Path(os.environ.get("CAPTIONER_CACHE") or Path.home() / ".cache" / "captioner")


def fingerprint(identity: Mapping[str, Any]) -> str:
    """Hex digest of what every row of a cache depends on."""
    return digest_bytes(json_text(dict(sorted(identity.items()))).encode("utf-8"))


class CacheSummary(NamedTuple):
    """What a cache folder holds, without its rows being opened."""

    folder: Path
    identity: dict[str, Any]  # empty: damaged, or not yet begun
    pictures: int
    gone: int  # of these, pictures whose files are no longer where they were
    bytes: int
    written: float  # when anything in it was last written, in seconds since the epoch


def summarize_cache(folder: Path) -> CacheSummary:
    """Looks at a cache folder; nothing in it has to be whole."""
    try:
        identity = dict(read_json(folder / "cache.json", error=CacheError))
    except (CacheError, TypeError, ValueError):
        identity = {}
    seen = _seen_in(folder / "pictures.json")
    sizes, times = 0, [0.0]
    for path in folder.rglob("*"):
        with suppress(OSError):
            status = path.lstat()
            sizes += status.st_size
            times.append(status.st_mtime)
    gone = sum(not os.path.exists(path) for path in seen)
    return CacheSummary(folder, identity, len(seen), gone, sizes, max(times))


def _seen_text(seen: Mapping[str, FileStat]) -> str:
    entries = {path: list(each) for path, each in sorted(seen.items()) if each.digest and each.settled}
    return json_text(entries) + "\n"


def _seen_in(path: Path) -> dict[str, FileStat]:
    try:
        return {name: FileStat(*entry) for name, entry in read_json(path, error=CacheError).items()}
    except (CacheError, AttributeError, TypeError):
        return {}


def _link(path: Path, target: Path) -> None:
    """The same file under a second name; a copy where that cannot be."""
    with replacing(target) as temporary:
        try:
            os.link(path, temporary)
        except OSError:
            shutil.copyfile(path, temporary)


def _first_row(file: io.FileIO, path: Path, shape: tuple[int, ...]) -> int:
    """Where the rows of a shard begin in its file, in bytes."""
    try:
        version = np.lib.format.read_magic(file)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        found, in_columns, dtype = read[version](file)
    except (ValueError, EOFError, KeyError) as error:
        raise CacheError(_damaged(path, str(error))) from error
    if found != shape or dtype != np.float16 or in_columns:
        raise CacheError(_damaged(path, f"expected {shape} float16, found {found} {dtype}"))
    return file.tell()


def _damaged(path: Path, what: str) -> str:
    return (
        f"{path}: this part of the feature cache is damaged ({what}); delete it and run again: only its "
        "pictures are computed anew"
    )
