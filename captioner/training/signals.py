"""Stopping a training: Ctrl-C and SIGTERM let the step under way finish."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from captioner.errors import CaptionerError


class Interrupted(CaptionerError):
    """A training that was stopped and saved; `exit_code` is the shell's for the signal."""

    def __init__(self, folder: Path, number: int) -> None:
        super().__init__(f"stopped and saved; go on with the same command and --resume (run folder {folder})")
        self.exit_code = 128 + number


@dataclass
class StopRequest:
    """`requested` is the signal's number once one has come."""

    requested: int = 0


@contextmanager
def noting(stop: StopRequest) -> Iterator[None]:
    """Context in which Ctrl-C or SIGTERM only sets `stop.requested`; a second Ctrl-C interrupts at once."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals belong to the main thread; elsewhere the caller decides
        return

    def note(number: int, frame: Any) -> None:
        if stop.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.requested = number

    previous = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
