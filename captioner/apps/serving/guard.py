"""The gate before page and API: who may ask, what for, how large and how slow a request may be.

In: an ASGI application. Out: the same, guarded. A request goes on only if its Host is one of ours (so no
foreign page can reach us by renaming itself), its Origin is ours or none, it has the token if one is set,
and it asks for something that is there. Its body is read here, counted and timed, before the application
runs. Whatever is refused gets a sentence in JSON. Reads and writes no file.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import json
import re
import secrets
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs

from captioner.apps.serving.service import ServeLimits

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

COOKIE = "captioner"
_POSTS = {"/api/caption", "/api/generate", "/api/chat", "/api/show", "/login"}
# Of all that Gradio can do, the page needs only to be shown: nothing there takes a file, a path or a call.
_GETS = re.compile(
    r"/|/healthz|/docs|/openapi\.json|/api/(runs|tags|version|ps)|/page/[\w.-]+|/examples/\d+\.png"
    r"|/config/?|/theme\.css|/favicon\.ico|/manifest\.json|/robots\.txt|/(static|assets)/[\w./ @+-]+"
    r"|/gradio_api/(info|startup-events|theme\.css|app_id|heartbeat/\w+)"
)
_OPEN = {"/healthz", "/login", "/favicon.ico", "/page/plain.css"}  # without a token
_SMALL_BODY = 64 * 2**10  # of a request that carries no picture
_LINGER_SECONDS = 2.0
_HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",  # with no-referrer a browser calls its own forms' origin null
    # Nothing is fetched from or sent to anybody else, whatever the page's libraries would like.
    "content-security-policy": (
        "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
        "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
        "connect-src 'self' blob:; frame-ancestors 'self'; base-uri 'self'; form-action 'self'"
    ),
}


class Refusal(Exception):
    """Why a request is refused, as its client gets it."""

    def __init__(self, status: int, reason: str, headers: tuple[tuple[str, str], ...] = ()) -> None:
        super().__init__(reason)
        self.status, self.reason, self.headers = status, reason, headers


class Guard:
    """See the head of this file.

    Args:
        app: what is guarded.
        limits: sizes and times.
        hosts: names that a Host header may have; numeric addresses always may.
        token: what clients must know, or empty.
        login_page: HTML for a browser that does not have the token.
    """

    def __init__(
        self,
        app: Callable[..., Awaitable[None]],
        limits: ServeLimits,
        *,
        hosts: Iterable[str] = (),
        token: str = "",
        login_page: str = "",
    ) -> None:
        self._app, self._limits = app, limits
        self._hosts = {"localhost", *(host.lower() for host in hosts)}
        self._token, self._login_page = token, login_page
        self._cookie = secrets.token_urlsafe(32)  # what a browser gets for the token, until we end
        self._held = 0

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            try:
                await self._serve(scope, receive, _with_headers(send))
            except Refusal as refusal:
                await _refuse(refusal, scope, receive, _with_headers(send))

    async def _serve(self, scope: Any, receive: Receive, send: Send) -> None:
        headers = {key.decode("latin-1"): value.decode("latin-1") for key, value in scope["headers"]}
        path, method = scope["path"], scope["method"]
        self._check_host(headers)
        known = self._knows_token(headers) or path in _OPEN
        if not known and method == "GET" and "text/html" in headers.get("accept", ""):
            raise Refusal(401, self._login_page, (("content-type", "text/html; charset=utf-8"),))
        if not known:
            raise Refusal(
                401, "a token is needed: Authorization: Bearer TOKEN", (("www-authenticate", "Bearer"),)
            )
        _check_route(path, method)
        if path == "/":
            scope = {**scope, "query_string": b""}  # Gradio would open files that it names
        body = await self._read(receive, path, headers)
        try:
            if path == "/login":
                await self._login(body, scope, send)
            else:
                await self._app(scope, body.receive, send)
        finally:
            self._held -= body.size

    # Who asks.

    def _check_host(self, headers: dict[str, str]) -> None:
        host = _name_of(headers.get("host", ""))
        if host not in self._hosts and not _is_address(host):
            raise Refusal(
                421, f'this server is not called "{host[:80]}"; if it should be, start it with --allow-host'
            )
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2].lower() != headers["host"].lower():
            raise Refusal(403, f"pages of {origin[:80]} may not use this server")

    def _knows_token(self, headers: dict[str, str]) -> bool:
        if not self._token:
            return True
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and _same(given.strip(), self._token):
            return True
        try:
            cookie = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
        except CookieError:
            return False
        return cookie is not None and _same(cookie.value, self._cookie)

    async def _login(self, body: Body, scope: Any, send: Send) -> None:
        given = parse_qs(b"".join(body.pieces).decode("utf-8", "replace")).get("token", [""])[0]
        if self._token and not _same(given, self._token):
            await asyncio.sleep(1)  # so that guessing takes its time
            raise Refusal(401, self._login_page, (("content-type", "text/html; charset=utf-8"),))
        cookie = f"{COOKIE}={self._cookie}; HttpOnly; SameSite=Strict; Path=/"
        await _send_text(send, 303, "", (("location", "."), ("set-cookie", cookie)))

    # What is sent.

    async def _read(self, receive: Receive, path: str, headers: dict[str, str]) -> Body:
        """The whole body, in the pieces it came in.

        Raises:
            Refusal: too large, too slow, or the server holds as much as it may.
        """
        pictures = path in _POSTS - {"/login", "/api/show"}
        most = self._limits.body_bytes if pictures else _SMALL_BODY
        announced = headers.get("content-length", "0")
        if announced.isdecimal() and int(announced) > most:
            raise _too_large(most)
        body = Body(receive)
        loop = asyncio.get_running_loop()
        end = loop.time() + self._limits.body_seconds
        try:
            more = True
            while more:
                patience = min(self._limits.idle_seconds, end - loop.time())
                message = await asyncio.wait_for(receive(), max(patience, 0))
                if message["type"] == "http.disconnect":
                    raise Refusal(499, "")
                self._hold(body, message.get("body", b""), most)
                more = message.get("more_body", False)
        except TimeoutError:
            self._held -= body.size
            raise Refusal(408, "the request came too slowly; nothing was done") from None
        except Refusal:
            self._held -= body.size
            raise
        return body

    def _hold(self, body: Body, piece: bytes, most: int) -> None:
        if body.size + len(piece) > most:
            raise _too_large(most)
        if self._held + len(piece) > self._limits.held_bytes:
            raise Refusal(503, "too much is being sent at once; try again", (("retry-after", "2"),))
        self._held += len(piece)
        body.add(piece)


class Body:
    """A request's body, read; handed on piece by piece, and let go."""

    def __init__(self, receive: Receive) -> None:
        self.pieces: list[bytes] = []
        self.size = 0
        self._next = 0
        self._connection = receive

    def add(self, piece: bytes) -> None:
        """Keeps one more."""
        self.pieces.append(piece)
        self.size += len(piece)

    async def receive(self) -> Message:
        """For the application, as ASGI has it."""
        if self._next == len(self.pieces):
            return await self._connection()  # tells when the client has gone
        await asyncio.sleep(0)  # lets others have their turn while much is being parsed
        piece, self.pieces[self._next] = self.pieces[self._next], b""
        self._next += 1
        return {"type": "http.request", "body": piece, "more_body": self._next < len(self.pieces)}


def _check_route(path: str, method: str) -> None:
    posts = path in _POSTS
    if not posts and not _GETS.fullmatch(path):
        raise Refusal(404, f'there is no "{path[:80]}" here; /docs says what is')
    if method not in (("POST",) if posts else ("GET", "HEAD")):
        allowed = "POST" if posts else "GET, HEAD"
        raise Refusal(405, f"{path} takes {allowed}, not {method[:16]}", (("allow", allowed),))


def _name_of(host: str) -> str:
    """The name in a Host header, without its port and brackets."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.rpartition(":")[0].lower() if ":" in host else host.lower()


def _is_address(host: str) -> bool:
    # A page from elsewhere can call itself any name, but no number: a number is looked up nowhere.
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _same(given: str, expected: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "replace"), expected.encode("utf-8", "replace"))


def _too_large(most: int) -> Refusal:
    size = f"{most / 2**20:g} MiB" if most >= 2**20 else f"{most / 2**10:g} KiB"
    return Refusal(413, f"the request is too large; at most {size} are read")


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            own = {key.encode(): value.encode() for key, value in _HEADERS.items()}
            given = [(key, value) for key, value in message.get("headers", []) if key.lower() not in own]
            message = {**message, "headers": [*given, *own.items()]}
        await send(message)

    return sending


async def _refuse(refusal: Refusal, scope: Any, receive: Receive, send: Send) -> None:
    """Answers, and closes; reads on for a moment, so that a client that is still sending gets the answer."""
    html = any(key == "content-type" for key, _ in refusal.headers)
    text = refusal.reason if html else json.dumps({"error": refusal.reason}, ensure_ascii=False) + "\n"
    kind = () if html else (("content-type", "application/json; charset=utf-8"),)
    headers = (*refusal.headers, *kind, ("connection", "close"))
    await _send_text(send, refusal.status, text, headers, more=True)
    try:
        async with asyncio.timeout(_LINGER_SECONDS):
            while scope["method"] == "POST":
                message = await receive()
                if message["type"] == "http.disconnect" or not message.get("more_body"):
                    break
    except TimeoutError:
        pass
    await send({"type": "http.response.body", "body": b""})


async def _send_text(
    send: Send, status: int, text: str, headers: Iterable[tuple[str, str]], more: bool = False
) -> None:
    content = text.encode("utf-8")
    pairs = [*headers, ("content-length", str(len(content)))]
    raw = [(key.encode("latin-1"), value.encode("latin-1")) for key, value in pairs]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": content, "more_body": more})
