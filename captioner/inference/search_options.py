"""How to search for captions, and what a search finds. Plain data, for TensorFlow and NumPy alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from captioner.errors import ConfigError

NEG_INF = float("-inf")  # the score of what cannot be chosen


@dataclass(frozen=True)
class SearchOptions:
    """How to search; `beam` and `n_best` are for `beam_search`, `temperature` and `top_…` for `sample`."""

    beam: int = 3  # K, hypotheses kept
    n_best: int = 0  # hypotheses wanted: the search ends as soon as these are certain; 0: all of the beam
    max_words: int = 24  # T; a caption without an end is ended here
    length_normalisation: float = 0.7  # 0: plain log probability
    temperature: float = 1.0  # below 1: bolder, above 1: more even
    top_k: int = 0  # draw among so many likeliest words only; 0: all
    top_p: float = 1.0  # draw among the likeliest words that make up this probability
    start: int = 2
    end: int = 3
    banned: tuple[int, ...] = (0, 1, 2)  # words never written
    no_repeat: int = 0  # no run of so many words comes twice; 0: off
    return_attention: bool = False

    def __post_init__(self) -> None:
        """Raises ConfigError for values that make no sense."""
        checks = {
            "beam": self.beam >= 1,
            "n_best": 0 <= self.n_best <= self.beam,
            "max_words": self.max_words >= 1,
            "length_normalisation": self.length_normalisation >= 0,
            "temperature": self.temperature > 0,
            "top_k": self.top_k >= 0,
            "top_p": 0 < self.top_p <= 1,
            "no_repeat": self.no_repeat >= 0,
        }
        for name, fine in checks.items():
            if not fine:
                raise ConfigError(f"search: {name} cannot be {getattr(self, name)}")


class Hypotheses(NamedTuple):
    """Captions of B pictures, K of each.

    Attributes:
        words: (B, K, T) int32, without start and end, 0 after the last word.
        lengths: (B, K) int32, words.
        scores: (B, K) float32; from `beam_search` best first. -inf: there is no such hypothesis (no words).
        log_probabilities: (B, K) float32, natural logarithm.
        attention: (B, K, T, P) for each word, 0 after the last; None unless asked for.
    """

    words: Any
    lengths: Any
    scores: Any
    log_probabilities: Any
    attention: Any
