#!/usr/bin/env python3
"""How fast the decoder trains on cached features: captions a second, beside the textbook and the machine.

    python scripts/bench_train.py --data FLICKR8K --weights WEIGHTS     real features and captions
    python scripts/bench_train.py                                       random ones of the same shapes
    python scripts/bench_train.py --grow pictures vocabulary batch      how the cost grows, 1x, 4x, 16x
    python scripts/bench_train.py --grow micro-batches                  the step in 1, 2, 4, 8, 16 of them

Ours is the training step of the recipe `flickr8k-frozen` with its input pipeline: all five captions a
picture, 64 pictures a batch, dropout, label smoothing, clipping, Adam and averaged weights. The textbook
(textbook.py) has the same features in memory. The last line is JSON.
"""

import argparse
import sys
import time
from itertools import islice
from typing import Any

import material
import measure

WARM_UP = 2  # epochs
LOOKED_UP = ("embedding", "sentinel", "score")  # weights that are no matrix products


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    material.add_arguments(parser)
    parser.set_defaults(pictures=1280)
    parser.add_argument("--vocabulary", type=int, default=5000, help="V; default: %(default)s")
    parser.add_argument("--units", type=int, default=512, help="U; default: %(default)s")
    parser.add_argument("--embedding", type=int, default=256, help="E; default: %(default)s")
    parser.add_argument(
        "--batch", type=int, default=64, help="pictures a batch; default: %(default)s, the recipe's"
    )
    parser.add_argument("--attention", default="dot", help="of ours: dot or additive; default: %(default)s")
    parser.add_argument("--precision", default="auto", help="of ours: auto, float32 or bfloat16")
    parser.add_argument("--steps", type=int, default=10, help="of the textbook a round; default: %(default)s")
    parser.add_argument("--longest", type=int, default=36, help="words of the longest drawn caption")
    parser.add_argument(
        "--micro-batches", type=int, default=0, help="of ours; default: as many as pay (one on a GPU)"
    )
    axes = ["pictures", "vocabulary", "batch", "micro-batches"]
    parser.add_argument("--grow", nargs="+", default=[], choices=axes)
    quick = {"encoder": "small_cnn", "pictures": 16, "batch": 8, "units": 32, "embedding": 16, "steps": 1}
    arguments = material.parse(parser, {**quick, "vocabulary": 200, "longest": 6, "rounds": 1})
    if arguments.side:
        return measure.serve(SIDES[arguments.side], arguments)
    found = measure.take_turns(list(SIDES), arguments.rounds)
    tables = {axis: grow(axis, getattr(arguments, axis.replace("-", "_"))) for axis in arguments.grow}
    report(found["ours"], found["textbook"], found["peak"], tables)
    return 0


def report(ours: Any, textbook: Any, peak: Any, tables: dict[str, Any]) -> None:
    captions = "captions_per_second"
    figures = measure.compared("training", "captions/s", ours, captions, [("textbook", textbook, captions)])
    rate = ours.median(captions)
    precision = ours.facts["precision"]
    flops = ours.median("operations_per_caption") * rate / 1e9
    share = flops / peak.most(precision)
    figures += [
        measure.Figure(
            f"real words' operations, {precision}",
            flops,
            "GFLOP/s",
            f"matrix products: {peak.most(precision):.4g} GFLOP/s",
            share,
        ),
        measure.Figure("seconds a step, measured", ours.median("seconds_per_step"), "s"),
        *floors(ours, peak),
    ]
    more = {
        captions: rate,
        "textbook_captions_per_second": textbook.median(captions),
        "peak_share": share,
        "gflop_per_second": flops,
        "peak_gflop_per_second": {name: peak.most(name) for name in ("float32", "bfloat16")},
        "gigabytes_per_second": peak.most("gigabytes_per_second"),
        "textbook_peak_memory_gib": textbook.most("peak_memory_gib"),
        "textbook_words": textbook.facts["padded to"],
        "growth": tables,
    }
    measure.report("train", figures, ours=ours, more=more)


def floors(ours: Any, peak: Any) -> list[Any]:
    """The least a step can take: its operations at the peak, its bytes at the bandwidth."""
    seconds, rate = ours.median("seconds_per_step"), ours.median("captions_per_second")
    operations = ours.median("operations_per_caption") * rate * seconds
    precision = ours.facts["precision"]
    least = {
        "operations over peak": operations / peak.most(precision) / 1e9,
        "bytes over bandwidth": ours.median("bytes_per_step") / peak.most("gigabytes_per_second") / 1e9,
    }
    return [measure.Figure(f"seconds a step, {name}", value, "s") for name, value in least.items()]


def grow(axis: str, start: int) -> list[Any]:
    """1, 4 and 16 times, from a quarter where that is the usual size; micro-batches from one to sixteen."""
    first = max(1, start // 4)
    show = {"captions_per_second": "1/s", "seconds_per_step": "s"}
    values = [1, 2, 4, 8, 16] if axis == "micro-batches" else [first, 4 * first, 16 * first]
    return measure.growth(axis, values, show)


def ours(arguments: argparse.Namespace) -> tuple[dict[str, Any], measure.Round]:
    """The training step and the batches of the library."""
    from captioner.training.micro_batches import use_cores_side_by_side

    use_cores_side_by_side()
    training = Ours(arguments)
    for _ in range(WARM_UP):  # batches of all lengths: all is traced, oneDNN has made its code
        training.measure()
    sizes = f"U {arguments.units}, V {arguments.vocabulary}, E {arguments.embedding}"
    kind = f"{sizes}, {arguments.attention} attention, {arguments.batch} pictures a batch"
    facts = {"data": training.material.what, "decoder": kind, "precision": training.precision}
    return facts, training.measure


class Ours:
    """A training of the recipe, without its judging and saving."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        from captioner.models.decoder import CaptionDecoder
        from captioner.models.device import find_device
        from captioner.training.input_pipeline import TokenizedCaptions, TrainingBatches
        from captioner.training.optimizers import TrainOptimizer
        from captioner.training.train_step import TrainStep, trained_variables

        config = recipe(arguments)
        phase = config.phases["decoder"]
        self.precision = find_device().precision(config.train.precision)
        self.encoder = material.load_encoder(arguments)
        self.material = material.captioned(arguments, self.encoder)
        self.table = TokenizedCaptions(
            self.material.records, self.material.vocabulary, max_words=config.data.max_words
        )
        self.batches = TrainingBatches(self.table, self.material.source, phase=phase, seed=config.seed)
        self.decoder = CaptionDecoder(
            config.decoder,
            vocabulary_size=len(self.material.vocabulary),
            channels=self.encoder.channels,
            precision=self.precision,
        )
        trained = trained_variables(phase, self.decoder, self.encoder)
        self.updater = TrainOptimizer(phase, self.batches.steps * phase.epochs, *trained)
        self.steps = TrainStep(
            config, phase, self.decoder, self.encoder, self.updater, self.material.vocabulary
        )
        self.epochs = 0

    def epoch(self, number: int, limit: int | None = None) -> Any:
        """Figures of an epoch, or of so many steps of it."""
        from captioner.training.train_step import StepStats

        sums = StepStats()
        batches = islice(self.batches.batches(number), limit)
        for step, batch in enumerate(batches, start=number * self.batches.steps):
            sums = sums + self.steps.train(batch, step)
        return sums

    def measure(self) -> dict[str, float]:
        """One whole epoch."""
        self.epochs += 1
        began = time.perf_counter()
        sums = self.epoch(self.epochs)
        seconds = time.perf_counter() - began
        pictures, steps = len(self.table.ids), self.batches.steps
        work = operations(self.decoder, self.encoder.num_cells, pictures=pictures, words=sums.words)
        row = self.material.source.read(self.table.ids[:1])
        return {
            "captions_per_second": sums.captions / seconds,
            "words_per_second": sums.words / seconds,
            "seconds_per_step": seconds / steps,
            "operations_per_caption": work / sums.captions,
            "bytes_per_step": bytes_of_a_step(self.updater, features=pictures * row.nbytes / steps),
        }


def recipe(arguments: argparse.Namespace) -> Any:
    """The configuration that is measured."""
    from captioner.config import load_config

    decoder = [f"decoder.{name}={getattr(arguments, name)}" for name in ("units", "embedding", "attention")]
    more = [f"train.precision={arguments.precision}", f"phases.decoder.pictures_per_batch={arguments.batch}"]
    more.append(f"train.micro_batches={arguments.micro_batches}")
    return load_config("flickr8k-frozen", decoder + more)


def operations(decoder: Any, cells: int, *, pictures: float, words: float) -> float:
    """Floating-point operations of training on so many real words, from the shapes of the weights.

    Matrix products alone, 2 x rows x columns each: once forward and twice back; for the grid, whose CNN
    is not trained, once back. Nothing is counted for padding, element-wise operations and the optimizer.
    """
    P, U = cells, decoder.config.units
    shapes = {v.name: v.shape for v in decoder.trainable_variables if len(v.shape) == 2}
    of_a_picture = {"grid_kernel": P, "start_kernel": 1}
    once = sum(2 * rows * _size(shapes[name]) for name, rows in of_a_picture.items())
    each = sum(2 * _size(shape) for name, shape in shapes.items() if name not in {*of_a_picture, *LOOKED_UP})
    each += 2 * 2 * P * U  # scores and context
    if decoder.word_kernel is None:  # the embedding is the output matrix
        each += 2 * _size(shapes["embedding"])
    return 2 * once * pictures + 3 * each * words


def bytes_of_a_step(updater: Any, *, features: float) -> float:
    """Bytes that a step must move: features once; each weight, gradient and optimizer's number in and out."""
    numbers = sum(_size(v.shape) for v in updater.variables_trained)
    # Weight read for the products; gradient written and read; weight and two moments read and written.
    per_number = 4 * (1 + 2 + 2 * 3 + (2 if updater.averages else 0))
    return numbers * per_number + features


def _size(shape: Any) -> int:
    size = 1
    for edge in shape:
        size *= int(edge)
    return size


def textbook(arguments: argparse.Namespace) -> tuple[dict[str, Any], measure.Round]:
    """The same pictures and captions, the textbook's way."""
    import numpy as np
    import textbook as published

    given = material.captioned(arguments, material.load_encoder(arguments))
    features = given.source.read([record.id for record in given.records])  # (n, P, C) float16, in memory
    rows = np.array([row for row, record in enumerate(given.records) for _ in record.captions])
    ids = [given.vocabulary.ids(caption) for record in given.records for caption in record.captions]
    captions = published.padded(ids, given.longest)  # (captions, T)
    captioner = published.Captioner(len(given.vocabulary), arguments.units, arguments.embedding)
    step = published.Training(captioner).step
    batch = min(published.BATCH, len(captions))
    rng = np.random.default_rng(0)

    def train(steps: int) -> None:
        for _ in range(steps):
            chosen = rng.choice(len(captions), size=batch, replace=False)
            float(step(features[rows[chosen]].astype(np.float32), captions[chosen]))

    def measured() -> dict[str, float]:
        began = time.perf_counter()
        train(arguments.steps)
        return {"captions_per_second": arguments.steps * batch / (time.perf_counter() - began)}

    train(2)
    return {"padded to": captions.shape[1]}, measured


SIDES: dict[str, measure.Side] = {"ours": ours, "textbook": textbook, "peak": measure.peak}

if __name__ == "__main__":
    sys.exit(main())
