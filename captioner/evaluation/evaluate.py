"""How good a run's captions are: a split is captioned, the captions are scored and held against chance.

In: a run folder, a data set, a split. Out: in a folder of the caller's,

    predictions.jsonl   {"id", "path", "caption", "score"}, a line a picture, in the split's order
    scores.json         figures in per cent, what they stand on, and what is suspicious about them

Captions are generated word by word from the model's own words, never from the references. They and the scores
are the same at every run on the same machine; only `images_per_second` is not.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from captioner.data.datasets import CaptionedImage, Split, load_split, open_dataset
from captioner.errors import CaptionerError, DataError
from captioner.evaluation.metrics import METRICS, describe, protocol, score
from captioner.inference.captioner import Caption, Captioner, CaptionOptions
from captioner.models.feature_extraction import FeatureStore, extract
from captioner.runs.run_folder import Run
from captioner.system.console import bar
from captioner.system.files import atomic_write, json_text, write_json
from captioner.version import __version__

PREDICTIONS, SCORES = "predictions.jsonl", "scores.json"
SLOW_METRICS = ("meteor",)  # looked up word by word in WordNet: not after every epoch
ALIKE_SHARE = 0.1  # fewer different captions than this are suspicious
CHANCE_SHARE = 0.8  # of the CIDEr score: more of it without looking is suspicious
_FEW = 10  # pictures: below, neither says anything


@dataclass(frozen=True)
class Protocol:
    """Which pictures are captioned, and how; None: as the run's configuration says."""

    split: str = "test"  # train, dev, test or all
    format: str = "auto"  # of the data set
    beam: int | None = None  # hypotheses kept; 1: greedy
    max_words: int | None = None  # a caption ends here at the latest
    batch_size: int = 64  # pictures searched at a time


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found, and wrote."""

    scores: dict[str, Any]  # the content of scores.json
    captions: list[Caption]  # in the order of `records`
    records: list[CaptionedImage]  # those that could be captioned
    failures: list[tuple[str, str]]  # path and reason of those that could not
    look: Callable[[Sequence[str]], list[Caption]]  # by id, some of them captioned again, with attention

    @property
    def warnings(self) -> list[str]:
        """What makes the captions suspicious, as sentences."""
        return list(self.scores["warnings"])


def evaluate(
    run: str | Path, data: str | Path, out: str | Path, *, plan: Protocol | None = None, quiet: bool = False
) -> Evaluation:
    """Captions one split of a data set with the best epoch of a run, and scores the captions.

    Args:
        run: run folder.
        data: folder of the data set; needs no other split than the one asked for.
        out: folder for `predictions.jsonl` and `scores.json`, made if missing.
        plan: split, format of the data, search.
        quiet: no bars.

    Raises:
        CaptionerError: no such run, data or split; not one picture that can be read; a full disk.

    Example:
        >>> found = evaluate("runs/flickr8k", "flickr8k", "out")  # doctest: +SKIP
        >>> found.scores["bleu4"]  # doctest: +SKIP
        24.1
    """
    plan = plan or Protocol()
    opened = Run.open(run)
    config, made = opened.config, opened.made_splits
    split = load_split(data, plan.split, format=plan.format, seed=config.seed, made=made)
    captioner = Captioner.of(opened)
    store = extract(split.records, captioner.encoder, quiet=quiet)
    records = [record for record in split.records if record.id in store]
    if not records:
        raise DataError(
            f"{data}: not one picture of {plan.split} could be read; first: {store.failures[0].reason}"
        )
    captions, rate = _caption(captioner, store, records, plan=plan, quiet=quiet)
    known = training_captions(data, format=plan.format, made=made)
    references = [record.captions for record in records]
    scores = judge(references, [caption.text for caption in captions], known=known)
    failures = [(str(failure.path), failure.reason) for failure in store.failures]
    content = {
        **scores,
        "images": len(records),
        "images_per_second": round(rate, 1),
        "failed": len(failures),
        "protocol": {
            **_setting(opened, split, plan=plan, captioner=captioner),
            **protocol(references),
            "novel": f"against the {len(known)} training captions beside it"
            if known
            else "no training captions known",
            "shuffled": "each caption judged against another picture's references",
            "images_per_second": "search from cached features; reading pictures and the CNN not counted",
        },
    }
    _write(Path(out), content, captions=captions, records=records)

    def look(ids: Sequence[str]) -> list[Caption]:
        return captioner.caption_features(store, ids, attention=True, **_options(plan))

    return Evaluation(content, captions, records, failures, look)


def score_captions(references: Sequence[Sequence[str]], captions: Sequence[str]) -> dict[str, float]:
    """The figures that training keeps after each epoch: all scores that are quick, mean length, variety."""
    quick = [name for name in METRICS if name not in SLOW_METRICS]
    variety = describe(captions)
    return {
        **score(references, captions, metrics=quick),
        "mean_words": variety["mean_words"],
        "distinct": variety["distinct"],
    }


def judge(
    references: Sequence[Sequence[str]], captions: Sequence[str], *, known: Sequence[str] = ()
) -> dict[str, Any]:
    """Scores of captions, the same scores without looking at the picture, and warnings.

    A caption depends on its picture's features alone, so features shuffled among the pictures give the same
    captions in another order: they need not be generated twice. No picture keeps its own.

    Args:
        references: for each picture its captions by people.
        captions: for each picture the caption to judge.
        known: captions that were trained on; empty: unknown, then there is no `novel`.

    Returns:
        scores in per cent, `mean_words`, `distinct`, `novel`, `shuffled` (scores; None for a single
        picture) and `warnings` (sentences).
    """
    scores = score(references, captions)
    variety = describe(captions, known=known)
    if not known:
        del variety["novel"]
    chance = None
    if len(captions) > 1:
        quick = [name for name in METRICS if name not in SLOW_METRICS]
        chance = score(references, [captions[i] for i in shuffled(len(captions))], metrics=quick)
    figures = {name: round(value, 3) for name, value in {**scores, **variety}.items()}
    if chance is not None:
        chance = {name: round(value, 3) for name, value in chance.items()}
    return {**figures, "shuffled": chance, "warnings": suspicions(captions, scores, chance)}


def shuffled(count: int) -> np.ndarray:
    """A permutation of 0 … count - 1, always the same, that leaves nothing in its place."""
    order = np.random.default_rng(count).permutation(count)
    places = np.empty(count, int)
    places[order] = np.roll(order, 1)  # one cycle through all
    return places


def suspicions(
    captions: Sequence[str], scores: dict[str, float], chance: dict[str, float] | None
) -> list[str]:
    """Sentences about captions that do not depend on their pictures; none where all looks well."""
    if len(captions) < _FEW:
        return []
    found = []
    text, times = Counter(captions).most_common(1)[0]
    different = len(set(captions))
    if different < ALIKE_SHARE * len(captions):
        found.append(
            f"only {different} different captions for {len(captions)} pictures, the most frequent {times} "
            f'times ("{text}"): the model hardly looks'
        )
    if chance is not None and chance["cider"] >= CHANCE_SHARE * scores["cider"]:
        found.append(
            f"CIDEr is {scores['cider']:.1f}, and {chance['cider']:.1f} with the pictures shuffled: the "
            "captions say little about their own picture"
        )
    if empty := sum(not caption for caption in captions):
        found.append(f"{empty} captions are empty")
    return found


def training_captions(
    data: str | Path, *, format: str = "auto", made: Mapping[str, Sequence[str]] | None = None
) -> list[str]:
    """The captions of the training split of a data set, with or without its pictures; [] where none is known.

    Args:
        data: folder of the data set.
        format: of the data set.
        made: the splits that the training drew, where the set has none of its own.
    """
    try:
        listing = open_dataset(data, "train", format=format).listing
    except CaptionerError:  # a folder that holds one split only is none the worse for it
        return []
    names = listing.splits.get("train") or (made or {}).get("train", ())
    return [caption for name in names for caption in listing.captions.get(name, ())]


def _caption(
    captioner: Captioner,
    store: FeatureStore,
    records: Sequence[CaptionedImage],
    *,
    plan: Protocol,
    quiet: bool,
) -> tuple[list[Caption], float]:
    """Captions of all records, and how many a second after the graph was traced."""
    ids = [record.id for record in records]
    options = _options(plan)
    captioner.caption_features(store, ids[:1], **options)
    captions: list[Caption] = []
    began = time.perf_counter()
    with bar(len(ids), "pictures", "captions", quiet) as progress:
        for start in range(0, len(ids), plan.batch_size):
            captions += captioner.caption_features(store, ids[start : start + plan.batch_size], **options)
            progress.update(len(captions) - start)
    return captions, len(ids) / (time.perf_counter() - began)


def _options(plan: Protocol) -> dict[str, Any]:
    return {"beam": plan.beam, "max_words": plan.max_words, "batch_size": plan.batch_size}


def _setting(run: Run, split: Split, *, plan: Protocol, captioner: Captioner) -> dict[str, Any]:
    options = captioner.search_options(CaptionOptions(beam=plan.beam, max_words=plan.max_words))
    best = run.best or {}
    return {
        "split": plan.split + (" (drawn from the seed)" if split.made else ""),
        "beam": options.beam,
        "length_normalisation": options.length_normalisation,
        "max_words": options.max_words,
        "run": run.folder.resolve().name,
        "epoch": f"{best.get('phase', '')} {best.get('epoch', '')}".strip(),
        "encoder": captioner.encoder.name,
        "captioner": __version__,
    }


def _write(
    out: Path, scores: dict[str, Any], *, captions: Sequence[Caption], records: Sequence[CaptionedImage]
) -> None:
    lines = [
        json_text(
            {
                "id": record.id,
                "path": str(record.path),
                "caption": caption.text,
                "score": round(caption.score, 5),
            }
        )
        for record, caption in zip(records, captions, strict=True)
    ]
    # File names need not be Unicode: what is not becomes a JSON escape.
    text = "".join(line + "\n" for line in lines).encode("utf-8", "backslashreplace")
    atomic_write(out / PREDICTIONS, text)
    write_json(out / SCORES, scores)
