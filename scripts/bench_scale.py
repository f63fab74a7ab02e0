#!/usr/bin/env python3
"""How a big job scales: captions by 1, 2 and 4 workers here, and from that a forecast for many machines.

    python scripts/bench_scale.py --data FLICKR8K       its pictures
    python scripts/bench_scale.py                       drawn ones

A worker is `captioner caption --shard i/n --write json`, a process held to one core; the last, without
--shard, makes one journal of theirs. From the runs of one worker alone come the cost of starting, the cost
of a picture and how it varies, the cost of uniting: in processor seconds, which other work on this machine
falsifies less than the clock. A small simulation (`simulate`) makes of them what n workers take. Its word on
2 and 4 workers here is held against the busiest worker's processor seconds, and against the clock; then it
is asked about up to 64 workers with a core each and ten million pictures. What it assumes is printed, and is
in the JSON of the last line.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import material
import measure

ROOT = Path(__file__).resolve().parent.parent
WORKERS, FORECAST = (1, 2, 4), (1, 2, 4, 8, 16, 32, 64)
MANY, BLOCK = 10_000_000, 512  # pictures of the forecast; drawn together there
DEATHS_PER_HOUR = 0.01  # of a worker: each is started again, and loses a batch
STORE_BYTES_PER_SECOND = 1e9  # what all workers together can read
PICTURE_BYTES = 150_000
ASSUMPTIONS = {
    "cores": "each worker has a core of its own, as fast as one here; here, workers share the cores that are",
    "pictures": f"cost what they cost here, {PICTURE_BYTES} bytes each",
    "variation": "of picture costs as between the rounds of one worker; workers are independent",
    "store": f"gives all workers together {STORE_BYTES_PER_SECOND:.0e} bytes/s",
    "failures": f"a worker dies {DEATHS_PER_HOUR} times an hour, is started again, and goes on",
    "start": "all workers start at once; uniting is done by one, after the last",
}


class Costs(NamedTuple):
    """Seconds: of starting a worker, of a picture, of uniting a picture's entry; and a share."""

    start: float
    picture: float
    unite: float
    variation: float  # standard deviation of a worker's cost a picture, to its mean


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", metavar="ROOT", help="captioned pictures; default: drawn ones")
    parser.add_argument("--run", metavar="DIR", help="run folder; default: the one that comes along")
    parser.add_argument("--pictures", type=int, default=800, help="how many; default: %(default)s")
    parser.add_argument(
        "--rounds", type=int, default=3, help="of each number of workers; default: %(default)s"
    )
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that it runs, not how fast")
    arguments = material.parse(parser, {"pictures": 24, "rounds": 1})
    with tempfile.TemporaryDirectory() as scratch:
        paths, what = material.picture_files(
            arguments.data, arguments.pictures, folder=Path(scratch) / "pictures"
        )
        listing = Path(scratch) / "list.txt"
        listing.write_text("\n".join(map(str, paths)), encoding="utf-8")
        few = Path(scratch) / "few.txt"
        few.write_text(str(paths[0]), encoding="utf-8")
        starts = [run(few, 1, Path(scratch), arguments.run).busy for _ in range(arguments.rounds + 1)][1:]
        found = {
            workers: [run(listing, workers, Path(scratch), arguments.run) for _ in range(arguments.rounds)]
            for workers in WORKERS
        }
    report(costs_of(statistics.median(starts), found[1], len(paths)), found, len(paths), what)
    return 0


class Job(NamedTuple):
    """What one job took."""

    seconds: float  # of the clock, from the first worker's start to the last one's end
    busy: float  # processor seconds of the busiest worker
    unite: float  # processor seconds
    load: float  # processes that wanted a core, ours among them


def run(listing: Path, workers: int, scratch: Path, model: str | None) -> Job:
    """Captions the pictures of a list."""
    with tempfile.TemporaryDirectory(dir=scratch) as out:
        command = [sys.executable, "-m", "captioner", "caption", "--list", str(listing), "--quiet"]
        command += ["--write", "json", "--out", out, *(["--run", model] if model else [])]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        began = time.perf_counter()
        processes = [
            subprocess.Popen(
                [*command, "--shard", f"{number + 1}/{workers}"] if workers > 1 else command,
                env=environment,
                preexec_fn=_held_to(number),
            )
            for number in range(workers)
        ]
        busy = [_busy(process) for process in processes]
        seconds = time.perf_counter() - began
        unite = _busy(subprocess.Popen(command, env=environment, preexec_fn=_held_to(0)))
        return Job(seconds, max(busy), unite, os.getloadavg()[0])


def _busy(process: subprocess.Popen[bytes]) -> float:
    """Waits for a process; its processor seconds."""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit("a worker failed; see above")
    return usage.ru_utime + usage.ru_stime


def _held_to(number: int) -> Callable[[], None]:
    cores = sorted(os.sched_getaffinity(0))
    return lambda: os.sched_setaffinity(0, {cores[number % len(cores)]})


def costs_of(start: float, alone: list[Job], pictures: int) -> Costs:
    """From the jobs of one worker."""
    each = [max(job.busy - start, 1e-9) / pictures for job in alone]
    mean = statistics.mean(each)
    variation = statistics.stdev(each) / mean if len(each) > 1 else 0.0
    unite = max(statistics.median(job.unite for job in alone) - 0.5 * start, 0.0)  # it loads no model
    return Costs(start, mean, unite / pictures, variation)


def simulate(costs: Costs, workers: int, pictures: int, cores: int, *, seed: int = 0) -> float:
    """Seconds that so many workers on so many cores take for so many pictures.

    A worker goes through its part block by block; a block's cost is drawn; now and then the worker dies.
    Where workers share cores, each takes as much longer as there are workers to a core.
    """
    chance = random.Random(seed)
    crowd = max(1.0, workers / cores)
    # What the store gives a worker, if that is less than it could use.
    picture = max(costs.picture * crowd, PICTURE_BYTES * workers / STORE_BYTES_PER_SECOND)
    ends = []
    for number in range(workers):
        mine = pictures * (number + 1) // workers - pictures * number // workers
        own = max(0.1, chance.gauss(1, costs.variation))  # of this machine, today
        end = costs.start * crowd
        for done in range(0, mine, BLOCK):
            seconds = min(BLOCK, mine - done) * picture * own
            if chance.random() < DEATHS_PER_HOUR * seconds / 3600:
                end += costs.start * crowd + seconds * chance.random()
            end += seconds
        ends.append(end)
    return max(ends)


def report(costs: Costs, found: dict[int, list[Job]], pictures: int, what: str) -> None:
    """Tables for people; last, one line of JSON."""
    cores = len(os.sched_getaffinity(0))
    rows = [("workers", "clock s", "forecast", "off by", "busiest worker s", "forecast", "off by")]
    held: dict[int, dict[str, float]] = {}
    for workers, jobs in found.items():
        one = held[workers] = {
            "seconds": statistics.median(job.seconds for job in jobs),
            "forecast_seconds": simulate(costs, workers, pictures, cores),
            "busy_seconds": statistics.median(job.busy for job in jobs),
            "forecast_busy_seconds": simulate(costs, workers, pictures, workers),
        }
        row = [str(workers)]
        for kind in ("seconds", "busy_seconds"):
            one[f"{kind}_off_by"] = one[f"forecast_{kind}"] / one[kind] - 1
            row += [f"{one[kind]:.1f}", f"{one[f'forecast_{kind}']:.1f}", f"{one[f'{kind}_off_by']:+.0%}"]
        one["pictures_per_second"] = pictures / one["seconds"]
        rows.append(tuple(row))
    load = max(job.load for jobs in found.values() for job in jobs)
    print(f"{what}; {cores} cores, load up to {load:.1f}\n")
    measure.table(rows)
    print(
        f"\na worker costs {costs.start:.2f} s to start, {1000 * costs.picture:.1f} ms a picture "
        f"(± {costs.variation:.0%}); uniting {1e6 * costs.unite:.0f} µs a picture\n"
    )
    curve = {workers: simulate(costs, workers, MANY, workers) for workers in FORECAST}
    rows = [("workers", "hours", "pictures/s", "to one", "worker hours a million")]
    for workers, seconds in curve.items():
        gain = curve[1] / seconds
        hours = seconds / 3600
        rows.append(
            (
                str(workers),
                f"{hours:.2f}",
                f"{MANY / seconds:.0f}",
                f"{gain:.1f}",
                f"{hours * workers / MANY * 1e6:.2f}",
            )
        )
    print(f"forecast for {MANY:,} pictures, a core for each worker")
    measure.table(rows)
    for name, text in ASSUMPTIONS.items():
        print(f"assumed, {name}: {text}")
    line: dict[str, Any] = {
        "benchmark": "scale",
        "figure": 1 / costs.picture,
        "unit": "pictures per processor second, after the start",
        "costs": costs._asdict(),
        "measured": held,
        "forecast": {workers: {"seconds": seconds, "pictures": MANY} for workers, seconds in curve.items()},
        "assumptions": ASSUMPTIONS,
        "load": load,
        "pictures": pictures,
        "commit": measure.commit(),
        "machine": {"cpu": measure.processor(), "cores": cores},
    }
    print(json.dumps(line, ensure_ascii=False))


if __name__ == "__main__":
    sys.exit(main())
