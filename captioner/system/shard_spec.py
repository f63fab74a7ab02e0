"""One worker's part of a job that several do: `--shard 2/8` is the second of eight.

In: a list that all workers see in the same order. Out: a stretch of it; the stretches of all workers, one
after another, are the list.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

from captioner.errors import ConfigError

Item = TypeVar("Item")


class ShardSpec(NamedTuple):
    """One worker's share of a list: the `number`-th of `total`, counted from 1.

    >>> [ShardSpec(number, 3).of("abcdefgh") for number in (1, 2, 3)]
    ['ab', 'cde', 'fgh']
    """

    number: int = 1
    total: int = 1

    @staticmethod
    def parse(text: str) -> ShardSpec:
        """The share that `--shard` names.

        Raises:
            ConfigError: it is not i/n with i from 1 to n.

        >>> ShardSpec.parse("2/8")
        ShardSpec(number=2, total=8)
        """
        match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            raise ConfigError(f'--shard "{text}": expected i/n, such as 1/4, 2/4, 3/4 and 4/4')
        return ShardSpec(int(match[1]), int(match[2]))

    @property
    def whole(self) -> bool:
        """Whether this share is the whole list."""
        return self.total == 1

    @property
    def name(self) -> str:
        """The share in the names of files and folders.

        >>> ShardSpec(2, 8).name
        '2-of-8'
        """
        return f"{self.number}-of-{self.total}"

    def of(self, items: Sequence[Item], *, block: int = 1) -> Sequence[Item]:
        """This share of a list: a stretch of it, cut only between blocks of `block` items."""
        blocks = -(-len(items) // block)
        start, end = (blocks * number // self.total * block for number in (self.number - 1, self.number))
        return items[start:end]


WHOLE = ShardSpec()


def shard_order(name: str) -> tuple[int, ...]:
    """The key that sorts the names of shares by their numbers.

    >>> sorted(["10-of-12", "9-of-12"], key=shard_order)
    ['9-of-12', '10-of-12']
    """
    return tuple(int(digits) for digits in re.findall(r"\d+", name))
