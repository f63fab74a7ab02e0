"""Nothing that a person wrote is hidden by a sidecar of ours, wherever it stands."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from PIL import ExifTags, Image

from captioner.apps.sidecars.file_kinds import WRITERS, Sidecar
from captioner.apps.sidecars.job import caption_folders
from captioner.apps.sidecars.plan import NAMES, PROGRAMS, FolderPlan
from captioner.apps.sidecars.summary import Outcomes
from captioner.cli.main import main
from captioner.data.image_files import gather
from captioner.inference.caption import Caption

KINDS = [
    kind for kind, row in WRITERS.items() if isinstance(row, Sidecar) and (kind != "xmp" or find_spec("lxml"))
]


def model(paths: Iterable[Path]) -> Iterator[Caption]:
    for path in paths:
        yield Caption(str(path), "ours", score=-0.5)


def caption(folder: Path, kind: str, **plan: object) -> Outcomes:
    settings = FolderPlan((kind,), job="one", **plan)  # type: ignore[arg-type]
    return caption_folders(gather([folder]), settings, model, quiet=True)


def content(kind: str, text: str) -> bytes:
    row = WRITERS[kind]
    assert isinstance(row, Sidecar)
    return row.write(b"", text, {})


def read(kind: str, path: Path) -> str | None:
    row = WRITERS[kind]
    assert isinstance(row, Sidecar)
    return row.read(path.read_bytes())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("naming", NAMES)
@pytest.mark.parametrize("by_hand", ["a.jpg.{}", "a.{}", "A.{}", "a.JPG.{}"])
def test_a_caption_under_the_other_name_is_not_hidden(
    kind: str, naming: str, by_hand: str, tmp_path: Path
) -> None:
    Image.new("RGB", (6, 4)).save(tmp_path / "a.jpg")
    there = tmp_path / by_hand.format(kind)
    there.write_bytes(content(kind, "by hand"))
    before = sorted(tmp_path.iterdir())
    assert caption(tmp_path, kind, names=naming).kept == 1
    assert sorted(tmp_path.iterdir()) == before
    assert caption(tmp_path, kind, names=naming, if_exists="append").captioned == 1
    texts = [read(kind, path) for path in tmp_path.iterdir() if path.suffix.lower() == f".{kind}"]
    assert "by hand\nours" in texts


@pytest.mark.parametrize("kind", KINDS)
def test_of_two_sidecars_the_one_with_words_counts(kind: str, tmp_path: Path) -> None:
    Image.new("RGB", (6, 4)).save(tmp_path / "a.jpg")
    (tmp_path / f"a.{kind}").write_bytes(b"")
    (tmp_path / f"a.jpg.{kind}").write_bytes(content(kind, "by hand"))
    assert caption(tmp_path, kind).kept == 1
    assert (tmp_path / f"a.{kind}").read_bytes() == b""


RATING = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    b'<rdf:Description rdf:about="" xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmp:Rating="4"/>'
    b"</rdf:RDF></x:xmpmeta>"
)
EMBEDDED: dict[str, Callable[[Path], None]] = {
    "XMP": lambda path: Image.new("RGB", (6, 4)).save(path, xmp=content("xmp", "by hand")),
    "EXIF": lambda path: Image.new("RGB", (6, 4)).save(path, exif=_described("by hand")),
}


def _described(text: str) -> Image.Exif:
    notes = Image.Exif()
    notes[ExifTags.Base.ImageDescription] = text
    return notes


@pytest.mark.skipif("xmp" not in KINDS, reason="no lxml")
@pytest.mark.parametrize("where", EMBEDDED)
@pytest.mark.parametrize("sidecar", [False, True])
def test_a_description_inside_the_picture_is_not_hidden(where: str, sidecar: bool, tmp_path: Path) -> None:
    """Not even where another program has left a sidecar that says nothing of it."""
    EMBEDDED[where](tmp_path / "a.jpg")
    if sidecar:
        (tmp_path / "a.xmp").write_bytes(RATING)
    before = sorted(tmp_path.iterdir())
    assert caption(tmp_path, "xmp").kept == 1 and sorted(tmp_path.iterdir()) == before
    assert caption(tmp_path, "xmp", if_exists="append").captioned == 1
    assert read("xmp", tmp_path / "a.xmp") == "by hand\nours"
    assert (b'Rating="4"' in (tmp_path / "a.xmp").read_bytes()) is sidecar


@pytest.mark.parametrize("content", ['{"images": [{"id": 1}], "annotations": []}', '{"images": []}'])
def test_a_data_set_called_like_a_picture_is_left_alone(content: str, tmp_path: Path) -> None:
    Image.new("RGB", (6, 4)).save(tmp_path / "captions.jpg")
    (tmp_path / "captions.json").write_text(content)
    outcomes = caption(tmp_path, "json", if_exists="overwrite")
    assert outcomes.failed == 1 and "captions of a data set" in next(iter(outcomes.failures))
    assert (tmp_path / "captions.json").read_text() == content


# --for.


@pytest.mark.skipif("xmp" not in KINDS, reason="no lxml")
@pytest.mark.parametrize(
    ("program", "name"), [("darktable", "a.jpg.xmp"), ("digikam", "a.jpg.xmp"), ("lightroom", "a.xmp")]
)
def test_each_program_gets_the_name_it_wants(
    program: str, name: str, tmp_path: Path, tiny_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (6, 4)).save(tmp_path / "a.jpg")
    wanted = ["caption", str(tmp_path), "--run", str(tiny_run), "--write", "xmp", "--for", program]
    assert main(wanted) == 0
    assert (tmp_path / name).is_file() and len(list(tmp_path.glob("*.xmp"))) == 1
    assert ("note: " in capsys.readouterr().err) == bool(PROGRAMS[program].note)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--write xmp --for darktabel", 'did you mean "darktable"?'),
        ("--write txt --for darktable", "--write xmp is missing"),
        ("--write xmp --for darktable --names short", "leave out --names"),
        ("--for darktable", "--for says how files are written: --write is missing"),
    ],
)
def test_what_cannot_be_for_a_program(
    words: str, said: str, tmp_path: Path, tiny_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (6, 4)).save(tmp_path / "a.jpg")
    assert main(["caption", str(tmp_path), "--run", str(tiny_run), *words.split()]) == 2
    assert said in capsys.readouterr().err
