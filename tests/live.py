"""Real runs behind a real `captioner serve`, for tests that take the page and the API as they are."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from captioner.data.synthetic.scenes import draw_dataset

ROOT = Path(__file__).resolve().parent.parent
QUICK = (
    "encoder.size=48",
    "decoder.units=64",
    "decoder.embedding=32",
    "phases.scratch.epochs=5",
    "phases.scratch.warmup_steps=5",
    "phases.scratch.ema_decay=0.0",
)
LANGUAGES = {"scenes": "en", "szenen": "de", "장면": "ko"}  # name of the run: of its captions
START_SECONDS = 600  # on a machine that has other things to do


def train_runs(folder: Path, names: Sequence[str]) -> Path:
    """A folder with a small run of each name, in its language, trained for seconds."""
    from captioner.cli.main import main

    for name in names:
        data = folder / f"{name}-data"
        draw_dataset(data, pictures=240, seed=0, size=48, language=LANGUAGES[name])
        changes = [word for change in QUICK for word in ("--set", change)]
        run = folder / "runs" / name
        assert main(["train", "sample", "--data", str(data), "--run", str(run), "--quiet", *changes]) == 0
    return folder / "runs"


@contextmanager
def serving(*arguments: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """`captioner serve` with these arguments on a port of its own: its address and its process."""
    command = [sys.executable, "-m", "captioner", "serve", "--port", "0", *arguments]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, encoding="utf-8")
    try:
        yield _address(process), process
    finally:
        process.terminate()
        process.communicate(timeout=60)


def ask(url: str, body: bytes | None = None, kind: str = "application/json") -> tuple[int, Any]:
    """Status and decoded JSON of one request; a POST if there is a body."""
    request = urllib.request.Request(url, body, {"content-type": kind} if body is not None else {})
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read() or b"null")


def _address(process: subprocess.Popen[str]) -> str:
    assert process.stderr is not None
    said = ""
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until and (line := process.stderr.readline()):
        said += line
        if found := re.search(r"page: +(http://\S+)/", line):
            address = found[1]
            while time.monotonic() < until:
                try:
                    urllib.request.urlopen(f"{address}/healthz", timeout=30).read()
                    return address
                except OSError:
                    time.sleep(0.2)
    raise AssertionError(f"captioner serve did not start: {said}")
