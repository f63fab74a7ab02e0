"""Jobs for several workers: the arguments by which a job is shared, and what they mean.

In: the parsed arguments. Out: a worker's share of a list; local folders in place of URLs of object stores.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from captioner.errors import ConfigError, unknown_name

if TYPE_CHECKING:
    from captioner.system.shard_spec import ShardSpec

ENGINES = ("ray",)


def add_arguments(add: Any) -> None:
    """Adds the arguments by which a job is shared."""
    add("--shard", metavar="I/N", help="do the I-th of N parts; N such commands together do it all")
    add("--engine", metavar="E", help="what spreads the work over machines: ray")
    add("--address", metavar="A", help="with --engine: of the cluster (ray://…, auto; else one made here)")


@contextmanager
def staging(arguments: Namespace) -> Iterator[None]:
    """Context in which arguments that are URLs of object stores are replaced by local folders."""
    from captioner.system.files import is_url

    values = [value if isinstance(value, list) else [value] for value in vars(arguments).values()]
    if not any(is_url(value) for each in values for value in each):
        yield
        return
    from captioner.apps.cluster.object_store import staged

    with staged(arguments):
        yield


def shard_from_args(arguments: Namespace) -> ShardSpec:
    """The share of the job that is asked for.

    Raises:
        ConfigError: what was typed makes no sense, or not together.
    """
    from captioner.system.shard_spec import WHOLE, ShardSpec

    if arguments.engine is not None and arguments.engine not in ENGINES:
        raise ConfigError(unknown_name("engine", arguments.engine, ENGINES))
    if arguments.engine and arguments.shard:
        raise ConfigError("--engine shares the work by itself: leave out --shard")
    if arguments.address and not arguments.engine:
        raise ConfigError("--address says where an engine is: --engine is missing")
    return ShardSpec.parse(arguments.shard) if arguments.shard else WHOLE
