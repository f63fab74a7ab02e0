"""How much is said on stderr, and in what colours. State of the process, set once by the command line.

Colours only on a terminal that has not been asked to do without (NO_COLOR, https://no-color.org; TERM=dumb).
"""

from __future__ import annotations

import os
import sys
import time
from typing import TextIO

_CODES = {"red": 31, "green": 32, "yellow": 33, "bold": 1, "faint": 2}
_began = time.monotonic()
_state = {"quiet": False, "verbose": False}


def speak(*, quiet: bool = False, verbose: bool = False) -> None:
    """From now on nothing is narrated (`quiet`), or also what is usually left out (`verbose`)."""
    _state.update(quiet=quiet, verbose=verbose)


def quiet() -> bool:
    """Whether bars and narration are left out."""
    return _state["quiet"]


def verbose() -> bool:
    """Whether details are wanted."""
    return _state["verbose"]


def detail(text: str) -> None:
    """A line for those who said --verbose: what was found, chosen, loaded, and how long after the start."""
    if _state["verbose"]:
        line = f"[{time.monotonic() - _began:7.2f} s] {text}"
        print(styled(line, "faint", sys.stderr), file=sys.stderr, flush=True)


def styled(text: str, style: str, stream: TextIO) -> str:
    """The text in a colour or weight, where `stream` can show it.

    >>> import io
    >>> styled("error", "red", io.StringIO())
    'error'
    """
    return f"\033[{_CODES[style]}m{text}\033[0m" if coloured(stream) else text


def coloured(stream: TextIO) -> bool:
    """Whether colours are wanted there."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
