"""What a command needs before it can compute: the run folder that is meant, and TensorFlow.

In: what was typed, $CAPTIONER_RUN. Out: a folder; TensorFlow imported without its C++ chatter.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import captioner
from captioner.errors import RunError

SHIPPED = ("shipped", "../checkpoints/flickr8k")  # beside this file: in the wheel, in a checkout



def find_run(given: str | None) -> Path:
    """The run folder to caption with: the one given, that of $CAPTIONER_RUN, or the one that comes along.

    Raises:
        RunError: there is none; says how to come by one.
    """
    if given or os.environ.get("CAPTIONER_RUN"):
        return Path(given or os.environ["CAPTIONER_RUN"])
    for place in SHIPPED:
        folder = (Path(captioner.__file__).parent / place).resolve()
        if (folder / "config.json").is_file():
            return folder
    raise RunError(
        "no trained model: none comes with this installation; name a run folder with --run or in "
        "$CAPTIONER_RUN, or make one: captioner sample scenes, then captioner train scenes --data scenes "
        "--run runs/scenes"
    )


def load_tensorflow() -> None:
    """Imports TensorFlow without what its C++ libraries say of themselves; it is shown if that fails."""
    if "tensorflow" in sys.modules:
        return
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if os.environ["TF_CPP_MIN_LOG_LEVEL"] < "2":  # somebody wants to see it
        import tensorflow  # noqa: F401
    with _silent_stderr():
        import tensorflow  # noqa: F401, F811


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Keeps back what is written to file descriptor 2, below Python; gives it out if the block fails."""
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
