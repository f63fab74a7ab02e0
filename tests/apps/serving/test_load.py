"""The server under sixteen clients for a minute, half of whom mean no good."""

from __future__ import annotations

import base64
import contextlib
import importlib.util
import io
import json
import os
import random
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from PIL import Image

from captioner.data.synthetic.scenes import draw, scenes
from tests.live import ask, serving

SECONDS = float(os.environ.get("CAPTIONER_LOAD_SECONDS", "60"))
ENDS = b"\r\n\r\n"
JSON_START = b'{"images": ['
FORM = "multipart/form-data; boundary=x"
HEAD = b"POST /api/caption HTTP/1.1\r\nhost: localhost\r\ncontent-type: image/png\r\n"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("fastapi") is None,
        reason="the extra is not installed: pip install 'captioner[serve]'",
    ),
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is read from /proc"),
]


class Crowd:
    """Clients of one server, until `end`; what became of their requests in `seen`."""

    def __init__(self, address: str, pictures: list[bytes], captions: list[str]) -> None:
        self.address, self.pictures, self.captions = address, pictures, captions
        self.host_and_port = (urlsplit(address).hostname or "", urlsplit(address).port or 0)
        self.end = time.monotonic() + SECONDS
        self.seen: Counter[str] = Counter()
        self.wrong: list[object] = []
        self._lock = threading.Lock()

    def run(self, behaviours: list[Callable[[random.Random], str]]) -> None:
        """One thread for each behaviour, again and again."""

        def client(behave: Callable[[random.Random], str], number: int) -> None:
            rng = random.Random(number)
            while time.monotonic() < self.end:
                try:
                    outcome = behave(rng)
                except OSError as error:
                    outcome = f"{behave.__name__}: {type(error).__name__}"
                with self._lock:
                    self.seen[outcome] += 1

        threads = [threading.Thread(target=client, args=(b, n)) for n, b in enumerate(behaviours)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def good(self, rng: random.Random) -> str:
        """A picture in one of three ways; its caption must be the one that it gets alone."""
        number = rng.randrange(len(self.pictures))
        picture = self.pictures[number]
        match rng.randrange(3):
            case 0:
                status, answer = ask(f"{self.address}/api/caption", picture, "image/png")
            case 1:
                body = {"images": [base64.b64encode(picture).decode()], "n_best": 3, "attention": True}
                status, answer = ask(f"{self.address}/api/caption", json.dumps(body).encode())
            case _:
                body = {"images": [base64.b64encode(picture).decode()], "stream": False}
                status, answer = ask(f"{self.address}/api/generate", json.dumps(body).encode())
        if status == 200:
            said = answer["response"] if "response" in answer else answer["pictures"][0]["caption"]
            if said != self.captions[number]:
                self.wrong.append((said, self.captions[number]))
        elif status != 503:
            self.wrong.append((status, answer))
        return f"good: {status}"

    def oversized(self, rng: random.Random) -> str:
        """Says it sends a terabyte, or sends without end."""
        if rng.random() < 0.5:
            head = HEAD + b"content-length: 1000000000000\r\n\r\n"
            return f"oversized: {self._send(head + bytes(4096))}"
        with socket.create_connection(self.host_and_port, timeout=120) as link:
            link.sendall(HEAD + b"transfer-encoding: chunked\r\n\r\n")
            piece = b"40000\r\n" + bytes(0x40000) + b"\r\n"
            with contextlib.suppress(ConnectionError):
                for _ in range(1000):
                    link.sendall(piece)
            return f"endless: {_status(link)}"

    def slow(self, rng: random.Random) -> str:
        """A head, or a body, letter by letter."""
        text = rng.choice([HEAD, HEAD + b"content-length: 1000\r\n\r\n" + bytes(1000)])
        with socket.create_connection(self.host_and_port, timeout=120) as link:
            with contextlib.suppress(ConnectionError):
                for letter in text:
                    link.sendall(bytes([letter]))
                    time.sleep(0.3)
                    if time.monotonic() > self.end + 5:
                        break
            return f"slow: {_status(link)}"

    def malformed(self, rng: random.Random) -> str:
        """Noise, broken JSON, torn forms, a picture of many pixels, text as a picture, hanging up."""
        page = f"{self.address}/api/caption"
        match rng.randrange(6):
            case 0:
                return f"noise: {self._send(rng.randbytes(200) + ENDS)}"
            case 1:
                return f"broken JSON: {ask(page, JSON_START)[0]}"
            case 2:
                return f"torn form: {ask(page, b'--x' + rng.randbytes(99), FORM)[0]}"
            case 3:
                return f"bomb: {ask(page, BOMB, 'image/png')[0]}"
            case 4:
                return f"text: {ask(page, b'not a picture', 'image/png')[0]}"
        with socket.create_connection(self.host_and_port, timeout=120) as link:
            link.sendall(HEAD + b"content-length: %d\r\n\r\n" % len(self.pictures[0]) + self.pictures[0])
        return "hung up"

    def varied(self, rng: random.Random) -> str:
        """Settings that nobody has asked for before, so that every search is a new one to compile."""
        query = f"temperature={rng.uniform(0.3, 2):.2f}&beam={rng.randrange(1, 10)}&top_k={rng.randrange(99)}"
        return f"varied: {ask(f'{self.address}/api/caption?{query}', self.pictures[0], 'image/png')[0]}"

    def _send(self, data: bytes) -> str:
        with socket.create_connection(self.host_and_port, timeout=120) as link:
            with contextlib.suppress(ConnectionError):
                link.sendall(data)
            return _status(link)


def _status(link: socket.socket) -> str:
    try:
        return link.recv(4096)[9:12].decode("latin-1") or "cut"
    except ConnectionError:
        return "cut"


def _png(picture: Image.Image) -> bytes:
    content = io.BytesIO()
    picture.save(content, "PNG")
    return content.getvalue()


BOMB = _png(Image.new("1", (20_000, 10_000)))


@pytest.fixture(scope="module")
def server(served_runs: Path) -> Iterator[tuple[str, int]]:
    with serving("--run", str(served_runs / "scenes")) as (address, process):
        yield address, process.pid


def mebibytes(pid: int, field: str) -> float:
    """VmRSS or VmHWM, its peak."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))


def test_a_minute_among_all_kinds_of_clients(
    server: tuple[str, int], capsys: pytest.CaptureFixture[str]
) -> None:
    address, pid = server
    pictures = [
        _png(draw(scene, rng, size=64 + 300 * (n % 3))) for n, (scene, rng) in enumerate(scenes("dev", 24))
    ]
    answers = [ask(f"{address}/api/caption", picture, "image/png")[1] for picture in pictures]
    crowd = Crowd(address, pictures, [answer["pictures"][0]["caption"] for answer in answers])
    before = mebibytes(pid, "VmRSS")
    troublesome = [crowd.oversized, crowd.oversized, crowd.slow, crowd.slow, crowd.malformed, crowd.malformed]
    crowd.run([*[crowd.good] * 9, crowd.varied, *troublesome])
    time.sleep(12)  # the last dawdlers are cut off
    status, health = ask(f"{address}/healthz")
    with capsys.disabled():
        print(f"\n{SECONDS:g} s, 16 clients: {dict(sorted(crowd.seen.items()))}")
        print(f"{health['captioned']} pictures in {health['batches']} batches")
        now, peak = mebibytes(pid, "VmRSS"), mebibytes(pid, "VmHWM")
        print(f"memory: {before:.0f} MiB before, {now:.0f} MiB after, {peak:.0f} MiB at its peak")
    assert status == 200
    assert crowd.wrong == []
    assert crowd.seen["good: 200"] > SECONDS / 10
    assert {name.partition(": ")[2] for name in crowd.seen if name.startswith("good")} <= {"200", "503"}
    assert {"bomb: 422", "text: 422", "broken JSON: 400", "oversized: 413"} <= set(crowd.seen)
    assert peak < before + 1024  # 256 MiB of bodies, their copies, and new searches of `varied`
    assert health["waiting"] == 0
    again = ask(f"{address}/api/caption", pictures[0], "image/png")[1]
    assert again["pictures"][0]["caption"] == crowd.captions[0]
