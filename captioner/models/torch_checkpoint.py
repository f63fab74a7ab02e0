"""PyTorch's weight files (`.pth`, the form before 1.6), without PyTorch and without running what they hold.

In: a file of `torch.save(model.state_dict())`. Out: its arrays by name. The file's head is a program for
Python's unpickler, which could do anything; here it is read as text (`pickletools`), and what is not needed
to name arrays is refused.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from captioner.errors import EncoderError

_MAGIC = 0x1950A86A20F9469CFC6C
_KINDS = {"torch FloatStorage": "<f4", "torch LongStorage": "<i8"}


class _Storage(NamedTuple):
    kind: str
    key: str


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # in numbers, not bytes


def read_torch(path: Path) -> dict[str, np.ndarray]:
    """Arrays by name, in the file's order.

    Raises:
        EncoderError: damaged, or of another form.
    """
    try:
        with path.open("rb") as file:
            if _read(file) != _MAGIC:
                raise ValueError("not the form it had before PyTorch 1.6")
            for _ in ("version", "sizes of the machine that wrote it"):
                _read(file)
            tensors, keys = _read(file), _read(file)
            kinds = {tensor.storage.key: tensor.storage.kind for tensor in tensors.values()}
            stored = {key: _array(file, kinds[key]) for key in keys}
            return {name: _view(stored[tensor.storage.key], tensor) for name, tensor in tensors.items()}
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, OSError) as error:
        raise EncoderError(f"{path}: cannot be read as PyTorch weights ({error})") from error


def _array(file: BinaryIO, kind: str) -> np.ndarray:
    (count,) = np.frombuffer(file.read(8), "<i8")
    dtype = np.dtype(_KINDS[kind])
    return np.frombuffer(file.read(int(count) * dtype.itemsize), dtype, int(count))


def _view(stored: np.ndarray, tensor: _Tensor) -> np.ndarray:
    """The array of that shape, which may lie in the file with its axes in another order."""
    last = tensor.offset + sum(
        (n - 1) * stride for n, stride in zip(tensor.shape, tensor.strides, strict=True)
    )
    if min((tensor.offset, *tensor.shape, *tensor.strides)) < 0 or last >= len(stored):
        raise ValueError("an array that reaches beyond what is stored")
    strides = tuple(stride * stored.itemsize for stride in tensor.strides)
    return np.lib.stride_tricks.as_strided(stored[tensor.offset :], tensor.shape, strides, writeable=False)


def _read(file: BinaryIO) -> Any:
    """The next object of a file, as far as dictionaries of arrays go."""
    stack: list[Any] = []
    memo: dict[Any, Any] = {}
    for operation, argument, _ in pickletools.genops(file):
        name = operation.name
        if name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name]())
        elif name in _ARGUMENTS:
            stack.append(argument)
        elif name in _ACTIONS:
            _ACTIONS[name](stack)
        elif name not in ("PROTO", "STOP"):
            raise ValueError(f"holds more than arrays: {name}")
    return stack.pop()


_MARK = object()
_ARGUMENTS = {"BININT", "BININT1", "BININT2", "LONG1", "BINUNICODE", "GLOBAL"}
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "MARK": lambda: _MARK,
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
}


def _since_mark(stack: list[Any]) -> list[Any]:
    start = len(stack) - 1 - stack[::-1].index(_MARK)
    items = stack[start + 1 :]
    del stack[start:]
    return items


def _call(stack: list[Any]) -> None:
    function, arguments = stack[-2:]
    if function == "collections OrderedDict":
        result: Any = {}
    elif function == "torch._utils _rebuild_tensor_v2":
        result = _Tensor(*arguments[:4])
    else:
        raise ValueError(f"holds more than arrays: {function}")
    stack[-2:] = [result]


def _stored(stack: list[Any]) -> None:
    _, kind, key, *_ = stack[-1]
    stack[-1] = _Storage(kind, key)


def _tuple_of(count: int) -> Callable[[list[Any]], None]:
    def make(stack: list[Any]) -> None:
        stack[-count:] = [tuple(stack[-count:])]

    return make


def _append(stack: list[Any]) -> None:
    items = _since_mark(stack)
    stack[-1].extend(items)


def _set_items(stack: list[Any]) -> None:
    items = _since_mark(stack)
    stack[-1].update(zip(items[::2], items[1::2], strict=True))


def _set_item(stack: list[Any]) -> None:
    key, value = stack[-2:]
    del stack[-2:]
    stack[-1][key] = value


_ACTIONS: dict[str, Callable[[list[Any]], Any]] = {
    "TUPLE": lambda stack: stack.append(tuple(_since_mark(stack))),
    "TUPLE1": _tuple_of(1),
    "TUPLE2": _tuple_of(2),
    "TUPLE3": _tuple_of(3),
    "APPENDS": _append,
    "SETITEM": _set_item,
    "SETITEMS": _set_items,
    "REDUCE": _call,
    "BINPERSID": _stored,
    "BUILD": lambda stack: stack.pop(),  # the attributes of the dictionary: PyTorch's versions
}
