"""`captioner features`: the feature cache of a data set, filled beforehand.

In: the parsed arguments. Out: the cache; unreadable pictures on stderr.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from typing import Any

from captioner.cli import sharding
from captioner.cli.arguments import apply_limits, limit_arguments, set_argument

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
    """Adds the arguments of `captioner features`."""
    add("recipe", metavar="RECIPE", help="name of a recipe, or a .toml file: whose encoder")
    add("--data", required=True, metavar="ROOT", help="folder of captioned pictures")
    add("--split", default="all", metavar="SPLIT", help="train, dev, test or all (all)")
    add("--cache", metavar="DIR", help="folder of the cache (below $CAPTIONER_CACHE, or ~/.cache/captioner)")
    sharding.add_arguments(add)
    set_argument(add)
    limit_arguments(add)


def run(arguments: Namespace) -> int:
    """`captioner features`: the cache, filled beforehand."""
    from captioner.config import load_config
    from captioner.data.datasets import load_split
    from captioner.inference.loading import load_tensorflow

    apply_limits(arguments)
    part = sharding.shard_from_args(arguments)
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
        flip_augmented=wanted.flip_augmented,
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
