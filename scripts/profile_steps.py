#!/usr/bin/env python3
"""Where the time of each stage goes: TensorFlow's own profile of a few steps, added up by kind of operation.

    python scripts/profile_steps.py --data FLICKR8K --weights imagenet         every stage
    python scripts/profile_steps.py --stages train textbook --top 20           two, operation by operation

Stages are those of the other benchmarks: `train` and `textbook` train on cached features, `finetune` and
`reward` are the later phases, `features` encodes picture files, `greedy`, `beam` and `textbook_greedy` write
captions from features. Shares are of the time inside operations, all threads together; what lies between
operations (scheduling, Python, waiting) is the rest of the processor time. The last line is JSON.
"""

import argparse
import collections
import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import material
import measure

# The first row that fits an operation's type names its kind.
KINDS = {
    "matrix products": ("MatMul", "Einsum"),
    "convolutions": ("Conv",),
    "reading pictures, batches": ("PyFunc", "Iterator", "Dataset", "RandomUniform", "Projective", "Resize"),
    "random numbers": ("Random", "Rng"),
    "softmax": ("Softmax",),
    "optimizer": ("ResourceApply", "AssignSub", "AssignAdd", "L2Loss"),
    "casts": ("Cast",),
    "moving: slices, transposes, joins, gathers": (
        "Slice",
        "Transpose",
        "Concat",
        "Gather",
        "Pack",
        "Pad",
        "TensorList",
        "TensorArray",
        "Split",
        "Tile",
        "Scatter",
        "Where",
        "Reverse",
        "Identity",
        "Read",
        "Broadcast",
        "ZerosLike",
        "Fill",
    ),  # fmt: skip
    "sums, searches along an axis": (
        "Sum",
        "Max",
        "Min",
        "Mean",
        "TopK",
        "Cumsum",
        "Any",
        "All",
        "BiasAddGrad",
    ),
    "element by element": ("",),
}
PROFILE = "profile.json"  # in the scratch folder: what a side found
OUTSIDE = ("ExecutorState", "KernelAndDeviceFunc", "EagerExecute", "FunctionRun")  # around operations


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    material.add_arguments(parser)
    parser.set_defaults(encoder="efficientnet_lite1")  # that of the recipe whose later phases are profiled
    parser.add_argument("--stages", nargs="+", choices=SIDES, default=list(SIDES), help="default: all")
    parser.add_argument("--top", type=int, default=0, help="show so many operations one by one, too")
    parser.add_argument("--steps", type=int, default=8, help="profiled of each stage; default: %(default)s")
    parser.add_argument("--run", help="of `greedy` and `beam`; default: random weights")
    sizes = {"vocabulary": 5000, "units": 512, "embedding": 256, "longest": 36, "batch": 32, "words": 12}
    for name, size in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=size, help="default: %(default)s")
    quick = {"pictures": 96, "size": 96, "units": 32, "embedding": 16, "vocabulary": 200, "words": 4}
    arguments = material.parse(parser, {**quick, "steps": 1, "batch": 8, "longest": 6})
    arguments.attention, arguments.precision, arguments.rounds = "dot", "auto", 1
    if arguments.side:
        return measure.serve(SIDES[arguments.side], arguments)
    profiles = {}
    with tempfile.TemporaryDirectory() as scratch:
        for stage in arguments.stages:
            found = measure.take_turns([stage], 1, ["--scratch", scratch])[stage].rounds[0]
            profiles[stage] = {**found, **json.loads((Path(scratch) / PROFILE).read_text(encoding="utf-8"))}
            show(stage, profiles[stage], arguments.top)
    print(json.dumps({"benchmark": "profile", "commit": measure.commit(), "stages": profiles}))
    return 0


def show(stage: str, profile: dict[str, Any], top: int) -> None:
    """The tables of a stage."""
    print(f"\n{stage}: {profile['seconds']:.3f} s a step, {profile['processor_seconds']:.3f} s of processors")
    total = sum(profile["kinds"].values())
    rows = [("kind", "ms a step", "share")]
    rows += [
        (kind, f"{seconds * 1e3:.1f}", f"{seconds / total:.1%}") for kind, seconds in profile["kinds"].items()
    ]
    rows.append(("all operations", f"{total * 1e3:.1f}", ""))
    measure.table(rows)
    if top:
        print()
        names = list(profile["operations"].items())[:top]
        measure.table(
            [("operation", "ms a step"), *((name, f"{seconds * 1e3:.2f}") for name, seconds in names)]
        )


def profiled(steps: Callable[[int], Any], count: int, folder: str) -> measure.Round:
    """A round that times so many steps, then profiles them into that folder; twice as many run before."""
    import tensorflow as tf

    steps(2 * count)

    def processor_seconds() -> float:
        used = resource.getrusage(resource.RUSAGE_SELF)
        return used.ru_utime + used.ru_stime

    def measured() -> dict[str, Any]:
        began, used = time.perf_counter(), processor_seconds()
        steps(count)
        seconds, processors = time.perf_counter() - began, processor_seconds() - used
        with tempfile.TemporaryDirectory() as traces:
            with tf.profiler.experimental.Profile(traces):
                steps(count)
            times = operation_seconds(next(Path(traces).rglob("*.xplane.pb")))
        kinds: dict[str, float] = collections.defaultdict(float)
        for name, t in times.items():
            kinds[kind_of(name)] += t / count
        operations = {name: t / count for name, t in times.items()}
        profile = {"kinds": _largest_first(kinds), "operations": _largest_first(operations, 60)}
        (Path(folder) / PROFILE).write_text(json.dumps(profile), encoding="utf-8")
        return {"seconds": seconds / count, "processor_seconds": processors / count}

    return measured


def operation_seconds(file: Path) -> dict[str, float]:
    """Seconds inside each operation, `name:type`, without those of operations it called itself."""
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    space, seconds = xplane_pb2.XSpace(), collections.Counter[str]()
    space.ParseFromString(file.read_bytes())
    plane = next(plane for plane in space.planes if plane.name == "/host:CPU")
    for line in plane.lines:
        inside: list[tuple[str, int]] = []  # what is running, and its end
        for event in sorted(line.events, key=lambda event: (event.offset_ps, -event.duration_ps)):
            while inside and inside[-1][1] <= event.offset_ps:
                inside.pop()
            name = plane.event_metadata[event.metadata_id].name
            if inside:
                seconds[inside[-1][0]] -= event.duration_ps * 1e-12
            seconds[name] += event.duration_ps * 1e-12
            inside.append((name, event.offset_ps + event.duration_ps))
    return {name: t for name, t in seconds.items() if ":" in name and not name.startswith(OUTSIDE)}


def kind_of(name: str) -> str:
    """Of an operation `name:type`."""
    kind = name.rpartition(":")[2]
    return next(title for title, parts in KINDS.items() if any(part in kind for part in parts))


def _largest_first(times: dict[str, float], most: int = 0) -> dict[str, float]:
    return dict(sorted(times.items(), key=lambda item: -item[1])[: most or None])


# Stages: each prepares as its benchmark does.


def train(arguments: argparse.Namespace) -> tuple[measure.Facts, measure.Round]:
    """Training on cached features."""
    import bench_train

    from captioner.training.micro_batches import use_cores_side_by_side

    use_cores_side_by_side()
    training = bench_train.Ours(arguments)
    return {}, profiled(lambda count: training.epoch(0, limit=count), arguments.steps, arguments.scratch)


def textbook(arguments: argparse.Namespace) -> tuple[measure.Facts, measure.Round]:
    """The same, the textbook's way; a step has 64 captions, not 160."""
    import bench_train

    counted = argparse.Namespace(**vars(arguments))
    _, measured = bench_train.textbook(counted)

    def run(count: int) -> None:
        counted.steps = count
        measured()

    return {}, profiled(run, max(1, arguments.steps // 4), arguments.scratch)


def phase(name: str) -> measure.Side:
    """The side of a later phase."""

    def side(arguments: argparse.Namespace) -> tuple[measure.Facts, measure.Round]:
        import bench_phases

        training = bench_phases.Phase(arguments, name)
        steps = min(arguments.steps, training.batches.steps // 2 - 1)
        return training.facts, profiled(training.run, steps, arguments.scratch)

    return side


def features(arguments: argparse.Namespace) -> tuple[measure.Facts, measure.Round]:
    """`extract` of picture files, a batch a step."""
    from captioner.data.datasets import CaptionedImage
    from captioner.models.feature_extraction import extract

    encoder = material.load_encoder(arguments)
    folder = Path(arguments.scratch) / "pictures"
    paths, what = material.picture_files(arguments.data, arguments.pictures, folder=folder)
    records = [CaptionedImage(str(path), path, ()) for path in paths]

    def run(count: int) -> None:
        with tempfile.TemporaryDirectory() as cache:
            some = records[: count * arguments.batch]
            extract(some, encoder, folder=Path(cache), batch_size=arguments.batch, quiet=True)

    return {"data": what}, profiled(
        run, min(arguments.steps, len(records) // arguments.batch), arguments.scratch
    )


def search(beam: int) -> measure.Side:
    """The side that writes captions from features with this beam, a batch a step."""

    def side(arguments: argparse.Namespace) -> tuple[measure.Facts, measure.Round]:
        import bench_decode

        from captioner.inference.captioner import Captioner

        own = Captioner.load(arguments.run) if arguments.run else bench_decode.random_captioner(arguments)
        shape = (own.encoder.num_cells, own.encoder.channels)
        cells = material.RandomFeatures([str(i) for i in range(arguments.batch)], shape)
        grids = cells.read([str(i) for i in range(arguments.batch)])

        def run(count: int) -> None:
            for _ in range(count):
                own.caption_features(grids, beam=beam, max_words=arguments.words, batch_size=arguments.batch)

        return {}, profiled(run, arguments.steps, arguments.scratch)

    return side


def textbook_greedy(arguments: argparse.Namespace) -> tuple[measure.Facts, measure.Round]:
    """The textbook's captions: a step is one picture."""
    import numpy as np
    import textbook as published

    captioner = published.Captioner(arguments.vocabulary, arguments.units)
    cells = np.zeros((49, 1280), np.float32)

    def run(count: int) -> None:
        for _ in range(count):
            published.greedy(captioner, cells, arguments.words)

    return {}, profiled(run, max(1, arguments.steps // 4), arguments.scratch)


SIDES: dict[str, measure.Side] = {
    "train": train,
    "textbook": textbook,
    "finetune": phase("finetune"),
    "reward": phase("reward"),
    "features": features,
    "greedy": search(1),
    "beam": search(3),
    "textbook_greedy": textbook_greedy,
}

if __name__ == "__main__":
    sys.exit(main())
