#!/usr/bin/env python3
"""How fast captions are written: pictures a second from cached features and from picture files.

    python scripts/bench_decode.py --run RUN --data FLICKR8K     a trained model on real pictures
    python scripts/bench_decode.py                               random weights on drawn ones, 12 words each
    python scripts/bench_decode.py --grow pictures vocabulary beam batch

Ours is `Captioner.caption_features` and `Captioner.caption`, greedy and with beam search. The textbook
(textbook.py) decodes greedily, picture by picture, always --words words; from files, it also reads each
picture and runs the CNN on it. The last line is JSON.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import material
import measure


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    material.add_arguments(parser)
    parser.set_defaults(pictures=320)
    parser.add_argument("--run", help="run folder of a trained captioner; default: random weights")
    parser.add_argument("--vocabulary", type=int, default=5000, help="V, without --run; default: %(default)s")
    parser.add_argument("--units", type=int, default=512, help="U, without --run; default: %(default)s")
    parser.add_argument("--beam", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--batch", type=int, default=32, help="pictures a search; default: %(default)s")
    parser.add_argument(
        "--words", type=int, default=12, help="a caption, but for --run; default: %(default)s"
    )
    parser.add_argument("--few", type=int, default=20, help="pictures of the textbook; default: %(default)s")
    parser.add_argument("--grow", nargs="+", default=[], choices=["pictures", "vocabulary", "beam", "batch"])
    quick = {"pictures": 6, "few": 2, "batch": 3, "units": 32, "vocabulary": 200, "words": 4, "size": 96}
    arguments = material.parse(parser, {**quick, "rounds": 1})
    if arguments.side:
        return measure.serve(SIDES[arguments.side], arguments)
    with tempfile.TemporaryDirectory() as scratch:
        more = ["--scratch", scratch]
        found = measure.take_turns(list(SIDES), arguments.rounds, more)
        tables = {axis: grow(axis, getattr(arguments, axis), more) for axis in arguments.grow}
    report(found["ours"], found["textbook"], arguments.beam, tables)
    return 0


def report(ours: measure.Measured, textbook: measure.Measured, beam: int, tables: dict[str, Any]) -> None:
    figures = []
    for name, key, its in (
        ("from features, greedy", "greedy", "features"),
        (f"from features, beam {beam}", "searched", "features"),
        (f"from files, beam {beam}", "files", "files"),
    ):
        figures += measure.compared(name, "pictures/s", ours, key, [("textbook greedy", textbook, its)])
    figures.append(measure.Figure("words a caption, greedy", ours.median("words"), "words"))
    more = {
        "images_per_second_greedy": ours.median("greedy"),
        "images_per_second_beam": ours.median("searched"),
        "images_per_second_files": ours.median("files"),
        "beam": beam,
        "textbook_images_per_second": textbook.median("features"),
        "textbook_images_per_second_files": textbook.median("files"),
        "words_per_caption": ours.median("words"),
        "growth": tables,
    }
    measure.report("decode", figures, ours=ours, more=more)


def grow(axis: str, start: int, more: list[str]) -> list[Any]:
    """1, 4 and 16 times; from a quarter of the usual size, beams from one."""
    first = 1 if axis == "beam" else max(1, start // 4)
    show = {name: "pictures/s" for name in ("greedy", "searched", "files")}
    return measure.growth(axis, [first, 4 * first, 16 * first], show, more=more)


def ours(arguments: argparse.Namespace) -> tuple[dict[str, Any], measure.Round]:
    """The library's captioner."""
    import numpy as np

    from captioner.data.images import read_image
    from captioner.inference.captioner import Captioner

    captioner = Captioner.load(arguments.run) if arguments.run else random_captioner(arguments)
    paths, what = material.picture_files(
        arguments.data, arguments.pictures, folder=Path(arguments.scratch) / "ours"
    )
    pixels = np.stack([read_image(path, size=captioner.encoder.size) for path in paths[:64]])
    features = captioner.encode(pixels)
    features = np.resize(features, (len(paths), *features.shape[1:]))  # (n, P, C) float16
    options: dict[str, Any] = {"batch_size": arguments.batch}
    if not arguments.run:
        options["max_words"] = arguments.words

    def rate(caption: Any, sources: Any, beam: int) -> tuple[float, list[Any]]:
        began = time.perf_counter()
        captions = caption(sources, beam=beam, **options)
        return len(captions) / (time.perf_counter() - began), captions

    def measured() -> dict[str, float]:
        greedy, captions = rate(captioner.caption_features, features, 1)
        return {
            "greedy": greedy,
            "searched": rate(captioner.caption_features, features, arguments.beam)[0],
            "files": rate(captioner.caption, paths, arguments.beam)[0],
            "words": float(np.mean([len(caption.words) for caption in captions])),
        }

    for beam in (1, arguments.beam):
        rate(captioner.caption_features, features[: arguments.batch], beam)
    rate(captioner.caption, paths[: arguments.batch], arguments.beam)
    model = f"run {Path(arguments.run).name}" if arguments.run else "random weights"
    sizes = f"U {captioner.decoder.config.units}, V {len(captioner.vocabulary)}"
    return {"data": what, "model": f"{model}, {sizes}, {arguments.batch} pictures a batch"}, measured


def random_captioner(arguments: argparse.Namespace) -> Any:
    """An untrained captioner of the benchmark's size whose captions do not end early."""
    from captioner.config import DecoderConfig
    from captioner.data.vocabulary import END
    from captioner.inference.captioner import Captioner
    from captioner.models.decoder import CaptionDecoder
    from captioner.models.device import find_device

    encoder = material.load_encoder(arguments)
    vocabulary = material.vocabulary_of([], arguments.vocabulary)
    decoder = CaptionDecoder(
        DecoderConfig(units=arguments.units),
        vocabulary_size=len(vocabulary),
        channels=encoder.channels,
        precision=find_device().precision("auto"),
    )
    weights = decoder.weights_dict()
    weights["word_bias"][END] = -100
    decoder.load_weights_dict(weights)
    return Captioner(encoder, decoder, vocabulary)


def textbook(arguments: argparse.Namespace) -> tuple[dict[str, Any], measure.Round]:
    """The textbook's captioner, untrained: its work does not depend on its weights."""
    import numpy as np
    import textbook as published

    size = arguments.size or 224
    folder = Path(arguments.scratch) / "textbook"
    paths, _ = material.picture_files(arguments.data, arguments.few, folder=folder)
    encode = published.compiled(published.cnn(size, arguments.weights))
    captioner = published.Captioner(arguments.vocabulary, arguments.units)

    def look(path: Path) -> Any:
        grid = encode(published.pixels(path, size)[np.newaxis]).numpy()[0]  # (h, w, C)
        return grid.reshape(-1, grid.shape[-1])

    features = [look(path) for path in paths]

    def measured() -> dict[str, float]:
        began = time.perf_counter()
        for cells in features:
            published.greedy(captioner, cells, arguments.words)
        between = time.perf_counter()
        for path in paths:
            published.greedy(captioner, look(path), arguments.words)
        ended = time.perf_counter()
        return {"features": len(paths) / (between - began), "files": len(paths) / (ended - between)}

    published.greedy(captioner, features[0], 2)
    return {}, measured


SIDES: dict[str, measure.Side] = {"ours": ours, "textbook": textbook}

if __name__ == "__main__":
    sys.exit(main())
