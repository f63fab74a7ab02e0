"""Corrected captions: what is kept of them, what is refused, and that a folder of them is a data set."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="the extra is not installed: pip install 'captioner[serve]'")

from captioner.apps.serving import correction_folder as store  # noqa: E402
from captioner.apps.serving.correction_folder import CorrectionFolder, FolderFull, checked_sentence  # noqa: E402
from captioner.cli.main import main  # noqa: E402
from captioner.data.datasets import load_split  # noqa: E402
from captioner.errors import CaptionerError, ConfigError, ImageError  # noqa: E402
from tests.apps.serving.test_server import Server, b64, bomb, png, running  # noqa: E402


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(corrections=tmp_path_factory.mktemp("corrections") / "made" / "there") as found:
        yield found


def folder_of(server: Server) -> Path:
    assert server.service.corrections is not None
    return server.service.corrections.folder


def test_a_correction_is_kept_and_a_second_one_replaces_it(server: Server) -> None:
    picture = png(41)
    status, answer, _ = server.post_form([("dog.jpg", picture)], {"caption": "Bella"}, path="/api/correction")
    assert (status, answer["caption"], answer["replaced"]) == (200, "Bella", False)
    path = folder_of(server) / answer["name"]
    assert path.suffix == ".png"  # what it is, not what it was called
    assert path.read_bytes() == picture
    assert path.with_suffix(".txt").read_text(encoding="utf-8") == "Bella\n"
    wish = {"image": b64(picture), "caption": " Bella  im\nSchnee "}
    status, again, _ = server.post_json("/api/correction", wish)
    assert (status, again["name"], again["replaced"]) == (200, answer["name"], True)
    assert again["kept"] == answer["kept"]
    assert path.with_suffix(".txt").read_text(encoding="utf-8") == "Bella im Schnee\n"
    raw = {"content-type": "image/png"}
    status, bare, _ = server.ask("POST", "/api/correction?caption=Bella%20again", picture, raw)
    assert (status, bare["caption"]) == (200, "Bella again")


@pytest.mark.parametrize(
    ("picture", "fields", "status", "said"),
    [
        (png(1), {}, 400, "caption: is missing"),
        (png(1), {"caption": ""}, 400, "caption: has no words"),
        (png(1), {"caption": " …!? "}, 400, "caption: has no words"),
        (png(1), {"caption": "so " * 61}, 400, "caption: has 61 words, at most 60 are kept"),
        (png(1), {"caption": "o" * 1001}, 400, "caption: has 1,001 characters, at most 1,000 are kept"),
        (png(1), {"caption": "a\x00dog"}, 400, "caption: has control characters"),
        (
            png(1),
            {"caption": "a dog", "captain": "x"},
            400,
            'unknown field "captain"; did you mean "caption"?',
        ),
        (b"no picture", {"caption": "a dog"}, 422, "the picture is no picture that can be read"),
        (bomb(20_000, 10_000), {"caption": "a dog"}, 422, "has more pixels than the 80,000,000"),
    ],
)
def test_what_teaches_nothing_is_refused(
    server: Server, picture: bytes, fields: dict[str, str], status: int, said: str
) -> None:
    before = sorted(folder_of(server).iterdir())
    found, answer, _ = server.post_form([("a.png", picture)], fields, path="/api/correction")
    assert (found, said in answer["error"]) == (status, True), answer
    assert sorted(folder_of(server).iterdir()) == before


def test_one_picture_at_a_time(server: Server) -> None:
    files = [("a.png", png(1)), ("b.png", png(2))]
    assert server.post_form(files, {"caption": "two"}, path="/api/correction")[0] == 400
    assert server.post_form([], {"caption": "none"}, path="/api/correction")[0] == 400
    status, answer, _ = server.post_json("/api/correction", {"image": b64(png(1)), "caption": 3})
    assert (status, answer["error"]) == (400, "caption: expected a sentence")


def test_without_a_folder_nothing_is_kept() -> None:
    with running() as server:
        status, answer, _ = server.post_form([("a.png", png(1))], {"caption": "a"}, path="/api/correction")
        assert (status, "start the server with --corrections" in answer["error"]) == (404, True)
        assert "/api/correction" not in server.ask("GET", "/openapi.json")[1]["paths"]
        assert "stored nowhere" in server.ask("GET", "/")[1]


def test_token_and_origin_hold_here_too(tmp_path: Path) -> None:
    with running(token="sesame", corrections=tmp_path) as server:
        wish = {"image": b64(png(1)), "caption": "a dog"}
        assert server.post_json("/api/correction", wish)[0] == 401
        known = {"authorization": "Bearer sesame"}
        assert server.post_json("/api/correction", wish, **known, origin="https://evil.example")[0] == 403
        assert list(tmp_path.iterdir()) == []
        assert server.post_json("/api/correction", wish, **known)[0] == 200
        assert "kept only with a caption that you correct" in server.ask("GET", "/", headers=known)[1]


def test_the_folder_is_a_data_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corrections = CorrectionFolder(tmp_path)
    for brightness, text in enumerate(["our dog Bella", "눈 속의 벨라", "Bella im großen Schnee"]):
        corrections.keep(png(brightness), text)
    assert len(CorrectionFolder(tmp_path)) == 3  # as the next server counts them
    records = load_split(tmp_path, "all").records
    assert sorted(caption for record in records for caption in record.captions) == sorted(
        ["our dog Bella", "눈 속의 벨라", "Bella im großen Schnee"]
    )
    assert main(["data", str(tmp_path)]) == 0
    assert "3 pictures" in capsys.readouterr().out


def test_a_folder_that_is_full(tmp_path: Path) -> None:
    corrections = CorrectionFolder(tmp_path, most=1)
    corrections.keep(png(1), "one")
    with pytest.raises(FolderFull, match="another --corrections folder"):
        corrections.keep(png(2), "two")
    assert corrections.keep(png(1), "one again").replaced


def test_a_folder_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    with pytest.raises(CaptionerError, match="--corrections .*file: cannot be used"):
        CorrectionFolder(tmp_path / "file")


def test_whatever_ends_it_the_picture_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = store.atomic_write

    def dying(path: Path, content: bytes | str) -> None:
        if path.suffix == ".txt":
            raise SystemExit
        write(path, content)

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(store, "atomic_write", dying)
        CorrectionFolder(tmp_path).keep(png(1), "one")
    corrections = CorrectionFolder(tmp_path)
    assert not corrections.keep(png(1), "one").replaced
    assert len(corrections) == 1


def test_many_at_a_time_leave_one_sentence(tmp_path: Path) -> None:
    corrections, start = CorrectionFolder(tmp_path), threading.Barrier(8)

    def correct(number: int) -> None:
        start.wait()
        corrections.keep(png(1), f"sentence {number}")

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(correct, range(8)))
    assert len(corrections) == 1
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".png", ".txt"]


@pytest.mark.parametrize(
    "text", ["ein Stern", "별 하나", "ดาวหนึ่งดวง", "a dog's ball", "नीला तारा", "👍 good"]
)
def test_a_sentence_stays_as_it_is_written(text: str) -> None:
    assert checked_sentence(f"\t{text} \r\n") == text


def test_errors_are_the_usual_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no words"):
        CorrectionFolder(tmp_path).keep(png(1), "")
    with pytest.raises(ImageError):
        CorrectionFolder(tmp_path).keep(b"", "a dog")
