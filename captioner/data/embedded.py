"""What people wrote into a picture: its XMP, and the description in EXIF, IPTC or PNG's own text.

In: a picture file, of any format that is read. Out: the XMP packet as it stands there, and a description.
Pixels are not decoded. Damaged notes count as none: they say nothing about the picture.
"""

from __future__ import annotations

import importlib
import os
import re
import struct
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image, IptcImagePlugin, UnidentifiedImageError

from captioner.data.image_files import FORMATS

_XMP_KEYS = ("XML:com.adobe.xmp", "Raw profile type xmp")
_PACKET = re.compile(rb"<x:xmpmeta.*?</x:xmpmeta>|<rdf:RDF.*?</rdf:RDF>", re.DOTALL)
_MOST_BYTES = 1 << 26  # of a file in which a packet is looked for, and of unpacked text
_IPTC_CAPTION = (2, 120)
# What cameras and programs write where nobody has written anything.
_FILLED_IN = re.compile(
    r"(olympus|minolta|konica minolta|samsung|sony|casio|kodak|vivitar|fujifilm|pentax)? ?"
    r"(digital (still )?camera|dsc|digimax.*)|<digimax.*>|dcim[\\/].*|exif[_ ]jpeg[_ ]picture|"
    r"default|untitled|image|picture|photo|jpeg|screenshot|charset=\"?\w+\"?|created with .*|"
    r"dav|edf|hdr|sdr|rhdr|cof|mde|oznor?|ptr|rbt|binary comment|\W*",
    re.IGNORECASE,
)


def embedded_notes(picture: Path) -> tuple[bytes, str]:
    """The XMP packet in a picture (b"": none) and what its other notes say it shows ("": nothing).

    Raises:
        OSError: the file cannot be read.
    """
    if not os.path.isfile(picture):  # a pipe would be waited for
        return b"", ""
    with open(picture, "rb") as file:
        start = file.read(16)
    if start.startswith(b"\x89PNG"):
        texts = dict(_png_texts(picture))
        packet = next((texts[key] for key in _XMP_KEYS if texts.get(key)), b"")
        said = [texts.get("Description", b"").decode("utf-8", "replace")]
    else:
        packet, said = b"", []
    try:
        with Image.open(picture, formats=tuple(FORMATS)) as opened:
            packet = packet or _as_bytes(opened.info.get("xmp"))
            said += [*_exif(opened.getexif()), *_iptc(opened)]
    except UnidentifiedImageError:
        with suppress(Exception):  # HEIC, where pillow-heif is installed
            heif = importlib.import_module("pillow_heif").open_heif(picture)
            packet = _as_bytes(heif.info.get("xmp"))
            exif = Image.Exif()
            exif.load(heif.info.get("exif") or b"")
            said += _exif(exif)
    if not packet and (start[4:8] == b"ftyp" or start.startswith(b"GIF8")):
        found = _PACKET.search(_content(picture))
        packet = found[0] if found else b""
    texts_said = (" ".join(text.split()) for text in said)
    return packet, next((text for text in texts_said if not _FILLED_IN.fullmatch(text)), "")


def _as_bytes(packet: Any) -> bytes:
    return packet.encode() if isinstance(packet, str) else bytes(packet or b"")


def _content(picture: Path) -> bytes:
    with open(picture, "rb") as file:
        return file.read(_MOST_BYTES)


def _png_texts(picture: Path) -> Iterator[tuple[str, bytes]]:
    """The text chunks of a PNG, before and behind its pixels: keyword and text."""
    with open(picture, "rb") as file:
        file.seek(8)
        while len(head := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            if kind not in (b"iTXt", b"tEXt", b"zTXt"):
                file.seek(length + 4, os.SEEK_CUR)
                continue
            data = file.read(min(length, _MOST_BYTES))
            file.seek(4, os.SEEK_CUR)
            with suppress(ValueError, IndexError, zlib.error):
                yield _png_text(kind, data)


def _png_text(kind: bytes, data: bytes) -> tuple[str, bytes]:
    key, text = data.split(b"\0", 1)
    if kind == b"zTXt":
        text = _unpacked(text[1:])
    elif kind == b"iTXt":
        packed, (_language, _translated, text) = text[0], text[2:].split(b"\0", 2)
        text = _unpacked(text) if packed else text
    if kind != b"iTXt" and key.startswith(b"Raw profile"):  # ImageMagick: name, length, hexadecimal digits
        text = bytes.fromhex("".join(text.decode("ascii").split("\n")[3:]))
    elif kind != b"iTXt":
        text = text.decode("latin-1").encode()
    return key.decode("latin-1"), text


def _unpacked(data: bytes) -> bytes:
    return zlib.decompressobj().decompress(data, _MOST_BYTES)


def _exif(exif: Any) -> Iterator[str]:
    """ImageDescription, and what Windows calls the comment."""
    with suppress(Exception):  # damaged tables fail in many ways
        yield str(exif.get(ExifTags.Base.ImageDescription) or "").strip("\0 ")
        comment = exif.get(ExifTags.Base.XPComment) or b""
        yield bytes(comment).decode("utf-16-le", "replace").strip("\0 ")


def _iptc(opened: Any) -> Iterator[str]:
    """Caption/Abstract, 2:120."""
    with suppress(Exception):
        known = IptcImagePlugin.getiptcinfo(opened) or {}
        caption = known.get(_IPTC_CAPTION, b"")
        caption = caption[0] if isinstance(caption, list) else caption
        try:
            yield caption.decode("utf-8")
        except UnicodeDecodeError:
            yield caption.decode("latin-1")
