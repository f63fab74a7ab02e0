"""The history of a training, as it is drawn: which curves there are, its phases, its best epoch.

In: entries, one an epoch, as `Run.history()` gives them. Out: numbers and names for `plots` (a drawing) and
`svg_charts` (a page), which differ in nothing but the pen.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

LABELS = {
    "train_loss": "train",
    "dev_loss": "dev",
    "cider": "CIDEr",
    "bleu4": "BLEU-4",
    "rouge_l": "ROUGE-L",
    "meteor": "METEOR",
    "reward": "reward",
}
LOSSES = ("train_loss", "dev_loss")
SCORES = ("cider", "bleu4", "rouge_l", "meteor", "reward")

Entry = Mapping[str, Any]


def curves(history: Sequence[Entry], keys: Iterable[str]) -> dict[str, list[float | None]]:
    """The values of each key over the epochs; None where one is missing. Keys without a value are left out.

    >>> curves([{"cider": 3.5}, {"cider": None}], ["cider", "meteor"])
    {'cider': [3.5, None]}
    """
    lines = {key: [_number(entry.get(key)) for entry in history] for key in keys}
    return {key: values for key, values in lines.items() if any(value is not None for value in values)}


def phases(history: Sequence[Entry]) -> Iterator[tuple[str, int, int]]:
    """The phases, each with the number of epochs before it and up to its end.

    >>> list(phases([{"phase": "decoder"}, {"phase": "decoder"}, {"phase": "reward"}]))
    [('decoder', 0, 2), ('reward', 2, 3)]
    """
    start = 0
    for phase, entries in groupby(history, lambda entry: str(entry.get("phase", ""))):
        end = start + len(list(entries))
        yield phase, start, end
        start = end


def rank(entry: Entry, select: str) -> tuple[float, float]:
    """Tells epochs apart: the higher, the better. Among equal scores the lower dev loss is better.

    Scores are often equal where dev is small: CIDEr of a single picture is 0 by definition.
    """
    loss = _number(entry.get("dev_loss"))
    loss = math.inf if loss is None else loss
    score = -loss if select == "loss" else _number(entry.get(select))
    return -math.inf if score is None else score, -loss


def best_epoch(history: Sequence[Entry], select: str) -> int | None:
    """The place of the best epoch in the history; None if no epoch has that score.

    >>> best_epoch([{"cider": 0.0, "dev_loss": 3.0}, {"cider": 0.0, "dev_loss": 2.0}], "cider")
    1
    """
    known = [place for place, entry in enumerate(history) if rank(entry, select)[0] > -math.inf]
    return max(known, key=lambda place: rank(history[place], select)) if known else None


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
