"""What the commands found, as lines of text for people. In: captions, scores, runs. Out: lines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from captioner.config import DecodeConfig
from captioner.inference.caption import Alternative, Caption
from captioner.runs.run_folder import Run
from captioner.system.console import duration

SCORES = ("bleu1", "bleu2", "bleu3", "bleu4", "rouge_l", "cider", "meteor", "meteor15", "spice")


def caption_lines(caption: Caption, *, named: bool) -> Iterator[str]:
    """The caption, after its path if `named`; below it the alternatives with their probabilities, if any."""
    if caption.by_language:
        if named:
            yield f"{caption.path}:"
        for language, own in caption.by_language.items():
            said, *others = caption_lines(own, named=False)
            yield f"{language}: {said}"
            yield from others
        return
    yield f"{caption.path}: {caption.text}" if named else caption.text
    if caption.alternatives:
        ranked: list[Caption | Alternative] = [caption, *caption.alternatives]
        for one in ranked:
            yield f"  {100 * one.probability:7.3f} %  {one.text}"


def score_lines(scores: dict[str, Any]) -> Iterator[str]:
    """What `scores.json` says, the scores beside those with the pictures shuffled; language by language."""
    if "languages" in scores:
        for own in scores["languages"].values():
            yield from score_lines(own)
            yield ""
        yield f"means of {len(scores['languages'])} languages: {scores_line(scores)}"
        return
    rule, chance = scores["protocol"], scores["shuffled"] or {}
    search = [f"{name.replace('_', ' ')} {rule[name]}" for name in vars(DecodeConfig()) if name in rule]
    spoken = f"language {rule['language']}, " if "language" in rule else ""
    how = f"; {', '.join(search)}" if search else ""  # captions from elsewhere say nothing of it
    yield f"{spoken}{rule['split']} split, {rule['references']}{how}"
    yield f"  {'':12}{'score':>7}" + (f"{'shuffled':>11}" if chance else "")
    for name in scores:
        if name in chance or name in SCORES:
            beside = f"{chance[name]:11.1f}" if name in chance else ""
            yield f"  {name:12}{scores[name]:7.1f}{beside}"
    novel = f", {scores['novel']:.0f} % not among the training captions" if "novel" in scores else ""
    yield f"{scores['mean_words']:.1f} words a caption, {scores['distinct']:.0f} % different ones{novel}"
    if "images_per_second" in scores:
        yield f"{scores['images_per_second']:.0f} pictures/s from cached features"


def info_lines(run: Run) -> Iterator[str]:
    """What a run is: encoder, decoder, phases, epochs, scores, checkpoints, sizes."""
    facts, config, history = run.info(), run.config, run.history()
    encoder, decoder, best = facts["encoder"], config.decoder, facts["best"]
    height, width = encoder["size"]
    rows, columns = encoder["grid"]
    grid = f"{height} x {width} pixels to {rows} x {columns} cells of {encoder['channels']}"
    spent = duration(sum(entry.get("seconds", 0) for entry in history))
    yield f"{facts['folder']} (made by captioner {facts['version']})"
    yield f"  encoder      {encoder['name']}, {grid}"
    yield f"  decoder      {decoder.units} units, {decoder.attention} attention, {facts['words']:,} words"
    if facts["languages"]:
        yield f"  languages    {', '.join(facts['languages'])}"
    if facts["splits"]:
        sizes = (f"{name} {count:,}" for name, count in facts["splits"].items())
        yield f"  splits       drawn from the seed: {', '.join(sizes)}"
    if facts["data"]:
        yield f"  data         {_data_line(facts['data'])}"
    if facts["start"]:
        yield f"  start        {' from '.join(_descent(facts['start']))}"
    if config.recipe:
        yield f"  recipe       {config.recipe}"
    yield f"  phases       {', '.join(f'{name} ({p.objective})' for name, p in config.phases.items())}"
    yield f"  epochs       {f'{len(history)} in {spent}' if history else 'none finished yet'}"
    if best:
        yield f"  best         {epoch_name(best)}: {scores_line(best)} on dev"
    yield f"  checkpoints  {', '.join(facts['checkpoints']) or 'none'}"
    yield f"  size         {facts['bytes'] / 1e6:.1f} MB in {len(facts['files'])} files"
    for entry in history:
        yield f"  {epoch_name(entry):20} {_losses(entry)}{scores_line(entry)}"


def _descent(start: Mapping[str, Any] | None) -> Iterator[str]:
    """The runs that a training came from, the nearest first.

    >>> start = {"run": "flickr8k", "epoch": "reward 4", "words": 9, "new_words": ["rex"], "start": None}
    >>> list(_descent(start))
    ['flickr8k (reward 4, 9 words, 1 more since)']
    """
    while start:
        words = f"{start['words']:,} words, {len(start['new_words']):,} more since"
        yield f"{start['run']} ({start['epoch']}, {words})"
        start = start["start"]


def epoch_name(entry: Mapping[str, Any]) -> str:
    """Phase and number of an epoch.

    >>> epoch_name({"phase": "decoder", "epoch": 3})
    'decoder epoch 3'
    """
    return f"{entry.get('phase', '')} epoch {entry.get('epoch', '?')}".strip()


def scores_line(entry: Mapping[str, Any]) -> str:
    """The scores of an epoch that matter most.

    >>> scores_line({"cider": 48.31, "bleu4": 19.9})
    'BLEU-4 19.9, CIDEr 48.3'
    """
    shown = (("BLEU-4", "bleu4"), ("CIDEr", "cider"), ("ROUGE-L", "rouge_l"))
    return ", ".join(f"{label} {entry[name]:.1f}" for label, name in shown if entry.get(name) is not None)


def _data_line(facts: Mapping[str, Any]) -> str:
    """The data set in a few words.

    >>> _data_line({"name": "scenes", "pictures": {"train": 4000}, "captions": {"train": 20000}})
    'scenes: train 4,000 pictures, 20,000 captions'
    """
    sizes = [(name, count, facts["captions"][name]) for name, count in facts["pictures"].items()]
    parts = (f"{name} {pictures:,} pictures, {captions:,} captions" for name, pictures, captions in sizes)
    return f"{facts['name']}: {'; '.join(parts)}"


def _losses(entry: Mapping[str, Any]) -> str:
    known = [part for part in ("train", "dev") if entry.get(f"{part}_loss") is not None]
    losses = ", ".join(f"{part} {entry[f'{part}_loss']:.3f}" for part in known)
    return f"{losses} nats per word; " if losses else ""
