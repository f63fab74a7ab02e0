"""The gate before page and API: who may ask, what for, how large and how slow a request may be.

In: a FastAPI application. Out: the same, guarded. A request goes on only if its Host is one of ours (so no
foreign page can reach us by renaming itself), its Origin is ours or none, it has the token if one is set,
and it asks for something that is there. Its body is read here, counted and timed, before the application
runs. Whatever is refused gets a sentence in JSON. Reads and writes no file.

Starlette's `TrustedHostMiddleware` knows no numeric addresses, no Origin and no sentence; uvicorn's
`limit_concurrency` counts no bytes and times no body. So both checks are made here.
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

from starlette.routing import Match

from captioner.apps.serving.service import ServeLimits

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

COOKIE = "captioner"
_WITH_PICTURES = {"/api/caption", "/api/generate", "/api/chat", "/api/correction"}
_OPEN = {"/healthz", "/login", "/favicon.ico", "/page/plain.css"}  # without a token
_SMALL_BODY = 64 * 2**10  # of a request that carries no picture
_HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",  # with no-referrer a browser calls its own forms' origin null
    # Nothing is fetched from or sent to anybody else; nothing runs that is not a file of ours.
    "content-security-policy": (
        "default-src 'self'; img-src 'self' data: blob:; connect-src 'self' blob:; "
        "frame-ancestors 'self'; base-uri 'self'; form-action 'self'"
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
        allowed: names by which clients may call this machine, and whose pages may ask, at any port: behind a
            proxy, a page's Origin is the proxy's. As in an address bar, or `*.example.org`.
        token: what clients must know, or empty.
        login_page: HTML for a browser that does not have the token.
    """

    def __init__(
        self,
        app: Any,
        limits: ServeLimits,
        *,
        hosts: Iterable[str] = (),
        allowed: Iterable[str] = (),
        token: str = "",
        login_page: str = "",
    ) -> None:
        self._app, self._limits = app, limits
        self._allowed = {host_name(name) for name in allowed}
        self._hosts = {"localhost", *map(host_name, hosts), *self._allowed}
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
                await self._refuse(refusal, scope, receive, _with_headers(send))

    async def _serve(self, scope: Any, receive: Receive, send: Send) -> None:
        headers = {key.decode("latin-1"): value.decode("latin-1") for key, value in scope["headers"]}
        written = scope["path"]
        path = re.sub("/+", "/", written).rstrip("/") or "/"
        scope = {**scope, "path": path, "raw_path": path.encode()}
        self._check_host(headers)
        known = self._knows_token(headers) or path in _OPEN
        if not known and scope["method"] == "GET" and "text/html" in headers.get("accept", ""):
            raise Refusal(401, self._login_page, (("content-type", "text/html; charset=utf-8"),))
        if not known:
            raise Refusal(
                401, "a token is needed: Authorization: Bearer TOKEN", (("www-authenticate", "Bearer"),)
            )
        if scope["method"] == "HEAD":  # as GET; the server sends no body
            scope["method"] = "GET"
        self._check_route(scope)
        if path == "/docs" and written.endswith("/"):
            raise Refusal(308, "", (("location", "../docs"),))  # its links are relative
        body = await self._read(receive, path, headers)
        try:
            if path == "/login":
                await self._login(body, send)
            else:
                await self._app(scope, body.receive, send)
        finally:
            self._held -= body.size

    # Who asks, and for what.

    def _check_host(self, headers: dict[str, str]) -> None:
        given = headers.get("host", "").lower()
        host = _name_of(given)
        # Clients of HTTP/1.0, health checks for one, may name none; browsers always do.
        if host and not (_is_among(host, self._hosts) or _is_address(host)):
            raise Refusal(
                421,
                f'this server is not called "{host[:80]}"; if it should be, start it with '
                f"--allow-host {host[:80]}",
            )
        origin = headers.get("origin")
        if origin is None:
            return
        page = origin.partition("://")[2].lower()
        if page and (page == given or _is_among(_name_of(page), self._allowed)):
            return
        remedy = f"; behind a proxy, start it with --allow-host {_name_of(page)[:80]}" if page else ""
        raise Refusal(403, f"pages of {origin[:80]} may not use this server{remedy}")

    def _check_route(self, scope: Any) -> None:
        path, method = scope["path"], scope["method"]
        methods = {"POST"} if path == "/login" else set()
        for route in self._app.routes:
            match, _ = route.matches(scope)
            if match is not Match.NONE:
                methods |= getattr(route, "methods", None) or {"GET"}  # a folder of files has none
        if not methods:
            raise Refusal(404, f'there is no "{path[:80]}" here; /docs says what is')
        allowed = "POST" if "POST" in methods else "GET, HEAD"
        if method == "OPTIONS":
            raise Refusal(204, "", (("allow", allowed),))
        if method not in methods:
            raise Refusal(405, f"{path} takes {allowed}, not {method[:16]}", (("allow", allowed),))

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

    async def _login(self, body: Body, send: Send) -> None:
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
        most = self._limits.body_bytes if path in _WITH_PICTURES else _SMALL_BODY
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

    async def _refuse(self, refusal: Refusal, scope: Any, receive: Receive, send: Send) -> None:
        """Answers, and closes; reads on for a moment: a client that is still sending gets the answer, too."""
        html = any(key == "content-type" for key, _ in refusal.headers)
        text = refusal.reason if html else json.dumps({"error": refusal.reason}, ensure_ascii=False) + "\n"
        kind = () if html else (("content-type", "application/json; charset=utf-8"),)
        headers = (*refusal.headers, *kind, ("connection", "close"))
        await _send_text(send, refusal.status, text, headers, more=True)
        try:
            async with asyncio.timeout(self._limits.linger_seconds):
                while scope["method"] == "POST":
                    message = await receive()
                    if message["type"] == "http.disconnect" or not message.get("more_body"):
                        break
        except TimeoutError:
            pass
        await send({"type": "http.response.body", "body": b""})


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


def host_name(written: str) -> str:
    """The name of a host as it stands in a Host header, however a person wrote it.

    >>> host_name("https://Photos.example.org:8443/"), host_name("bücher.example.")
    ('photos.example.org', 'xn--bcher-kva.example')
    """
    name = _name_of(written.strip().partition("://")[2] or written.strip()).partition("/")[0]
    try:
        return name.encode("idna").decode("ascii") if not name.isascii() else name
    except UnicodeError:
        return name


def _name_of(host: str) -> str:
    """The name in a Host header, without its port, brackets and final dot."""
    host = host.partition("/")[0].lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].removesuffix(".") if host.count(":") < 2 else host


def _is_among(host: str, names: Iterable[str]) -> bool:
    return any(
        host == name or (name.startswith("*.") and host.endswith(name.removeprefix("*"))) for name in names
    )


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


async def _send_text(
    send: Send, status: int, text: str, headers: Iterable[tuple[str, str]], more: bool = False
) -> None:
    content = text.encode("utf-8")
    pairs = [*headers, ("content-length", str(len(content)))]
    raw = [(key.encode("latin-1"), value.encode("latin-1")) for key, value in pairs]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": content, "more_body": more})
