"""Pictures, caches and runs in object stores: `s3://…`, `gs://…` and whatever else fsspec reaches.

In: URLs where a command takes paths. Out: the same command on local folders, the mirrors of these URLs below
the cache; what it writes there is uploaded, now and then while it works and when it ends.

What is promised. An object appears whole or not at all, as the store gives it. What vouches for other files
(every `.json`) is uploaded after them, as it was before they were looked at: so at any moment the URL holds a
run that opens, a cache of complete shards. A killed job loses what came after the last upload. What is not
promised: stores have no locks, so two jobs that write to one URL are not kept apart; and a reader that comes
in the middle of an upload may have to come again, which its digests tell it.

Why not `fsspec.generic.rsync`: it copies files in no order, takes one of the same size for unchanged (weights
always have the same size) unless told to copy all, and writes local files in place. `filecache` keeps no
folder that a command could work in.
"""

from __future__ import annotations

import threading
from argparse import Namespace
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from captioner.data.data_folders import DataFolder
from captioner.data.feature_cache import cache_base
from captioner.data.image_files import gather, is_picture_name
from captioner.errors import CaptionerError, ConfigError, MissingExtra
from captioner.system import console
from captioner.system.files import LOCK_FILE, TEMPORARY_PREFIX, is_url, read_json, write_json
from captioner.system.shard_spec import ShardSpec

LEDGER = ".remote.json"
UPLOAD_SECONDS = 30.0  # between the ends of one upload and the beginning of the next
_TRANSFERS = 16  # at a time
# Arguments that name folders: those that a command reads, and those that it writes to.
READ, WRITTEN = ("data", "root", "start", "against", "folder", "captions"), ("run", "cache", "out")


@contextmanager
def staged(arguments: Namespace) -> Iterator[None]:
    """Context in which the URLs among a command's arguments are local folders; uploads them at its end.

    Raises:
        CaptionerError: a store that cannot be reached, or has nothing there.
    """
    if getattr(arguments, "engine", None):
        raise ConfigError("--engine needs paths that every machine reaches: mount the store, or use --shard")
    with ExitStack() as stack:
        for name in (name for name in (*READ, *WRITTEN) if getattr(arguments, name, None)):
            given = getattr(arguments, name)
            several = given if isinstance(given, list) else [given]
            local = [_stage_folder(one, name in READ, stack, arguments.quiet) for one in several]
            setattr(arguments, name, local if isinstance(given, list) else local[0])
        if any(map(is_url, getattr(arguments, "paths", ()))):
            _stage_pictures(arguments, stack)
        yield


def _stage_folder(text: Any, read: bool, stack: ExitStack, quiet: bool) -> Any:
    """What stands for an argument with a URL in it, such as `de=s3://bucket/data*5`; others as they are."""
    if not is_url(text):
        return text
    url = DataFolder.of(text).path
    mirror = Mirror(url)
    mirror.pull(needed=read, quiet=quiet)
    if not read:
        stack.enter_context(mirror.uploading())
    return text.replace(url, str(mirror.folder))


def _stage_pictures(arguments: Namespace, stack: ExitStack) -> None:
    """Fetches the pictures of this worker's part; of the others only the names are there."""
    mirrors = [(path, Mirror(path) if is_url(path) else None) for path in arguments.paths]
    for _, mirror in mirrors:
        if mirror is not None:
            mirror.pull(pictures=False, quiet=arguments.quiet)
            if arguments.write and not arguments.out:
                stack.enter_context(mirror.uploading())
    arguments.paths = [path if mirror is None else str(mirror.local_path) for path, mirror in mirrors]
    part = ShardSpec.parse(arguments.shard) if arguments.shard else ShardSpec()
    mine = gather(arguments.paths, recursive=arguments.recursive, exclude=arguments.exclude).part(part)
    paths = [folder / name for folder, names in mine.folders.items() for name in names]
    for _, mirror in mirrors:
        if mirror is not None:
            mirror.fetch(paths, quiet=arguments.quiet)


class Mirror:
    """A URL and the local folder that stands for it.

    Args:
        url: of a folder (or of a single file) in a store.
        base: where mirrors are; default: below the feature cache.

    Raises:
        MissingExtra: fsspec, or its part for this store, is not installed.
    """

    def __init__(self, url: str, base: Path | None = None) -> None:
        self.url = url.rstrip("/")
        scheme, _, rest = self.url.partition("://")
        self.folder = (base or cache_base() / "remote") / scheme / rest
        self.local_path = self.folder  # what stands for the URL: the folder, or the one file in it
        try:
            import fsspec

            self._store, self._root = fsspec.core.url_to_fs(self.url)
        except ImportError as error:
            raise MissingExtra("remote", self.url) from error
        except ValueError as error:
            raise ConfigError(f"{self.url}: {error}") from error
        self._known: dict[str, list[Any]] = {}  # name → size and version there, size and time here
        self._here: set[str] = set()  # names that were here when the upload began
        self._one_upload = threading.Lock()

    def pull(self, *, needed: bool = True, pictures: bool = True, quiet: bool = False) -> None:
        """Makes the folder what the URL holds; what is here and unchanged there is not fetched again.

        Args:
            needed: whether it is an error if nothing is there.
            pictures: fetch those, too; else they are empty files until `fetch`.
            quiet: no bar.
        """
        there = self._list()
        if needed and not there:
            raise CaptionerError(f"{self.url}: nothing is there; check the name, and the rights to list it")
        self._known = self._ledger()
        wanted = []
        for name, version in there.items():
            path = self.folder / name
            if self._known.get(name) == [*version, *_signature(path)]:
                continue
            if not pictures and is_picture_name(path.name):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(b"")
                self._known.pop(name, None)
            else:
                wanted.append(name)
        for name in set(self._known) - set(there):  # was removed there
            (self.folder / name).unlink(missing_ok=True)
            del self._known[name]
        self._fetch(wanted, there, quiet)
        if set(there) == {self.folder.name} and not self._store.isdir(self._root):
            self.local_path = self.folder / self.folder.name

    def fetch(self, paths: Iterable[Path], *, quiet: bool = False) -> None:
        """Fetches files of which only the names are here; paths of other folders are passed over."""
        there = self._list()
        names = [p.relative_to(self.folder).as_posix() for p in paths if p.is_relative_to(self.folder)]
        self._fetch([name for name in names if name in there and name not in self._known], there, quiet)

    @contextmanager
    def uploading(self) -> Iterator[None]:
        """Context in which what changes here is uploaded now and then, and once more at its end."""
        self._here = set(self._files())
        ended = threading.Event()

        def now_and_then() -> None:
            while not ended.wait(UPLOAD_SECONDS):
                try:
                    self.push()
                except CaptionerError as error:
                    console.info(f"{error}; it is tried again")

        thread = threading.Thread(target=now_and_then, name="upload", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            self.push()

    def push(self) -> None:
        """Uploads what has changed here: manifests as they were first, after all they vouch for.

        Raises:
            CaptionerError: the store does not take it. What is there is whole, if not the newest.
        """
        with self._one_upload, self._reaching():
            before = self._files()
            changed = self._changed(before, manifests=True)
            manifests = {name: (self.folder / name).read_bytes() for name in changed}
            files = self._files()  # again: all that the manifests speak of is there by now
            for name in manifests:
                if name.endswith("best/best.json"):  # see best.py: vouches for the weights between the two
                    self._store.pipe_file(self._key(name.replace("best.json", "next.json")), manifests[name])
            with ThreadPoolExecutor(_TRANSFERS) as threads:
                list(threads.map(self._upload, self._changed(files, manifests=False)))
            for name in sorted(manifests, key=lambda name: (name.count("/") == 0, name)):
                self._store.pipe_file(self._key(name), manifests[name])
                self._note(name, before[name])
            for name in self._here - set(files):
                self._remove(name)
            if any(name.endswith("best/best.json") for name in manifests):
                self._remove("best/next.json")
            self._here |= set(files)
            write_json(self.folder / LEDGER, self._known)

    def _changed(self, files: dict[str, list[int]], *, manifests: bool) -> list[str]:
        return [
            name
            for name, signature in files.items()
            if name.endswith(".json") == manifests and self._known.get(name, [])[2:] != signature
        ]

    def _upload(self, name: str) -> None:
        signature = _signature(self.folder / name)
        if signature:
            self._store.put_file(str(self.folder / name), self._key(name))
            self._note(name, signature)

    def _remove(self, name: str) -> None:
        self._known.pop(name, None)
        if self._store.exists(self._key(name)):
            self._store.rm_file(self._key(name))
        self._here.discard(name)

    def _note(self, name: str, signature: list[int]) -> None:
        self._known[name] = [*_version(self._store.info(self._key(name))), *signature]

    def _fetch(self, names: list[str], there: dict[str, list[Any]], quiet: bool) -> None:
        def one(name: str) -> None:
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f"{TEMPORARY_PREFIX}{path.name}"[:200])
            self._store.get_file(self._key(name), str(temporary))
            temporary.replace(path)
            self._known[name] = [*there[name], *_signature(path)]

        shown = console.progress_bar(len(names), "files", self.url, quiet or not names)
        with self._reaching(), shown as progress, ThreadPoolExecutor(_TRANSFERS) as threads:
            # Marks last, here too: a killed fetch leaves nothing that vouches for what is not there.
            for manifests in (False, True):
                for _ in threads.map(one, [name for name in names if name.endswith(".json") == manifests]):
                    progress.update(1)
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / LEDGER, self._known)

    def _list(self) -> dict[str, list[Any]]:
        """Name → size and version of every file below the URL."""
        with self._reaching():
            try:
                self._store.invalidate_cache()
                found = self._store.find(self._root, detail=True)
            except FileNotFoundError:
                return {}
        start = self._root.rstrip("/") + "/"
        return {
            key.removeprefix(start) if key.startswith(start) else key.rsplit("/", 1)[-1]: _version(info)
            for key, info in found.items()
            if info.get("type") != "directory" and not key.endswith("/")
        }

    def _files(self) -> dict[str, list[int]]:
        found = {}
        for path in self.folder.rglob("*"):
            own = path.name.startswith(TEMPORARY_PREFIX) or path.name in (LEDGER, LOCK_FILE)
            if own or not path.is_file():
                continue
            signature = _signature(path)
            # An empty picture is a name whose content has not been fetched.
            if signature and (signature[0] or not is_picture_name(path.name)):
                found[path.relative_to(self.folder).as_posix()] = signature
        return found

    def _key(self, name: str) -> str:
        if self.local_path != self.folder:
            return self._root
        return f"{self._root.rstrip('/')}/{name}"

    def _ledger(self) -> dict[str, list[Any]]:
        path = self.folder / LEDGER
        return dict(read_json(path)) if path.exists() else {}

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        try:
            yield
        except (CaptionerError, KeyboardInterrupt):
            raise
        except Exception as error:  # each store has exceptions of its own
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise CaptionerError(
                f"{self.url}: the store cannot be used ({reason}); check the network, the credentials and "
                "the name, then run the same command again"
            ) from error


def _version(info: dict[str, Any]) -> list[Any]:
    """Size and a mark that changes with the content, as this store has it."""
    marks = ("ETag", "etag", "md5Hash", "generation", "LastModified", "mtime", "created")
    return [info.get("size"), next((str(info[mark]) for mark in marks if info.get(mark)), "")]


def _signature(path: Path) -> list[int]:
    """Size and time; empty: it is not there."""
    try:
        status = path.stat()
    except OSError:
        return []
    return [status.st_size, status.st_mtime_ns]
