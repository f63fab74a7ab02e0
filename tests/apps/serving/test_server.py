"""`captioner serve`: what the API answers, what it refuses, and how it bears clients that mean no good.

The model is a fake that says how bright a picture is; the server is a real one on a real port.
"""

from __future__ import annotations

import base64
import http.client
import importlib.util
import io
import json
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image

from captioner.apps.serving.correction_folder import CorrectionFolder
from captioner.apps.serving.service import ServedModel, ServeLimits, Service
from captioner.config import DecodeConfig
from captioner.data.images import Limits
from captioner.errors import RunError
from captioner.inference.caption import Alternative, Caption
from captioner.inference.search_options import CaptionOptions

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("fastapi") is None,
    reason="the extra is not installed: pip install 'captioner[serve]'",
)

GERMAN = "ein großer grüner Stern über dem Kreis"
KOREAN = "빨간 원 하나가 왼쪽 위에 있다"


class FakeModel:
    """Says how bright each picture is; remembers what it was asked; waits while `gate` is closed."""

    def __init__(self, text: str = "brightness") -> None:
        self.text = text
        self.asked: list[tuple[int, CaptionOptions]] = []
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, pixels: np.ndarray, options: CaptionOptions) -> list[Caption]:
        self.gate.wait(60)
        self.asked.append((len(pixels), options))
        return [self._say(one, options) for one in pixels]

    def _say(self, pixels: np.ndarray, options: CaptionOptions) -> Caption:
        words = (*self.text.split(), str(int(pixels.mean())))
        looks = np.full((len(words), 2, 3), 1 / 6)
        others = [
            Alternative(f"{self.text} or {n}", -1.0 - n, -2.0 - n, words) for n in range(1, options.n_best)
        ]
        return Caption("", " ".join(words), -0.5, -1.5, words, looks, tuple(others))


class Server:
    """A running server and how to speak to it."""

    def __init__(self, service: Service, model: FakeModel, port: int) -> None:
        self.service, self.model, self.port = service, model, port

    def ask(
        self,
        method: str,
        path: str,
        body: bytes | str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> tuple[int, Any, Mapping[str, str]]:
        """Status, decoded JSON (or text), headers in small letters."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        data = body.encode() if isinstance(body, str) else body
        connection.request(method, path, data, dict(headers or {}))
        answer = connection.getresponse()
        content = answer.read().decode("utf-8")
        connection.close()
        fields = {key.lower(): value for key, value in answer.getheaders()}
        is_json = fields.get("content-type", "").startswith("application/json")
        return answer.status, json.loads(content) if is_json and content else content, fields

    def post_json(self, path: str, content: Any, **headers: str) -> tuple[int, Any, Mapping[str, str]]:
        return self.ask("POST", path, json.dumps(content), {"content-type": "application/json", **headers})

    def post_form(
        self,
        files: Sequence[tuple[str, bytes]],
        fields: Mapping[str, str] | None = None,
        path: str = "/api/caption",
    ) -> tuple[int, Any, Mapping[str, str]]:
        edge = "----edge"
        parts = [
            f'--{edge}\r\ncontent-disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
            for name, value in (fields or {}).items()
        ]
        for name, content in files:
            head = f'--{edge}\r\ncontent-disposition: form-data; name="image"; filename="{name}"\r\n\r\n'
            parts.append(head.encode() + content + b"\r\n")
        body = b"".join([*parts, f"--{edge}--\r\n".encode()])
        kind = {"content-type": f"multipart/form-data; boundary={edge}"}
        return self.ask("POST", path, body, kind)

    def raw(self, data: bytes, *, wait: float = 60) -> bytes:
        """What comes back for bytes sent as they are."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=wait) as link:
            link.sendall(data)
            received = b""
            while piece := link.recv(65536):
                received += piece
            return received


@contextmanager
def running(
    *,
    limits: ServeLimits | None = None,
    token: str = "",
    names: Sequence[str] = (),
    text: str = "brightness",
    corrections: Path | None = None,
    more: Sequence[ServedModel] = (),
) -> Iterator[Server]:
    """A server in a thread, with one fake model called toy (and, beside it, another one)."""
    import uvicorn

    from captioner.apps.serving.server import ServerAddress, application, listening, protocol_class

    model = FakeModel(text)
    about = {
        "encoder": "small_cnn",
        "words": 12,
        "scores": {"cider": 10.0},
        "bytes": 4_000_000,
        "modified": 0,
    }
    toy = ServedModel("toy", (8, 12), model, DecodeConfig(beam=3), about)
    models = [toy, ServedModel("other", (8, 8), FakeModel("otherwise")), *more]
    service = Service(models, limits, CorrectionFolder(corrections) if corrections else None)
    with listening("127.0.0.1", 0) as listener:
        config = uvicorn.Config(
            application(service, ServerAddress(token=token, names=names)),
            http=protocol_class(service.limits),
            ws="none",
            log_level="critical",
            lifespan="on",
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            while not server.started:
                time.sleep(0.02)
            yield Server(service, model, listener.getsockname()[1])
        finally:
            model.gate.set()
            server.should_exit = True
            thread.join()
            service.close()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running() as found:
        yield found


def png(brightness: int, size: tuple[int, int] = (12, 8)) -> bytes:
    """A grey picture, (width, height)."""
    content = io.BytesIO()
    Image.new("RGB", size, (brightness,) * 3).save(content, "PNG")
    return content.getvalue()


def bomb(width: int, height: int) -> bytes:
    """A black PNG of any size, in a few kilobytes for any number of pixels."""
    content = io.BytesIO()
    Image.new("1", (width, height)).save(content, "PNG")
    return content.getvalue()


def b64(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


# What it answers.


def test_one_picture_sent_in_each_way_gets_the_same_caption(server: Server) -> None:
    picture = png(200)
    answers = [
        server.post_form([("a.png", picture)]),
        server.post_json("/api/caption", {"images": [b64(picture)]}),
        server.post_json("/api/caption", {"image": "data:image/png;base64," + b64(picture)}),
        server.post_json("/api/caption", {"images": [{"name": "a.png", "data": b64(picture)}]}),
        server.ask("POST", "/api/caption", picture, {"content-type": "image/png"}),
    ]
    for status, answer, _ in answers:
        assert status == 200
        assert answer["run"] == "toy"
        [found] = answer["pictures"]
        assert found["caption"] == "brightness 200"
        assert found["score"] == -0.5
        assert found["probability"] == pytest.approx(0.2231)
        assert found["alternatives"] == []
        assert "attention" not in found
    assert answers[0][1]["pictures"][0]["name"] == "a.png"


def test_several_pictures_keep_their_order_and_a_bad_one_disturbs_no_other(server: Server) -> None:
    files = [("a.png", png(10)), ("notes.jpg", b"not a picture"), ("c.png", png(30))]
    status, answer, _ = server.post_form(files)
    assert status == 200
    first, bad, last = answer["pictures"]
    assert (first["caption"], last["caption"]) == ("brightness 10", "brightness 30")
    assert bad["name"] == "notes.jpg"
    assert bad["error"].startswith("is no picture that can be read")


def test_options_reach_the_model_and_attention_comes_when_asked_for(server: Server) -> None:
    asked = {"n_best": "2", "max_words": "7", "attention": "true", "run": "toy"}
    status, answer, _ = server.post_form([("a.png", png(90))], asked)
    [found] = answer["pictures"]
    assert status == 200
    assert found["words"] == ["brightness", "90"]
    assert np.shape(found["attention"]) == (2, 2, 3)
    assert [other["caption"] for other in found["alternatives"]] == ["brightness or 1"]
    # Beam searches always give their whole beam, so that they can share batches.
    assert server.model.asked[-1][1] == CaptionOptions(
        beam=3, n_best=3, max_words=7, attention=True, batch_size=8
    )


def test_another_run_by_its_name(server: Server) -> None:
    status, answer, _ = server.post_json("/api/caption", {"images": [b64(png(5))], "run": "other"})
    assert status == 200
    assert answer["run"] == "other"
    assert answer["pictures"][0]["caption"] == "otherwise 5"


@pytest.mark.parametrize(
    ("content", "status", "said"),
    [
        ({"images": [b64(png(1))], "bean": 3}, 400, 'unknown field "bean"; did you mean "beam"?'),
        ({"images": [b64(png(1))], "beam": 1000}, 400, "beam '1000': expected a whole number from 1 to 100"),
        ({"images": [b64(png(1))], "temperature": "hot"}, 400, "expected a number above 0 to 100"),
        ({"images": [b64(png(1))], "run": 3}, 400, "run '3': expected a name"),
        ({"images": [b64(png(1))], "beam": None, "run": None, "bean": 3}, 400, 'unknown field "bean"'),
        ({"images": [b64(png(1))], "run": "toi"}, 404, 'unknown run "toi"; did you mean "toy"?'),
        ({"images": []}, 400, "no picture"),
        ({"images": [b64(png(1))] * 17}, 400, "17 pictures in one request; at most 16"),
        ({"images": "a.png"}, 400, "expected a list of pictures"),
        ({"images": ["/etc/passwd"]}, 400, "pictures are sent as base64, not fetched"),
        ({"images": ["http://example.org/dog.jpg"]}, 400, "pictures are sent as base64, not fetched"),
        ({"images": [b64(b"no picture")]}, 422, "is no picture that can be read"),
        ({"images": [b64(bomb(20_000, 10_000))]}, 422, "has more pixels than the 80,000,000"),
        ([1, 2], 400, "expected a JSON object"),
    ],
)
def test_what_is_wrong_is_said(server: Server, content: Any, status: int, said: str) -> None:
    found, answer, _ = server.post_json("/api/caption", content)
    assert found == status
    assert said in answer["error"]


def test_what_cannot_be_parsed_is_said(server: Server) -> None:
    assert server.ask("POST", "/api/caption", "{", {"content-type": "application/json"})[0] == 400
    deep = "[" * 100_000
    assert server.ask("POST", "/api/caption", deep, {"content-type": "application/json"})[0] == 400
    assert server.ask("POST", "/api/caption", "x", {"content-type": "text/plain"})[0] == 415
    status, answer, _ = server.post_form([("a.png", png(1))] * 30)
    assert (status, "it may have 16 pictures" in answer["error"]) == (400, True)
    assert server.ask("POST", "/api/caption", "x", {"content-type": "multipart/form-data"})[0] == 400
    torn = {"content-type": "multipart/form-data; boundary=x"}
    assert server.ask("POST", "/api/caption", b"--x\r\nnonsense", torn)[0] == 400
    assert server.ask("GET", "/api/caption")[0] == 405
    assert server.ask("POST", "/api/none", "{}")[0] == 404
    assert server.raw(b"nonsense\r\n\r\n").startswith(b"HTTP/1.1 400")


def test_captions_of_any_script_arrive_as_they_are() -> None:
    for text in (GERMAN, KOREAN):
        with running(text=text) as server:
            status, answer, _ = server.post_form([("Bild.png", png(3))])
            assert status == 200
            assert answer["pictures"][0]["caption"] == f"{text} 3"
            connection = http.client.HTTPConnection("127.0.0.1", server.port)
            connection.request("POST", "/api/caption", png(3), {"content-type": "image/png"})
            assert f"{text} 3".encode() in connection.getresponse().read()  # not as \\u escapes
            _, answer, _ = server.post_json("/api/generate", {"images": [b64(png(3))], "stream": False})
            assert answer["response"] == f"{text} 3"


def test_a_preview_for_what_browsers_do_not_show(server: Server) -> None:
    content = io.BytesIO()
    Image.new("RGB", (2000, 1000), (9, 9, 9)).save(content, "TIFF")
    _, answer, _ = server.post_form([("a.tif", content.getvalue())], {"preview": "true"})
    kind, _, data = answer["pictures"][0]["preview"].partition(",")
    assert kind == "data:image/jpeg;base64"
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (960, 480)


def test_requests_at_the_same_time_are_captioned_together(server: Server) -> None:
    before = server.service.batcher.batches
    server.model.gate.clear()
    with ThreadPoolExecutor(16) as clients:
        answers = [clients.submit(server.post_form, [("a.png", png(n))]) for n in range(16)]
        while server.service.waiting < 16:
            time.sleep(0.01)
        time.sleep(0.2)
        server.model.gate.set()
        captions = [answer.result()[1]["pictures"][0]["caption"] for answer in answers]
    assert captions == [f"brightness {n}" for n in range(16)]
    assert (
        server.service.batcher.batches - before <= 4
    )  # one, two or three that came first, the rest by eights


# Ollama's shape.


def photoprism_request(picture: bytes) -> dict[str, Any]:
    """What PhotoPrism sends for `Type: caption` with `Engine: ollama` (its internal/ai/vision)."""
    return {
        "id": "a8f0b8a4-8a0b-4a60-9d5e-0f4a0f0f7f25",
        "model": "toy:latest",
        "prompt": "Create a caption with exactly one sentence in the active voice that describes …",
        "suffix": "",
        "options": {"temperature": 0.1},
        "stream": False,
        "images": [b64(picture)],
    }


def test_photoprism_gets_its_caption(server: Server) -> None:
    headers = {"content-type": "application/json; charset=utf-8"}
    status, answer, _ = server.ask("POST", "/api/generate", json.dumps(photoprism_request(png(77))), headers)
    assert status == 200
    assert answer["response"] == "brightness 77"
    assert answer["model"] == "toy:latest"
    assert answer["done"] is True
    assert isinstance(answer["total_duration"], int)
    assert time.strptime(answer["created_at"][:19], "%Y-%m-%dT%H:%M:%S")
    assert not server.model.asked[-1][1].drawn  # a low temperature asks for the likeliest caption


def test_ollama_streams_unless_told_otherwise(server: Server) -> None:
    status, answer, headers = server.post_json("/api/generate", {"model": "toy", "images": [b64(png(7))]})
    assert status == 200
    assert headers["content-type"] == "application/x-ndjson"
    [line] = answer.splitlines()
    assert json.loads(line)["response"] == "brightness 7"
    assert json.loads(line)["done"] is True


def test_ollama_options_and_messages(server: Server) -> None:
    options = {"temperature": 0.9, "seed": -1, "num_predict": 5, "num_ctx": 4096, "top_k": 20}
    chat = {"role": "user", "content": "What is this?", "images": [b64(png(8))]}
    wish = {"model": "toy", "messages": [chat], "stream": False, "options": options}
    status, answer, _ = server.post_json("/api/chat", wish)
    assert status == 200
    assert answer["message"] == {"role": "assistant", "content": "brightness 8"}
    drawn = server.model.asked[-1][1]
    assert (drawn.temperature, drawn.top_k, drawn.max_words) == (0.9, 20, 5)


def test_what_ollama_clients_ask_before(server: Server) -> None:
    _, answer, _ = server.ask("GET", "/api/tags")
    assert [model["name"] for model in answer["models"]] == ["toy:latest", "other:latest"]
    assert server.ask("GET", "/api/version")[1].keys() == {"version"}
    assert "vision" in server.post_json("/api/show", {"model": "toy"})[1]["capabilities"]
    assert server.post_json("/api/generate", {"model": "toy"})[0] == 200  # "load the model"
    status, answer, _ = server.post_json("/api/generate", {"model": "gemma3", "images": [b64(png(1))]})
    assert (status, answer["error"]) == (404, 'unknown run "gemma3"; known: other, toy')
    assert server.post_json("/api/generate", {"images": [b64(b"x")], "stream": False})[0] == 400


@pytest.mark.parametrize(
    "later",
    [
        {"role": "user", "content": "shorter, please"},
        {"role": "system", "content": "be short"},
        {"role": "user", "content": "shorter", "images": []},
        {"role": "user", "content": "shorter", "images": None},
    ],
)
def test_a_conversation_goes_on_about_its_latest_picture(server: Server, later: dict[str, Any]) -> None:
    messages = [
        {"role": "user", "content": "and this?", "images": [b64(png(8))]},
        {"role": "assistant", "content": "dark"},
        {"role": "user", "content": "what is it?", "images": [b64(png(9))]},
        {"role": "assistant", "content": "bright"},
        later,
    ]
    status, answer, _ = server.post_json("/api/chat", {"messages": messages, "stream": False})
    assert (status, answer["message"]["content"]) == (200, "brightness 9")


@pytest.mark.parametrize(
    ("path", "content", "said"),
    [
        ("/api/chat", {"messages": [{"role": "user", "content": "hello"}]}, "messages: no picture in any"),
        ("/api/chat", {"messages": "hello"}, "messages: expected a list of messages"),
        ("/api/chat", {"messages": ["hello"]}, "messages: expected a list of messages"),
        ("/api/chat", {"messages": [{"images": "x"}]}, "messages: expected a list of messages"),
        ("/api/generate", {"prompt": "Why is the sky blue?"}, "images: no picture"),
        ("/api/generate", {"prompt": "What is it?", "images": []}, "images: no picture"),
        ("/api/generate", {"images": "abc"}, "images: expected a list of pictures in base64"),
        ("/api/generate", {"images": [3]}, "images[0]: expected a picture in base64"),
        ("/api/generate", {"images": [b64(png(1))], "options": 3}, "options: expected an object"),
        ("/api/generate", {"images": [b64(png(1))], "model": 3}, "model '3': expected a name"),
        ("/api/show", {"name": "toi"}, 'unknown run "toi"'),
        ("/api/show", [], "expected a JSON object"),
    ],
)
def test_no_answer_of_ollamas_shape_is_empty(server: Server, path: str, content: Any, said: str) -> None:
    status, answer, _ = server.post_json(path, content)
    assert status in (400, 404)
    assert said in answer["error"]
    # As `curl -d` sends it.
    form = {"content-type": "application/x-www-form-urlencoded"}
    assert server.ask("POST", path, json.dumps(content), form)[1] == answer


@pytest.mark.parametrize("path", ["/api/chat", "/api/generate"])
def test_a_model_is_loaded_by_asking_it_nothing(server: Server, path: str) -> None:
    for content in ({"model": "toy"}, {"model": "toy", "messages": [], "prompt": "", "images": None}):
        status, answer, _ = server.post_json(path, {**content, "stream": False})
        assert (status, answer["done_reason"]) == (200, "load")


# Ways of sending that clients have.


@pytest.mark.parametrize(
    "text",
    [
        "data:image/png;base64," + b64(png(5)),
        "DATA:image/png;name=a.png;BASE64," + b64(png(5)),
        "data:image/png;base64," + quote(b64(png(5)), safe=""),
        "data:image/png," + quote(png(5)),
        b64(png(5)).rstrip("="),
        b64(png(5)).replace("+", "-").replace("/", "_"),
        "\r\n".join(b64(png(5))[at : at + 64] for at in range(0, 400, 64)),
    ],
)
def test_base64_in_every_dress(server: Server, text: str) -> None:
    status, answer, _ = server.post_json("/api/caption", {"image": text})
    assert (status, answer["pictures"][0]["caption"]) == (200, "brightness 5")
    status, answer, _ = server.post_json("/api/generate", {"images": [text], "stream": False})
    assert (status, answer["response"]) == (200, "brightness 5")


def test_names_of_any_script_come_back(server: Server) -> None:
    _, answer, _ = server.post_form([("Hündin 강아지.png", png(5))])
    assert answer["pictures"][0]["name"] == "Hündin 강아지.png"


def test_a_part_without_a_file_name_is_said_to_be_text(server: Server) -> None:
    name = "filename*=UTF-8''a.png"  # which forms must not have (RFC 7578, 4.2), and old clients send
    body = f'--x\r\ncontent-disposition: form-data; name="image"; {name}\r\n\r\nabc\r\n--x--\r\n'
    status, answer, _ = server.ask(
        "POST", "/api/caption", body, {"content-type": "multipart/form-data; boundary=x"}
    )
    assert (status, answer["error"]) == (400, "image: came as text; send it as a file, with a filename")


def test_a_bare_picture_may_have_no_type_and_come_in_pieces(server: Server) -> None:
    answers = [
        server.ask("POST", "/api/caption?name=a%20b.png", png(5), {"content-type": kind})
        for kind in ("image/png", "IMAGE/PNG", "application/octet-stream")
    ]
    for status, answer, _ in answers:
        assert (status, answer["pictures"][0]["name"]) == (200, "a b.png")
    content = png(5)
    pieces = b"".join(b"%x\r\n%s\r\n" % (1, content[at : at + 1]) for at in range(len(content)))
    head = b"POST /api/caption HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n"
    answer = server.raw(head + b"transfer-encoding: chunked\r\n\r\n" + pieces + b"0\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200") and b"brightness 5" in answer
    packed = {"content-type": "image/png", "content-encoding": "gzip"}
    assert server.ask("POST", "/api/caption", content, packed)[0] == 415


def test_empty_forms_and_bodies_are_said_to_be_empty(server: Server) -> None:
    form = {"content-type": "multipart/form-data; boundary=x"}
    nothing_chosen = b'--x\r\ncontent-disposition: form-data; name="image"; filename=""\r\n\r\n\r\n--x--\r\n'
    for body in (b"--x--\r\n", nothing_chosen):
        status, answer, _ = server.ask("POST", "/api/caption", body, form)
        assert (status, answer["error"][:10]) == (400, "no picture")
    for kind in ("image/png", "application/json"):
        assert server.ask("POST", "/api/caption", b"", {"content-type": kind})[0] == 400
    for path in ("/api/generate", "/api/chat", "/api/show"):
        assert server.ask("POST", path, b"")[0] == 400


def test_methods_and_slashes(server: Server) -> None:
    for path in ("/", "/healthz", "/docs", "/api/tags", "/api/version", "/api/runs", "/page/page.css"):
        status, body, headers = server.ask("HEAD", path)
        assert (status, body) == (200, "")
        assert int(headers["content-length"]) > 0
    status, _, headers = server.ask("OPTIONS", "/api/caption")
    assert (status, headers["allow"]) == (204, "POST")
    status, answer, headers = server.ask("PUT", "/healthz")
    assert (status, headers["allow"]) == (405, "GET, HEAD")
    for path in ("/api/caption/", "//api/caption", "/api//caption"):
        assert server.ask("POST", path, png(5), {"content-type": "image/png"})[0] == 200
    assert server.ask("GET", "/healthz/")[0] == 200
    status, _, headers = server.ask("GET", "/docs/")
    assert (status, headers["location"]) == (308, "../docs")  # its links are relative


# Languages.


def speak(pixels: np.ndarray, options: CaptionOptions) -> list[Caption]:
    """A model of German and Korean; German unless told otherwise."""
    texts = {"de": GERMAN, "ko": KOREAN}

    def said(language: str) -> Caption:
        words = tuple(texts[language].split())
        looks = np.full((len(words), 2, 3), 1 / 6)
        return Caption("", texts[language], -0.5, -1.5, words, looks, language=language)

    every = {language: said(language) for language in texts}
    if options.language == "all":
        return [replace(every["de"], by_language=every)] * len(pixels)
    return [every[options.language or "de"]] * len(pixels)


SPOKEN = ServedModel("spoken", (8, 8), speak, DecodeConfig(), {"languages": ["de", "ko"]})


@pytest.fixture(scope="module")
def polyglot() -> Iterator[Server]:
    """A server one of whose models knows two languages."""
    with running(more=[SPOKEN]) as found:
        yield found


def test_a_language_is_asked_for_by_name(polyglot: Server) -> None:
    for language, text in ((None, GERMAN), ("", GERMAN), ("de", GERMAN), ("ko", KOREAN)):
        wish = {"images": [b64(png(1))], "run": "spoken", "language": language}
        status, answer, _ = polyglot.post_json("/api/caption", wish)
        assert (status, answer["pictures"][0]["caption"]) == (200, text)
    status, answer, _ = polyglot.post_form([("a.png", png(1))], {"run": "spoken", "language": "all"})
    [found] = answer["pictures"]
    assert found["language"] == "de"
    assert {name: one["caption"] for name, one in found["captions"].items()} == {"de": GERMAN, "ko": KOREAN}
    assert polyglot.ask("GET", "/api/runs")[1]["runs"][-1]["languages"] == ["de", "ko"]


@pytest.mark.parametrize(
    ("run", "language", "said"),
    [
        ("spoken", "fr", 'unknown language "fr"; known: '),
        ("toy", "de", "toy knows no languages; leave it out"),
    ],
)
def test_a_language_that_it_does_not_know(polyglot: Server, run: str, language: str, said: str) -> None:
    wish = {"images": [b64(png(1))], "run": run, "language": language}
    status, answer, _ = polyglot.post_json("/api/caption", wish)
    assert (status, said in answer["error"]) == (400, True), answer


def test_in_ollamas_shape_the_tag_is_the_language(polyglot: Server) -> None:
    names = [model["name"] for model in polyglot.ask("GET", "/api/tags")[1]["models"]]
    assert names[-3:] == ["spoken:latest", "spoken:de", "spoken:ko"]
    for name, text in (("spoken", GERMAN), ("spoken:latest", GERMAN), ("spoken:ko", KOREAN)):
        wish = {"model": name, "images": [b64(png(1))], "stream": False}
        assert polyglot.post_json("/api/generate", wish)[1]["response"] == text
        assert "vision" in polyglot.post_json("/api/show", {"model": name})[1]["capabilities"]
    status, answer, _ = polyglot.post_json("/api/generate", {"model": "spoken:fr", "images": [b64(png(1))]})
    assert (status, answer["error"][:22]) == (404, 'unknown run "spoken:fr')


# Who may ask.


def test_foreign_hosts_and_origins_are_refused(server: Server) -> None:
    assert server.ask("GET", "/healthz", headers={"host": "evil.example"})[0] == 421
    assert server.ask("GET", "/healthz", headers={"host": "192.0.2.7:7860"})[0] == 200
    assert server.ask("GET", "/healthz", headers={"host": "[::1]:7860"})[0] == 200
    picture, kind = png(1), {"content-type": "image/png"}
    for origin in ("https://evil.example", "null", f"http://localhost:{server.port + 1}"):
        assert server.ask("POST", "/api/caption", picture, {**kind, "origin": origin})[0] == 403
    own = f"http://127.0.0.1:{server.port}"
    assert server.ask("POST", "/api/caption", picture, {**kind, "origin": own})[0] == 200


@pytest.fixture(scope="module")
def named() -> Iterator[Server]:
    with running(names=["https://Photos.example.org/", "*.example.net", "bücher.example"]) as found:
        yield found


OWN = "127.0.0.1:{port}"  # what a proxy sends that passes no Host on


@pytest.mark.parametrize(
    ("host", "origin", "status"),
    [
        ("photos.example.org", "https://photos.example.org", 200),
        ("PHOTOS.example.org.", "https://photos.example.org", 200),
        ("photos.example.org:443", "https://photos.example.org", 200),
        ("photos.example.org", "https://photos.example.org:8443", 200),
        (OWN, "https://photos.example.org", 200),
        (OWN, "http://photos.example.org:8080", 200),
        ("a.example.net", "https://a.example.net", 200),
        ("xn--bcher-kva.example", "https://xn--bcher-kva.example", 200),
        ("photos.example.org", None, 200),
        ("evil.example", "https://photos.example.org", 421),
        ("example.net", None, 421),
        ("notexample.net", None, 421),
        ("photos.example.org", "https://evil.example", 403),
        ("photos.example.org", "https://photos.example.org.evil.example", 403),
        (OWN, "http://localhost:1", 403),
        (OWN, "null", 403),
    ],
)
def test_behind_a_proxy(named: Server, host: str, origin: str | None, status: int) -> None:
    headers = {"host": host.format(port=named.port), "content-type": "image/png"}
    headers |= {"origin": origin} if origin else {}
    forwarded = {"x-forwarded-host": "evil.example", "x-forwarded-proto": "https", "forwarded": "host=evil"}
    for more in ({}, forwarded):  # which change nothing: anybody can send them
        found, answer, _ = named.ask("POST", "/api/caption", png(5), {**headers, **more})
        assert (found, answer.get("error")) == (status, answer.get("error"))


def test_a_refusal_of_a_host_names_the_remedy(server: Server) -> None:
    _, answer, _ = server.ask("GET", "/", headers={"host": "photos.example.org:8443"})
    assert answer["error"].endswith("start it with --allow-host photos.example.org")
    _, answer, _ = server.ask("GET", "/", headers={"origin": "https://photos.example.org"})
    assert answer["error"].endswith("behind a proxy, start it with --allow-host photos.example.org")


def test_health_checks_of_http_1_0(server: Server) -> None:
    for head in (
        b"GET /healthz HTTP/1.0\r\n\r\n",
        b"HEAD / HTTP/1.0\r\n\r\n",
        b"GET / HTTP/1.0\r\nhost:\r\n\r\n",
    ):
        assert server.raw(head).startswith(b"HTTP/1.1 200")
    assert server.raw(b"GET /healthz HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.1 400")  # there it must be named
    origin = b"GET /healthz HTTP/1.0\r\norigin: https://evil.example\r\n\r\n"
    assert server.raw(origin).startswith(b"HTTP/1.1 403")


def test_with_a_token_nothing_goes_without_it() -> None:
    with running(token="sesame & so") as server:
        assert server.ask("GET", "/healthz")[0] == 200
        status, answer, headers = server.ask("GET", "/api/runs")
        assert (status, headers["www-authenticate"]) == (401, "Bearer")
        assert "Authorization: Bearer" in answer["error"]
        assert server.post_form([("a.png", png(1))])[0] == 401
        assert server.ask("GET", "/api/runs", headers={"authorization": "Bearer sesame"})[0] == 401
        assert server.ask("GET", "/api/runs", headers={"authorization": "Bearer sesame & so"})[0] == 200
        # A browser gets a form, and for the token a cookie.
        status, page, _ = server.ask("GET", "/docs", headers={"accept": "text/html"})
        assert (status, "wants its token" in page) == (401, True)
        assert server.ask("POST", "/login", "token=wrong")[0] == 401
        status, _, headers = server.ask("POST", "/login", "token=sesame+%26+so")
        cookie = headers["set-cookie"]
        assert status == 303
        assert "HttpOnly" in cookie and "SameSite=Strict" in cookie and "sesame" not in cookie
        assert server.ask("GET", "/api/runs", headers={"cookie": cookie.partition(";")[0]})[0] == 200


# How much, how slow.


def test_too_large_is_refused_before_and_while_it_is_read() -> None:
    limits = ServeLimits(picture=Limits(file_bytes=10_000), body_bytes=100_000, linger_seconds=0.3)
    with running(limits=limits) as server:
        kind = {"content-type": "image/png"}
        status, answer, _ = server.ask("POST", "/api/caption", b"x" * 100_001, kind)
        assert (status, answer["error"]) == (413, "the request is too large; at most 97.6562 KiB are read")
        head = b"POST /api/caption HTTP/1.1\r\nhost: localhost\r\ncontent-type: image/png\r\n"
        announced = server.raw(head + b"content-length: 99999999999\r\n\r\n")
        assert announced.startswith(b"HTTP/1.1 413")
        piece = b"4000\r\n" + b"x" * 0x4000 + b"\r\n"
        assert server.raw(head + b"transfer-encoding: chunked\r\n\r\n" + 8 * piece).startswith(
            b"HTTP/1.1 413"
        )
        status, answer, _ = server.ask("POST", "/api/caption", b"x" * 10_001, kind)
        assert status == 422
        assert "at most 0.00953674 MiB are read" in answer["error"]
        assert server.ask("POST", "/api/caption", png(4), kind)[0] == 200


def test_no_more_is_held_at_a_time_than_may_be() -> None:
    limits = ServeLimits(body_bytes=60_000, held_bytes=100_000, linger_seconds=0.3)
    head = (
        b"POST /api/caption HTTP/1.1\r\nhost: localhost\r\ncontent-type: image/png\r\n"
        b"content-length: 60000\r\n\r\n"
    )
    with running(limits=limits) as server:
        with socket.create_connection(("127.0.0.1", server.port)) as first:
            first.sendall(head + b"x" * 59_999)
            time.sleep(0.5)
            refused = server.raw(head + b"x" * 60_000)
            assert refused.startswith(b"HTTP/1.1 503")
            assert b"retry-after: 2" in refused
        time.sleep(0.2)  # it has hung up: its part is free again
        assert server.raw(head + b"x" * 60_000).startswith(b"HTTP/1.1 422")


def test_dawdlers_are_cut_off() -> None:
    limits = ServeLimits(header_seconds=0.8, idle_seconds=0.8, body_seconds=2, linger_seconds=1)
    with running(limits=limits) as server:
        assert server.raw(b"POST /api/caption HT") == b""
        assert server.raw(b"") == b""
        head = b"POST /api/caption HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n"
        assert server.raw(head + b"some").startswith(b"HTTP/1.1 408")
        # Never idle for long, and still not done in time.
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as link:
            link.sendall(head)
            for _ in range(6):
                link.sendall(b"x")
                time.sleep(0.4)
            assert link.recv(100).startswith(b"HTTP/1.1 408")
        # The second request of a connection is timed like the first.
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as link:
            link.sendall(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n")
            answer = b""
            while not answer.endswith(b"}"):
                answer += link.recv(4096)
            assert answer.startswith(b"HTTP/1.1 200")
            link.sendall(b"GET /heal")
            assert link.recv(4096) == b""
        assert server.ask("GET", "/healthz")[0] == 200


def test_a_full_house_says_when_to_come_again() -> None:
    with running(limits=ServeLimits(waiting=3)) as server:
        server.model.gate.clear()
        with ThreadPoolExecutor(3) as clients:
            inside = [clients.submit(server.post_form, [("a.png", png(n))]) for n in range(3)]
            while server.service.waiting < 3:
                time.sleep(0.01)
            status, answer, headers = server.post_form([("late.png", png(9))])
            assert status == 503
            assert 1 <= int(headers["retry-after"]) <= 60
            assert answer["error"].startswith("too many pictures are waiting")
            server.model.gate.set()
            assert [one.result()[0] for one in inside] == [200, 200, 200]
        assert server.post_form([("late.png", png(9))])[0] == 200


def test_who_waits_too_long_is_sent_away_and_costs_nothing_more() -> None:
    with running(limits=ServeLimits(answer_seconds=0.5)) as server:
        server.model.gate.clear()
        with ThreadPoolExecutor(2) as clients:
            answers = [clients.submit(server.post_form, [("a.png", png(n))]) for n in range(2)]
            assert [answer.result()[0] for answer in answers] == [503, 503]
        server.model.gate.set()
        while server.service.waiting:
            time.sleep(0.01)
        assert server.post_form([("a.png", png(5))])[1]["pictures"][0]["caption"] == "brightness 5"


def test_what_breaks_in_the_model_is_no_more_than_an_answer(server: Server) -> None:
    broken = replace(server.service.default, caption=lambda pixels, options: [][1])
    server.service.models["broken"] = broken
    try:
        status, answer, _ = server.post_json("/api/caption", {"images": [b64(png(1))], "run": "broken"})
        assert (status, answer["error"]) == (500, "captioning failed; the server's log says why")

        def light(pixels: np.ndarray, options: CaptionOptions) -> list[Caption]:
            raise ModuleNotFoundError(name="tensorflow")

        server.service.models["broken"] = replace(broken, caption=light)
        status, answer, _ = server.post_json("/api/caption", {"images": [b64(png(1))], "run": "broken"})
        assert (status, "pip install 'captioner[train]'" in answer["error"]) == (501, True)
    finally:
        del server.service.models["broken"]
    assert server.post_form([("a.png", png(5))])[0] == 200


# What it says of itself.


def test_the_openapi_document_is_one_and_tells_what_there_is(server: Server) -> None:
    from fastapi.openapi.models import OpenAPI

    _, document, _ = server.ask("GET", "/openapi.json")
    OpenAPI(**document)
    _, page, _ = server.ask("GET", "/docs")
    for path, operations in document["paths"].items():
        assert path in page
        for method in operations:
            content = json.dumps({"images": [b64(png(1))]}) if method == "post" else None
            kind = {"content-type": "application/json"}
            assert server.ask(method.upper(), path, content, kind)[0] == 200


def test_the_page_is_there_and_nothing_beside_it(server: Server) -> None:
    status, page, headers = server.ask("GET", "/")
    assert status == 200
    assert "a sentence comes out" in page
    assert "default-src 'self'" in headers["content-security-policy"]
    assert "unsafe" not in headers["content-security-policy"]
    for path in ("/page/page.js", "/page/page.css", "/docs"):
        assert server.ask("GET", path)[0] == 200
    icon = http.client.HTTPConnection("127.0.0.1", server.port)
    icon.request("GET", "/examples/0.png")
    assert Image.open(io.BytesIO(icon.getresponse().read())).size == (448, 448)
    outside = ("/page/../server.py", "/page/%2e%2e/server.py", "/page/..%2fserver.py", "/page//etc/passwd")
    for path in (*outside, "/page/", "/page/templates", "/templates/page.html", "/redoc"):
        assert server.ask("GET", path)[0] == 404


# Its parts.


def test_a_batch_has_one_key_and_an_error_goes_to_all_of_it() -> None:
    from concurrent.futures import Future

    from captioner.apps.serving.batcher import Batcher

    seen = []
    started, go = threading.Event(), threading.Event()

    def work(key: str, items: list[int]) -> list[int]:
        started.set()
        go.wait()
        seen.append((key, items))
        if key == "bad":
            raise ValueError("broken")
        return [10 * item for item in items]

    batcher = Batcher(work, most=3)
    first = batcher.put("a", 0, Future())
    started.wait()
    keys = ["a", "bad", "a", "a", "bad", "a"]
    later = [batcher.put(key, number, Future()) for number, key in enumerate(keys, 1)]
    taken_back = batcher.put("a", 7, Future())
    taken_back.cancel()
    go.set()
    assert first.result() == 0
    assert [future.result() for future in (later[0], later[2], later[3], later[5])] == [10, 30, 40, 60]
    for future in (later[1], later[4]):
        with pytest.raises(ValueError, match="broken"):
            future.result()
    batcher.close()
    assert seen == [("a", [0]), ("a", [1, 3, 4]), ("bad", [2, 5]), ("a", [6])]


def make_run(folder: Path, *, finished: bool = True, languages: tuple[str, ...] = ()) -> None:
    """A run folder with weights of nothing."""
    from captioner.config import Config
    from captioner.data.vocabulary import Vocabulary
    from captioner.runs.run_folder import Run

    info = {"name": "small_cnn", "size": [64, 64], "grid": [4, 4], "cells": 16, "channels": 8, "digest": "0"}
    words = Vocabulary.build(["ein Stern", "원"], languages=languages)
    run = Run.create(folder, Config(), words, info)
    if finished:

        class Nothing:
            def weights_dict(self) -> dict[str, np.ndarray]:
                return {"w": np.zeros(2, np.float32)}

        by_language = {f"cider_{language}": 30.0 + len(language) for language in languages}
        run.save_best(Nothing(), Nothing(), {"epoch": 1, "cider": 42.04, **by_language})


def test_runs_are_found_by_folder_and_by_folder_of_runs(tmp_path: Path, capsys: Any) -> None:
    from captioner.apps.serving.served_models import open_runs

    make_run(tmp_path / "runs" / "english")
    make_run(tmp_path / "runs" / "german")
    make_run(tmp_path / "runs" / "young", finished=False)
    make_run(tmp_path / "more" / "english")
    found = open_runs([tmp_path / "runs", tmp_path / "more" / "english"])
    assert [model.name for model in found] == ["runs-english", "german", "more-english"]
    assert "young: left out" in capsys.readouterr().err
    assert found[0].size == (64, 64)
    assert found[0].about["scores"] == {"cider": 42.0}
    make_run(tmp_path / "several", languages=("de", "zh-tw"))
    assert open_runs([tmp_path / "several"])[0].about["scores"] == {"cider": 32.0}  # of the first, no mean
    with pytest.raises(RunError, match="no finished epoch yet"):
        open_runs([tmp_path / "runs" / "young"])
    with pytest.raises(RunError, match="no such folder"):
        open_runs([tmp_path / "nowhere"])


def test_a_port_that_is_taken_is_said() -> None:
    from captioner.apps.serving.server import listening
    from captioner.errors import CaptionerError

    with listening("127.0.0.1", 0) as first:
        first.listen()
        with (
            pytest.raises(CaptionerError, match=r"cannot listen on 127\.0\.0\.1 port \d+ .*--port"),
            listening("127.0.0.1", first.getsockname()[1]),
        ):
            pass
