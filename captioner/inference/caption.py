"""What is asked of a captioner, and what it says of one picture. Plain data.

Reads and writes no file; only the display in a notebook looks at the picture.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from captioner.errors import ConfigError, unknown_name


@dataclasses.dataclass(frozen=True)
class CaptionOptions:
    """What is asked of `Captioner.caption`; None: as the run's configuration says."""

    beam: int | None = None  # hypotheses kept; 1: greedy
    n_best: int = 1  # captions a picture, the best and its alternatives
    max_words: int | None = None  # a caption ends here at the latest
    length_normalisation: float | None = None  # score = log probability / words ** this
    no_repeat: int | None = None  # forbid repeating any run of this many words; 0: off
    temperature: float | None = None  # this or the next two: words are drawn at random, not searched for
    top_k: int | None = None  # drawn from this many likeliest words; 0: from all
    top_p: float | None = None  # drawn from the likeliest words that share this probability; 1: from all
    seed: int = 0  # of the drawing
    attention: bool = False  # also say where the decoder looked at each word
    batch_size: int = 32  # pictures searched at a time

    @property
    def drawn(self) -> bool:
        """Whether captions are drawn at random."""
        return (self.temperature, self.top_k, self.top_p) != (None, None, None)

    @classmethod
    def of(cls, wishes: Mapping[str, Any]) -> CaptionOptions:
        """Options by name, checked.

        Raises:
            ConfigError: one that does not exist, or a value that makes no sense.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        for name in wishes:
            if name not in known:
                raise ConfigError(unknown_name("option", name, known))
        options = cls(**wishes)
        for name, (fits, expected) in _RULES.items():
            value = getattr(options, name)
            if value is not None and not fits(value):
                raise ConfigError(f"{name} {value}: expected {expected}")
        return options


@dataclasses.dataclass(frozen=True)
class Alternative:
    """Another caption of the same picture."""

    text: str
    score: float  # log probability / words ** length_normalisation; higher is better
    log_probability: float  # of all its words and its end, in nats
    words: tuple[str, ...]

    @property
    def probability(self) -> float:
        """How likely the model finds exactly this sentence, 0 to 1."""
        return math.exp(self.log_probability)


@dataclasses.dataclass(frozen=True)
class Caption:
    """What the model says of one picture; `error` says why there is nothing to say."""

    path: str  # as given, or "<bytes>", "<array>", …
    text: str = ""
    score: float = -math.inf  # log probability / words ** length_normalisation; higher is better
    log_probability: float = -math.inf  # of all its words and its end, in nats
    words: tuple[str, ...] = ()
    attention: np.ndarray | None = None  # (T, h, w): how much each word looked at each cell
    alternatives: tuple[Alternative, ...] = ()  # the next best, best first
    error: str | None = None

    @property
    def probability(self) -> float:
        """How likely the model finds exactly this sentence, 0 to 1."""
        return math.exp(self.log_probability)

    def to_dict(self) -> dict[str, Any]:
        """One line of `captioner caption --json`."""
        if self.error is not None:
            return {"path": self.path, "error": self.error}
        line: dict[str, Any] = {"path": self.path, "caption": self.text, "score": round(self.score, 5)}
        if self.alternatives:
            line["probability"] = self.probability
            line["alternatives"] = [
                {"caption": other.text, "score": round(other.score, 5), "probability": other.probability}
                for other in self.alternatives
            ]
        return line

    def _repr_html_(self) -> str:
        """Jupyter: the picture beside what is said of it."""
        from captioner.visualization.notebook import caption_html

        return caption_html(self)

    def _repr_png_(self) -> bytes | None:
        """Jupyter without HTML: where the model looked, if that was asked for."""
        from captioner.visualization.notebook import caption_png

        return caption_png(self)


def captions_to_records(captions: Iterable[Caption]) -> list[dict[str, Any]]:
    """Captions as rows of a table, each with the same keys: what `pandas.DataFrame` takes.

    >>> captions_to_records([Caption("b.jpg", error="is an empty file")])[0]["error"]
    'is an empty file'
    """
    return [
        {
            "path": caption.path,
            "caption": caption.text if caption.error is None else None,
            "score": caption.score if caption.error is None else None,
            "probability": caption.probability if caption.error is None else None,
            "words": len(caption.words),
            "alternatives": [other.text for other in caption.alternatives],
            "error": caption.error,
        }
        for caption in captions
    ]


MOST_BEAM, MOST_WORDS = 100, 1000  # no caption gains by more, and memory ends somewhere


def _up_to(most: int) -> tuple[Callable[[Any], bool], str]:
    return (lambda value: 1 <= value <= most), f"1 to {most}"


_ZERO_OR_MORE = (lambda value: value >= 0), "0 or more"
_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(("beam", "n_best"), _up_to(MOST_BEAM)),
    "max_words": _up_to(MOST_WORDS),
    "batch_size": _up_to(10_000),
    **dict.fromkeys(("length_normalisation", "no_repeat", "top_k"), _ZERO_OR_MORE),
    "seed": ((lambda value: 0 <= value < 2**63), "a whole number from 0 to 2**63 - 1"),
    "temperature": ((lambda value: 0 < value < math.inf), "a number above 0"),
    "top_p": ((lambda value: 0 < value <= 1), "a share above 0, up to 1"),
}
