"""What a captioner says of one picture. Plain data.

Reads and writes no file; only the display in a notebook looks at the picture.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Alternative:
    """Another caption of the same picture."""

    text: str
    score: float  # log probability / words ** length_normalization; higher is better
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
    score: float = -math.inf  # log probability / words ** length_normalization; higher is better
    log_probability: float = -math.inf  # of all its words and its end, in nats
    words: tuple[str, ...] = ()
    attention: np.ndarray | None = None  # (T, h, w): how much each word looked at each cell
    alternatives: tuple[Alternative, ...] = ()  # the next best, best first
    error: str | None = None
    language: str = ""  # of the text; empty where the model knows no languages
    confidence: float | None = None  # how often captions of such a score were right; None: nobody measured
    unfamiliar: bool | None = None  # whether the picture is unlike those learned from; None: nobody measured
    by_language: Mapping[str, Caption] = dataclasses.field(default_factory=dict)  # where all were asked for

    @property
    def probability(self) -> float:
        """How likely the model finds exactly this sentence, 0 to 1."""
        return math.exp(self.log_probability)

    def to_dict(self) -> dict[str, Any]:
        """One line of `captioner caption --json`."""
        if self.error is not None:
            return {"path": self.path, "error": self.error}
        line: dict[str, Any] = {"path": self.path, **self._said()}
        if self.by_language:
            line["captions"] = {name: caption._said() for name, caption in self.by_language.items()}
        return line

    def _said(self) -> dict[str, Any]:
        line: dict[str, Any] = {"caption": self.text, "score": round(self.score, 5)}
        if self.language:
            line["language"] = self.language
        if self.confidence is not None:
            line["confidence"] = self.confidence
        if self.unfamiliar is not None:
            line["unfamiliar"] = self.unfamiliar
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
            "language": caption.language or None,
            "score": caption.score if caption.error is None else None,
            "probability": caption.probability if caption.error is None else None,
            "words": len(caption.words),
            "alternatives": [other.text for other in caption.alternatives],
            "error": caption.error,
        }
        for caption in captions
    ]
