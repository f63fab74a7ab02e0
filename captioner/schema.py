"""Plain values, as TOML and JSON have them, become frozen dataclasses: types, bounds, names of before.

In: mappings. Out: dataclasses, or a ConfigError that names the key. What the settings are stands in `config`.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

from captioner.errors import ConfigError, unknown_name

_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


@dataclasses.dataclass(frozen=True)
class Bounds:
    """What a decoding option may be and what it does, wherever it is set: file, flag, call, request or page.

    >>> Bounds(int, 1, 100, "hypotheses kept").expected
    'a whole number from 1 to 100'
    """

    kind: type[int] | type[float]
    low: float
    high: float
    help: str  # what people are told
    above: bool = False  # `low` itself is too little

    def fits(self, value: Any) -> bool:
        """Whether it is a number of this kind and within the bounds."""
        if isinstance(value, bool) or not isinstance(value, Integral if self.kind is int else Real):
            return False
        number = float(value)
        return self.low <= number <= self.high and not (self.above and number == self.low)

    @property
    def expected(self) -> str:
        """The end of a sentence: expected …"""
        high = f"{self.high:g}" if self.high < 1e6 else f"{self.high:.0f}"
        return f"{_KINDS[self.kind]} {'above' if self.above else 'from'} {self.low:g} to {high}"


def bounded(default: Any, kind: Any, low: float, high: float, help: str, *, above: bool = False) -> Any:
    """A field of a dataclass with its `Bounds` in the metadata."""
    bounds = Bounds(kind, low, high, help, above)
    return dataclasses.field(default=default, metadata={"bounds": bounds})


def build(cls: Any, values: Any, source: str, prefix: str = "") -> Any:
    """A dataclass, and those in it, from plain values.

    Args:
        cls: the dataclass; its annotations are the types.
        values: of its fields; the others keep their defaults.
        source: where they are from, for people.
        prefix: of the keys, such as `decoder.`.

    Raises:
        ConfigError: an unknown key, with the nearest known one, or a value of another type.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{source}: [{prefix.rstrip('.')}] should be a section, not {values!r}")
    hints = typing.get_type_hints(cls)
    unknown = [key for key in values if key not in hints]
    if unknown:
        raise ConfigError(
            f"{source}: " + unknown_name("key", prefix + unknown[0], [prefix + h for h in hints])
        )
    return cls(**{key: _convert(hints[key], value, source, prefix + key) for key, value in values.items()})


def _convert(kind: Any, value: Any, source: str, key: str) -> Any:
    if dataclasses.is_dataclass(kind):
        return build(kind, value, source, key + ".")
    origin = typing.get_origin(kind)
    if origin is tuple and isinstance(value, list | tuple) and all(isinstance(v, str) for v in value):
        return tuple(value)
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, Mapping) or not value:
            raise ConfigError(f"{source}: {key} should be sections such as [phases.decoder]")
        section = typing.get_args(kind)[1]
        return {name: build(section, each, source, f"{key}.{name}.") for name, each in value.items()}
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if (
        not isinstance(kind, types.GenericAlias)
        and isinstance(value, kind)
        and (kind is bool) == isinstance(value, bool)
    ):
        return value
    wanted = "a list of strings" if origin is tuple else _KINDS[kind]
    raise ConfigError(f"{source}: {key} = {value!r}: expected {wanted}")


# What keys were called before; recipes, `--set` and the runs of earlier versions may still say so. `*` is any
# phase.
FORMER_KEYS = {
    "encoder.mirrored": "flip_augmented",
    "encoder.half": "round_to_float16",
    "decoder.normalised": "l2_normalize_features",
    "decode.length_normalisation": "length_normalization",
    "train.parts": "micro_batches",
    "phases.*.average": "ema_decay",
    "phases.*.final_rate": "final_lr_fraction",
    "phases.*.dropout": "use_dropout",
}


def current_key(key: str) -> str:
    """The name that a key has today.

    >>> current_key("phases.decoder.average"), current_key("decoder.units")
    ('phases.decoder.ema_decay', 'decoder.units')
    """
    section, _, name = key.rpartition(".")
    known = "phases.*" if section.startswith("phases.") else section
    return f"{section}.{FORMER_KEYS.get(f'{known}.{name}', name)}".lstrip(".")


def former_key(key: str) -> str:
    """The first name of a key, for digests that were taken under it."""
    section, _, name = key.rpartition(".")
    formers = (
        old.rpartition(".")[2] for old, new in FORMER_KEYS.items() if new == name and old.startswith(section)
    )
    return next(formers, name)


def current_names(values: Any, source: str, prefix: str = "") -> Any:
    """Sections with the names that their keys have today.

    Raises:
        ConfigError: a key is there by both its names.
    """
    if not isinstance(values, Mapping):
        return values
    found: dict[str, Any] = {}
    for key, value in values.items():
        is_section = isinstance(value, Mapping)
        name = key if is_section else current_key(f"{prefix}{key}").removeprefix(prefix)
        if name in found:
            raise ConfigError(f"{source}: {prefix}{name} is set twice, once by its former name")
        found[name] = current_names(value, source, f"{prefix}{key}.")
    return found
