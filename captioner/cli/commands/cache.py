"""`captioner cache`: what is kept of the CNN's features, and what of it nothing needs any more.

In: the parsed arguments, the folder of the caches, the runs that can be found. Out: a line a cache; those
that nothing needs are removed if that is asked for.
"""

from __future__ import annotations

import os
import shutil
import time
from argparse import Namespace
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from captioner.cli.arguments import whole
from captioner.errors import CaptionerError, ConfigError, RunError, unknown_name

if TYPE_CHECKING:
    from captioner.data.feature_cache import CacheSummary

MORE = (
    "Features are computed again when they are needed, so removing them costs only time. A cache is needed\n"
    "no more if its pictures are gone, if it is damaged, or if this version cannot read it; --unused DAYS\n"
    "counts those, too, that nothing was added to for so long and whose encoder is that of no run here."
)
EXAMPLES = (
    "  captioner cache\n  captioner cache clean\n  captioner cache clean --unused 30 --runs experiments"
)
ACTIONS = ("list", "clean")
_DAY_SECONDS = 86_400


def add_arguments(add: Any) -> None:
    """Adds the arguments of `captioner cache`."""
    add("action", nargs="?", default="list", metavar="ACTION", help="list, or clean: remove (list)")
    add("--cache", metavar="DIR", help="folder of the caches ($CAPTIONER_CACHE, or ~/.cache/captioner)")
    add("--unused", type=whole(0), metavar="DAYS", help="also what is of no run, and so old")
    add(
        "--runs",
        action="append",
        default=[],
        metavar="DIR",
        help="where runs are, beside runs/ and $CAPTIONER_RUN; may be repeated",
    )


def run(arguments: Namespace) -> int:
    """`captioner cache`: a line a cache; with `clean`, what is not needed is gone."""
    from captioner.data.feature_cache import cache_base, summarize_cache

    if arguments.action not in ACTIONS:
        raise ConfigError(unknown_name("action", arguments.action, ACTIONS))
    base = Path(arguments.cache) if arguments.cache else cache_base()
    users = _users(arguments.runs)
    found = [summarize_cache(folder) for folder in _caches(base)]
    failed, freed, unneeded = 0, 0, 0
    for cache in found:
        user = users.get(cache.identity.get("weights", ""), "")
        reason = _not_needed(cache, user, arguments.unused)
        print(_line(cache, user, reason))
        if not reason:
            continue
        unneeded += 1
        if arguments.action == "clean":
            try:
                _remove(cache.folder)
                freed += cache.bytes
            except CaptionerError as error:
                print(f"  stays: {error}")
                failed += 1
    if not found:
        print(f"{base}: no caches")
    elif arguments.action == "clean":
        print(f"{freed / 2**30:.1f} GiB freed")
    elif unneeded:
        print(f"{unneeded} of {len(found)} are not needed: `captioner cache clean` removes them")
    return 1 if failed else 0


def _caches(base: Path) -> Iterator[Path]:
    """The folders that are caches: known by their files, so that nothing else is ever removed."""
    try:
        folders = sorted(path for path in base.iterdir() if path.is_dir() and not path.is_symlink())
    except FileNotFoundError:
        return
    except OSError as error:
        raise CaptionerError(f"{base}: cannot be listed ({error.strerror})") from error
    for folder in folders:
        if (folder / "cache.json").is_file() or any(folder.glob("[0-9][0-9][0-9][0-9][0-9].npy")):
            yield folder


def _users(places: Iterable[str]) -> dict[str, str]:
    """Digest of an encoder's weights → the run whose encoder that is."""
    from captioner.runs.locate import RUNS, find_run
    from captioner.runs.run_folder import Run

    folders = [path.parent for place in (RUNS, *map(Path, places)) for path in place.glob("*/config.json")]
    folders += [Path(place) for place in places if (Path(place) / "config.json").is_file()]
    found = {}
    for folder in folders:
        try:
            found[str(Run.open(folder, weights=False).encoder_info.get("digest", ""))] = str(folder)
        except CaptionerError:
            continue  # a damaged run captions nothing
    try:
        shipped = find_run(None)
        found.setdefault(str(Run.open(shipped, weights=False).encoder_info.get("digest", "")), shipped.name)
    except RunError:
        pass
    return found


def _not_needed(cache: CacheSummary, user: str, unused_days: int | None) -> str:
    """Why a cache can be removed; empty where something may still need it."""
    from captioner.data.feature_cache import FORMAT

    if not cache.identity:
        return "damaged"
    if cache.identity.get("format") != FORMAT:
        return "of another version"
    if cache.pictures and cache.gone == cache.pictures:
        return "its pictures are gone"
    days = (time.time() - cache.written) / _DAY_SECONDS
    if unused_days is not None and days >= unused_days and not user:
        return f"of no run here, nothing added for {days:.0f} days"
    return ""


def _line(cache: CacheSummary, user: str, reason: str) -> str:
    size, gone = cache.bytes / 2**20, f", {cache.gone:,} of them gone" if cache.gone else ""
    day = time.strftime("%Y-%m-%d", time.localtime(cache.written))
    used = f", encoder of {user}" if user else ""
    needed = f"; not needed: {reason}" if reason else ""
    return f"{cache.folder}: {size:,.0f} MiB, {cache.pictures:,} pictures{gone}, {day}{used}{needed}"


def _remove(folder: Path) -> None:
    """Removes a cache that no process is filling: first renamed, so that none is ever half there.

    Raises:
        RunError: a process holds it.
        CaptionerError: it cannot be removed.
    """
    from captioner.system.files import TEMPORARY_PREFIX, lock, storing

    with lock(folder), storing(folder):
        gone = folder.with_name(f"{TEMPORARY_PREFIX}{os.getpid()}-{folder.name}")
        os.rename(folder, gone)
        shutil.rmtree(gone)
