"""A run's captions held against a data set, so that later ones can say how sure they are.

In: a run, the data set that it learned from. Out: `familiarity.json` in the run (see
`inference.familiarity`), and how well it tells right captions from wrong ones, known pictures from others.

A caption counts as right where people's captions agree with it at least as well as they agree with each other
in half of the pictures: its CIDEr-D reaches the median that one reference scores against the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from captioner.data.data_folders import DataFolder, load_folders
from captioner.data.datasets import CaptionedImage, load_split
from captioner.evaluation.metrics import per_caption
from captioner.inference.captioner import Captioner
from captioner.inference.familiarity import FAMILIAR, Familiarity
from captioner.models.feature_extraction import FeatureStore, extract
from captioner.runs.run_folder import Run

TRAINING_PICTURES = 2000  # of the training set, drawn at random: more change little
RIGHT = 50.0  # CIDEr-D that counts as right where a picture has one reference only


@dataclass(frozen=True)
class Calibration:
    """What `calibrate` measured. AUC: in how many pairs the one that should be above is; 0.5 by chance."""

    familiarity: Familiarity
    right: dict[str, float]  # by language: share of the dev captions that are right
    right_auc: dict[str, float]  # by language: confidence of right against wrong captions
    unknown_auc: float | None = None  # distance of other pictures against dev pictures
    unknown_flagged: float | None = None  # share of the others that are unfamiliar


def calibrate(
    run: str | Path,
    data: Sequence[str],
    *,
    language: str | None = None,
    against: str | Path | None = None,
    quiet: bool = False,
) -> Calibration:
    """Measures which pictures are like those of the training, and how often captions of a score are right.

    Writes both into the run, as `familiarity.json`.

    Args:
        run: run folder.
        data: as `--data` of the training.
        language: of captions that carry none.
        against: a data set of other pictures, all of which are looked at.
        quiet: no bars.

    Raises:
        CaptionerError: no such run or data; a full disk.
    """
    opened = Run.open(run)
    captioner = Captioner.of(opened)
    folders = [DataFolder.of(one, language) for one in data]
    config = opened.config
    splits = load_folders(
        folders,
        ("train", "dev"),
        format=config.data.format,
        seed=config.seed,
        made=opened.seeded_splits,
    )
    training, dev = list(splits["train"].records), list(splits["dev"].records)
    order = np.random.default_rng(config.seed).permutation(len(training))[:TRAINING_PICTURES]
    drawn = [training[i] for i in sorted(order)]
    train_store = extract(drawn, captioner.encoder, quiet=quiet)
    dev_store = extract(dev, captioner.encoder, quiet=quiet)
    dev_features, judged = _read(dev_store, dev)
    odds: dict[str, tuple[float, float]] = {}
    right: dict[str, float] = {}
    right_auc: dict[str, float] = {}
    for spoken in captioner.vocabulary.languages or ("",):
        rows = [row for row, record in enumerate(judged) if record.in_language(spoken)]
        if not rows:
            continue
        references = [judged[row].in_language(spoken) for row in rows]
        captions = captioner.caption_features(dev_features[rows], language=spoken or None)
        scores = np.array([caption.score for caption in captions])
        is_right = _right(references, [caption.text for caption in captions])
        odds[spoken], right[spoken] = fit_odds(scores, is_right), float(is_right.mean())
        right_auc[spoken] = auc(scores[~is_right], scores[is_right])
    found = Familiarity.measure(_read(train_store, drawn)[0], dev_features, odds=odds)
    unknown_auc = flagged = None
    if against is not None:
        others = list(load_split(against, "all", pictures=True).records)
        far = found.distances(_read(extract(others, captioner.encoder, quiet=quiet), others)[0])
        unknown_auc = auc(found.distances(dev_features), far)
        flagged = float((far > found.bound).mean())
    facts = {"training_pictures": len(drawn), "dev_pictures": len(judged), "familiar": FAMILIAR}
    found.save(opened.folder, {**facts, "right": right, "right_auc": right_auc})
    return Calibration(found, right, right_auc, unknown_auc, flagged)


def _read(store: FeatureStore, records: Sequence[CaptionedImage]) -> tuple[np.ndarray, list[CaptionedImage]]:
    usable = [record for record in records if record.id in store]
    return store.read([record.id for record in usable]), usable


def _right(references: Sequence[Sequence[str]], captions: Sequence[str]) -> np.ndarray:
    """(n,) bool: which captions are as good as people's own."""
    several = [texts for texts in references if len(texts) > 1]
    bound = RIGHT
    if several:
        ones, rest = [texts[0] for texts in several], [texts[1:] for texts in several]
        bound = float(np.median(per_caption(rest, ones, metrics=["cider"])["cider"]))
    return np.array(per_caption(references, captions, metrics=["cider"])["cider"]) >= bound


def fit_odds(scores: np.ndarray, right: np.ndarray) -> tuple[float, float]:
    """Intercept and slope of the log odds that a caption is right, by its score: Newton's method.

    Two captions more are added, a right and a wrong one of mean score, so that the odds stay finite.

    >>> draw = np.random.default_rng(0)
    >>> scores = draw.normal(-2, 1, 5000)
    >>> right = draw.random(5000) < 1 / (1 + np.exp(-(3 + 1.5 * scores)))
    >>> [round(number, 1) for number in fit_odds(scores, right)]
    [3.0, 1.5]
    """
    middle = float(scores.mean())
    x = np.stack([np.ones(len(scores) + 2), np.append(scores, [middle, middle]) - middle], 1)  # (n, 2)
    y = np.append(right, [1, 0]).astype(float)
    weights = np.zeros(2)
    for _ in range(25):
        p = 1 / (1 + np.exp(-x @ weights))
        curvature = (x * (p * (1 - p))[:, None]).T @ x + 1e-3 * np.eye(2)
        weights += np.linalg.solve(curvature, x.T @ (y - p) - 1e-3 * weights)
    return float(weights[0] - weights[1] * middle), float(weights[1])


def auc(low: np.ndarray, high: np.ndarray) -> float:
    """How often one of `high` is above one of `low`; equal ones count half; 0.5 where one of them is empty.

    >>> auc(np.array([1, 2]), np.array([2, 3]))
    0.875
    """
    if not len(low) or not len(high):
        return 0.5
    ordered = np.sort(low)
    below = np.searchsorted(ordered, high, "left") + np.searchsorted(ordered, high, "right")
    return float(below.mean() / (2 * len(low)))
