"""The only way in for pixels: any picture in, (height, width, 3) uint8 RGB out; writes no file.

Content decides what a file is, never its name. Formats are an allow-list; the size in bytes is checked
before reading and the size in pixels before decoding, as Pillow's security handbook advises; a JPEG that is
wanted small may have twice as many, for it is decoded small. Pictures are turned upright by their EXIF,
transparency is laid on white, values of 16 and 32 bits are scaled, the first frame of an animation is taken.
What cannot be used ends in an `ImageError`. Any number of threads may read at once.
"""

from __future__ import annotations

import importlib
import logging
import math
import os
import stat
import warnings
import zlib
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import IO, Any, NoReturn, TypeAlias

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from captioner.data.image_files import FORMATS, existing_form, missing_hint
from captioner.errors import ImageError

BACKGROUND = (255, 255, 255)  # behind transparent pixels: white, like the pages they are made for

ImageSource: TypeAlias = "str | Path | bytes | bytearray | memoryview | IO[bytes] | np.ndarray | Image.Image"

_PNG = b"\x89PNG\r\n\x1a\n"
_NOTE_BYTES = 1 << 20
# What Pillow thinks of odd metadata is no news of the picture: it is read, or an ImageError says why not.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # `Limits` are stricter
logging.getLogger("PIL").addHandler(logging.NullHandler())
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_OTHER_KINDS = (  # what people have under a picture's name, by how it starts
    (b"<", "it is a page of HTML, XML or SVG; was the download refused?"),
    (b"version https://git-lfs", "it is a Git LFS pointer; fetch the picture with `git lfs pull`"),
    (b"%PDF", "it is a PDF document"),
    (b"%!PS", "it is a PostScript file"),
    (b"PK\x03\x04", "it is a ZIP archive"),
    (b"\x00\x00\x00\x0cJXL ", "it is JPEG XL; save it as JPEG or PNG"),
    (b"\xff\x0a", "it is JPEG XL; save it as JPEG or PNG"),
    (b"\x00\x00\x00\x0cjP  ", "it is JPEG 2000; save it as JPEG or PNG"),
)


@dataclass(frozen=True)
class Limits:
    """How large a picture may be; checked before it costs memory."""

    file_bytes: int = 64 * 2**20
    pixels: int = 80_000_000  # width x height; above usual cameras, below Pillow's own 179 million


_default_limits = Limits()


def default_limits() -> Limits:
    """The caps that count where a caller gives none."""
    return _default_limits


def set_default_limits(limits: Limits) -> None:
    """Sets the caps of this process, as `--max-mib` and `--max-megapixels` do; before pictures are read."""
    global _default_limits
    _default_limits = limits
    if Image.MAX_IMAGE_PIXELS is not None:  # Pillow's own cap must not come first
        Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, limits.pixels)


def read_image(
    source: ImageSource, *, size: tuple[int, int] | None = None, limits: Limits | None = None
) -> np.ndarray:
    """Pixels of one picture.

    Args:
        source: a path, a file's bytes, an open file (read from its beginning if it can be wound back), a
            Pillow image, or an array (height, width[, 1 | 3 | 4]) of uint8, uint16, bool, or floats in
            0 … 1 or 0 … 255.
        size: (height, width) to squash the whole picture to: bilinear, antialiased. A large JPEG is decoded
            at a fraction of its size first, never below twice `size`. One of that size is left as it is.
        limits: caps on bytes and pixels; None: those of this process, see `set_default_limits`.

    Returns:
        (height, width, 3) uint8, RGB.

    Raises:
        ImageError: it cannot be used; names the path and the reason.

    >>> read_image(np.ones((4, 6)), size=(2, 3)).shape
    (2, 3, 3)
    """
    name, limits = _name_of(source), limits or _default_limits
    if hasattr(source, "read") and not isinstance(source, Image.Image):
        source = _read_open_file(source, name, limits)
    picture = _open(source, name, limits)
    try:
        whole = picture.size
        if picture is source:
            picture = picture.copy()  # the caller's own stays as it is
        elif size is not None:
            # Averages blocks of 2, 4 or 8 pixels while decoding; a no-op for anything but JPEG. Twice the
            # longer side, because the picture may still have to be turned.
            picture.draft(None, (2 * max(size), 2 * max(size)))
        # Only what is decoded costs memory; but a progressive JPEG is held whole before it is made small.
        reduced = not picture.info.get("progressive") and math.prod(whole) <= 2 * limits.pixels
        _check_pixels(picture.size if reduced else whole, name, limits)
        picture.load()
        with suppress(Exception):  # notes beside the picture: damaged ones must not cost the picture itself
            _turn_upright(picture)
        picture = _to_rgb(picture)
    except ImageError:
        raise
    except Exception as error:  # damaged data: OSError, SyntaxError, struct.error, … as each decoder likes
        _refuse_damaged(name, error)
    if size is not None and picture.size != (size[1], size[0]):
        picture = picture.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    return np.array(picture)  # (H, W, 3)


def _name_of(source: Any) -> str:
    match source:
        case str() | Path():
            return str(source)
        case bytes() | bytearray() | memoryview():
            return "<bytes>"
        case Image.Image():
            return str(getattr(source, "filename", "") or "<image>")
    if hasattr(source, "read"):
        return source.name if isinstance(getattr(source, "name", None), str) else "<file>"
    return "<array>"


def _read_open_file(source: Any, name: str, limits: Limits) -> bytes:
    """What an open file holds, at most one byte more than may be read."""
    try:
        if hasattr(source, "seekable") and source.seekable():
            source.seek(0)  # as Pillow does: whoever has just written it is at its end
        content = source.read(limits.file_bytes + 1)
    except (OSError, ValueError, UnicodeError) as error:
        raise ImageError(name, f"cannot be read ({error})") from error
    if not isinstance(content, bytes):
        kind = type(content).__name__
        raise ImageError(name, f'gives {kind} when read, expected bytes: open it with "rb"')
    return content


def _open(source: ImageSource, name: str, limits: Limits) -> Image.Image:
    """The picture, not yet decoded; `source` itself if it is a Pillow image."""
    if isinstance(source, Image.Image):
        return source
    if not isinstance(source, str | Path | bytes | bytearray | memoryview):
        return _from_array(source, name)
    content = _content_of(source, name, limits)
    if content.startswith(_PNG):
        content = _without_notes(content)
    if content.startswith((b"II", b"MM")):
        _silence_libtiff()
    formats = tuple(FORMATS)
    if content[4:8] == b"ftyp" and content[8:12] in _HEIF_BRANDS:
        _register_heif(name)
        formats = ("HEIF",)
    try:
        return Image.open(BytesIO(content), formats=formats)
    except UnidentifiedImageError as error:
        raise ImageError(name, f"is no picture that can be read: {_kind_of(content)}") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        most = f"{limits.pixels:,} that are decoded (see --max-megapixels)"
        raise ImageError(name, f"has more pixels than the {most}") from error
    except Exception as error:  # headers are parsed here, and fail in as many ways as data do
        _refuse_damaged(name, error)


def _content_of(source: Any, name: str, limits: Limits) -> bytes:
    """The bytes of a file or of a buffer, neither none nor too many."""
    if isinstance(source, str | Path):
        try:
            source = existing_form(Path(source)) if str(source) else source  # Path("") is the current folder
            status = os.stat(source)
            if stat.S_ISDIR(status.st_mode):
                raise ImageError(name, "is a folder, expected a picture")
            if not stat.S_ISREG(status.st_mode):  # a pipe or a device might never end
                raise ImageError(name, "is not an ordinary file")
            length = status.st_size
            content = b""
            if length <= limits.file_bytes:
                with open(source, "rb") as file:
                    content = file.read(limits.file_bytes + 1)
                length = len(content)
        except (OSError, ValueError) as error:
            raise ImageError(name, _reason(error, name)) from error
    else:
        length = memoryview(source).nbytes
        content = bytes(source) if length <= limits.file_bytes else b""
    if length > limits.file_bytes:
        most = f"at most {limits.file_bytes / 2**20:g} MiB are read (see --max-mib)"
        raise ImageError(name, f"has {length / 2**20:.1f} MiB, {most}")
    if not content:
        raise ImageError(name, "is empty (0 bytes)")
    return content


def _reason(error: OSError | ValueError, name: str) -> str:
    """Why the file system refuses a path."""
    if isinstance(error, FileNotFoundError):
        return f"no such file or folder{missing_hint(name)}"
    if isinstance(error, PermissionError):
        return "may not be read; check its permissions"
    return f"cannot be read ({getattr(error, 'strerror', None) or error})"


def _kind_of(content: bytes) -> str:
    start = content.lstrip()[:24]
    for magic, kind in _OTHER_KINDS:
        if start.startswith(magic) or content.startswith(magic):
            return kind
    return f"neither {', '.join(FORMATS)} nor HEIC, or damaged; it starts with {content[:12]!r}"


def _register_heif(name: str) -> None:
    """Teaches Pillow to read HEIC, as telephones write it, through the optional package pillow-heif."""
    try:
        importlib.import_module("pillow_heif").register_heif_opener()
    except ImportError as error:
        remedy = "`pip install pillow-heif`, or save it as JPEG"
        raise ImageError(name, f"is a HEIC picture, which Pillow cannot decode: {remedy}") from error


def _without_notes(content: bytes) -> bytes:
    """A PNG without its color profile and its long texts, for whose size alone Pillow refuses a picture.

    What may say which way up the picture is (EXIF as text, XMP) stays, if it is of a sound size.
    """
    parts, at, kept = [], len(_PNG), len(_PNG)
    while at + 8 <= len(content):
        length, kind = int.from_bytes(content[at : at + 4], "big"), content[at + 4 : at + 8]
        end = at + 12 + length
        note = content[at + 8 : at + 8 + length]
        if kind == b"iCCP" or (kind in (b"tEXt", b"zTXt", b"iTXt") and not _says_orientation(kind, note)):
            parts.append(content[kept:at])
            kept = end
        at = end
    return b"".join([content[: len(_PNG)], *parts, content[kept:]]) if parts else content


def _says_orientation(kind: bytes, note: bytes) -> bool:
    keyword, _, rest = note.partition(b"\0")
    if not keyword.startswith((b"Raw profile type exif", b"XML:com.adobe.xmp")) or len(note) > _NOTE_BYTES:
        return False
    packed = rest[1:] if kind == b"zTXt" else rest[2:].split(b"\0", 2)[-1] if rest[:1] == b"\1" else b""
    try:
        return not packed or len(zlib.decompressobj().decompress(packed, _NOTE_BYTES)) < _NOTE_BYTES
    except zlib.error:
        return False


@cache
def _silence_libtiff() -> None:
    """Keeps libtiff from writing to standard error itself; Pillow raises what matters of it."""
    import ctypes.util  # here: brings subprocess

    folder = Path(Image.__file__).parent.parent / "pillow.libs"  # of wheels; elsewhere the system's is loaded
    found = [*map(str, folder.glob("libtiff*"))] or [ctypes.util.find_library("tiff") or ""]
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL(found[0])
        library.TIFFSetErrorHandler(None)
        library.TIFFSetWarningHandler(None)


def _check_pixels(size: tuple[int, int], name: str, limits: Limits) -> None:
    width, height = size
    if width * height > limits.pixels:
        most = f"at most {limits.pixels:,} in all are decoded (see --max-megapixels)"
        raise ImageError(name, f"has {width} x {height} pixels, {most}")
    if width * height == 0:
        raise ImageError(name, f"has {width} x {height} pixels: there is nothing to see")


def _refuse_damaged(name: str, error: Exception) -> NoReturn:
    detail = str(error).strip().splitlines() or [type(error).__name__]
    raise ImageError(name, f"is damaged or incomplete ({detail[0][:200]})") from error


def _turn_upright(picture: Image.Image) -> None:
    """Turns a picture as its camera was held."""
    if picture.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        from PIL import ImageOps  # here: brings five modules, and most pictures are upright

        ImageOps.exif_transpose(picture, in_place=True)


def _to_rgb(picture: Image.Image) -> Image.Image:
    """Any mode to RGB: wide values scaled, transparency laid on the background."""
    if picture.mode[0] in "IF":  # I, I;16 in either byte order, F
        whites = (1, 255, 65535) if picture.mode == "F" else (65535,)
        picture = Image.fromarray(_scaled(np.asarray(picture), whites=whites))
    if picture.has_transparency_data:
        canvas = Image.new("RGBA", picture.size, (*BACKGROUND, 255))
        canvas.alpha_composite(picture.convert("RGBA"))
        picture = canvas
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def _scaled(values: np.ndarray, *, whites: tuple[int, ...]) -> np.ndarray:
    """Values as uint8: the smallest of `whites` that none exceeds becomes 255, and 0 stays 0.

    Without such a white (negative or very large values, as measurements have) the range is stretched to fit.
    What is no number counts as 0.
    """
    if values.dtype.kind == "f":
        values = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
    low, high = float(values.min()), float(values.max())
    white = next((white for white in whites if low >= 0 and high <= white), None)
    black, span = (0.0, float(white)) if white else (low, max(high - low, 1e-30))
    scaled = np.empty(values.shape, np.uint8)
    for row, line in enumerate(values):  # line by line: the largest pictures would need gigabytes at once
        scaled[row] = np.rint((line.astype(np.float64) - black) * (255.0 / span))
    return scaled


def _from_array(source: Any, name: str) -> Image.Image:
    """An array as a picture, after a look at its shape, type and range."""
    if not hasattr(source, "__array__"):
        kind = type(source).__name__
        raise ImageError(name, f"is a {kind}, expected a path, bytes, an array or a Pillow image")
    values = np.asarray(source)
    shape = values.shape
    if len(shape) not in (2, 3) or (len(shape) == 3 and shape[2] not in (1, 3, 4)) or not values.size:
        raise ImageError(name, f"has shape {shape}, expected (height, width, 3), or 1 or 4 channels, or none")
    if len(shape) == 3 and shape[2] == 1:
        values = values[:, :, 0]
    if values.dtype == bool:
        values = values * np.uint8(255)
    elif values.dtype == np.uint16:
        values = _scaled(values, whites=(65535,))
    elif values.dtype.kind == "f":
        low, high = float(values.min()), float(values.max())
        if not (low >= 0 and high <= 255):  # true of nan, too
            raise ImageError(name, f"has values from {low:g} to {high:g}, expected 0 to 1 or 0 to 255")
        values = _scaled(values, whites=(1, 255))
    elif values.dtype != np.uint8:
        raise ImageError(name, f"has type {values.dtype}, expected uint8, uint16, bool or floats")
    return Image.fromarray(np.ascontiguousarray(values))
