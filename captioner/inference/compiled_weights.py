"""A compiled model without the weights that a run holds already, and the whole model again.

In: a LiteRT model's bytes and arrays by name. Out: the model with zeros where those arrays were, deflated to
a few kilobytes, and the places of the arrays; from these three the same bytes again. Half the size of a run
with a compiled form, and the two cannot differ.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from captioner.errors import RunError

# Keras keeps kernels as (h, w, in, out), LiteRT those of Conv2D as (out, h, w, in).
_ORDERS: tuple[tuple[int, ...], ...] = ((), (3, 0, 1, 2))
_SMALLEST = 64  # bytes; shorter ones might be found where they are not


def take_out(model: bytes, arrays: Mapping[str, np.ndarray]) -> tuple[bytes, list[dict[str, Any]]]:
    """The model without the arrays that are found in it.

    Args:
        model: an uncompressed file.
        arrays: by name, in the precision that the file has them in.

    Returns:
        the rest, deflated; `{"name", "offset", "order"}` of each array, its axes in that order if it has one.
    """
    rest = bytearray(model)
    places: list[dict[str, Any]] = []
    # Long ones first: a short one may be part of a long one.
    by_size = sorted(arrays.items(), key=lambda item: -item[1].nbytes)
    for (name, array), order in itertools.product(by_size, _ORDERS):
        content = _content(array, order)
        offset = rest.find(content) if len(content) >= _SMALLEST and any(content) else -1
        if offset >= 0:
            rest[offset : offset + len(content)] = bytes(len(content))
            places.append({"name": name, "offset": offset, "order": list(order)})
    return zlib.compress(bytes(rest), 9), places


def put_back(rest: bytes, places: Sequence[Mapping[str, Any]], arrays: Mapping[str, np.ndarray]) -> bytes:
    """The whole model, from what `take_out` returned and the same arrays.

    Raises:
        RunError: an array is not there.
    """
    model = bytearray(zlib.decompress(rest))
    for place in places:
        if place["name"] not in arrays:
            raise RunError(
                f"compiled form: the weights lack {place['name']}; make it again: captioner export"
            )
        content = _content(arrays[place["name"]], place["order"])
        model[place["offset"] : place["offset"] + len(content)] = content
    return bytes(model)


def _content(array: np.ndarray, order: Sequence[int]) -> bytes:
    if not order:
        return array.tobytes()
    return array.transpose(tuple(order)).tobytes() if array.ndim == len(order) else b""
