"""Connections of clients that dawdle: heads that do not come, answers that are not taken, too many at once.

In: nothing. Out: the protocol class that uvicorn is given. uvicorn itself times only what lies between two
requests, so a client could hold a connection open for ever by sending one letter an hour.
"""

from __future__ import annotations

from typing import Any

from captioner.apps.serving.service import ServeLimits


def protocol_class(limits: ServeLimits) -> Any:
    """uvicorn's HTTP protocol, with `limits.header_seconds`, `.idle_seconds` and `.connections` kept."""
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
