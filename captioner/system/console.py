"""What a person sees while something long is going on, on stderr only; how much, and in what colors.

In: sentences, counts and figures. Out: lines of the logger `captioner`; a tqdm bar on a terminal, a plain
line every ten seconds anywhere else (log files, CI); nothing when quiet. `recording` also keeps the lines in
a log file. Programs that use captioner as a library give the logger handlers of their own, or a level.

Colors only on a terminal that has not been asked to do without (NO_COLOR, https://no-color.org; TERM=dumb).
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Protocol, TextIO

INTERVAL_SECONDS = 10.0

LOGGER = "captioner"
_RECORDED = 15  # between DEBUG and INFO: kept in log files, not shown
_CODES = {"red": 31, "green": 32, "yellow": 33, "bold": 1, "faint": 2}
_began = time.monotonic()
_state = {"quiet": False, "verbose": False}


def configure(*, quiet: bool = False, verbose: bool = False) -> None:
    """From now on nothing is narrated (`quiet`), or also what is usually left out (`verbose`)."""
    _state.update(quiet=quiet, verbose=verbose)


def quiet() -> bool:
    """Whether bars and narration are left out."""
    return _state["quiet"]


def verbose() -> bool:
    """Whether details are wanted."""
    return _state["verbose"]


def info(text: str, *, quiet: bool = False) -> None:
    """One line of narration, above a bar that is being drawn; also into the logs of `recording`."""
    _logger().log(_RECORDED if quiet or _state["quiet"] else 20, text)  # 20: logging.INFO


def debug(text: str) -> None:
    """A line for those who said --verbose: what was found, chosen, loaded, and how long after the start."""
    if _state["verbose"]:
        line = f"[{time.monotonic() - _began:7.2f} s] {text}"
        print(styled(line, "faint", sys.stderr), file=sys.stderr, flush=True)


@contextmanager
def recording(path: str | Path) -> Iterator[None]:
    """Every line of narration inside is also appended to the file at `path`, with the time."""
    from captioner.system.log_handlers import FileHandler

    logger, handler = _logger(), FileHandler(Path(path))
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


@cache
def _logger() -> Any:
    """The logger, with a handler for stderr unless the program around us has given it one."""
    import logging

    from captioner.system.log_handlers import ConsoleHandler

    logger = logging.getLogger(LOGGER)
    if not logger.handlers:
        handler = ConsoleHandler()
        handler.setLevel(logging.INFO)
        logger.addHandler(handler)
        logger.propagate = False
    if logger.level == logging.NOTSET:
        logger.setLevel(_RECORDED)
    return logger


class Bar(Protocol):
    """The bar that `progress_bar` yields."""

    def update(self, n: int = 1, **figures: float | str) -> None:
        """`n` more are done; `figures` (loss=2.31, words_per_second=900) are shown beside the count."""


@contextmanager
def progress_bar(
    total: int | None, unit: str, description: str, quiet: bool = False, *, done: int = 0
) -> Iterator[Bar]:
    """A progress bar for `total` things called `unit`, of which `done` were finished in an earlier run.

    Example:
        >>> with progress_bar(100, "pictures", "features", quiet=True) as progress:
        ...     progress.update(32, failed=1)
    """
    if quiet or _state["quiet"]:
        yield _Silence()
    elif sys.stderr.isatty():
        from tqdm.contrib.logging import logging_redirect_tqdm  # not before a bar is drawn: tqdm takes time

        with logging_redirect_tqdm([_logger()]), _TerminalBar(total, unit, description, done) as shown:
            yield shown
    else:
        lines = _Lines(total, unit, description, done)
        yield lines
        lines.finish()


def duration(seconds: float) -> str:
    """Seconds in words.

    >>> duration(8.24), duration(75), duration(7300)
    ('8.2 s', '1 min 15 s', '2 h 1 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def styled(text: str, style: str, stream: TextIO) -> str:
    """The text in a color or weight, where `stream` can show it.

    >>> import io
    >>> styled("error", "red", io.StringIO())
    'error'
    """
    return f"\033[{_CODES[style]}m{text}\033[0m" if shows_colors(stream) else text


def shows_colors(stream: TextIO) -> bool:
    """Whether colors are wanted there."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


@contextmanager
def silent_stderr() -> Iterator[None]:
    """Keeps back what is written to file descriptor 2, below Python; gives it out if the block fails."""
    import tempfile

    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield
        except Exception:
            file.seek(0)
            os.write(kept, file.read())
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)


class _Silence:
    def update(self, n: int = 1, **figures: float | str) -> None:
        return


class _TerminalBar:
    def __init__(self, total: int | None, unit: str, description: str, done: int) -> None:
        from tqdm import tqdm

        self._bar = tqdm(
            total=total, unit=f" {unit}", desc=description, initial=done, file=sys.stderr, dynamic_ncols=True
        )

    def __enter__(self) -> _TerminalBar:
        return self

    def __exit__(self, *_: Any) -> None:
        self._bar.close()

    def update(self, n: int = 1, **figures: float | str) -> None:
        if figures:
            self._bar.set_postfix({key: _figure(value) for key, value in figures.items()}, refresh=False)
        self._bar.update(n)


class _Lines:
    def __init__(self, total: int | None, unit: str, description: str, done: int) -> None:
        self._total, self._unit, self._description = total, unit, description
        self._done = self._before = done
        self._figures: dict[str, float | str] = {}
        self._began = self._last = time.monotonic()

    def update(self, n: int = 1, **figures: float | str) -> None:
        self._done += n
        self._figures.update(figures)
        now = time.monotonic()
        if now - self._last >= INTERVAL_SECONDS:
            self._last = now
            print(self._line(now), file=sys.stderr, flush=True)

    def finish(self) -> None:
        print(self._line(time.monotonic(), ended=True), file=sys.stderr, flush=True)

    def _line(self, now: float, ended: bool = False) -> str:
        seconds = max(now - self._began, 1e-9)
        rate = (self._done - self._before) / seconds
        count = f"{self._done}" if self._total is None else f"{self._done}/{self._total}"
        parts = [f"{self._description}: {count} {self._unit}", f"{_figure(rate)} {self._unit}/s"]
        if ended:
            parts.append(duration(seconds))
        elif self._total is not None and rate > 0:
            parts.append(f"{duration((self._total - self._done) / rate)} left")
        return ", ".join(parts + [f"{key} {_figure(value)}" for key, value in self._figures.items()])


def _figure(value: float | str) -> str:
    if isinstance(value, str):
        return value
    return f"{value:.0f}" if isinstance(value, int) or abs(value) >= 100 else f"{value:.3g}"
