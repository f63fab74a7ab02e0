"""Captions from elsewhere, scored like a run's own, side by side; and whether one model is the better one.

In: files of captions (see `caption_files`), a data set, a split. Out: a `Comparison`: for each file what
`evaluate` says of a run, over the pictures that all files describe; for each two files the differences with
their intervals. `write` puts it into `scores.json`. Loads no TensorFlow, and opens no picture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from captioner.data.datasets import CaptionedImage, load_split, training_captions
from captioner.data.vocabulary import words_of
from captioner.errors import DataError
from captioner.evaluation.bootstrap import CONFIDENCE, RESAMPLES, Difference, paired_bootstrap
from captioner.evaluation.caption_files import match_captions, read_captions
from captioner.evaluation.java_metrics import check_java, java_scores
from captioner.evaluation.metrics import protocol
from captioner.evaluation.scoring import Evaluation, score_with_chance
from captioner.inference.caption import Caption
from captioner.system.files import write_json
from captioner.version import __version__

SCORES = "scores.json"


@dataclass(frozen=True)
class Pair:
    """Two files, and how the first differs from the second in each metric."""

    first: str
    second: str
    differences: list[Difference]


@dataclass(frozen=True)
class Comparison:
    """What `compare` found, by names of the files."""

    evaluations: dict[str, Evaluation]  # all of the same records
    pairs: list[Pair]
    notes: list[str]  # what was left out, as sentences

    @property
    def records(self) -> list[CaptionedImage]:
        """The pictures that all files describe."""
        return next(iter(self.evaluations.values())).records

    def write(self, folder: str | Path) -> Path:
        """Writes `scores.json` into a folder and gives its path."""
        path = Path(folder) / SCORES
        content = {
            "files": {name: found.scores for name, found in self.evaluations.items()},
            "pairs": [asdict(pair) for pair in self.pairs],
            "notes": self.notes,
        }
        write_json(path, content)
        return path


def compare(
    files: Sequence[str | Path],
    data: str | Path,
    *,
    split: str = "test",
    format: str = "auto",
    java: bool = False,
    resamples: int = RESAMPLES,
) -> Comparison:
    """Scores files of captions against a data set, and compares each two of them.

    Only pictures that all files describe count, so that the figures can be compared; `notes` says how many of
    the split that leaves out. The pictures themselves need not be there.

    Args:
        files: as `caption_files.read_captions` reads them.
        data: folder of the data set, or its captions file.
        split: train, dev, test or all.
        format: of the data set.
        java: also METEOR 1.5 and SPICE.
        resamples: of the paired bootstrap.

    Raises:
        DataError: a file or the data cannot be read; no picture of the split is in all files.
        CaptionerError: `java`, and there is none.
    """
    if java:
        check_java()
    written = {name: read_captions(path) for name, path in _named(files).items()}
    found = load_split(data, split, format=format, pictures=False)
    names = [record.id for record in found.records]
    matched = {name: match_captions(captions, names, found.numbers) for name, captions in written.items()}
    for name, captions in matched.items():
        if not captions:
            raise DataError(
                f"{name}: describes no picture of {split} of {data}: it names “{next(iter(written[name]))}”, "
                f"…, the data set “{names[0]}”, …; is it of another split? (--split)"
            )
    records = [record for record in found.records if all(record.id in known for known in matched.values())]
    if not records:
        raise DataError(f"no picture of {split} is described by all of {', '.join(matched)}")
    known = training_captions(data, format=format)
    notes = _notes(matched, len(names), len(records), split)
    evaluations = {}
    for name, captions in matched.items():
        texts = [captions[record.id] for record in records]
        scores = score_with_chance([record.captions for record in records], texts, known=known)
        if java:
            extra = java_scores([record.captions for record in records], texts)
            scores = {**{k: round(v, 3) for k, v in extra.scores.items()}, **scores}
            notes += [extra.missing] if extra.missing and extra.missing not in notes else []
        setting = {"split": split + (" (drawn from the seed)" if found.made else ""), "run": name}
        evaluations[name] = _evaluation(scores, records, texts, known=known, setting=setting)
    pairs = [
        Pair(first, second, _differences(evaluations[first], evaluations[second], resamples))
        for first, second in combinations(evaluations, 2)
    ]
    return Comparison(evaluations, pairs, notes)


def verdicts(pair: Pair) -> list[str]:
    """What a pair's differences say, a sentence a metric, most telling metric first."""
    order = ("cider", "bleu4", "rouge_l")
    told = sorted(pair.differences, key=lambda d: order.index(d.metric) if d.metric in order else len(order))
    return [_verdict(pair, difference) for difference in told]


def _verdict(pair: Pair, found: Difference) -> str:
    span = f"{CONFIDENCE} %: {found.low:+.1f} to {found.high:+.1f}"
    if not found.certain:
        return f"{found.metric}: no difference that is more than chance, {found.difference:+.1f} ({span})"
    better, worse = (pair.first, pair.second) if found.difference > 0 else (pair.second, pair.first)
    share = found.better if found.difference > 0 else 1 - found.better
    return (
        f"{found.metric}: {better} is better than {worse}, {found.difference:+.1f} ({span}; so in "
        f"{100 * share:.1f} % of the resamples)"
    )


def _named(files: Sequence[str | Path]) -> dict[str, Path]:
    """The files by the shortest ends of their paths that tell them apart."""
    paths = list(dict.fromkeys(Path(file) for file in files))
    for count in range(1, 1 + max((len(path.parts) for path in paths), default=0)):
        names = ["/".join(path.parts[-count:]) for path in paths]
        if len(set(names)) == len(names):
            return dict(zip(names, paths, strict=True))
    raise DataError("no file of captions was named")


def _notes(matched: Mapping[str, Mapping[str, str]], total: int, used: int, split: str) -> list[str]:
    if used == total:
        return []
    lacking = [f"{name} describes {len(known):,}" for name, known in matched.items() if len(known) < total]
    return [
        f"{total - used:,} of the {total:,} pictures of {split} are left out, since not every file describes "
        f"them ({'; '.join(lacking)})"
    ]


def _evaluation(
    scores: dict[str, Any],
    records: list[CaptionedImage],
    texts: Sequence[str],
    *,
    known: Sequence[str],
    setting: Mapping[str, str],
) -> Evaluation:
    captions = [
        Caption(record.id, text, score=0.0, words=tuple(words_of(text)))
        for record, text in zip(records, texts, strict=True)
    ]
    by_name = {caption.path: caption for caption in captions}
    told = f"against the {len(known)} training captions beside it" if known else "no training captions known"
    content = {
        **scores,
        "images": len(records),
        "protocol": {
            **setting,
            "captioner": __version__,
            **protocol([record.captions for record in records]),
            "novel": told,
            "shuffled": "each caption judged against another picture's references",
        },
    }
    return Evaluation(content, captions, records, [], lambda ids: [by_name[name] for name in ids])


def _differences(first: Evaluation, second: Evaluation, resamples: int) -> list[Difference]:
    references = [record.captions for record in first.records]
    texts = [[caption.text for caption in found.captions] for found in (first, second)]
    return paired_bootstrap(references, *texts, resamples=resamples)
