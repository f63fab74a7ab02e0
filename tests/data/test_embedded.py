"""What people wrote into pictures is found in every format that is read, wherever the format allows it."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo

from captioner.data.embedded import embedded_notes
from captioner.data.xmp import embedded_xmp, read_xmp, write_xmp

pytestmark = pytest.mark.skipif(not find_spec("lxml"), reason="no lxml")
WORDS = "zwei Hunde, \u00e9t\u00e9, \uac1c"
KEY = "XML:com.adobe.xmp"


def packet() -> bytes:
    return write_xmp(b"", WORDS, {})


def picture() -> Image.Image:
    return Image.effect_noise((32, 24), 60).convert("RGB")


def saved(suffix: str) -> Callable[[Path], Path]:
    """A picture whose format has a place for XMP."""

    def save(folder: Path) -> Path:
        if suffix in (".heic", ".avif-heif"):
            pytest.importorskip("pillow_heif").register_heif_opener()
        path = folder / f"a{suffix}"
        options = {".tif": {"tiffinfo": {700: packet()}}}.get(suffix, {"xmp": packet()})
        picture().save(path, **options)
        return path

    return save


def png(where: str, kind: str) -> Callable[[Path], Path]:
    """A PNG with the packet in a chunk of this kind, before or behind the pixels."""

    def save(folder: Path) -> Path:
        path = folder / "a.png"
        picture().save(path)
        content, mark = path.read_bytes(), KEY.encode()
        if kind == "zTXt":  # as ImageMagick does
            digits = packet().hex()
            lines = "\n".join(digits[start : start + 72] for start in range(0, len(digits), 72))
            text = f"\nxmp\n{len(packet()):8}\n{lines}\n".encode()
            chunk = b"Raw profile type xmp\0\0" + zlib.compress(text)
        elif kind == "iTXt packed":
            chunk = mark + b"\0\x01\0\0\0" + zlib.compress(packet())
        else:
            chunk = mark + b"\0\0\0\0\0" + packet()
        name = kind[:4].encode()
        block = struct.pack(">I", len(chunk)) + name + chunk + struct.pack(">I", zlib.crc32(name + chunk))
        at = content.index(b"IDAT" if where == "before" else b"IEND") - 4
        path.write_bytes(content[:at] + block + content[at:])
        assert Image.open(path).load()
        return path

    return save


PLACES = {
    **{suffix: saved(suffix) for suffix in (".jpg", ".webp", ".tif", ".avif", ".heic")},
    **{
        f"PNG, {kind}, {where} the pixels": png(where, kind)
        for where in ("before", "behind")
        for kind in ("iTXt", "iTXt packed", "zTXt")
    },
}


@pytest.mark.parametrize("place", PLACES)
def test_xmp_is_found_wherever_a_format_keeps_it(place: str, tmp_path: Path) -> None:
    path = PLACES[place](tmp_path)
    assert read_xmp(embedded_xmp(path)) == WORDS


def test_heic_is_read_without_its_decoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(".heic")(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "pillow_heif", None)
    assert read_xmp(embedded_xmp(path)) == WORDS


def exif(tag: int, value: object) -> Image.Exif:
    notes = Image.Exif()
    notes[tag] = value
    return notes


def iptc(text: bytes) -> bytes:
    """An APP13 segment with Caption/Abstract, as a JPEG has it."""
    record = b"\x1c\x02\x78" + struct.pack(">H", len(text)) + text
    block = b"8BIM\x04\x04\0\0" + struct.pack(">I", len(record)) + record + b"\0" * (len(record) % 2)
    data = b"Photoshop 3.0\0" + block
    return b"\xff\xed" + struct.pack(">H", len(data) + 2) + data


DESCRIBED: dict[str, Callable[[Path], object]] = {
    "EXIF": lambda path: picture().save(path, "JPEG", exif=exif(ExifTags.Base.ImageDescription, "by hand")),
    "EXIF of a PNG": lambda path: picture().save(
        path, "PNG", exif=exif(ExifTags.Base.ImageDescription, "by hand")
    ),
    "EXIF of a WebP": lambda path: picture().save(
        path, "WEBP", exif=exif(ExifTags.Base.ImageDescription, "by hand")
    ),
    "EXIF of an AVIF": lambda path: picture().save(
        path, "AVIF", exif=exif(ExifTags.Base.ImageDescription, "by hand")
    ),
    "TIFF": lambda path: picture().save(path, "TIFF", description="by hand"),
    "Windows": lambda path: picture().save(
        path, "JPEG", exif=exif(ExifTags.Base.XPComment, "by hand".encode("utf-16-le") + b"\0\0")
    ),
    "IPTC": lambda path: with_segment(path, iptc(b"by hand")),
    "PNG text": lambda path: picture().save(path, "PNG", pnginfo=described("by hand")),
}


def described(text: str) -> PngInfo:
    info = PngInfo()
    info.add_text("Description", text)
    return info


def with_segment(path: Path, segment: bytes) -> None:
    picture().save(path, "JPEG")
    content = path.read_bytes()
    path.write_bytes(content[:2] + segment + content[2:])


@pytest.mark.parametrize("form", DESCRIBED)
def test_a_description_in_another_form_is_what_a_sidecar_begins_with(form: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    DESCRIBED[form](path)
    assert embedded_notes(path) == (b"", "by hand")
    assert read_xmp(embedded_xmp(path)) == "by hand"


def test_xmp_is_kept_where_only_exif_describes(tmp_path: Path) -> None:
    rated = packet().replace(b"x:xmptk", b'x:mine="4" x:xmptk')
    bare = rated[: rated.index(b"<dc:desc")] + rated[rated.index(b"</dc:description>") + 17 :]
    notes = exif(ExifTags.Base.ImageDescription, "by hand")
    picture().save(tmp_path / "a.jpg", xmp=bare, exif=notes)
    found = embedded_xmp(tmp_path / "a.jpg")
    assert read_xmp(found) == "by hand" and b'x:mine="4"' in found
    picture().save(tmp_path / "b.jpg", xmp=packet(), exif=notes)
    assert read_xmp(embedded_xmp(tmp_path / "b.jpg")) == WORDS
    picture().save(tmp_path / "c.jpg", xmp=b"<not XMP", exif=notes)
    assert read_xmp(embedded_xmp(tmp_path / "c.jpg")) == "by hand"


@pytest.mark.parametrize(
    "text",
    [
        "OLYMPUS DIGITAL CAMERA         ",
        "SONY DSC",
        "DCIM\\100MEDIA\\DJI_0007.JPG",
        "dav",
        " ",
        "Untitled",
        "---",
    ],
)
def test_what_a_camera_fills_in_is_no_caption(text: str, tmp_path: Path) -> None:
    picture().save(tmp_path / "a.jpg", exif=exif(ExifTags.Base.ImageDescription, text))
    assert embedded_notes(tmp_path / "a.jpg") == (b"", "")


@pytest.mark.parametrize(
    "content", [b"", b"\x89PNG\r\n\x1a\n\xff\xff\xff\xffiTXt", b"GIF8", b"\0\0\0\x18ftypheic"]
)
def test_damaged_pictures_say_nothing(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(content)
    assert embedded_xmp(tmp_path / "a.jpg") == b"" == embedded_xmp(tmp_path / "missing.jpg")
