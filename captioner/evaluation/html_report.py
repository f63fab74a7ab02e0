"""An evaluation as one page that opens anywhere, offline: scores, curves, pictures, words, mistakes.

In: what `evaluate` found and the run's history, or what `compare` found. Out: one HTML file without any
address in it: pictures and charts are part of it, its policy forbids the browser to fetch anything. Light or
dark as the system is.
"""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from PIL import Image

from captioner.data.datasets import CaptionedImage
from captioner.data.images import read_image
from captioner.data.vocabulary import join_words, words_of
from captioner.errors import ImageError
from captioner.evaluation.bootstrap import CONFIDENCE
from captioner.evaluation.compare import Comparison, Pair
from captioner.evaluation.error_analysis import Count, Mistakes, find_mistakes, word_shares
from captioner.evaluation.metrics import per_caption
from captioner.evaluation.scoring import Evaluation
from captioner.inference.caption import Caption
from captioner.runs.run_folder import Run
from captioner.system.files import atomic_write
from captioner.visualization.attention_overlay import attention_light
from captioner.visualization.history import LABELS, LOSSES
from captioner.visualization.svg_charts import bar_chart, line_chart, nice_ticks

PICTURES = 6  # in each of best, typical, worst
ROWS = 10  # of a table
THUMBS = 5  # beside a row
WORDS = 24  # in the chart of words
PICTURE_PIXELS, THUMB_PIXELS = 480, 132  # longest sides
_MAP_PIXELS = 28  # longer side of a map of attention; the browser makes it as large as the picture
DEV_SCORES = ("cider", "bleu4", "rouge_l", "meteor")  # in the curves
_NAMES = {"bleu1": "BLEU-1", "bleu2": "BLEU-2", "bleu3": "BLEU-3", "bleu4": "BLEU-4", **LABELS}
_NAMES |= {"meteor15": "METEOR 1.5", "spice": "SPICE"}
_SHOWN = ("cider", "bleu4", "rouge_l", "meteor15", "spice", "meteor", "bleu1", "bleu2", "bleu3")
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
_KINDS = {
    "best": "where caption and people agree most",
    "typical": "around the middle: what to expect",
    "worst": "where they agree least; the surest first",
}


def write_review(found: Evaluation, run: str | Path, path: str | Path) -> None:
    """Writes the page.

    Args:
        found: by `evaluate`.
        run: the run folder that was evaluated.
        path: of the page.

    Raises:
        CaptionerError: the run is gone, the disk is full.
    """
    parts = [
        _header(found),
        *_figures(found),
        *_training(Run.open(run, weights=False).history()),
        *([] if found.languages else _pictures(found)),
    ]
    for language, own in found.languages.items():
        parts += [f'<section class="language" lang="{escape(language)}"><h2>{escape(language)}</h2>']
        parts += [*_figures(own), *_pictures(own), "</section>"]
    parts += _unreadable(found.failures)
    atomic_write(path, _page(f"{found.scores['protocol']['run']}, captions reviewed", "".join(parts)))


def write_comparison(found: Comparison, path: str | Path) -> None:
    """Writes the page of captions that came in files: of one as of a run, of several side by side.

    Args:
        found: by `compare`.
        path: of the page.

    Raises:
        CaptionerError: the disk is full.
    """
    names = list(found.evaluations)
    title = names[0] if len(names) == 1 else "Captions side by side"
    split = next(iter(found.evaluations.values())).scores["protocol"]["split"]
    parts = [
        f'<header><p class="mark">captioner <i></i></p><h1>{escape(title)}</h1>'
        f"<p>{len(found.records):,} pictures of the {escape(split)} split.</p></header>",
        *(f'<p class="warning">{escape(note)}</p>' for note in found.notes),
        *_pairs(found),
    ]
    references = [record.captions for record in found.records]
    scores = {}
    for name, evaluation in found.evaluations.items():
        captions = [caption.text for caption in evaluation.captions]
        scores[name] = per_caption(references, captions, metrics=["cider"])["cider"]
        of = "" if len(names) == 1 else f" of {name}"
        parts += _figures(evaluation, of)
        if len(names) == 1:
            parts += [*_gallery(evaluation, scores[name]), *_spread(references, captions, scores[name])]
        parts += _mistakes(evaluation, find_mistakes(references, captions), of)
    for pair in found.pairs:
        parts += _where_they_differ(found, pair, scores)
    atomic_write(path, _page(f"{title}, captions scored", "".join(parts)))


def _pairs(found: Comparison) -> Iterator[str]:
    """Each two files, and whether one is better: a table of differences with their intervals."""
    for pair in found.pairs:
        yield (
            f"<section><h2>{escape(pair.first)} <small>against</small> {escape(pair.second)}</h2>"
            '<table class="facts"><tr><th>score</th><td>difference</td>'
            f"<td>{CONFIDENCE} % of resamples</td><td>better</td></tr>"
        )
        for difference in pair.differences:
            better = "no difference that is more than chance"
            if difference.certain:
                better = pair.first if difference.difference > 0 else pair.second
            yield (
                f"<tr><th>{escape(_NAMES.get(difference.metric, difference.metric))}</th>"
                f"<td>{difference.difference:+.1f}</td>"
                f"<td>{difference.low:+.1f} to {difference.high:+.1f}</td>"
                f"<td>{escape(better)}</td></tr>"
            )
        yield (
            "</table><p>Paired bootstrap: as many pictures are drawn anew, with replacement, the same for "
            "both files, and scored each time.</p></section>"
        )


def _where_they_differ(found: Comparison, pair: Pair, scores: Mapping[str, Sequence[float]]) -> Iterator[str]:
    """Pictures that one file describes much better than the other, with both captions."""
    first, second = np.asarray(scores[pair.first]), np.asarray(scores[pair.second])
    order = np.argsort(second - first, kind="stable")
    yield "<section><h2>Where they differ most</h2>"
    for name, members in ((pair.first, order), (pair.second, order[::-1])):
        better = [i for i in members[:PICTURES] if (first[i] > second[i]) == (name == pair.first)]
        better = [i for i in better if first[i] != second[i]]
        yield f'<h3 class="kind">{escape(name)} <small>is better here</small></h3><div class="wall">'
        for i in better:
            captions = {side: found.evaluations[side].captions[i] for side in (pair.first, pair.second)}
            cider = ", ".join(f"{scores[side][i]:.0f}" for side in captions)
            yield _exhibit(found.records[i], captions, f"CIDEr {cider}")
        yield "</div>"
    yield "</section>"


def _pictures(found: Evaluation) -> Iterator[str]:
    """What there is to see in one language."""
    references = [record.captions for record in found.records]
    captions = [caption.text for caption in found.captions]
    scores = per_caption(references, captions, metrics=["cider"])["cider"]
    yield from _gallery(found, scores)
    yield from _spread(references, captions, scores)
    yield from _mistakes(found, find_mistakes(references, captions))


def ranked(found: Evaluation, scores: Sequence[float], count: int) -> dict[str, list[int]]:
    """Which pictures to show as best, typical and worst; no picture twice, no caption twice in a kind.

    Among equally bad ones the worst is what the model was surest of.
    """
    sure = [caption.score for caption in found.captions]
    middle = median(scores)
    orders = {
        "best": sorted(range(len(scores)), key=lambda i: (-scores[i], -sure[i])),
        "worst": sorted(range(len(scores)), key=lambda i: (scores[i], -sure[i])),
        "typical": sorted(range(len(scores)), key=lambda i: (abs(scores[i] - middle), -sure[i])),
    }
    most = min(count, max(1, len(scores) // 3))
    chosen: dict[str, list[int]] = {}
    taken: set[int] = set()
    for kind, order in orders.items():
        texts: set[str] = set()
        chosen[kind] = []
        for place in order:
            if len(chosen[kind]) < most and place not in taken and found.captions[place].text not in texts:
                chosen[kind].append(place)
                texts.add(found.captions[place].text)
        taken.update(chosen[kind])
    return {kind: chosen[kind] for kind in _KINDS}


def _header(found: Evaluation) -> str:
    rule = found.scores["protocol"]
    epoch = f", {escape(rule['epoch'].replace(' ', ' epoch '))}" if rule["epoch"] else ""
    return (
        f'<header><p class="mark">captioner <i></i></p><h1>{escape(rule["run"])}</h1>'
        f"<p>{found.scores['images']:,} pictures of the {escape(rule['split'])} split, described by "
        f"{escape(rule['encoder'])} and its decoder{epoch}, beam {rule['beam']}.</p></header>"
    )


def _figures(found: Evaluation, of: str = "") -> Iterator[str]:
    """The scores, what is suspicious about them, and what they stand on."""
    scores, rule = found.scores, found.scores["protocol"]
    chance = scores["shuffled"] or {}
    yield f'<section class="scores"><h2>Scores{escape(of)}</h2><div class="figures">'
    for name in _SHOWN:
        if name in scores:
            beside = f"{chance[name]:.1f} by chance" if name in chance else "&nbsp;"
            yield (
                f'<div class="figure {name}"><b>{scores[name]:.1f}</b><span>{_NAMES[name]}</span>'
                f"<small>{beside}</small></div>"
            )
    novel = f", {scores['novel']:.0f}&nbsp;% not among the training captions" if "novel" in scores else ""
    yield (
        f"</div><p>{scores['mean_words']:.1f} words a caption; {scores['distinct']:.0f}&nbsp;% different "
        f"ones{novel}. <em>By chance</em>: the same captions, each judged against another picture.</p>"
    )
    for warning in scores["warnings"]:
        yield f'<p class="warning">{escape(warning)}</p>'
    yield '<details><summary>How these numbers came about</summary><table class="facts">'
    for name, value in rule.items():
        label = _NAMES.get(name, name.replace("_", " "))
        yield f"<tr><th>{escape(label)}</th><td>{escape(str(value))}</td></tr>"
    yield "</table></details></section>"


def _training(history: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    loss = line_chart(history, {key: LABELS[key] for key in LOSSES}, title="loss by epoch")
    dev = line_chart(history, {key: LABELS[key] for key in DEV_SCORES}, title="dev scores by epoch")
    charts = [("Loss, nats per word", loss), ("Scores on dev, per cent", dev)]
    if any(chart for _, chart in charts):
        yield '<section id="training"><h2>Training</h2><div class="charts">'
        yield from (f"<figure><h3>{name}</h3>{chart}</figure>" for name, chart in charts if chart)
        yield "</div></section>"


def _gallery(found: Evaluation, scores: Sequence[float]) -> Iterator[str]:
    chosen = ranked(found, scores, PICTURES)
    places = [place for kind in chosen for place in chosen[kind]]
    again = found.recaption_with_attention([found.records[place].id for place in places])
    looks = dict(zip(places, again, strict=True))
    yield (
        '<section id="pictures"><h2>Pictures</h2><p>Touch a word to see where the model looked for it. '
        "<u>Underlined</u>: no reference has the word. <mark>Marked</mark>: the caption has it, too.</p>"
    )
    for kind, members in chosen.items():
        yield f'<h3 class="kind" id="{kind}">{kind.capitalize()} <small>{_KINDS[kind]}</small></h3>'
        yield '<div class="wall">'
        for place in members:
            caption = (
                looks[place] if looks[place].text == found.captions[place].text else found.captions[place]
            )
            yield _exhibit(found.records[place], {"": caption}, f"CIDEr {scores[place]:.0f}")
        yield "</div>"
    yield "</section>"


def _spread(
    references: Sequence[Sequence[str]], captions: Sequence[str], scores: Sequence[float]
) -> Iterator[str]:
    """Histograms: scores of the pictures, lengths, and which words are written how often."""
    yield '<section id="spread"><h2>Lengths, words, scores</h2><p class="legend">'
    yield '<span class="key-0">captions</span> <span class="key-1">references</span></p><div class="charts">'
    yield _figure("Words in a caption, per cent of all", _lengths(references, captions))
    yield _figure("Pictures by their CIDEr", _score_bars(scores))
    yield "</div>"
    rows = word_shares(references, captions, WORDS)
    most = max((max(people, model) for _, people, model in rows), default=0) or 1
    yield '<h3>Words that say something, per cent of captions that have them</h3><div class="words">'
    for word, people, model in rows:
        bars = "".join(
            f'<i class="bar-{number}" style="width:{100 * share / most:.1f}%"></i><b>{100 * share:.1f}</b>'
            for number, share in enumerate((model, people))
        )
        yield f'<div class="word"><span dir="auto">{escape(word)}</span><div>{bars}</div></div>'
    yield "</div></section>"


def _lengths(references: Sequence[Sequence[str]], captions: Sequence[str]) -> str:
    model = Counter(len(words_of(caption)) for caption in captions)
    people = Counter(len(words_of(text)) for texts in references for text in texts)
    longest = int(np.percentile([*people.elements(), *model.elements()], 99)) + 1  # one rambling text aside
    low = min((*people, *model), default=0)
    span = range(low, max(longest, low) + 1)
    series = {"captions": _shares(model, span), "references": _shares(people, span)}
    names = [str(size) for size in span[:-1]] + [f"{span[-1]}+"]
    return bar_chart(names, series, title="words in a caption", unit="%")


def _shares(sizes: Counter[int], span: range) -> list[float]:
    """Per cent of each size; what is beyond the last counts with it."""
    held: Counter[int] = Counter()
    for size, count in sizes.items():
        held[min(size, span[-1])] += count
    return [100 * held[size] / max(1, sizes.total()) for size in span]


def _score_bars(scores: Sequence[float]) -> str:
    ticks = nice_ticks(0, max(100.0, float(np.percentile(scores, 98))))
    top, edges = ticks[-1], np.linspace(0, ticks[-1], 2 * len(ticks) - 1)
    counts, _ = np.histogram(np.clip(scores, 0, top), edges)
    names = [f"{edge:.0f}" for edge in edges[:-2]] + [f"{edges[-2]:.0f}+"]
    return bar_chart(names, {"pictures": counts.tolist()}, title="CIDEr of the pictures")


def _mistakes(found: Evaluation, mistakes: Mistakes, of: str = "") -> Iterator[str]:
    yield f'<section class="mistakes"><h2>Frequent mistakes{escape(of)}</h2>'
    if mistakes.confusions:
        yield "<h3>Said one thing, people saw another</h3><p>Words that no reference of the picture has, and "
        yield 'what most of its references say.</p><div class="swaps">'
        for confusion in mistakes.confusions[:ROWS]:
            said, instead = escape(confusion.hypothesis), escape(confusion.reference)
            yield (
                f'<div class="swap"><p><u dir="auto">{said}</u> <span>for</span> '
                f'<mark dir="auto">{instead}</mark> <small>{len(confusion.pictures)} pictures</small></p>'
                f'<div class="thumbs">{_thumbs(found, confusion.pictures)}</div></div>'
            )
        yield "</div>"
    yield '<div class="tables">'
    yield from _table("Words that nobody said", mistakes.invented, "captions with the word")
    yield from _table("Words that were missed", mistakes.missed, "pictures where most people say it")
    yield from _table("The same caption again and again", mistakes.repeated, "")
    yield "</div>"
    if mistakes.repetitive:
        first = found.captions[mistakes.repetitive[0]].text
        yield f"<p>{len(mistakes.repetitive)} captions repeat themselves, such as “{escape(first)}”.</p>"
    yield "</section>"


def _thumbs(found: Evaluation, pictures: Sequence[int]) -> str:
    shown = pictures[:THUMBS]
    return "".join(
        _thumbnail(found.records[i], f"{found.records[i].id}: {found.captions[i].text}") for i in shown
    )


def _table(title: str, counts: Sequence[Count], of: str) -> Iterator[str]:
    if not counts:
        return
    yield f"<div><h3>{title}</h3><table>"
    for count in counts[:ROWS]:
        share = f' <small title="{of}">of {count.of:,}</small>' if of else ""
        yield f'<tr><th dir="auto">{escape(count.text) or "<em>no words</em>"}</th>'
        yield f"<td>{count.times:,}{share}</td></tr>"
    yield "</table></div>"


def _unreadable(failures: Sequence[tuple[str, str]]) -> Iterator[str]:
    if failures:
        yield f"<section><h2>Left out</h2><p>{len(failures)} pictures could not be read.</p><table>"
        for path, reason in failures[: 2 * ROWS]:
            yield f"<tr><th>{escape(Path(path).name)}</th><td>{escape(reason)}</td></tr>"
        yield "</table></section>"


def _figure(title: str, chart: str) -> str:
    return f"<figure><h3>{title}</h3>{chart}</figure>"


def _page(title: str, body: str) -> str:
    folder = Path(__file__).parent / "assets"
    style = (folder / "review.css").read_text(encoding="utf-8")
    script = (folder / "review.js").read_text(encoding="utf-8")
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="generator" content="captioner">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<style>{style}</style></head><body><main>{body}</main><script>{script}</script></body></html>\n"
    )


# One captioned picture: what was said of it, and where the model looked. It is in the page once, however
# often it is shown: small maps lie over it.


def _exhibit(record: CaptionedImage, captions: Mapping[str, Caption], score: str) -> str:
    """The picture beside its captions, the references, and a strip of the places that each word looked at.

    Args:
        record: the picture.
        captions: by whose they are; "" where there is one only.
        score: what stands below.
    """
    picture = _picture(record)
    if picture is None:
        return ""
    ratio = picture.width / picture.height
    said = "".join(
        f'<p class="caption" dir="auto">{"".join(_marked_caption(record, caption))}'
        f"{f' <small>{escape(name)}</small>' if name else ''}</p>"
        for name, caption in captions.items()
    )
    caption = next(iter(captions.values()))
    lit = "" if caption.attention is None else "".join(_strip(caption.words, caption.attention))
    strip = f'<div class="strip">{lit}</div>' if lit else ""
    return (
        f'<article class="exhibit" style="--p:url({_uri(picture, "JPEG")});--ratio:{ratio:.4f}">'
        f'<div class="look" role="img" aria-label="{escape(record.id)}"><i></i><b></b></div>'
        f'<div class="said">{said}'
        f'<ul class="told" dir="auto">{"".join(_marked_references(record, caption))}</ul>'
        f'<p class="name"><span>{escape(record.id)}</span> <span>{escape(score)}</span></p>'
        f"</div>{strip}</article>"
    )


def _thumbnail(record: CaptionedImage, title: str) -> str:
    """A small picture with a tooltip; "" where it cannot be read."""
    picture = _picture(record, THUMB_PIXELS)
    if picture is None:
        return ""
    said = escape(title)
    return f'<img src="{_uri(picture, "JPEG")}" alt="{said}" title="{said}">'


def _marked_caption(record: CaptionedImage, caption: Caption) -> Iterator[str]:
    """The caption, with the words marked that nobody else said."""
    known = {word for text in record.captions for word in words_of(text)}
    before = ""
    for word in caption.words:
        if before:
            yield join_words([before, word])[len(before) : -len(word)]
        yield escape(word) if word in known else f"<u>{escape(word)}</u>"
        before = word
    if not caption.words:
        yield "<em>no words</em>"


def _marked_references(record: CaptionedImage, caption: Caption) -> Iterator[str]:
    """The references, with the words marked that the caption has, too."""
    own = set(caption.words)
    for text in record.captions:
        line = ""
        for piece in text.split():
            words = words_of(piece)
            said = f"<mark>{escape(piece)}</mark>" if words and own.issuperset(words) else escape(piece)
            line += f" {said}" if words and line else said  # a full stop stands close, not as in "field ."
        yield f"<li>{line}</li>"


def _strip(words: Sequence[str], attention: np.ndarray) -> Iterator[str]:
    for word, weights in zip(words, attention, strict=True):
        style = f'style="--m:url({_uri(_map(weights), "PNG")})"'
        yield f'<button type="button" class="tile" {style}><i></i><b></b><span>{escape(word)}</span></button>'


def _map(weights: np.ndarray) -> Image.Image:
    """Weights (h, w) as an opacity: full where they are highest, smooth between."""
    height, width = weights.shape
    scale = _MAP_PIXELS / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    alpha = (255 * attention_light(weights, size)).astype(np.uint8)
    return Image.merge("LA", [Image.new("L", size), Image.fromarray(alpha)])


def _picture(record: CaptionedImage, most: int = PICTURE_PIXELS) -> Image.Image | None:
    try:
        picture = Image.fromarray(read_image(record.path))
    except ImageError:  # gone since it was captioned
        return None
    picture.thumbnail((most, most))
    return picture


def _uri(picture: Image.Image, format: str) -> str:
    file = io.BytesIO()
    picture.save(file, format, **({"quality": 82} if format == "JPEG" else {"optimize": True}))
    data = base64.b64encode(file.getvalue()).decode("ascii")
    return f"data:image/{format.lower()};base64,{data}"
