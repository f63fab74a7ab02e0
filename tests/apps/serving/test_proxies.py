"""The page and the API behind nginx and Caddy, with the very lines that docs/serve.md gives."""

from __future__ import annotations

import http.client
import re
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the extra is not installed: pip install 'captioner[serve]'")

from tests.apps.serving.test_server import Server, png, running  # noqa: E402

NAME = "photos.example.org"
DOCS = Path(__file__).resolve().parents[3] / "docs" / "serve.md"


def lines_of(kind: str) -> str:
    """The configuration that the manual gives for a proxy."""
    found = re.search(rf"```{kind}\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    assert found, kind
    return found[1]


def replaced(text: str, *pairs: tuple[str, str]) -> str:
    for old, new in pairs:
        assert old in text, old
        text = text.replace(old, new)
    return text


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """As `captioner serve --allow-host photos.example.org`, with a token."""
    with running(names=[NAME], token="sesame") as found:
        yield found


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a certificate that nobody has signed."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl, which makes the proxy's certificate")
    folder = tmp_path_factory.mktemp("tls")
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "1",
        "-subj",
        f"/CN={NAME}",
    ]
    command += ["-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem")]
    subprocess.run(command, check=True, capture_output=True)
    return folder


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@contextmanager
def proxy(command: list[str], port: int, log: Path, **environment: str) -> Iterator[int]:
    """A proxy that is ended afterwards; gives its port once it listens."""
    with open(log, "wb") as said:
        process = subprocess.Popen(command, stdout=said, stderr=said, env=environment or None)
    try:
        until = time.monotonic() + 60
        while True:
            assert process.poll() is None and time.monotonic() < until, log.read_text(encoding="utf-8")
            try:
                socket.create_connection(("127.0.0.1", port), timeout=5).close()
                break
            except OSError:
                time.sleep(0.05)
        yield port
    finally:
        process.terminate()
        process.wait(timeout=60)


def ask(
    port: int, method: str, path: str, body: bytes | None = None, **headers: str
) -> tuple[int, str, dict[str, str]]:
    """One request over TLS to the proxy, by its name, as a browser on its page sends it."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    link = http.client.HTTPSConnection(NAME, port, timeout=60, context=context)
    plain = socket.create_connection(("127.0.0.1", port), timeout=60)
    link.sock = context.wrap_socket(plain, server_hostname=NAME)
    own = {"authorization": "Bearer sesame", "origin": f"https://{NAME}:{port}"}
    link.request(method, path, body, {**own, **headers})
    answer = link.getresponse()
    content = answer.read().decode("utf-8")
    link.close()
    return answer.status, content, {key.lower(): value for key, value in answer.getheaders()}


def check(port: int, prefix: str = "") -> None:
    """What a browser does: gets the page and what it fetches, sends pictures (one is large), logs in."""
    for path in ("/", "/page/page.js", "/docs", "/healthz"):
        assert ask(port, "GET", prefix + path)[0] == 200, path
    assert ask(port, "HEAD", f"{prefix}/")[0] == 200
    status, answer, _ = ask(port, "POST", f"{prefix}/api/caption", png(9), **{"content-type": "image/png"})
    assert (status, "brightness 9" in answer) == (200, True), answer
    large = png(9) + bytes(3 * 2**20)  # nginx alone would refuse more than one
    status, answer, _ = ask(port, "POST", f"{prefix}/api/caption", large, **{"content-type": "image/png"})
    assert status == 200, answer
    status, _, headers = ask(port, "POST", f"{prefix}/login", b"token=sesame", authorization="")
    assert (status, headers["location"]) == (303, ".")
    cookie = headers["set-cookie"].partition(";")[0]
    assert ask(port, "GET", f"{prefix}/api/runs", authorization="", cookie=cookie)[0] == 200
    status, answer, _ = ask(port, "GET", f"{prefix}/api/runs", origin="https://evil.example")
    assert (status, "--allow-host evil.example" in answer) == (403, True)


def _as_written(config: str) -> str:
    return config


def _without_host(config: str) -> str:
    return replaced(config, ("        proxy_set_header Host $host;\n", ""))


def _under_a_path(config: str) -> str:
    return replaced(config, ("location / {", "location /captioner/ {"), (":PORT;", ":PORT/;"))


@pytest.mark.skipif(shutil.which("nginx") is None, reason="no nginx: apt-get install nginx")
@pytest.mark.parametrize(
    ("change", "prefix"),
    [(_as_written, ""), (_without_host, ""), (_under_a_path, "/captioner")],
)
def test_nginx(
    server: Server, certificate: Path, tmp_path: Path, change: Callable[[str], str], prefix: str
) -> None:
    port = free_port()
    block = replaced(
        lines_of("nginx"),
        ("listen 443 ssl", f"listen 127.0.0.1:{port} ssl"),
        ("127.0.0.1:7860", "127.0.0.1:PORT"),
        ("/etc/ssl/photos.example.org.pem", str(certificate / "cert.pem")),
        ("/etc/ssl/photos.example.org.key", str(certificate / "key.pem")),
    )
    block = change(block).replace("PORT", str(server.port))
    kept = "".join(
        f"{name}_temp_path {tmp_path};\n" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    config = tmp_path / "nginx.conf"
    config.write_text(
        f"daemon off;\nmaster_process off;\npid {tmp_path}/pid;\nerror_log stderr;\n"
        f"events {{}}\nhttp {{\naccess_log off;\n{kept}{block}}}\n",
        encoding="utf-8",
    )
    command = [str(shutil.which("nginx")), "-e", "stderr", "-p", str(tmp_path), "-c", str(config)]
    with proxy(command, port, tmp_path / "log"):
        check(port, prefix)


@pytest.mark.skipif(shutil.which("caddy") is None, reason="no Caddy: apt-get install caddy")
def test_caddy(server: Server, certificate: Path, tmp_path: Path) -> None:
    port = free_port()
    tls = f"tls {certificate}/cert.pem {certificate}/key.pem"
    block = replaced(
        lines_of("caddy"),
        (f"{NAME} {{", f"https://{NAME}:{port} {{\n    bind 127.0.0.1\n    {tls}"),
        ("127.0.0.1:7860", f"127.0.0.1:{server.port}"),
    )
    config = tmp_path / "Caddyfile"
    config.write_text(f"{{\n    admin off\n    auto_https off\n}}\n{block}", encoding="utf-8")
    command = [str(shutil.which("caddy")), "run", "--config", str(config), "--adapter", "caddyfile"]
    with proxy(command, port, tmp_path / "log", HOME=str(tmp_path), XDG_DATA_HOME=str(tmp_path)):
        check(port)


def test_what_a_forgotten_option_gives() -> None:
    """Without --allow-host, the page behind a proxy says what is missing."""
    with running() as server:
        headers: dict[str, Any] = {"content-type": "image/png", "origin": f"https://{NAME}"}
        _, answer, _ = server.ask("POST", "/api/caption", png(9), headers)
        assert f"--allow-host {NAME}" in answer["error"]
