"""How good a run's captions are: a split is captioned, the captions are scored and held against chance.

In: a run folder, a data set, a split. Out: in a folder of the caller's,

    predictions.jsonl   {"id", "path", "caption", "score"}, a line a picture, in the split's order
    scores.json         figures in per cent, what they stand on, and what is suspicious about them

Captions are generated word by word from the model's own words, never from the references. They and the scores
are the same at every run on the same machine; only `images_per_second` is not.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from captioner.data.datasets import CaptionedImage, Split, load_split, training_captions
from captioner.errors import DataError
from captioner.evaluation.caption_files import write_coco_results
from captioner.evaluation.metrics import protocol
from captioner.evaluation.scoring import Evaluation, score_with_chance
from captioner.inference.caption import Caption, CaptionOptions
from captioner.inference.captioner import Captioner
from captioner.models.feature_extraction import FeatureStore, extract
from captioner.runs.run_folder import Run
from captioner.system import console
from captioner.system.files import atomic_write, json_text, write_json
from captioner.version import __version__

PREDICTIONS, SCORES = "predictions.jsonl", "scores.json"


@dataclass(frozen=True)
class EvaluationOptions:
    """Which pictures are captioned, and how; None: as the run's configuration says."""

    split: str = "test"  # train, dev, test or all
    format: str = "auto"  # of the data set
    beam: int | None = None  # hypotheses kept; 1: greedy
    max_words: int | None = None  # a caption ends here at the latest
    batch_size: int = 64  # pictures searched at a time
    coco_results: str | Path | None = None  # also the captions in a file as the COCO server takes it


def evaluate(
    run: str | Path,
    data: str | Path,
    out: str | Path,
    *,
    plan: EvaluationOptions | None = None,
    quiet: bool = False,
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
    plan = plan or EvaluationOptions()
    opened = Run.open(run)
    config, made = opened.config, opened.seeded_splits
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
    scores = score_with_chance(references, [caption.text for caption in captions], known=known)
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
    if plan.coco_results:
        texts = {record.id: caption.text for record, caption in zip(records, captions, strict=True)}
        write_coco_results(plan.coco_results, texts, split.numbers)

    def look(ids: Sequence[str]) -> list[Caption]:
        return captioner.caption_features(store, ids, attention=True, **_options(plan))

    return Evaluation(content, captions, records, failures, look)


def _caption(
    captioner: Captioner,
    store: FeatureStore,
    records: Sequence[CaptionedImage],
    *,
    plan: EvaluationOptions,
    quiet: bool,
) -> tuple[list[Caption], float]:
    """Captions of all records, and how many a second after the graph was traced."""
    ids = [record.id for record in records]
    options = _options(plan)
    captioner.caption_features(store, ids[:1], **options)
    captions: list[Caption] = []
    began = time.perf_counter()
    with console.progress_bar(len(ids), "pictures", "captions", quiet) as progress:
        for start in range(0, len(ids), plan.batch_size):
            captions += captioner.caption_features(store, ids[start : start + plan.batch_size], **options)
            progress.update(len(captions) - start)
    return captions, len(ids) / (time.perf_counter() - began)


def _options(plan: EvaluationOptions) -> dict[str, Any]:
    return {"beam": plan.beam, "max_words": plan.max_words, "batch_size": plan.batch_size}


def _setting(run: Run, split: Split, *, plan: EvaluationOptions, captioner: Captioner) -> dict[str, Any]:
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
