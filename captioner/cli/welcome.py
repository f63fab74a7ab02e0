"""What `captioner` says when it is typed alone: what one can do next, here. Reads which runs there are."""

from __future__ import annotations

import re
from typing import TextIO

from captioner.runs.locate import newest_runs
from captioner.system import console

GREETING = """\
captioner: a picture goes in, a sentence comes out.

  captioner caption dog.jpg                    describe a picture
  captioner caption photos --write txt         describe a folder, into photos/*.txt
{more}
  captioner doctor                             what this machine has, and lacks

`captioner COMMAND --help` explains a command; `captioner --help` lists all.
"""
FIRST = """
  captioner sample scenes                      draw a small data set to try things on
  captioner train sample --data scenes         learn from it, in about three minutes
"""
AGAIN = """
  captioner caption dog.jpg --run {run}
  captioner info {run}
  captioner serve --run {run} --open
"""


def greeting(stream: TextIO) -> str:
    """The greeting, for a first visit or for somebody who has trained here already."""
    runs = newest_runs(1)
    text = GREETING.format(more=AGAIN.format(run=runs[0]) if runs else FIRST).rstrip()
    # What can be typed stands out.
    return re.sub(
        r"(?m)^  (captioner .*?)(?=   |$)", lambda m: "  " + console.styled(m[1], "bold", stream), text
    )
