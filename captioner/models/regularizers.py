"""Regularizers of weights by name: what they add to the loss, so that weights stay small.

In: a name and a strength. Out: a Keras regularizer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras

from captioner.errors import ConfigError, load_object, unknown_name

REGULARIZERS: dict[str, Callable[[float], Any]] = {
    "l1": keras.regularizers.L1,
    "l2": keras.regularizers.L2,
    "l1_l2": lambda strength: keras.regularizers.L1L2(strength, strength),
    "orthogonal": keras.regularizers.OrthogonalRegularizer,
}


def load_regularizer(name: str, strength: float) -> Any:
    """A Keras regularizer; one's own as `"package.module:name"`, called with the strength."""
    if ":" in name:
        try:
            regularizer = load_object(name, "regularizer")(strength)
        except TypeError as error:  # no function, or one of something else
            raise ConfigError(f'regularizer "{name}": takes no strength ({error})') from error
        if not callable(regularizer):
            found = type(regularizer).__name__
            raise ConfigError(f'regularizer "{name}": expected a Keras regularizer, found {found}')
        return regularizer
    if name not in REGULARIZERS:
        raise ConfigError(unknown_name("regularizer", name, REGULARIZERS) + '; or "package.module:name"')
    return REGULARIZERS[name](strength)
