"""How good a run's captions are: a split is captioned, the captions are scored and held against chance.

In: a run folder, a data set, a split. Out: in a folder of the caller's,

    predictions.jsonl   {"id", "path", "caption", "score"}, a line a picture, in the split's order
    scores.json         figures in per cent, what they stand on, and what is suspicious about them

Where captions carry languages, each that the model knows is evaluated by itself, as `languages` of
scores.json; the figures above are their means.

Captions are generated word by word from the model's own words, never from the references. They and the scores
are the same at every run on the same machine; only `images_per_second` is not.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from captioner.config import DecodeConfig
from captioner.data.datasets import CaptionedImage, Split, languages_of, load_split, training_captions
from captioner.data.feature_cache import FeatureStore
from captioner.errors import ConfigError, DataError
from captioner.evaluation.caption_files import write_coco_results
from captioner.evaluation.metrics import protocol
from captioner.evaluation.scoring import Evaluation, score_with_chance, together
from captioner.inference.caption import Caption
from captioner.inference.captioner import Captioner
from captioner.inference.search_options import ALL_LANGUAGES, CaptionOptions
from captioner.models.feature_extraction import extract
from captioner.runs.run_folder import Run
from captioner.system import console
from captioner.system.files import atomic_write, json_text, write_json
from captioner.version import __version__

# What decides about the captions of a search, as the run or the caller says: printed beside the scores.
DECISIVE = tuple(field.name for field in dataclasses.fields(DecodeConfig))
PREDICTIONS, SCORES = "predictions.jsonl", "scores.json"


@dataclass(frozen=True)
class EvaluationOptions:
    """Which pictures are captioned, and how."""

    split: str = "test"  # train, dev, test or all
    format: str = "auto"  # of the data set
    decoding: CaptionOptions = CaptionOptions(batch_size=64)
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
    failures = [(str(failure.path), failure.reason) for failure in store.failures]
    found: dict[str, Evaluation] = {}
    languages = _languages(plan, records, captioner)
    if plan.coco_results and len(languages) > 1:
        raise ConfigError("COCO's form has one caption a picture: name one language with --language")
    for language in languages:
        spoken = [
            dataclasses.replace(record, captions=record.in_language(language), languages=())
            for record in records
            if record.in_language(language)
        ]
        if not spoken:
            raise DataError(f"{data}: no caption of {plan.split} is in the language {language}")
        source = _Source(opened, split, captioner, store, spoken, language)
        known = training_captions(data, format=plan.format, made=made, language=language)
        found[language] = _evaluate(source, plan, known=known, failures=failures, quiet=quiet)
    first, *others = found.values()
    whole = together(found) if others else first
    _write(Path(out), whole)
    if plan.coco_results:
        texts = [caption.text for caption in whole.captions]
        named = {record.id: text for record, text in zip(whole.records, texts, strict=True)}
        write_coco_results(plan.coco_results, named, split.numbers)
    return whole


@dataclass(frozen=True)
class _Source:
    """What is captioned, in one language."""

    run: Run
    split: Split
    captioner: Captioner
    store: FeatureStore
    records: list[CaptionedImage]  # with their captions in this language
    language: str  # "": nobody speaks of languages

    def options(self, plan: EvaluationOptions) -> CaptionOptions:
        """How it is captioned; a model without languages writes the one that it has."""
        spoken = self.language if self.captioner.vocabulary.languages else None
        return dataclasses.replace(plan.decoding, language=spoken or None)


def _languages(
    plan: EvaluationOptions, records: Sequence[CaptionedImage], captioner: Captioner
) -> Sequence[str]:
    """The languages to evaluate one after the other; "" where captions and model name none.

    Raises:
        ConfigError: the model does not know the one that was asked for.
    """
    known, wanted = captioner.vocabulary.languages, plan.decoding.language
    told = languages_of(records)
    if wanted and wanted != ALL_LANGUAGES:
        if known:
            captioner.vocabulary.start(wanted)
        return [wanted.lower()]
    if not told:
        return known[:1] or [""]
    both = [language for language in known or told if language in told]
    if not both or (not known and len(told) > 1):
        raise ConfigError(
            f"captions are in {', '.join(told)}, the model writes {', '.join(known) or 'one language'}: "
            "name the one to evaluate with --language"
        )
    return both


def _evaluate(
    source: _Source,
    plan: EvaluationOptions,
    *,
    known: Sequence[str],
    failures: list[tuple[str, str]],
    quiet: bool,
) -> Evaluation:
    """The evaluation of one language."""
    captioner, store, records = source.captioner, source.store, source.records
    wanted = source.options(plan)
    options = vars(wanted)
    captions, rate = _caption(captioner, store, records, options=options, quiet=quiet)
    references = [record.captions for record in records]
    scores = score_with_chance(references, [caption.text for caption in captions], known=known)
    content = {
        **scores,
        "images": len(records),
        "images_per_second": round(rate, 1),
        "failed": len(failures),
        "protocol": {
            **_setting(source, plan, wanted),
            **protocol(references),
            "novel": f"against the {len(known)} training captions beside it"
            if known
            else "no training captions known",
            "shuffled": "each caption judged against another picture's references",
            "images_per_second": "search from cached features; reading pictures and the CNN not counted",
        },
    }

    def look(ids: Sequence[str]) -> list[Caption]:
        return captioner.caption_features(store, ids, **{**options, "attention": True})

    return Evaluation(content, captions, records, failures, look)


def _caption(
    captioner: Captioner,
    store: FeatureStore,
    records: Sequence[CaptionedImage],
    *,
    options: Mapping[str, Any],
    quiet: bool,
) -> tuple[list[Caption], float]:
    """Captions of all records, and how many a second after the graph was traced."""
    ids = [record.id for record in records]
    captioner.caption_features(store, ids[:1], **options)
    captions: list[Caption] = []
    began = time.perf_counter()
    with console.progress_bar(len(ids), "pictures", "captions", quiet) as progress:
        for start in range(0, len(ids), size := options["batch_size"]):
            captions += captioner.caption_features(store, ids[start : start + size], **options)
            progress.update(len(captions) - start)
    return captions, len(ids) / (time.perf_counter() - began)


def _setting(source: _Source, plan: EvaluationOptions, wanted: CaptionOptions) -> dict[str, Any]:
    options = source.captioner.search_options(wanted)
    best = source.run.best_info() or {}
    return {
        "split": plan.split + (" (drawn from the seed)" if source.split.made else ""),
        **({"language": source.language} if source.language else {}),
        **{name: getattr(options, name) for name in DECISIVE},
        "run": source.run.folder.resolve().name,
        "epoch": f"{best.get('phase', '')} {best.get('epoch', '')}".strip(),
        "encoder": source.captioner.encoder.name,
        "captioner": __version__,
    }


def _write(out: Path, found: Evaluation) -> None:
    lines = [
        json_text(
            {
                "id": record.id,
                "path": str(record.path),
                "caption": caption.text,
                "score": round(caption.score, 5),
                **({"language": caption.language} if caption.language else {}),
            }
        )
        for record, caption in zip(found.records, found.captions, strict=True)
    ]
    # File names need not be Unicode: what is not becomes a JSON escape.
    text = "".join(line + "\n" for line in lines).encode("utf-8", "backslashreplace")
    atomic_write(out / PREDICTIONS, text)
    write_json(out / SCORES, found.scores)
