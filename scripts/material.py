"""What the benchmarks run on: pictures and captions that are given, or drawn where none are.

Without `--data`, features are random numbers of the right shape, captions random words as many as people
write, pictures the project's own scenes. Every function says what it took.
"""

from __future__ import annotations

import argparse
import itertools
import string
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import measure  # noqa: F401  # first: it makes the checkout importable
import numpy as np
from PIL import Image

from captioner.data.datasets import CaptionedImage, load_split
from captioner.data.synthetic.scenes import draw, scenes
from captioner.data.vocabulary import Vocabulary, words_of

DISTINCT = 32  # pictures drawn, or features drawn at random; the rest are variations


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What every benchmark can be given."""
    parser.add_argument("--data", metavar="ROOT", help="captioned pictures; default: drawn ones")
    parser.add_argument("--weights", metavar="FILE", help="of the encoder; default: random ones, as fast")
    parser.add_argument("--encoder", default="mobilenet_v2", help="default: %(default)s")
    parser.add_argument("--size", type=int, default=0, help="of its input in pixels; default: its own")
    parser.add_argument("--pictures", type=int, default=640, help="how many; default: %(default)s")
    parser.add_argument("--rounds", type=int, default=5, help="measurements a side; default: %(default)s")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that it runs, not how fast")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--scratch", help=argparse.SUPPRESS)


def parse(parser: argparse.ArgumentParser, quick: dict[str, Any]) -> argparse.Namespace:
    """The arguments; with `--quick` other defaults."""
    if parser.parse_known_args()[0].quick:
        parser.set_defaults(**quick)
    return parser.parse_args()


def load_encoder(arguments: argparse.Namespace) -> Any:
    """The encoder asked for. Without weights random ones take the way of trained ones, through a file."""
    import keras

    from captioner.models import encoder as encoders

    spec = encoders.ENCODERS.get(arguments.encoder)
    if arguments.weights or spec is None or not spec.pretrained:
        weights = arguments.weights or "none"
        return encoders.load_encoder(arguments.encoder, weights=weights, size=arguments.size)
    keras.utils.set_random_seed(0)  # every side gets the same
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "random.weights.h5"
        spec.build(None, arguments.size or spec.size).save_weights(str(file))
        return encoders.load_encoder(arguments.encoder, weights=file, size=arguments.size)


class Material(NamedTuple):
    """What a decoder is trained on."""

    records: list[CaptionedImage]
    source: Any  # of their features: has `read(ids)`
    vocabulary: Vocabulary
    longest: int  # words of the longest caption of the whole set
    what: str  # it is, for people


def captioned(arguments: argparse.Namespace, encoder: Any) -> Material:
    """Captioned pictures of the data set that is given, or drawn ones, with their features."""
    if not arguments.data:
        records = drawn_captions(arguments.pictures, longest=arguments.longest)
        shape = (encoder.num_cells, encoder.channels)
        source = RandomFeatures([record.id for record in records], shape)
        what = f"random features {shape} in memory and random captions of {len(records)} pictures"
        vocabulary = vocabulary_of(records, arguments.vocabulary)
        return Material(records, source, vocabulary, arguments.longest, what)
    from captioner.models.feature_extraction import extract

    everyone = load_split(arguments.data, "train").records
    store = extract(everyone[: arguments.pictures], encoder)
    records = [record for record in everyone[: arguments.pictures] if record.id in store]
    what = f"cached features of {encoder.name}{'' if arguments.weights else ' (random weights)'}"
    what += f" and captions of {len(records)} pictures of {Path(arguments.data).name}"
    longest = max(len(words_of(caption)) for record in everyone for caption in record.captions)
    return Material(records, store, vocabulary_of(everyone, arguments.vocabulary), longest, what)


def drawn_captions(pictures: int, *, longest: int) -> list[CaptionedImage]:
    """Five captions a picture of random words, with lengths as in Flickr8k: 10.8 words on average."""
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.gamma(8.0, 1.35, size=(pictures, 5)).round().astype(int), 2, longest)
    lengths[0, 0] = longest  # some caption always is
    words = made_words(2000)
    return [
        CaptionedImage(f"{i}", Path(f"{i}"), tuple(" ".join(rng.choice(words, size=n)) for n in row))
        for i, row in enumerate(lengths)
    ]


def made_words(count: int) -> list[str]:
    """Words that no language has."""
    letters = itertools.product(string.ascii_lowercase, repeat=3)
    return ["xq" + "".join(three) for three in itertools.islice(letters, count)]


def vocabulary_of(records: Sequence[CaptionedImage], size: int) -> Vocabulary:
    """Of exactly `size` words: the most frequent of the captions, and made ones where they are too few."""
    found = Vocabulary.build([c for record in records for c in record.captions], max_size=size)
    known = set(found.words)
    more = (word for word in made_words(26**3) if word not in known)
    return Vocabulary([*found.words, *itertools.islice(more, size - len(found))])


class RandomFeatures:
    """A source of features without a CNN: half of the numbers are zero, as after a ReLU.

    Args:
        ids: of the pictures.
        shape: (P, C) of one.
    """

    def __init__(self, ids: Sequence[str], shape: tuple[int, int]) -> None:
        rng = np.random.default_rng(0)
        self._rows = np.maximum(rng.normal(size=(DISTINCT, *shape)), 0).astype(np.float16)
        self._place = {name: i % DISTINCT for i, name in enumerate(ids)}

    def read(self, ids: Sequence[str]) -> np.ndarray:
        """(n, P, C) float16, a copy."""
        return self._rows[[self._place[name] for name in ids]]


def picture_files(data: str | None, count: int, *, folder: Path, size: int = 0) -> tuple[list[Path], str]:
    """Picture files, and what they are.

    Args:
        data: data set whose training pictures are taken; None: drawn ones.
        count: of pictures, at most.
        folder: for files that are made.
        size: longer side in pixels; 0: as given (drawn: 224).
    """
    given = [record.path for record in load_split(data, "train").records[:count]] if data else []
    if given and not size:
        return given, f"{len(given)} pictures of {Path(str(data)).name}"
    folder.mkdir(parents=True, exist_ok=True)
    side = size or 224
    paths = [folder / f"{number:05d}.jpg" for number in range(len(given) or count)]
    pictures = (_resized(path, side) for path in given) if given else _drawn(count, side)
    for path, picture in zip(paths, pictures, strict=True):
        picture.save(path, quality=90)
    kind = f"pictures of {Path(str(data)).name}, resaved with" if given else "drawn JPEGs of"
    return paths, f"{len(paths)} {kind} {side} pixels"


def _resized(path: Path, side: int) -> Image.Image:
    with Image.open(path) as picture:
        shape = [round(side * edge / max(picture.size)) for edge in picture.size]
        return picture.convert("RGB").resize((shape[0], shape[1]), Image.Resampling.BICUBIC)


def _drawn(count: int, side: int) -> Iterator[Image.Image]:
    """Scenes with a photograph's grain, so that they take as long to decode; no two files alike."""
    grain = np.random.default_rng(0).normal(0, 8, size=(side, side, 3))
    some = [np.asarray(draw(*scene, size=side)) for scene in scenes("train", min(DISTINCT, count))]
    for number in range(count):
        noise = np.roll(grain, (number // side, number), axis=(0, 1))
        array = np.clip(some[number % len(some)] + noise, 0, 255).astype(np.uint8)
        yield Image.fromarray(array)
