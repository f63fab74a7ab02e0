"""Pictures in, sentences out: `Captioner` writes captions, `load_config` reads how a network is trained.

Importing this package loads no TensorFlow; the names below fetch their modules when first asked for.
Training is `from captioner.training.train import train`.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

from captioner.version import __version__

if TYPE_CHECKING:
    from captioner.config import load_config as load_config
    from captioner.inference.captioner import Captioner as Captioner

__all__ = ["Captioner", "__version__", "load_config"]

# Keras reads its backend once, when first imported, and ~/.keras/keras.json may name another one.
os.environ.setdefault("KERAS_BACKEND", "tensorflow")

_HOMES = {"Captioner": "captioner.inference.captioner", "load_config": "captioner.config"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
