"""The handlers of the logger `captioner`: standard error, and the log file of a training.

A module of its own because `logging` takes 4 ms to import: `console` loads it when the first line is said.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

from captioner.system.files import append_line


class ConsoleHandler(logging.StreamHandler[Any]):
    """Writes to whatever `sys.stderr` is at that moment; what cannot be shown ends no work."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)  # not StreamHandler's: it would set `stream`

    @property
    def stream(self) -> Any:
        """Standard error, as it is now."""
        return sys.stderr

    def handleError(self, record: logging.LogRecord) -> None:
        """Nothing: a closed or full standard error cannot be told of."""


class FileHandler(logging.Handler):
    """Appends each line to a file, whole and on the disk; a full disk is a CaptionerError as elsewhere."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.setFormatter(logging.Formatter("%(asctime)s  %(message)s", "%Y-%m-%d %H:%M:%S"))

    def emit(self, record: logging.LogRecord) -> None:
        """One line."""
        append_line(self.path, self.format(record))
