"""Jobs for several workers: what can be typed for them, and `captioner features`. Loads nothing slow.

In: the parsed arguments. Out: a worker's part of a list; an engine of `extras` that spreads a job over many
machines; the feature cache.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from captioner.errors import ConfigError, unknown_name
from captioner.inference.loading import load_tensorflow
from captioner.system.files import is_url
from captioner.system.shard_spec import WHOLE, ShardSpec

ENGINES = ("ray",)

SUMMARY = "run the CNN over a data set and keep what it gives"
MORE = (
    "Training and evaluation do this themselves when needed; this does it beforehand. It may be\n"
    "interrupted and repeated. Several machines share the work with --shard or --engine; docs/scale.md."
)
EXAMPLES = (
    "  captioner features flickr8k-frozen --data flickr8k\n"
    "  captioner features flickr8k-frozen --data flickr8k --set encoder.weights=mobilenet_v2.weights.h5\n"
    "  captioner features flickr8k-frozen --data flickr8k --cache /shared/cache --shard 2/8\n"
    "  captioner features flickr8k-frozen --data flickr8k --cache /shared/cache --engine ray"
)


def add_arguments(add: Any) -> None:
    """Adds the arguments by which a job is shared."""
    add("--shard", metavar="I/N", help="do the I-th of N parts; N such commands together do it all")
    add("--engine", metavar="E", help="what spreads the work over machines: ray")
    add("--address", metavar="A", help="with --engine: of the cluster (ray://…, auto; else one made here)")


@contextmanager
def staging(arguments: Namespace) -> Iterator[None]:
    """Within, URLs of object stores among the arguments are local folders."""
    names = ("data", "root", "run", "cache", "out")
    values = [getattr(arguments, name, None) for name in names] + list(getattr(arguments, "paths", ()))
    if not any(map(is_url, values)):
        yield
        return
    from captioner.apps.cluster.object_store import staged

    with staged(arguments):
        yield


def shard_from_args(arguments: Namespace) -> ShardSpec:
    """Which part of the job is asked for.

    Raises:
        ConfigError: what was typed makes no sense, or not together.
    """
    if arguments.engine is not None and arguments.engine not in ENGINES:
        raise ConfigError(unknown_name("engine", arguments.engine, ENGINES))
    if arguments.engine and arguments.shard:
        raise ConfigError("--engine shares the work by itself: leave out --shard")
    if arguments.address and not arguments.engine:
        raise ConfigError("--address says where an engine is: --engine is missing")
    return ShardSpec.parse(arguments.shard) if arguments.shard else WHOLE


def features(arguments: Namespace) -> int:
    """`captioner features`: the cache, filled beforehand."""
    from captioner.config import load_config
    from captioner.data.datasets import load_split

    part = shard_from_args(arguments)
    config = load_config(arguments.recipe, arguments.set)
    split = load_split(arguments.data, arguments.split, format=config.data.format, seed=config.seed)
    load_tensorflow()
    from captioner.models.encoder import load_encoder
    from captioner.models.feature_extraction import extract, extract_part

    wanted, records = config.encoder, split.records
    encoder = load_encoder(
        wanted.name,
        weights=wanted.weights,
        size=wanted.size,
        mirrored=wanted.flip_augmented,
        seed=config.seed,
    )
    place: dict[str, Any] = {"folder": arguments.cache, "quiet": arguments.quiet}
    if arguments.engine:
        from captioner.apps.cluster.ray_driver import extract_on_ray

        store = extract_on_ray(records, encoder, config, address=arguments.address, **place)
    elif part.whole:
        store = extract(records, encoder, **place)
    else:
        store = extract_part(records, encoder, part, **place)
    cells, channels = store.shape
    share = "" if part.whole else f" in part {part.number} of {part.total}"
    found = f"{len(store.ids)} of {len(records)} pictures{share}"
    print(f"{store.folder}: {found}, {cells} cells of {channels} each")
    for failure in store.failures:
        print(f"error: {failure.path}: {failure.reason}", file=sys.stderr)
    return 1 if store.failures else 0
