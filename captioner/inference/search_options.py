"""What can be asked of a captioner, how it searches then, and what a search finds: plain data.

For TensorFlow and NumPy alike; loads neither.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from captioner.config import DecodeConfig, check_search
from captioner.errors import ConfigError, unknown_name
from captioner.schema import Bounds, bounded

NEG_INF = float("-inf")  # the score of what cannot be chosen


def _as_configured(name: str) -> Any:
    """A field that a run's configuration has, too: the same bounds; None leaves it to the run."""
    field = DecodeConfig.__dataclass_fields__[name]
    return dataclasses.field(default=None, metadata=field.metadata)


@dataclasses.dataclass(frozen=True)
class CaptionOptions:
    """What is asked of `Captioner.caption`; None: as the run's configuration says.

    The one declaration of what can be asked when captions are written. Flags, fields of the API, controls of
    the page and the protocol of an evaluation are derived from it, see `decoding_options`.
    """

    language: str | None = None  # such as de, or ALL_LANGUAGES; None: the first that the model knows
    beam: int | None = _as_configured("beam")
    n_best: int = bounded(1, int, 1, 100, "the N best captions, with their probability")
    max_words: int | None = _as_configured("max_words")
    length_normalization: float | None = _as_configured("length_normalization")
    no_repeat: int | None = _as_configured("no_repeat")
    # One of the next three: words are drawn at random, not searched for.
    temperature: float | None = bounded(
        None, float, 0, 100, "draw words at random: below 1 tamer, above 1 wilder", above=True
    )
    top_k: int | None = bounded(None, int, 0, 100_000, "draw words at random: from the N likeliest; 0: all")
    top_p: float | None = bounded(
        None,
        float,
        0,
        1,
        "draw words at random: from the likeliest that share P of the probability",
        above=True,
    )
    seed: int = bounded(0, int, 0, 2**53, "of the drawing: the same seed, the same captions")
    attention: bool = False  # also say where the decoder looked at each word
    batch_size: int = bounded(32, int, 1, 10_000, "pictures searched at a time")

    @property
    def drawn(self) -> bool:
        """Whether captions are drawn at random."""
        return (self.temperature, self.top_k, self.top_p) != (None, None, None)

    def width(self, decode: DecodeConfig) -> int:
        """Hypotheses that a search for one caption follows, where a run is configured so."""
        if self.drawn:
            return self.n_best
        return max(decode.beam if self.beam is None else self.beam, self.n_best)

    def check_search(self, decode: DecodeConfig) -> None:
        """Refuses what a run configured so would search for too long.

        Raises:
            ConfigError: names beam, words, and what fits.

        >>> CaptionOptions(beam=100, max_words=1000).check_search(DecodeConfig())  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        captioner.errors.ConfigError: beam 100 with max_words 1000: ... expected max_words up to 30
        """
        check_search(self.width(decode), decode.max_words if self.max_words is None else self.max_words)

    @classmethod
    def of(cls, wishes: Mapping[str, Any]) -> CaptionOptions:
        """Options by name, checked.

        Raises:
            ConfigError: one that does not exist, or a value that makes no sense.
        """
        wishes = {FORMER_OPTIONS.get(name, name): value for name, value in wishes.items()}
        known = [field.name for field in dataclasses.fields(cls)]
        for name in wishes:
            if name not in known:
                raise ConfigError(unknown_name("option", name, known))
        options = cls(**wishes)
        for name, bounds in _bounds_of(cls).items():
            value = getattr(options, name)
            if value is not None and not bounds.fits(value):
                raise ConfigError(f"{name} {value}: expected {bounds.expected}")
        return options


ALL_LANGUAGES = "all"  # a caption in each language that the model knows
FORMER_OPTIONS = {"length_normalisation": "length_normalization"}  # what callers may still say


def decoding_options() -> dict[str, Bounds]:
    """Every option of how captions are found, by name: its kind, limits and help.

    >>> options = decoding_options()
    >>> list(options)[:5]
    ['beam', 'n_best', 'max_words', 'length_normalization', 'no_repeat']
    >>> options["beam"].expected
    'a whole number from 1 to 100'
    """
    return {name: bounds for name, bounds in _bounds_of(CaptionOptions).items() if name != "batch_size"}


def _bounds_of(cls: Any) -> dict[str, Bounds]:
    return {
        field.name: field.metadata["bounds"]
        for field in dataclasses.fields(cls)
        if "bounds" in field.metadata
    }


@dataclasses.dataclass(frozen=True)
class SearchOptions:
    """How to search; `beam` and `n_best` are for `beam_search`, `temperature` and `top_…` for `sample`."""

    beam: int = 3  # K, hypotheses kept
    n_best: int = 0  # hypotheses wanted: the search ends as soon as these are certain; 0: all of the beam
    max_words: int = 24  # T; a caption without an end is ended here
    length_normalization: float = 0.7  # 0: plain log probability
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
            "length_normalization": self.length_normalization >= 0,
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
