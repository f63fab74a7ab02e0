#!/usr/bin/env python3
"""How fast pictures become cached features: pictures a second, beside the CNN alone and beside Keras.

    python scripts/bench_features.py --data FLICKR8K --weights WEIGHTS     its pictures, and resaved ones
    python scripts/bench_features.py                                       drawn ones
    python scripts/bench_features.py --grow pictures batch                 how the cost grows, 1x, 4x, 16x

Ours is `captioner.features.extract` into an empty cache on disk, measured after its first batch, which takes
what is done once (tracing). The CNN alone has its pixels in memory. Keras is `predict` of the CNN as
published, fed by Pillow picture by picture. The last line is JSON.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import material
import measure

LARGE = 500  # longer side, in pixels, of the pictures of photo collections


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    material.add_arguments(parser)
    parser.add_argument("--batch", type=int, default=32, help="pictures a pass; default: %(default)s")
    parser.add_argument("--grow", nargs="+", default=[], choices=["pictures", "batch"])
    quick = {"pictures": 12, "batch": 4, "size": 96, "rounds": 1}
    arguments = material.parse(parser, quick)
    if arguments.side:
        return measure.serve(SIDES[arguments.side], arguments)
    with tempfile.TemporaryDirectory() as scratch:
        draw_pictures(arguments, Path(scratch))
        more = ["--scratch", scratch]
        found = measure.take_turns(list(SIDES), arguments.rounds, more)
        tables = {axis: grow(axis, getattr(arguments, axis), more) for axis in arguments.grow}
    report(found, tables)
    return 0


def report(found: dict[str, measure.Measured], tables: dict[str, Any]) -> None:
    ours, figures = found["ours"], []
    for kind in ("given", "large"):
        references = [("CNN alone", found["cnn"], "rate"), ("Keras predict", found["keras"], kind)]
        figures += measure.compared(f"extract: {ours.facts[kind]}", "pictures/s", ours, kind, references)
    figures.append(measure.Figure("first batch, what is done once", ours.median("first_batch"), "s"))
    alone, keras = (found[side].median(key) for side, key in (("cnn", "rate"), ("keras", "large")))
    more = {
        "pictures_per_second": ours.median("given"),
        "pictures_per_second_large": ours.median("large"),
        "cnn_alone_pictures_per_second": alone,
        "keras_predict_pictures_per_second_large": keras,
        "keras_predict_peak_memory_gib": found["keras"].most("peak_memory_gib"),
        "growth": tables,
    }
    measure.report("features", figures, ours=ours, more=more)


def grow(axis: str, start: int, more: list[str]) -> list[Any]:
    """1, 4 and 16 times; from a quarter of the usual size."""
    first = max(2, start // 4)
    show = {"given": "pictures/s", "large": "pictures/s"}
    return measure.growth(axis, [first, 4 * first, 16 * first], show, more=more)


def draw_pictures(arguments: argparse.Namespace, scratch: Path) -> None:
    """The pictures of all sides, as many as the largest table needs; `pictures.json` lists them."""
    data, count = arguments.data, arguments.pictures * (4 if "pictures" in arguments.grow else 1)
    given, what = material.picture_files(data, count, folder=scratch / "given")
    large, what_large = material.picture_files(data, count, folder=scratch / "large", size=LARGE)
    listed = {"given": [what, *map(str, given)], "large": [what_large, *map(str, large)]}
    (scratch / "pictures.json").write_text(json.dumps(listed), encoding="utf-8")


def pictures(arguments: argparse.Namespace) -> tuple[dict[str, str], dict[str, list[str]]]:
    """What the pictures are, and their paths, given and large."""
    listed = json.loads((Path(arguments.scratch) / "pictures.json").read_text(encoding="utf-8"))
    paths = {kind: paths[: arguments.pictures] for kind, (_, *paths) in listed.items()}
    return {kind: what for kind, (what, *_) in listed.items()}, paths


def ours(arguments: argparse.Namespace) -> tuple[dict[str, Any], measure.Round]:
    """`extract` into an empty cache."""
    from captioner.data.datasets import CaptionedImage
    from captioner.models.feature_extraction import extract

    encoder = material.load_encoder(arguments)
    facts, paths = pictures(arguments)
    records = {kind: [CaptionedImage(path, Path(path), ()) for path in some] for kind, some in paths.items()}
    cache = Path(arguments.scratch) / "cache"

    def seconds(some: list[Any]) -> float:
        began = time.perf_counter()
        extract(some, encoder, folder=cache, batch_size=arguments.batch, quiet=True)
        took = time.perf_counter() - began
        shutil.rmtree(cache)
        return took

    def measured() -> dict[str, float]:
        figures = {}
        for kind, some in records.items():
            first = seconds(some[: arguments.batch])
            rest = len(some) - arguments.batch
            figures[kind] = rest / max(seconds(some) - first, 1e-9)
        return {**figures, "first_batch": first}

    seconds(records["given"][: arguments.batch])
    return {**facts, "encoder": encoder.name, "batch": arguments.batch}, measured


def cnn_alone(arguments: argparse.Namespace) -> tuple[dict[str, Any], measure.Round]:
    """The same encoder on pixels that are in memory already."""
    import numpy as np

    encoder = material.load_encoder(arguments)
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (arguments.batch, *encoder.size, 3), dtype=np.uint8)
    batches = max(1, arguments.pictures // arguments.batch)

    def measured() -> dict[str, float]:
        began = time.perf_counter()
        for _ in range(batches):
            encoder.encode(pixels).numpy()
        return {"rate": batches * arguments.batch / (time.perf_counter() - began)}

    measured()
    return {}, measured


def keras_predict(arguments: argparse.Namespace) -> tuple[dict[str, Any], measure.Round]:
    """The CNN as published, fed by Pillow."""
    import textbook

    size = arguments.size or 224
    model = textbook.cnn(size, arguments.weights)
    _, paths = pictures(arguments)

    def measured() -> dict[str, float]:
        figures = {}
        for kind, some in paths.items():
            began = time.perf_counter()
            textbook.features(model, some, size)
            figures[kind] = len(some) / (time.perf_counter() - began)
        return figures

    textbook.features(model, paths["given"][:32], size)
    return {}, measured


SIDES: dict[str, measure.Side] = {"ours": ours, "cnn": cnn_alone, "keras": keras_predict}

if __name__ == "__main__":
    sys.exit(main())
