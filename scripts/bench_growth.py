#!/usr/bin/env python3
"""What a larger data set costs a training: the same recipe on two sizes, and a forecast for others.

    python scripts/bench_growth.py coco --data FLICKR8K          its captions, on drawn pictures
    python scripts/bench_growth.py flickr30k                     drawn captions, too

For each size a data set is made in Karpathy's form (a third of its training pictures "restval"), and a
process of its own prepares all phases of the recipe on it: features into the cache, words, tables of
captions, references of the reward; it reads all features once and trains some steps of each phase. From the
larger size come the seconds a picture and an epoch, of the processor, which other work on this machine
falsifies less than the clock; from the difference of the two sizes disk and memory a picture. Hours are
processor seconds divided by the cores: what it takes if nothing else runs and all are kept busy. Nothing is
learned. The last line is JSON.
"""

import argparse
import dataclasses
import gc
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import material
import measure

# Training and dev pictures of what the recipes are for, by Karpathy's splits; "restval" is training.
TARGETS = {"flickr30k": (29_000, 1_014), "coco": (113_287, 5_000)}
DEV = 50  # pictures, at both sizes
STEPS = 10  # of each phase, without the first ones, which are compiled
JUDGING = 1.2  # an epoch with its dev scores, to its steps alone


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", nargs="?", default="coco", help="default: %(default)s")
    parser.add_argument("--data", metavar="ROOT", help="whose captions are taken; default: drawn ones")
    parser.add_argument("--sizes", type=int, nargs=2, default=[2000, 8000], help="default: 2000 8000")
    parser.add_argument("--set", action="append", default=[], help="of the recipe, as captioner train has it")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that it runs, not how much")
    parser.add_argument("--side", metavar="DIR", help=argparse.SUPPRESS)
    arguments = material.parse(parser, {"sizes": [40, 80], "set": QUICK})
    if arguments.side:
        return side(arguments)
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        paths, _ = material.picture_files(None, max(arguments.sizes) + DEV, folder=Path(scratch) / "pictures")
        for size in sorted(arguments.sizes):
            write_dataset(Path(scratch), paths, size, arguments.data)
            measure.note(f"{size} pictures")
            command = [sys.executable, __file__, arguments.recipe, "--side", scratch]
            command += ["--sizes", *map(str, arguments.sizes)]
            command += [word for each in arguments.set for word in ("--set", each)]
            environment = {**os.environ, "CAPTIONER_CACHE": f"{scratch}/cache", "TF_CPP_MIN_LOG_LEVEL": "3"}
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment)
            if done.returncode:
                return done.returncode
            found.append({"pictures": size, **json.loads(done.stdout.splitlines()[-1])})
    report(arguments.recipe, found)
    return 0


QUICK = [
    'encoder.name="small_cnn"',
    "encoder.size=32",
    "decoder.units=16",
    "decoder.embedding=8",
    'phases.finetune.encoder_from=""',
]


def write_dataset(folder: Path, paths: list[Path], size: int, data: str | None) -> None:
    """The first `size` pictures, and as many dev pictures as ever, in Karpathy's form."""
    from captioner.data.datasets import load_split

    records = load_split(data, "train").records if data else material.drawn_captions(size + DEV, longest=20)
    images = []
    for number, (path, record) in enumerate(zip(paths[: size + DEV], itertools.cycle(records), strict=False)):
        split = "val" if number < DEV else "restval" if number % 3 == 0 else "train"
        sentences = [{"raw": caption} for caption in record.captions]
        images.append({"filepath": "pictures", "filename": path.name, "split": split, "sentences": sentences})
    (folder / "dataset_growth.json").write_text(json.dumps({"images": images}), encoding="utf-8")


def side(arguments: argparse.Namespace) -> int:
    """Prepares a training, measures, and prints the figures as JSON."""
    from captioner.config import load_config
    from captioner.training import train as training
    from captioner.training.input_pipeline import shrink_batch

    figures: dict[str, Any] = {"start_gib": measure.peak_memory_gib(), "phases": {}}

    class Preparation(training.Training):
        """Prepares each phase and trains some steps of it."""

        def run_all(self) -> None:
            began = time.process_time()
            store = self._store(*self.records)
            figures["feature_seconds"] = time.process_time() - began
            figures["row_bytes"] = 2 * store.shape[0] * store.shape[1]
            for start in range(0, len(store), 256):
                store.read(store.ids[start : start + 256])
            figures["features_gib"] = measure.peak_memory_gib()
            for number, name in enumerate(self.config.phases):
                seconds = seconds_of_step(self._loop(number, name))
                phase = self.config.phases[name]
                gc.collect()  # the phase is over
                figures["phases"][name] = {
                    "epochs": phase.epochs,
                    "seconds_a_picture": JUDGING * seconds / phase.pictures_per_batch,
                    "peak_gib": measure.peak_memory_gib(),
                }

    def seconds_of_step(loop: Any) -> float:
        times = [time.process_time()]
        for _ in loop.train_steps(0, 0):
            times.append(time.process_time())
            if len(times) > STEPS + 3:
                break
        return statistics.median(later - earlier for earlier, later in itertools.pairwise(times[3:]))

    settings = ["encoder.weights=none", *arguments.set]
    config = load_config(arguments.recipe, settings)
    # Batches shrink where pictures are few: here as for the smaller size, or memory would grow with them.
    phases = {name: shrink_batch(phase, min(arguments.sizes)) for name, phase in config.phases.items()}
    config = dataclasses.replace(config, phases=phases)
    run = Path(arguments.side) / f"run-{os.getpid()}"
    training.train(config, arguments.side, run, kind=Preparation, quiet=True)
    figures["peak_gib"] = measure.peak_memory_gib()
    print(json.dumps(figures))
    return 0


def report(recipe: str, found: list[dict[str, Any]]) -> None:
    """Tables for people; last, one line of JSON."""
    small, large = found
    more = large["pictures"] - small["pictures"]
    names = list(large["phases"])
    rows = [("pictures", "features read", *names, "peak memory (GiB)")]
    for one in found:
        peaks = [one["phases"][name]["peak_gib"] for name in names]
        rows.append(
            (f"{one['pictures']:,}", *(f"{x:.3f}" for x in (one["features_gib"], *peaks, one["peak_gib"])))
        )
    print("memory, GiB, the most so far, after")
    measure.table(rows)
    memory = 2**30 * max(0.0, large["peak_gib"] - small["peak_gib"]) / more
    # The features of the small size are in the cache already.
    feature = large["feature_seconds"] / more
    costs = {name: (one["epochs"], one["seconds_a_picture"]) for name, one in large["phases"].items()}
    print(
        f"\na picture more: {memory / 1000:.2f} kB of memory, {large['row_bytes'] / 1000:.0f} kB of cache, "
        f"{1000 * feature:.1f} ms of the processor for its features"
    )
    rows = [("phase", "ms of the processor a picture and epoch", "epochs")]
    rows += [(name, f"{1000 * seconds:.1f}", str(epochs)) for name, (epochs, seconds) in costs.items()]
    measure.table(rows)
    rows = [
        ("forecast", "cache, GB", "memory, GiB", "features, h", *(f"{name}, h" for name in costs), "all, h")
    ]
    forecast = {}
    busy = 3600 * measure.cores()
    for name, (train, dev) in TARGETS.items():
        hours = [(train + dev) * feature / busy]
        hours += [train * epochs * seconds / busy for epochs, seconds in costs.values()]
        gigabytes = (train + dev) * large["row_bytes"] / 1e9
        gibibytes = large["peak_gib"] + (train - large["pictures"]) * memory / 2**30
        forecast[name] = {"cache_gb": gigabytes, "memory_gib": gibibytes, "hours": sum(hours)}
        rows.append(
            (name, f"{gigabytes:.1f}", f"{gibibytes:.2f}", *(f"{hour:.2f}" for hour in (*hours, sum(hours))))
        )
    print()
    measure.table(rows)
    line = {
        "benchmark": "growth",
        "figure": memory,
        "unit": "bytes of memory a picture more",
        "recipe": recipe,
        "sizes": found,
        "forecast": forecast,
        "commit": measure.commit(),
        "machine": {"cpu": measure.processor(), "cores": measure.cores()},
    }
    print(json.dumps(line, ensure_ascii=False))


if __name__ == "__main__":
    sys.exit(main())
