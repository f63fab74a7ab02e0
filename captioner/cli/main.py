"""The command `captioner`: parses what was typed, runs the command's module, says what went wrong.

In: arguments. Out: text on stdout, narration and errors on stderr, an exit code: 0 all well, 1 some pictures
failed, 2 wrong use or bad input, 130 stopped with Ctrl-C. Help and wrong use answer at once.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import TextIO

from captioner.cli.parser import build_parser, load_command, parse
from captioner.cli.sharding import staging
from captioner.errors import CaptionerError, missing_extra
from captioner.system import console

NO_MEMORY = (
    "not enough memory; fewer pictures at a time (--batch-size, phases.NAME.pictures_per_batch), a smaller "
    "network (decoder.units) or a narrower beam need less, and what was saved is whole"
)

_UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and gives its exit code; every error that a user can mend is one sentence on stderr."""
    can_print = _open_closed_streams()
    _use_utf8()
    try:
        if not can_print:
            raise CaptionerError("standard output is closed; send it to a file or to /dev/null")
        code = _run(list(sys.argv[1:] if arguments is None else arguments))
        sys.stdout.flush()  # here, where a broken pipe is still caught
        return code
    except CaptionerError as error:
        stopped = error.exit_code > 128  # by a signal, as asked: nothing is wrong
        if console.verbose() and not stopped:
            import traceback

            traceback.print_exc()
        _tell(str(error) if stopped else f"{_error_mark()} {error}")
        return error.exit_code
    except KeyboardInterrupt:
        _tell("stopped (Ctrl-C); what is written is whole, and the same command begins again")
        return 130
    except BrokenPipeError:
        # Whoever read our output has gone (`| head`); Python would complain once more at its end.
        _give_up(sys.stdout)
        return 141
    except ModuleNotFoundError as error:
        missing = missing_extra(error)
        if missing is None:
            raise
        print(f"{_error_mark()} {missing}", file=sys.stderr)
        return missing.exit_code
    except Exception as error:
        # Files of ours say themselves what is wrong with them; what comes without a name was printed.
        if isinstance(error, OSError) and error.filename is None and error.errno in _UNWRITABLE:
            _tell(f"{_error_mark()} what is printed cannot be written ({error.strerror}); files are whole")
            for stream in (sys.stdout, sys.stderr):
                _give_up(stream)
            return 2
        # TensorFlow's by name: it may not be loaded.
        if not isinstance(error, MemoryError) and type(error).__name__ != "ResourceExhaustedError":
            raise
        _tell(f"{_error_mark()} {NO_MEMORY}")
        return 2


def _run(arguments: list[str]) -> int:
    if "_ARGCOMPLETE" in os.environ:  # a shell asks what could be typed next
        from captioner.cli.commands.completion import answer

        answer(build_parser())
    if not arguments:
        from captioner.cli.welcome import greeting

        print(greeting(sys.stdout))
        return 0
    try:
        parsed = parse(arguments)
    except SystemExit as end:  # argparse, after --help and --version
        return int(end.code or 0)
    try:
        os.getcwd()
    except OSError as error:
        raise CaptionerError(
            "the folder in which this was typed has been deleted; go to one that is there (cd) and try again"
        ) from error
    # NumPy's products are small and run beside threads that fill the cores: its own would get in the way.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    console.configure(quiet=parsed.quiet, verbose=parsed.verbose)
    with staging(parsed):
        code = load_command(parsed.command).run(parsed)
    console.debug("done")
    return code


def _error_mark() -> str:
    return console.styled("error:", "red", sys.stderr)


def _tell(text: str) -> None:
    with suppress(OSError):  # there may be nobody to tell
        print(text, file=sys.stderr, flush=True)


def _open_closed_streams() -> bool:
    """Keeps files of ours from taking the place of a closed stream (`>&-`); False: nothing can be printed."""
    can_print = sys.stdout is not None
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:  # the lowest that is free
        pass
    os.close(descriptor)
    sys.stdin = sys.stdin or os.fdopen(0, encoding="utf-8")
    sys.stdout = sys.stdout or os.fdopen(1, "w", encoding="utf-8")
    sys.stderr = sys.stderr or os.fdopen(2, "w", encoding="utf-8")
    return can_print


def _give_up(stream: TextIO) -> None:
    """Sends what is still to be written nowhere: Python would complain at its end."""
    with suppress(OSError):  # no real file: a test's
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _use_utf8() -> None:
    # Captions are in any language, file names may not even be Unicode: printing never fails.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
