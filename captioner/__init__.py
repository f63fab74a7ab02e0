"""Captions for pictures: a CNN encodes the picture, an attention GRU writes the sentence.

The names below are the public ones. Importing this package loads no TensorFlow: each name fetches its module
when it is first asked for. All other modules may move between versions.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

from captioner.version import __version__

if TYPE_CHECKING:
    from captioner.config import load_config as load_config
    from captioner.data.datasets import load_split as load_split
    from captioner.data.listings import CaptionsFile as CaptionsFile
    from captioner.data.listings import Reader as Reader
    from captioner.data.listings import named_split as named_split
    from captioner.data.listings import read_text as read_text
    from captioner.data.vocabulary import join_words as join_words
    from captioner.data.vocabulary import words_of as words_of
    from captioner.evaluation.evaluate import evaluate as evaluate
    from captioner.evaluation.metrics import METRICS as METRICS
    from captioner.evaluation.metrics import MetricResult as MetricResult
    from captioner.evaluation.metrics import score as score
    from captioner.inference.caption import Caption as Caption
    from captioner.inference.captioner import Captioner as Captioner
    from captioner.models.backbones import EncoderSpec as EncoderSpec
    from captioner.training.train import train as train

_MODULE_OF = {
    "Caption": "captioner.inference.caption",
    "Captioner": "captioner.inference.captioner",
    "CaptionsFile": "captioner.data.listings",
    "EncoderSpec": "captioner.models.backbones",
    "METRICS": "captioner.evaluation.metrics",
    "MetricResult": "captioner.evaluation.metrics",
    "Reader": "captioner.data.listings",
    "evaluate": "captioner.evaluation.evaluate",
    "join_words": "captioner.data.vocabulary",
    "load_config": "captioner.config",
    "load_split": "captioner.data.datasets",
    "named_split": "captioner.data.listings",
    "read_text": "captioner.data.listings",
    "score": "captioner.evaluation.metrics",
    "train": "captioner.training.train",
    "words_of": "captioner.data.vocabulary",
}
__all__ = [
    "Caption",
    "Captioner",
    "CaptionsFile",
    "EncoderSpec",
    "METRICS",
    "MetricResult",
    "Reader",
    "__version__",
    "evaluate",
    "join_words",
    "load_config",
    "load_split",
    "named_split",
    "read_text",
    "score",
    "train",
    "words_of",
]

# Keras reads its backend once, when first imported, and ~/.keras/keras.json may name another one.
os.environ.setdefault("KERAS_BACKEND", "tensorflow")


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = importlib.import_module(_MODULE_OF[name])
    except ModuleNotFoundError as error:
        from captioner.errors import missing_extra

        missing = missing_extra(error)
        if missing is None:
            raise
        raise missing from error
    return getattr(module, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULE_OF])
