"""`captioner serve`: a web page and an HTTP API around trained models, in one process.

In: run folders and where to listen. Out: a server until it is stopped. Reads the run folders; writes nothing.
Page and API stand behind one guard; see `guard` for who may ask, `service` for how much.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import signal
import socket
import tempfile
import webbrowser
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from captioner.apps.serving.service import Served, ServeLimits, Service
from captioner.errors import CaptionerError, ConfigError, MissingExtra
from captioner.inference.caption import CaptionOptions
from captioner.system import console

OLDEST_GRADIO = (6, 20)


@dataclass(frozen=True)
class Place:
    """Where a server listens, and to whom."""

    host: str = "127.0.0.1"
    port: int = 7860  # 0: any that is free
    token: str = ""  # empty: none is asked for
    names: Sequence[str] = field(default_factory=tuple)  # by which clients may call this machine
    open_page: bool = False  # in this machine's browser


def serve(runs: Sequence[str | Path], place: Place, limits: ServeLimits | None = None) -> None:
    """Serves the models of run folders until stopped.

    Raises:
        MissingExtra: Gradio is not installed, or too old.
        RunError: a folder holds no finished run.
        CaptionerError: the address cannot be listened on.
    """
    _check_extra()
    from captioner.apps.serving.served_models import open_runs

    with listening(place.host, place.port) as listener:
        service = Service(open_runs(runs), limits)
        try:
            _serve(service, place, listener)
        finally:
            service.close()


@contextlib.contextmanager
def listening(host: str, port: int) -> Iterator[socket.socket]:
    """A socket that listens.

    Raises:
        CaptionerError: the address is not this machine's, or taken.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        raise CaptionerError(
            f"cannot listen on {host} port {port} ({error.strerror or error}); choose another with --port "
            "(0: any that is free), or another of this machine's addresses with --host"
        ) from error
    with listener:
        yield listener


def application(service: Service, place: Place, port: int) -> Any:
    """Page and API behind their guard, as an ASGI application."""
    from captioner.apps.serving.api import build_api
    from captioner.apps.serving.guard import Guard
    from captioner.apps.serving.page import add_files, example_pictures, login_page, mount_page

    api = build_api(service)
    add_files(api, example_pictures())
    mount_page(api, service, host=place.host, port=port)
    names = [place.host, socket.gethostname(), f"{socket.gethostname()}.local", *place.names]
    return Guard(api, service.limits, hosts=names, token=place.token, login_page=login_page())


def warm_up(service: Service, model: Served, picture: bytes) -> None:
    """Loads a model and has it caption once, so that the first client does not wait.

    Raises:
        CaptionerError: it cannot; says why.
    """
    caption = service.submit(model, [picture], CaptionOptions())[0].result()
    if caption.error is not None:
        raise CaptionerError(f"{model.name}: cannot caption an example picture: it {caption.error}")


def _serve(service: Service, place: Place, listener: socket.socket) -> None:
    import uvicorn

    from captioner.apps.serving.api import log_to_stderr
    from captioner.apps.serving.connections import protocol_class
    from captioner.apps.serving.page import example_pictures

    others = f", and {len(service.models) - 1} more when asked for" if len(service.models) > 1 else ""
    console.info(f"loading {service.default.name}{others}")
    warm_up(service, service.default, example_pictures()[0])
    log_to_stderr()
    port = listener.getsockname()[1]
    address = f"http://{_written(place.host)}:{port}"
    with tempfile.TemporaryDirectory(prefix="captioner-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder  # not the one that all Gradio programs share
        config = uvicorn.Config(
            application(service, place, port),
            http=protocol_class(service.limits),
            ws="none",
            log_level="error",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=15,
            timeout_graceful_shutdown=3,
            h11_max_incomplete_event_size=32 * 2**10,
        )
        _announce(address, place)
        server = uvicorn.Server(config)
        # uvicorn ends in good order, and then passes the signal on: both mean that all is well.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        with contextlib.suppress(KeyboardInterrupt):
            server.run(sockets=[listener])
    console.info("stopped")


def _announce(address: str, place: Place) -> None:
    console.info(f"page:  {address}/")
    console.info(f"API:   {address}/docs")
    if not _is_loopback(place.host) and not place.token:
        console.info(
            f"warning: whoever reaches {place.host} can use this server; ask for a token with --token or "
            "$CAPTIONER_TOKEN"
        )
    console.info("Ctrl-C ends it")
    if place.open_page:
        webbrowser.open(f"{address}/")


def _check_extra() -> None:
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before it is imported: nothing is told to anybody
    try:
        import gradio
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise MissingExtra("serve", "captioner serve") from error
    version = tuple(int(part) for part in gradio.__version__.split(".")[:2])
    if version < OLDEST_GRADIO:
        oldest = ".".join(map(str, OLDEST_GRADIO))
        raise ConfigError(
            f"Gradio {gradio.__version__} is installed, which has known security holes; expected {oldest} or "
            f"later: pip install 'captioner[serve]' 'gradio>={oldest}'"
        )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _written(host: str) -> str:
    """A host as it stands in an address that a browser on this machine can open."""
    if host in ("0.0.0.0", "::", ""):
        return "localhost"
    return f"[{host}]" if ":" in host else host
