"""What the benchmarks share: sides that take turns, the machine's peak, the table, the JSON line.

A side is ours, a reference, or the machine's own peak. Each runs in a process of its own, because thread
settings and peak memory belong to a process; they measure in turns (ours, reference, ours, reference, …), so
that whatever else the machine does meets both. Figures are medians over the rounds.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # a checkout measures itself, installed or not

from captioner.system.hardware import cores  # noqa: E402


def peak_memory_gib() -> float:
    """Most memory this process has held so far, in GiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**30 if sys.platform == "darwin" else peak / 2**20


Facts = dict[str, Any]  # what a side says of itself before it measures
Round = Callable[[], dict[str, float]]  # one measurement
Side = Callable[[argparse.Namespace], tuple[Facts, Round]]  # prepares, warms up, then is ready to measure


# The script that is called.


@dataclass
class Measured:
    """What one side said."""

    facts: Facts
    rounds: list[dict[str, float]] = field(default_factory=list)

    def median(self, name: str) -> float:
        """Over the rounds."""
        return statistics.median(self.values(name))

    def most(self, name: str) -> float:
        """Over the rounds: for peaks, of speed and of memory."""
        return max(self.values(name))

    def values(self, name: str) -> list[float]:
        """One a round."""
        return [figures[name] for figures in self.rounds]


@dataclass
class Figure:
    """A line of the table.

    Args:
        name: what was measured.
        value: median.
        unit: of it.
        reference: what it is compared with, in the same run.
        ratio: value over the reference's median.
        spread: lowest and highest ratio of a round.
    """

    name: str
    value: float
    unit: str
    reference: str = ""
    ratio: float | None = None
    spread: tuple[float, float] | None = None


def compared(
    name: str, unit: str, ours: Measured, key: str, references: Sequence[tuple[str, Measured, str]]
) -> list[Figure]:
    """Our figure `key`, a line for each reference: who it is, what it measured, the name of its figure."""
    figures = []
    for label, other, its in references:
        ratios = [a / b for a, b in zip(ours.values(key), other.values(its), strict=True)]
        ratio = ours.median(key) / other.median(its)
        reference = f"{label}: {other.median(its):.4g} {unit}"
        figures.append(Figure(name, ours.median(key), unit, reference, ratio, (min(ratios), max(ratios))))
    return figures


def take_turns(sides: Sequence[str], rounds: int, more: Sequence[str] = ()) -> dict[str, Measured]:
    """Starts this script once a side, and has the sides measure in turns.

    Args:
        sides: names; the first prepares alone (what it caches, the others find).
        rounds: measurements a side.
        more: arguments of the sides beside those of this script.
    """
    found: dict[str, Measured] = {}
    with contextlib.ExitStack() as stack:
        running: dict[str, _Process] = {}
        for number, name in enumerate(sides):
            running[name] = stack.enter_context(_Process(name, more))
            if number == 0:
                found[name] = Measured(running[name].answer())
        for name in sides[1:]:
            found[name] = Measured(running[name].answer())
        for number in range(rounds):
            for name in sides:
                found[name].rounds.append(running[name].measure())
            said = {name: {k: round(v, 2) for k, v in found[name].rounds[-1].items()} for name in sides}
            note(f"round {number + 1} of {rounds}: {said}")
    return found


class _Process:
    """A side in a process of its own: waits until it is told to measure."""

    def __init__(self, name: str, more: Sequence[str]) -> None:
        self.name = name
        self.process = subprocess.Popen(
            [sys.executable, *sys.argv, *more, "--side", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={"TF_CPP_MIN_LOG_LEVEL": "3", **os.environ},
        )

    def __enter__(self) -> _Process:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait()

    def measure(self) -> dict[str, float]:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended: `answer` says so
            self.process.stdin.write("measure\n")
            self.process.stdin.flush()
        return self.answer()

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f'error: the side "{self.name}" ended early; what it said is above')
        return dict(json.loads(line))


def note(text: str) -> None:
    """A word on how far the benchmark is, to stderr."""
    print(text, file=sys.stderr, flush=True)


# A side.


def serve(side: Side, arguments: argparse.Namespace) -> int:
    """Prepares a side and measures whenever a line arrives; answers in JSON, a line each."""
    answers = sys.stdout
    with contextlib.redirect_stdout(sys.stderr), contextlib.suppress(KeyboardInterrupt):
        facts, measure = side(arguments)
        print(json.dumps(facts), file=answers, flush=True)
        for _ in sys.stdin:
            figures = {**measure(), "peak_memory_gib": peak_memory_gib()}
            print(json.dumps(figures), file=answers, flush=True)
    return 0


def peak(arguments: argparse.Namespace) -> tuple[Facts, Round]:
    """A side: floating-point operations a second in large matrix products, bytes a second in large copies."""
    import numpy as np
    import tensorflow as tf

    sizes, seconds = ((512,), 0.02) if arguments.quick else ((1024, 2048, 4096), 0.4)
    pages = 2**20 if arguments.quick else 2**26
    buffers = [(np.ones(pages, np.float32), np.empty(pages, np.float32)) for _ in range(cores())]
    threads = ThreadPoolExecutor(cores())

    def product(dtype: Any, size: int) -> float:
        a = tf.cast(tf.random.normal([size, size]), dtype)
        return _rate(2.0 * size**3, lambda: tf.matmul(a, a).numpy(), seconds)

    def copies() -> None:
        list(threads.map(lambda pair: np.copyto(pair[1], pair[0]), buffers))

    def measure() -> dict[str, float]:
        moved = 2.0 * sum(source.nbytes for source, _ in buffers)  # read and written
        return {
            "float32": max(product(tf.float32, size) for size in sizes) / 1e9,
            "bfloat16": max(product(tf.bfloat16, size) for size in sizes) / 1e9,
            "gigabytes_per_second": _rate(moved, copies, seconds) / 1e9,
        }

    measure()
    return {}, measure


def _rate(amount: float, do: Callable[[], Any], seconds: float) -> float:
    """Amount a second of the quickest of several calls."""
    do()
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end or best == float("inf"):
        began = time.perf_counter()
        do()
        best = min(best, time.perf_counter() - began)
    return amount / best


# What is printed.


def report(benchmark: str, figures: Sequence[Figure], *, ours: Measured, more: Mapping[str, Any]) -> None:
    """The table for people; last, one line of JSON whose first figure is the benchmark's own."""
    rows = [("what", "measured", "compared with", "ratio", "in the rounds")]
    for figure in figures:
        ratio = "" if figure.ratio is None else f"{figure.ratio:.2f}"
        spread = "" if figure.spread is None else f"{figure.spread[0]:.2f} to {figure.spread[1]:.2f}"
        rows.append((figure.name, f"{figure.value:.4g} {figure.unit}", figure.reference, ratio, spread))
    table(rows)
    memory = ours.most("peak_memory_gib")
    print(f"\npeak memory {memory:.2f} GiB; {len(ours.rounds)} rounds, medians")
    for name, value in ours.facts.items():
        print(f"{name}: {value}")
    machine = {"cpu": processor(), "cores": cores()}
    print(f"machine: {machine['cpu']}, {machine['cores']} cores; commit {commit()}")
    first = figures[0]
    line: dict[str, Any] = {
        "benchmark": benchmark,
        "figure": first.value,
        "unit": first.unit,
        "reference": first.reference,
        "ratio": first.ratio,
        "peak_share": None,
        **more,
        "figures": [vars(figure) for figure in figures],
        "peak_memory_gib": memory,
        "rounds": len(ours.rounds),
        **ours.facts,
        "commit": commit(),
        "machine": machine,
        "python": platform.python_version(),
    }
    print(json.dumps(_rounded(line), ensure_ascii=False), flush=True)


def growth(
    axis: str, values: Sequence[int], show: Mapping[str, str], *, more: Sequence[str] = ()
) -> list[Facts]:
    """Our side alone with one size growing, each in a fresh process: prints a table, returns its rows.

    Args:
        axis: an option of the script.
        values: of it.
        show: name of a figure and its unit.
        more: arguments of the sides.
    """
    rows, found = [(axis, *(f"{name} ({unit})" for name, unit in show.items()), "peak memory (GiB)")], []
    for value in values:
        ours = take_turns(["ours"], 1, [*more, f"--{axis}", str(value)])["ours"]
        figures = {name: ours.median(name) for name in (*show, "peak_memory_gib")}
        rows.append((f"{value}", *(f"{figure:.4g}" for figure in figures.values())))
        found.append({axis: value, **figures})
    print()
    table(rows)
    return found


def table(rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as they need; the first row is the head."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for number, row in enumerate(rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        if number == 0:
            print("  ".join("-" * width for width in widths))


def processor() -> str:
    """Its name, as Linux or Python knows it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def commit() -> str:
    """Of the checkout, `-dirty` where files are changed; "unknown" outside one."""
    try:
        command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude", "*"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _rounded(value: Any) -> Any:
    """Four digits are more than a benchmark knows."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list | tuple) else value
