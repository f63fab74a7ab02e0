"""How far a caption may be trusted: is the picture like those learned from, were such captions right before?

In: a run's `familiarity.json`, the features of pictures, their captions. Out: the captions with a confidence
and with a word on pictures that are unlike the training set's. NumPy alone; runs without the file go without.

    distance    of a picture: its cells' mean, scaled to length 1, by the squared deviations from the training
                pictures' mean, each in units of its variance (a Mahalanobis distance with a diagonal
                covariance; Lee et al. 2018, "A simple unified framework for detecting out-of-distribution
                samples"), averaged over channels
    unfamiliar  the distance is beyond that of `FAMILIAR` of the dev pictures
    confidence  how often captions of such a score were right on the dev pictures, by logistic regression
                (Platt 1999); `evaluation.calibration` says what counts as right
"""

from __future__ import annotations

import base64
import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from captioner.errors import RunError
from captioner.inference.caption import Caption
from captioner.runs.run_folder import BEST
from captioner.runs.weights import INFO
from captioner.system.manifest import read_manifest, write_manifest

FILE = "familiarity.json"
FAMILIAR = 0.95  # share of the dev pictures that count as familiar


@dataclasses.dataclass(frozen=True)
class Familiarity:
    """What is known of the pictures and captions of a run's data set.

    Attributes:
        mean: (C,) float32, of the training pictures' features.
        deviation: (C,) float32.
        bound: distance from which on a picture is unfamiliar.
        odds: language (or "") to (intercept, slope) of the log odds that a caption of a score is right.

    Example:
        >>> training = np.random.default_rng(0).normal(5, 1, (500, 4, 8)).astype("float16")
        >>> found = Familiarity.measure(training, training, odds={"": (2.0, 1.0)})
        >>> like, unlike = training[:1], np.abs(training[:1] - 5)
        >>> captions = found.judged([Caption("", score=-2.0)] * 2, np.concatenate([like, unlike]))
        >>> [(caption.unfamiliar, caption.confidence) for caption in captions]
        [(False, 0.5), (True, 0.5)]
    """

    mean: np.ndarray
    deviation: np.ndarray
    bound: float
    odds: Mapping[str, tuple[float, float]]

    @classmethod
    def measure(
        cls, training: np.ndarray, dev: np.ndarray, *, odds: Mapping[str, tuple[float, float]]
    ) -> Familiarity:
        """From features (n, P, C) of training pictures and of others like them."""
        pooled = _pooled(training)
        found = cls(pooled.mean(0), np.maximum(pooled.std(0), 1e-6), math.inf, odds)
        return dataclasses.replace(found, bound=float(np.quantile(found.distances(dev), FAMILIAR)))

    @classmethod
    def load(cls, folder: str | Path) -> Familiarity | None:
        """That of a run; None where there is none, or one of other weights than are there now.

        Raises:
            RunError: the file is damaged.
        """
        path = Path(folder) / FILE
        if not path.is_file():
            return None
        content = read_manifest(path)
        if content["weights"] != _weights_of(Path(folder)):
            return None
        arrays = (np.frombuffer(base64.b64decode(content[name]), "<f2") for name in ("mean", "deviation"))
        mean, deviation = (array.astype(np.float32) for array in arrays)
        odds = {language: (float(pair[0]), float(pair[1])) for language, pair in content["odds"].items()}
        return cls(mean, deviation, float(content["bound"]), odds)

    def save(self, folder: str | Path, facts: Mapping[str, Any]) -> Path:
        """Writes it beside the weights that it was measured with; `facts` are for people."""
        arrays = {
            name: base64.b64encode(array.astype("<f2").tobytes()).decode("ascii")
            for name, array in (("mean", self.mean), ("deviation", self.deviation))
        }
        odds = {language: list(pair) for language, pair in self.odds.items()}
        content = {"weights": _weights_of(Path(folder)), "bound": self.bound, "odds": odds, "facts": facts}
        path = Path(folder) / FILE
        write_manifest(path, {**content, **arrays})
        return path

    def distances(self, features: np.ndarray) -> np.ndarray:
        """(n,) of features (n, P, C): about 1 for pictures like those of the training."""
        away = (_pooled(features) - self.mean) / self.deviation
        return np.square(away).mean(1)

    def judged(self, captions: Sequence[Caption], features: np.ndarray) -> list[Caption]:
        """The captions of pictures with these features (n, P, C), judged."""
        far = self.distances(features) > self.bound
        return [
            dataclasses.replace(
                caption, unfamiliar=bool(unlike), confidence=self.confidence(caption.score, caption.language)
            )
            for caption, unlike in zip(captions, far, strict=True)
        ]

    def confidence(self, score: float, language: str = "") -> float | None:
        """How often captions of this score are right, 0 to 1; None for a language that was not measured."""
        if language not in self.odds:
            return None
        intercept, slope = self.odds[language]
        return round(1 / (1 + math.exp(-min(max(intercept + slope * score, -50.0), 50.0))), 3)


def _pooled(features: np.ndarray) -> np.ndarray:
    """(n, P, C) → (n, C) float32 of length 1."""
    pooled = np.stack([cells.mean(0, dtype=np.float32) for cells in features])
    return pooled / np.maximum(np.linalg.norm(pooled, axis=1, keepdims=True), 1e-6)


def _weights_of(folder: Path) -> Any:
    """The digests of the best weights, from their manifest alone; None where there are none."""
    try:
        return read_manifest(folder / BEST / INFO)["weights"]
    except (RunError, KeyError):
        return None
