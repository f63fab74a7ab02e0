"""`captioner serve`: what can be typed after it, and what it starts. Loads nothing slow until it does.

In: the parsed arguments. Out: a server, until it is stopped. The server itself is an extra: `apps.serving`.
"""

from __future__ import annotations

import os
from argparse import Namespace
from typing import Any

from captioner.cli.arguments import whole

MORE = (
    "Listens on this machine alone unless told otherwise with --host. The API takes pictures as forms, JSON\n"
    "or bare bytes, and in the shape of Ollama's, for PhotoPrism and others; its page is /docs. Pictures\n"
    "are held in memory while they are described, and written nowhere unless --corrections names a folder.\n"
    "Needs: pip install 'captioner[serve]'."
)
EXAMPLES = (
    "  captioner serve --run runs/flickr8k --open\n"
    "  captioner serve --run runs --port 8080\n"
    "  CAPTIONER_TOKEN=sesame captioner serve --run runs/flickr8k --host 0.0.0.0\n"
    "  captioner serve --run runs/flickr8k --corrections corrected\n"
    "  curl -F image=@dog.jpg localhost:7860/api/caption"
)


def add_arguments(add: Any) -> None:
    """Adds the arguments of `captioner serve`."""
    add(
        "--run",
        action="append",
        default=[],
        metavar="DIR",
        help="run folder, or folder of runs; may be repeated; else $CAPTIONER_RUN, or what comes along",
    )
    add(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="where to listen (127.0.0.1); 0.0.0.0: anywhere",
    )
    add(
        "--port", type=whole(0), default=7860, metavar="N", help="where to listen (7860); 0: any that is free"
    )
    add("--token", metavar="T", help="what clients must know; better in $CAPTIONER_TOKEN, which nobody sees")
    add(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="a name by which clients call this machine, beside its own; may be repeated",
    )
    add("--max-mib", type=whole(1), default=32, metavar="N", help="largest picture, in MiB (32)")
    add("--max-megapixels", type=whole(1), default=80, metavar="N", help="largest picture (80)")
    add("--max-waiting", type=whole(1), default=64, metavar="N", help="pictures that may wait at a time (64)")
    add(
        "--corrections",
        metavar="FOLDER",
        help="keep pictures whose captions people correct there, as a data set; else none",
    )
    add("--open", action="store_true", help="open the page in this machine's browser")


def run(arguments: Namespace) -> int:
    """`captioner serve`: a page and an API until Ctrl-C."""
    from captioner.apps.serving.server import ServerAddress
    from captioner.apps.serving.server import serve as run_server
    from captioner.apps.serving.service import ServeLimits
    from captioner.data.images import Limits, set_default_limits
    from captioner.runs.locate import find_run

    address = ServerAddress(
        host=arguments.host,
        port=arguments.port,
        token=arguments.token or os.environ.get("CAPTIONER_TOKEN", ""),
        names=arguments.allow_host,
        open_page=arguments.open,
        corrections=arguments.corrections or "",
    )
    size = arguments.max_mib * 2**20
    limits = ServeLimits(
        picture=Limits(file_bytes=size, pixels=arguments.max_megapixels * 1_000_000),
        body_bytes=2 * size,
        held_bytes=max(8 * size, 64 * 2**20),
        waiting=arguments.max_waiting,
    )
    set_default_limits(limits.picture)
    run_server(arguments.run or [find_run(None)], address, limits)
    return 0
