"""Files that carry captions: what is in them already stays, whatever script the caption is in."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from captioner.apps.sidecars.csv_table import Table
from captioner.apps.sidecars.file_kinds import (
    WRITERS,
    Sidecar,
    append_caption,
    casefold_name,
    names_needing_suffix,
)
from captioner.data.xmp import read_xmp, write_xmp
from captioner.errors import DataError

CAPTIONS = {
    "en": "two small circles above a square",
    "de": "zwei große Äpfel über einem Würfel, „grün“",
    "ko": "큰 빨간 원 세 개와 파란 별 두 개",
    "ja": "三つの大きな赤い円と青い星",
    "markup": 'a < b & c > d, "quoted", it\'s 100 % <b>bold</b>',
}
SIDECARS = [name for name, row in WRITERS.items() if isinstance(row, Sidecar)]
SUBJECTS = "<dc:subject><rdf:Bag><rdf:li>개</rdf:li><rdf:li>Hund</rdf:li></rdf:Bag></dc:subject>"


def row(kind: str) -> Sidecar:
    if kind == "xmp":
        pytest.importorskip("lxml")
    found = WRITERS[kind]
    assert isinstance(found, Sidecar)
    return found


def xmp(*fields: str, attributes: str = "") -> bytes:
    """A packet as photo programs write them: a mark, a comment, an identifier, these fields."""
    return f"""<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<!-- 주석 -->
<x:xmpmeta xmlns:x="adobe:ns:meta/" x:xmptk="XMP Core 6.0">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about="uuid:faf5" xmlns:xmp="http://ns.adobe.com/xap/1.0/"
    xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:my="urn:my:own" xmp:Rating="4" {attributes}>
   {"".join(fields)}
   <my:tree rdf:parseType="Resource"><my:leaf>깊이</my:leaf></my:tree>
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
<?xpacket end="w"?>""".encode()


def description(*items: tuple[str, str], kind: str = "Alt") -> str:
    marks = [f' xml:lang="{language}"' if language else "" for language, _ in items]
    inside = "".join(f"<rdf:li{mark}>{text}</rdf:li>" for mark, (_, text) in zip(marks, items, strict=True))
    return f"<dc:description><rdf:{kind}>{inside}</rdf:{kind}></dc:description>"


def languages(content: bytes) -> dict[str, str]:
    """All descriptions by language, found without the code under test."""
    from lxml import etree

    found = etree.fromstring(content).iterfind(
        ".//{http://purl.org/dc/elements/1.1/}description//{http://www.w3.org/1999/02/22-rdf-syntax-ns#}li"
    )
    return {item.get("{http://www.w3.org/XML/1998/namespace}lang", ""): item.text for item in found}


@pytest.mark.parametrize("caption", CAPTIONS.values(), ids=CAPTIONS)
@pytest.mark.parametrize("kind", SIDECARS)
def test_a_caption_comes_back_as_it_went_in(kind: str, caption: str) -> None:
    content = row(kind).write(b"", caption, {"caption": caption, "score": -0.5})
    assert row(kind).read(content) == caption
    assert row(kind).read(b"") is None
    both = append_caption(caption, CAPTIONS["en"] + " again")
    assert row(kind).read(row(kind).write(content, both, {"caption": "…"})) == both


def test_a_text_file_is_the_caption_and_a_line_end() -> None:
    assert row("txt").write(b"", "개 한 마리", {}) == "개 한 마리\n".encode()
    assert row("txt").read("\ufeffein Hund\r\nim Gras\r\n".encode()) == "ein Hund\nim Gras"
    assert row("txt").read("개".encode("utf-16")) == "개"
    latin = "Grüße".encode("latin-1")
    text = append_caption(row("txt").read(latin) or "", "Hallo")
    assert row("txt").write(latin, text, {}) == latin + b"\nHallo\n"


def test_json_keeps_the_keys_of_others() -> None:
    old = '{"title": "휴가", "caption": "alt", "geo": {"lat": 1.5}}'.encode()
    new = json.loads(row("json").write(old, "neu", {"caption": "neu", "score": -1.0, "alternatives": []}))
    assert new == {"title": "휴가", "caption": "neu", "geo": {"lat": 1.5}, "score": -1.0, "alternatives": []}
    assert row("json").read(b'{"caption": ["one", "two"]}') == "one\ntwo"
    for damaged in (b"[1, 2]", b'{"caption": ', b"\xff\xd8\xff\xe0 a JPEG"):
        with pytest.raises(DataError, match="move it away"):
            row("json").read(damaged)


def test_xmp_changes_nothing_but_the_default_description() -> None:
    old = xmp(SUBJECTS, description(("x-default", "old"), ("de-DE", "alt"), ("ko", "옛")))
    new = row("xmp").write(old, "neu", {})
    assert languages(new) == {"x-default": "neu", "de-DE": "alt", "ko": "옛"}
    back = row("xmp").write(new, "old", {})
    assert back.decode().split() == row("xmp").write(old, "old", {}).decode().split()
    assert canonical(back) == canonical(old)
    assert new.startswith('<?xpacket begin="\ufeff"'.encode()) and "<!-- 주석 -->".encode() in new
    assert new.rstrip().endswith(b'<?xpacket end="w"?>')


def canonical(content: bytes) -> bytes:
    from lxml import etree

    return bytes(etree.tostring(etree.fromstring(content), method="c14n"))


@pytest.mark.parametrize(
    ("fields", "read", "after"),
    [
        ((SUBJECTS,), None, {"x-default": "neu"}),
        ((description(("", "nameless"), ("de", "alt")),), "nameless", {"x-default": "neu", "de": "alt"}),
        ((description(("de", "alt"), ("ko", "옛")),), "alt", {"x-default": "neu", "de": "alt", "ko": "옛"}),
        ((description(("de", "alt"), ("X-Default", "old")),), "old", {"de": "alt", "x-default": "neu"}),
        ((description(("", "in a bag"), kind="Bag"),), "in a bag", {"x-default": "neu"}),
        (("<dc:description>plain</dc:description>",), "plain", {"x-default": "neu"}),
        (("<dc:description/>",), None, {"x-default": "neu"}),
        ((description(("x-default", " ")),), None, {"x-default": "neu"}),
    ],
)
def test_xmp_is_understood_however_it_is_written(
    fields: tuple[str, ...], read: str | None, after: dict[str, str]
) -> None:
    content = xmp(*fields)
    assert row("xmp").read(content) == read
    new = row("xmp").write(content, "neu", {})
    assert languages(new) == after
    assert row("xmp").read(new) == "neu"
    assert "깊이".encode() in new and b'xmp:Rating="4"' in new


def test_xmp_of_odd_forms() -> None:
    attribute = xmp(attributes='dc:description="short form"')
    assert row("xmp").read(attribute) == "short form"
    assert languages(row("xmp").write(attribute, "neu", {})) == {"x-default": "neu"}
    bare = b'<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"/>'
    assert row("xmp").read(row("xmp").write(bare, "neu", {})) == "neu"
    utf16 = ('<?xml version="1.0" encoding="UTF-16"?>' + bare.decode()).encode("utf-16")
    assert row("xmp").read(row("xmp").write(utf16, "neu", {})) == "neu"
    padded = xmp(SUBJECTS) + b"\n" * 2000 + b"\0\0"
    assert row("xmp").read(row("xmp").write(padded, "neu", {})) == "neu"
    assert row("xmp").read(row("xmp").write(b"", "a\x00b\x1bc", {})) == "a\ufffdb\ufffdc"


@pytest.mark.parametrize(
    "content",
    [
        b"not XML",
        b"<html/>",
        b"\xff\xd8\xff\xe0 a JPEG",
        xmp(SUBJECTS)[:-60],
        b'<!DOCTYPE r [<!ENTITY a "b"><!ENTITY c SYSTEM "file:///etc/passwd">]>' + xmp("&c;"),
        b'<!DOCTYPE r [<!ENTITY a "' + b"x" * 9999 + b'"><!ENTITY b "' + b"&a;" * 9999 + b'">]>' + xmp("&b;"),
    ],
    ids=["text", "html", "picture", "cut", "file", "bomb"],
)
def test_what_is_no_xmp_is_refused(content: bytes) -> None:
    with pytest.raises(DataError, match="move it away"):
        row("xmp").read(content)
    with pytest.raises(DataError, match="move it away"):
        row("xmp").write(content, "neu", {})


def test_another_library_reads_our_xmp(tmp_path: Path) -> None:
    exiv2 = pytest.importorskip("exiv2")
    old = xmp(SUBJECTS, description(("x-default", "old"), ("de-DE", "alt")))
    for name, content in {"new.xmp": b"", "old.xmp": old}.items():
        (tmp_path / name).write_bytes(row("xmp").write(content, CAPTIONS["ko"], {}))
        opened = exiv2.ImageFactory.open(str(tmp_path / name))
        opened.readMetadata()
        found = {datum.key(): datum.value() for datum in opened.xmpData()}
        assert dict(found["Xmp.dc.description"])["x-default"] == CAPTIONS["ko"]
        if content:
            assert dict(found["Xmp.dc.description"])["de-DE"] == "alt"
            assert str(found["Xmp.xmp.Rating"]) == "4"
            assert list(map(str, found["Xmp.dc.subject"])) == ["개", "Hund"]


def test_the_xmp_inside_a_picture_is_what_a_sidecar_begins_with(tmp_path: Path) -> None:
    pytest.importorskip("lxml")
    begin = row("xmp").begin
    assert begin is not None
    packet = xmp(SUBJECTS, description(("x-default", "by hand")))
    for name in ("a.jpg", "a.png", "a.webp", "a.tif"):
        options = {"xmp": packet} if name != "a.tif" else {"tiffinfo": {700: packet}}
        if name == "a.png":
            from PIL.PngImagePlugin import PngInfo

            info = PngInfo()
            info.add_itxt("XML:com.adobe.xmp", packet.decode())
            options = {"pnginfo": info}
        Image.new("RGB", (8, 8)).save(tmp_path / name, **options)
        assert row("xmp").read(begin(tmp_path / name)) == "by hand", name
    Image.new("RGB", (8, 8)).save(tmp_path / "bad.jpg", xmp=b"<not XMP")
    Image.new("RGB", (8, 8)).save(tmp_path / "none.jpg")
    (tmp_path / "text.jpg").write_text("no picture")
    for name in ("bad.jpg", "none.jpg", "text.jpg", "missing.jpg"):
        assert begin(tmp_path / name) == b""


def test_without_lxml_the_remedy_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    from captioner.errors import MissingExtra

    monkeypatch.setitem(sys.modules, "lxml", None)
    writer = WRITERS["xmp"]
    assert isinstance(writer, Sidecar)
    with pytest.raises(MissingExtra, match=r"pip install 'captioner\[xmp\]'"):
        writer.write(b"", "a dog", {})


def test_names_are_short_where_that_is_clear() -> None:
    assert names_needing_suffix(["a.jpg", "b.jpg", "b.png", "C.jpg", "c.webp", "d.jpg"]) == {
        *("b.jpg", "b.png", "C.jpg", "c.webp"),
    }
    # e.jpg.txt is what e.jpg gets beside e.png: then e.jpg.png must not take it.
    assert names_needing_suffix(["e.jpg", "e.png", "e.jpg.png"]) == {"e.jpg", "e.png", "e.jpg.png"}
    assert names_needing_suffix(["Stra\u00dfe.jpg", "STRASSE.png"]) == {"Stra\u00dfe.jpg", "STRASSE.png"}
    assert names_needing_suffix(["\u00e9.jpg", "e\u0301.png"]) == {"\u00e9.jpg", "e\u0301.png"}


STEMS = st.text("aA.jéß개", min_size=1, max_size=4) | st.sampled_from(["a.jpg", "a.png", "A.jpg"])
NAMES = st.tuples(STEMS, st.sampled_from([".jpg", ".JPG", ".png"])).map("".join)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a busy machine is no fault
@given(st.sets(NAMES, max_size=12))
def test_no_two_pictures_share_a_sidecar(names: set[str]) -> None:
    crowded = names_needing_suffix(names)
    sidecars = {casefold_name(name if name in crowded else os.path.splitext(name)[0]) for name in names}
    assert len(sidecars) == len({casefold_name(name) for name in names})


def test_a_sheet_keeps_what_it_had(tmp_path: Path) -> None:
    path = tmp_path / "captions.csv"
    path.write_bytes(
        '\ufefffilename;who;caption\r\na.jpg;Eva;ein Hund\r\na.jpg;Jo;"ein; Tier"\r\nz.jpg;;옛\r\n'.encode()
    )
    table = Table(path)
    assert table.text("a.jpg") == "ein Hund\nein; Tier" and table.text("b.jpg") is None
    table.put("a.jpg", append_caption(table.text("a.jpg") or "", "neu"), {"score": -1})
    table.put("b.jpg", '한 "개", 두; 개', {"score": -1})
    table.put("z.jpg", "neu", {})
    table.save()
    assert path.read_bytes().decode() == (
        '\ufefffilename;who;caption;score\r\na.jpg;Eva;ein Hund;\r\na.jpg;Jo;"ein; Tier";\r\n'
        'a.jpg;;neu;-1\r\nb.jpg;;"한 ""개"", 두; 개";-1\r\nz.jpg;;neu;\r\n'
    )
    assert Table(path).text("b.jpg") == '한 "개", 두; 개'


def test_a_new_sheet_is_one_that_others_read(tmp_path: Path) -> None:
    path = tmp_path / "captions.csv"
    table = Table(path)
    table.save()
    assert not path.exists()
    for name, caption in CAPTIONS.items():
        table.put(f"sub/{name}.jpg", caption, {"score": -0.25})
    table.save()
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [found["caption"] for found in rows] == list(CAPTIONS.values())
    assert rows[0] == {"file_name": "sub/en.jpg", "caption": CAPTIONS["en"], "score": "-0.25"}

    from captioner.data.formats import is_own_table

    assert is_own_table(path)  # nobody's training captions


def test_what_is_no_sheet_of_captions_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "captions.csv"
    for content in (b"name,age\nEva,7\n", b'file_name,caption\n"open,', b"\x89PNG\r\n"):
        path.write_bytes(content)
        with pytest.raises(DataError, match="move it away"):
            Table(path)


def test_names_that_are_not_unicode_survive(tmp_path: Path) -> None:
    name = b"caf\xe9.jpg".decode("utf-8", "surrogateescape")
    table = Table(tmp_path / "captions.csv")
    table.put(name, "ein Café", {})
    table.save()
    assert b"caf\xe9.jpg" in (tmp_path / "captions.csv").read_bytes()
    assert Table(tmp_path / "captions.csv").text(name) == "ein Café"


def test_writers_load_nothing_slow() -> None:
    code = (
        "import sys, captioner.apps.sidecars.file_kinds\n"
        "print({'lxml', 'tensorflow', 'keras', 'matplotlib'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "set()\n", done.stdout + done.stderr


# Several languages.

IN_TWO = {
    "caption": "a dog\nein Hund",
    "score": -1.0,
    "language": "en",
    "captions": {
        "en": {"caption": "a dog", "score": -1.0, "language": "en"},
        "de": {"caption": "ein Hund", "score": -2.0, "language": "de"},
    },
}


def test_a_table_has_a_row_for_each_language(tmp_path: Path) -> None:
    table = Table(tmp_path / "captions.csv")
    table.put("a.jpg", IN_TWO["caption"], IN_TWO)
    table.save()
    rows = (tmp_path / "captions.csv").read_text(encoding="utf-8").splitlines()
    assert rows == ["file_name,caption,score,language", "a.jpg,a dog,-1.0,en", "a.jpg,ein Hund,-2.0,de"]


def test_xmp_has_an_alternative_for_each_language() -> None:
    pytest.importorskip("lxml")
    content = write_xmp(b"", IN_TWO["caption"], IN_TWO)
    again = write_xmp(content, IN_TWO["caption"], IN_TWO)
    for text in (content.decode(), again.decode()):
        assert [text.count(f'xml:lang="{name}">') for name in ("x-default", "en", "de")] == [1, 1, 1]
        assert '<rdf:li xml:lang="de">ein Hund</rdf:li>' in text
    assert read_xmp(content) == "a dog"
