"""`captioner serve`: a web page and an HTTP API around trained models, in one process.

In: run folders and where to listen. Out: a server until it is stopped. Reads the run folders; writes nothing.
Page and API stand behind one guard; see `guard` for who may ask, `service` for how much.
"""

from __future__ import annotations

import contextlib
import ipaddress
import signal
import socket
import webbrowser
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from captioner.apps.serving.correction_folder import CorrectionFolder
from captioner.apps.serving.service import ServedModel, ServeLimits, Service
from captioner.errors import CaptionerError, MissingExtra
from captioner.inference.search_options import CaptionOptions
from captioner.system import console


@dataclass(frozen=True)
class ServerAddress:
    """Where a server listens, and to whom."""

    host: str = "127.0.0.1"
    port: int = 7860  # 0: any that is free
    token: str = ""  # empty: none is asked for
    names: Sequence[str] = field(default_factory=tuple)  # by which clients may call this machine
    open_page: bool = False  # in this machine's browser
    corrections: str | Path = ""  # folder for corrected captions; empty: none are kept


def serve(runs: Sequence[str | Path], address: ServerAddress, limits: ServeLimits | None = None) -> None:
    """Serves the models of run folders until stopped.

    Raises:
        MissingExtra: FastAPI, uvicorn or what they need is not installed.
        RunError: a folder holds no finished run.
        CaptionerError: the address cannot be listened on.
    """
    _check_extra()
    from captioner.apps.serving.served_models import open_runs

    corrections = CorrectionFolder(address.corrections) if str(address.corrections) else None
    with listening(address.host, address.port) as listener:
        service = Service(open_runs(runs), limits, corrections)
        try:
            _serve(service, address, listener)
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


def application(service: Service, address: ServerAddress) -> Any:
    """Page and API behind their guard, as an ASGI application."""
    from captioner.apps.serving.api import build_api
    from captioner.apps.serving.guard import Guard
    from captioner.apps.serving.page import add_page, login_page

    api = build_api(service)
    add_page(api, service)
    return Guard(
        api,
        service.limits,
        hosts=[address.host, socket.gethostname(), f"{socket.gethostname()}.local"],
        allowed=address.names,
        token=address.token,
        login_page=login_page(),
    )


def warm_up(service: Service, model: ServedModel, picture: bytes) -> None:
    """Loads a model and has it caption once, so that the first client does not wait.

    Raises:
        CaptionerError: it cannot; says why.
    """
    caption = service.submit(model, [picture], CaptionOptions())[0].result()
    if caption.error is not None:
        raise CaptionerError(f"{model.name}: cannot caption an example picture: it {caption.error}")


def _serve(service: Service, address: ServerAddress, listener: socket.socket) -> None:
    import uvicorn

    from captioner.apps.serving.page import example_pictures

    others = f", and {len(service.models) - 1} more when asked for" if len(service.models) > 1 else ""
    console.info(f"loading {service.default.name}{others}")
    warm_up(service, service.default, example_pictures()[0])
    config = uvicorn.Config(
        application(service, address),
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
    _announce(f"http://{_written(address.host)}:{listener.getsockname()[1]}", address)
    server = uvicorn.Server(config)
    # uvicorn ends in good order, and then passes the signal on: both mean that all is well.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt):
        server.run(sockets=[listener])
    console.info("stopped")


def _announce(url: str, address: ServerAddress) -> None:
    console.info(f"page:  {url}/")
    console.info(f"API:   {url}/docs")
    if address.corrections:
        console.info(f"corrected captions are kept in {address.corrections}")
    if not _is_loopback(address.host) and not address.token:
        console.info(
            f"warning: whoever reaches {address.host} can use this server; ask for a token with --token or "
            "$CAPTIONER_TOKEN"
        )
    console.info("Ctrl-C ends it")
    if address.open_page:
        webbrowser.open(f"{url}/")


def _check_extra() -> None:
    try:
        import fastapi  # noqa: F401
        import jinja2  # noqa: F401
        import python_multipart  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise MissingExtra("serve", "captioner serve") from error


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


def protocol_class(limits: ServeLimits) -> Any:
    """uvicorn's HTTP protocol, with `limits.header_seconds`, `.idle_seconds` and `.connections` kept.

    uvicorn itself times only what lies between two requests, so that a client could hold a connection open
    for ever by sending one letter an hour; its `limit_concurrency` counts connections whose head is there.
    """
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class PunctualProtocol(H11Protocol):
        """A connection that is cut when its client lets it wait."""

        _head: Any = None  # running while a request's head is expected
        _stuck: Any = None  # running while the client takes nothing of what it is sent

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            if len(self.connections) > limits.connections:
                transport.abort()
            else:
                self._head = self.loop.call_later(limits.header_seconds, self._cut)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            answering = self.cycle is not None and not self.cycle.response_complete
            if answering:
                self._head = _stop(self._head)
            elif self._head is None:  # the next request on this connection has begun
                self._head = self.loop.call_later(limits.header_seconds, self._cut)

        def pause_writing(self) -> None:
            super().pause_writing()
            self._stuck = self.loop.call_later(limits.idle_seconds, self._cut)

        def resume_writing(self) -> None:
            super().resume_writing()
            self._stuck = _stop(self._stuck)

        def connection_lost(self, exc: Exception | None) -> None:
            self._head, self._stuck = _stop(self._head), _stop(self._stuck)
            super().connection_lost(exc)

        def _cut(self) -> None:
            self.transport.abort()

    return PunctualProtocol


def _stop(timer: Any) -> Any:
    """Stops a timer, if it runs; gives what takes its place."""
    if timer is not None:
        timer.cancel()
    return None
