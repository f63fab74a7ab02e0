"""Every kind of picture that people have, made here, and what becomes of it; every kind that is refused."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
import zipfile
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageFile, PngImagePlugin

from captioner.data.image_files import FORMATS
from captioner.data.images import BACKGROUND, Limits, read_image
from captioner.errors import ImageError

LOSSY = {"JPEG": 6, "WEBP": 6, "AVIF": 6, "GIF": 8}  # mean difference that is allowed
HEIC = b"\x00\x00\x00\x1cftypheic\x00\x00\x00\x00mif1heic" + bytes(64)


def scene(height: int = 48, width: int = 64) -> np.ndarray:
    """A smooth picture, different at each corner: (height, width, 3) uint8."""
    y, x = np.mgrid[0:height, 0:width]
    channels = (255 * x / (width - 1), 255 * y / (height - 1), 128 + 100 * np.sin(x / 9) * np.cos(y / 7))
    return np.stack(channels, axis=-1).astype(np.uint8)


def encoded(picture: Image.Image | np.ndarray, kind: str, **options: Any) -> bytes:
    if isinstance(picture, np.ndarray):
        picture = Image.fromarray(picture)
    stream = BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def difference(one: np.ndarray, other: np.ndarray) -> float:
    assert one.shape == other.shape
    return float(np.abs(one.astype(int) - other.astype(int)).mean())


def exif_bytes(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return exif.tobytes()


@pytest.fixture(autouse=True)
def pillow_stays_as_it_was() -> Any:
    before = (ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS)
    yield
    assert before == (ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS)


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_in_the_table(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"picture{FORMATS[kind][0]}"
    path.write_bytes(encoded(scene(), kind))
    pixels = read_image(path)
    assert pixels.dtype == np.uint8
    assert pixels.flags.writeable
    assert difference(pixels, scene()) <= LOSSY.get(kind, 0)
    np.testing.assert_array_equal(read_image(str(path)), pixels)
    for buffer in (bytes, bytearray, memoryview):
        np.testing.assert_array_equal(read_image(buffer(path.read_bytes())), pixels)


def test_the_content_decides_not_the_name(tmp_path: Path) -> None:
    for name in ("picture.jpg", "picture", "picture.txt", "Bild mit Ümläut 사진.PNG"):
        (tmp_path / name).write_bytes(encoded(scene(), "PNG"))
        np.testing.assert_array_equal(read_image(tmp_path / name), scene())


STORED_AS: dict[int, Callable[[np.ndarray], np.ndarray]] = {  # what each EXIF orientation must undo
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: lambda a: np.rot90(a, -1),
}


@pytest.mark.parametrize("orientation", STORED_AS)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_exif_turns_pictures_upright(kind: str, orientation: int) -> None:
    stored = np.ascontiguousarray(STORED_AS[orientation](scene()))
    content = encoded(stored, kind, exif=exif_bytes(orientation))
    assert difference(read_image(content), scene()) <= LOSSY.get(kind, 0)
    assert difference(read_image(Image.open(BytesIO(content))), scene()) <= LOSSY.get(kind, 0)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_a_damaged_exif_block_does_not_cost_the_picture() -> None:
    for junk in (b"Exif\0\0" + b"\xff" * 40, exif_bytes(6)[:20], b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"):
        assert difference(read_image(encoded(scene(), "JPEG", exif=junk)), scene()) <= LOSSY["JPEG"]


def with_alpha() -> Image.Image:
    """Black, opaque on the left; on the right red is hidden under full transparency."""
    pixels = np.zeros((8, 16, 4), np.uint8)
    pixels[:, :8, 3] = 255
    pixels[:, 8:, 0] = 255
    return Image.fromarray(pixels)


def gray_with_alpha() -> Image.Image:
    return with_alpha().convert("LA")


def palette_with_clear_color() -> Image.Image:
    picture = Image.new("P", (16, 8), 0)
    picture.putpalette([0, 0, 0, 255, 0, 0])
    picture.paste(1, (8, 0, 16, 8))
    picture.info["transparency"] = 1
    return picture


def palette_with_alphas() -> Image.Image:
    picture = palette_with_clear_color()
    picture.info["transparency"] = b"\xff\x00"
    return picture


def rgb_with_clear_color() -> Image.Image:
    picture = with_alpha().convert("RGB")
    picture.info["transparency"] = (255, 0, 0)
    return picture


@pytest.mark.parametrize(
    ("kind", "draw"),
    [
        ("PNG", with_alpha),
        ("WEBP", with_alpha),
        ("AVIF", with_alpha),
        ("TIFF", with_alpha),
        ("PNG", gray_with_alpha),
        ("PNG", palette_with_clear_color),
        ("GIF", palette_with_clear_color),
        ("PNG", palette_with_alphas),
        ("PNG", rgb_with_clear_color),
    ],
)
def test_transparency_shows_the_background(kind: str, draw: Callable[[], Image.Image]) -> None:
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    pixels = read_image(encoded(draw(), kind, **options))
    assert np.abs(pixels[:, :7].astype(int)).max() <= 8
    assert np.abs(pixels[:, 9:].astype(int) - BACKGROUND).max() <= 8


def test_half_transparent_pixels_are_mixed() -> None:
    pixels = np.full((4, 4, 4), (0, 0, 0, 51), np.uint8)
    np.testing.assert_array_equal(read_image(pixels), 204)


def test_gray_and_bilevel_pictures() -> None:
    gray = np.arange(64, dtype=np.uint8).reshape(8, 8)
    np.testing.assert_array_equal(read_image(encoded(gray, "PNG"))[:, :, 1], gray)
    bits = Image.fromarray(np.eye(8, dtype=bool))
    np.testing.assert_array_equal(read_image(encoded(bits, "PNG"))[:, :, 2], np.eye(8) * 255)


def test_cmyk_as_photoshop_writes_it() -> None:
    # Pillow writes CMYK JPEGs in Adobe's way: inverted, with an APP14 marker.
    content = encoded(Image.fromarray(scene()).convert("CMYK"), "JPEG", quality=95)
    assert b"Adobe" in content
    assert difference(read_image(content), scene()) <= LOSSY["JPEG"]
    assert difference(read_image(encoded(Image.fromarray(scene()).convert("CMYK"), "TIFF")), scene()) == 0
    # The same data declared YCCK, Adobe's other form: other colors, but a picture.
    marker = content.index(b"Adobe") + 11
    assert read_image(content[:marker] + b"\x02" + content[marker + 1 :]).shape == scene().shape


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_16_bits_are_scaled_not_clipped(kind: str) -> None:
    wide = np.linspace(0, 65535, 64 * 4).reshape(4, 64).astype(np.uint16)
    pixels = read_image(encoded(wide, kind))
    np.testing.assert_array_equal(pixels[:, :, 0], np.rint(wide / 257))


def test_16_bits_of_the_other_byte_order() -> None:
    wide = np.linspace(0, 65535, 64).reshape(4, 16)
    picture = Image.frombytes("I;16B", (16, 4), wide.astype(">u2").tobytes())
    np.testing.assert_array_equal(
        read_image(encoded(picture, "TIFF"))[:, :, 0], np.rint(wide.astype(int) / 257)
    )


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.2, 1.0], [0, 51, 255]),
        ([0.0, 51.0, 255.0], [0, 51, 255]),
        ([0.0, 257.0, 65535.0], [0, 1, 255]),
        ([-10.0, 0.0, 10.0], [0, 128, 255]),
        ([0.0, 0.2, float("nan")], [0, 51, 0]),
        ([-1e38, 0.0, 1e38], [0, 128, 255]),
        ([float("nan"), float("inf"), 0.2], [0, 0, 51]),
        ([-7.0, -7.0, -7.0], [0, 0, 0]),
    ],
)
def test_float_tiffs_are_scaled(values: list[float], expected: list[int]) -> None:
    pixels = read_image(encoded(np.array([values], np.float32), "TIFF"))
    assert np.abs(pixels[0, :, 0].astype(int) - expected).max() <= 1


def test_32_bit_integers_are_scaled() -> None:
    for values, expected in (([0, 257 * 3, 65535], [0, 3, 255]), ([-(2**31), 0, 2**31 - 1], [0, 128, 255])):
        pixels = read_image(encoded(np.array([values], np.int32), "TIFF"))
        assert np.abs(pixels[0, :, 0].astype(int) - expected).max() <= 1


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "AVIF", "TIFF"])
def test_the_first_frame_of_an_animation(kind: str) -> None:
    first, second = Image.new("RGB", (16, 8), (0, 0, 0)), Image.new("RGB", (16, 8), (255, 255, 255))
    content = encoded(first, kind, save_all=True, append_images=[second, second])
    assert read_image(content).max() <= 2
    later = Image.open(BytesIO(content))
    later.seek(1)
    assert read_image(later).min() >= 253, "of a Pillow image, the frame it stands at"


def test_a_jpeg_of_several_pictures_gives_the_first() -> None:
    content = encoded(
        Image.fromarray(scene()), "MPO", save_all=True, append_images=[Image.new("RGB", (64, 48))]
    )
    assert difference(read_image(content), scene()) <= LOSSY["JPEG"]
    assert read_image(content, size=(12, 12)).shape == (12, 12, 3)


@pytest.mark.parametrize("size", [(24, 32), (10, 60), (96, 128)])
def test_the_whole_picture_is_squashed_to_size(size: tuple[int, int]) -> None:
    expected = Image.fromarray(scene()).resize((size[1], size[0]), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(read_image(encoded(scene(), "PNG"), size=size), np.array(expected))
    np.testing.assert_array_equal(read_image(scene(), size=size), np.array(expected))


@pytest.mark.parametrize("kind", FORMATS)
def test_a_picture_of_the_size_is_left_as_it_is(kind: str) -> None:
    content = encoded(scene(), kind)
    np.testing.assert_array_equal(read_image(content, size=(48, 64)), read_image(content))


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("subsampling", [0, 2])
def test_large_jpegs_are_decoded_small_and_look_the_same(orientation: int, subsampling: int) -> None:
    detail = np.random.default_rng(0).integers(0, 60, (900, 1400, 3), dtype=np.uint8)
    large = (scene(900, 1400) // 2 + detail).astype(np.uint8)
    content = encoded(large, "JPEG", quality=90, subsampling=subsampling, exif=exif_bytes(orientation))
    exact = Image.fromarray(read_image(content)).resize((96, 80), Image.Resampling.BILINEAR)
    assert difference(read_image(content, size=(80, 96)), np.array(exact)) < 1.0


@pytest.mark.parametrize(
    "array",
    [
        scene(),
        scene().astype(np.float32),
        scene() / 255,
        scene().astype(np.uint16) * 257,
        scene()[:, ::-1][:, ::-1],
        np.dstack([scene(), np.full((48, 64), 255, np.uint8)]),
    ],
    ids=["uint8", "0 to 255", "0 to 1", "uint16", "not contiguous", "opaque alpha"],
)
def test_arrays(array: np.ndarray) -> None:
    np.testing.assert_array_equal(read_image(array), scene())


def test_gray_arrays_and_copies() -> None:
    gray = scene()[:, :, 0]
    for array in (gray, gray[:, :, None]):
        np.testing.assert_array_equal(read_image(array), np.dstack([gray] * 3))
    np.testing.assert_array_equal(read_image(np.eye(3, dtype=bool))[:, :, 0], np.eye(3) * 255)
    original = scene()
    read_image(original)[:] = 0
    np.testing.assert_array_equal(original, scene())


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (np.zeros((3, 24, 32), np.uint8), r"shape \(3, 24, 32\), expected \(height, width, 3\)"),
        (np.zeros(5, np.uint8), r"shape \(5,\)"),
        (np.zeros((0, 4, 3), np.uint8), r"shape \(0, 4, 3\)"),
        (np.zeros((2, 2, 3), np.int64), "type int64, expected uint8"),
        (np.zeros((2, 2, 3), complex), "type complex128"),
        (np.full((2, 2), -0.5), "from -0.5 to -0.5, expected 0 to 1 or 0 to 255"),
        (np.full((2, 2), np.nan), "values from nan"),
        (np.full((2, 2), 256.0), "to 256"),
        (None, "is a NoneType, expected a path"),
        ([[0, 1], [1, 0]], "is a list, expected a path"),
    ],
)
def test_arrays_that_are_no_pictures(source: Any, reason: str) -> None:
    with pytest.raises(ImageError, match=reason) as caught:
        read_image(source)
    assert caught.value.path == "<array>"


def test_a_pillow_image_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "turned.png"
    path.write_bytes(encoded(scene(), "PNG", exif=exif_bytes(6)))
    with Image.open(path) as picture:
        assert read_image(picture, size=(20, 10)).shape == (20, 10, 3)
        assert picture.size == (64, 48)
    path.write_bytes(path.read_bytes()[:-200])
    with Image.open(path) as picture, pytest.raises(ImageError, match="turned.png: is damaged"):
        read_image(picture)


def refused(source: Any, reason: str, **options: Any) -> None:
    with pytest.raises(ImageError, match=reason) as caught:
        read_image(source, **options)
    assert str(caught.value).startswith(str(source) if isinstance(source, str | Path) else "<bytes>")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", r"is empty \(0 bytes\)"),
        (b"this is no picture\n", r"neither JPEG, PNG, .* it starts with b'this is no p'"),
        (b"\n<!DOCTYPE html><html>404</html>", "HTML"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"%PDF-1.7 ...", "PDF"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "PostScript"),
        (b"SIMPLE  =                    T" + bytes(3000), "neither"),
        (b"\x89PNG\r\n\x1a\n", "is no picture|is damaged"),
        (b"\xff\xd8\xff\xe0\x00", "is no picture|is damaged"),
        (b"\x00", "neither"),
    ],
)
def test_files_that_are_no_pictures(content: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "picture.jpg"
    path.write_bytes(content)
    refused(path, reason)
    refused(content, reason)


def test_formats_outside_the_list_are_not_even_tried(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    for kind in ("TGA", "PCX", "ICO", "JPEG2000", "SGI"):
        path.write_bytes(encoded(scene(), kind))
        refused(path, "is no picture that can be read")


def test_heic_is_recognized_whatever_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)  # as where it is not installed
    path = tmp_path / "IMG_0001.jpg"
    path.write_bytes(HEIC)
    refused(path, "HEIC picture.*pip install pillow-heif.*save it as JPEG")


def test_heic_with_its_package() -> None:
    pillow_heif = pytest.importorskip("pillow_heif", reason="pillow-heif is not installed")
    stream = BytesIO()
    pillow_heif.from_pillow(Image.fromarray(scene())).save(stream, quality=95)
    assert difference(read_image(stream.getvalue()), scene()) <= 6
    refused(stream.getvalue()[:-200], "is damaged")
    refused(stream.getvalue(), "has 64 x 48 pixels", limits=Limits(pixels=100))


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    refused(tmp_path / "none.png", "none.png: no such file")
    refused("", "no such file")
    refused("a\0b.png", "cannot be read")
    folder = tmp_path / "x.png"
    folder.mkdir()
    refused(folder, "is a folder, expected a picture")
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    refused(tmp_path / "loop.png", "cannot be read")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.png")
        refused(tmp_path / "pipe.png", "is not an ordinary file")


def test_open_files_are_read_from_their_beginning(tmp_path: Path) -> None:
    content = encoded(scene(), "PNG")
    stream = BytesIO()
    stream.write(content)  # now at its end
    expected = read_image(content)
    assert np.array_equal(read_image(stream), expected)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.png", content)
    with zipfile.ZipFile(tmp_path / "a.zip") as archive, archive.open("a.png") as member:
        assert np.array_equal(read_image(member), expected)
    # A pipe cannot be wound back, and is read as far as there is something.
    reading, writing = os.pipe()
    with open(writing, "wb") as file:
        file.write(content)
    with open(reading, "rb") as file:
        assert np.array_equal(read_image(file), expected)


def test_open_files_that_are_no_pictures(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"not a picture")
    with open(path, "rb") as file, pytest.raises(ImageError, match=r"a\.png: is no picture"):
        read_image(file)
    with pytest.raises(ImageError, match="cannot be read"):
        read_image(file)  # closed by now
    with open(path, encoding="utf-8") as text, pytest.raises(ImageError, match='open it with "rb"'):
        read_image(text)  # type: ignore[arg-type]
    with pytest.raises(ImageError, match="at most 1 MiB are read"):
        read_image(BytesIO(bytes(2**20 + 1)), limits=Limits(file_bytes=2**20))


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "secret.png"
    path.write_bytes(encoded(scene(), "PNG"))

    def forbid(*_: Any) -> None:  # not chmod: the superuser reads all the same
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("captioner.data.images.os.stat", forbid)
    refused(path, "secret.png: may not be read; check its permissions")


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_truncated_files_are_refused(kind: str, share: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    content = encoded(noise, kind)
    refused(content[: int(share * len(content))], "is damaged or incomplete|is no picture that can be read")


def test_truncated_progressive_jpeg() -> None:
    content = encoded(scene(200, 300), "JPEG", progressive=True)
    refused(content[: len(content) * 2 // 3], "is damaged or incomplete .*truncated")


def test_the_byte_cap_comes_before_reading(tmp_path: Path) -> None:
    path = tmp_path / "huge.jpg"
    with path.open("wb") as file:
        file.truncate(200 * 2**20)  # a hole: no disk is used
    refused(path, r"has 200.0 MiB, at most 64 MiB are read")
    content = encoded(scene(), "PNG")
    refused(content, "at most", limits=Limits(file_bytes=len(content) - 1))
    assert read_image(content, limits=Limits(file_bytes=len(content))).shape == (48, 64, 3)


def png_claiming(width: int, height: int) -> bytes:
    """A valid PNG header of any size with next to no data."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4) + name + data + zlib.crc32(name + data).to_bytes(4)

    header = width.to_bytes(4) + height.to_bytes(4) + b"\x08\x02\x00\x00\x00"
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(9)))
        + chunk(b"IEND", b"")
    )


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("width", [9_000, 10_000, 50_000, 2**31 - 1])
def test_the_pixel_cap_comes_before_decoding(width: int) -> None:
    refused(png_claiming(width, 9_000), "pixels.*80,000,000")


@pytest.mark.filterwarnings("error::PIL.Image.DecompressionBombWarning")
def test_pillows_own_warning_made_an_error() -> None:
    refused(png_claiming(10_000, 9_000), "pixels.*80,000,000")


def test_the_pixel_cap_holds_for_everything() -> None:
    few = Limits(pixels=48 * 64 - 1)
    for source in (scene(), Image.fromarray(scene()), encoded(scene(), "PNG")):
        with pytest.raises(ImageError, match=r"has 64 x 48 pixels, at most 3,071"):
            read_image(source, limits=few, size=(8, 8))
    assert read_image(scene(), limits=Limits(pixels=48 * 64)).shape == (48, 64, 3)


def test_threads_read_beside_each_other() -> None:
    corpus = [encoded(scene(60 + 3 * index, 80), kind) for index, kind in enumerate(FORMATS)]
    corpus.insert(3, b"no picture")
    barrier = threading.Barrier(8)

    def read_all(_: int) -> list[Any]:
        barrier.wait()
        return [read_or_reason(content) for content in corpus * 3]

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(read_all, range(8)))
    for answer in answers[1:]:
        for one, other in zip(answers[0], answer, strict=True):
            np.testing.assert_array_equal(one, other)


def read_or_reason(content: bytes) -> np.ndarray | str:
    try:
        return read_image(content, size=(32, 32), limits=Limits(pixels=1_000_000))
    except ImageError as error:
        return error.reason


@pytest.mark.filterwarnings("ignore:::PIL.*")
@pytest.mark.parametrize("kind", [*FORMATS, "HEIC"])
def test_damage_anywhere_gives_a_picture_or_an_image_error(kind: str) -> None:
    chance = random.Random(kind)
    content = (
        HEIC
        if kind == "HEIC"
        else encoded(scene(), kind, **({} if kind == "PPM" else {"exif": exif_bytes(6)}))
    )
    for _ in range(150):
        damaged = bytearray(content)
        for _ in range(chance.choice((1, 1, 2, 8))):
            place = chance.randrange(min(len(damaged), chance.choice((64, len(damaged)))))
            damaged[place] ^= 1 << chance.randrange(8)
        if chance.random() < 0.3:
            del damaged[chance.randrange(len(damaged)) :]
        answer = read_or_reason(bytes(damaged))
        assert isinstance(answer, str) or answer.shape == (32, 32, 3)


def test_a_jpeg_wanted_small_is_decoded_small_and_may_have_twice_the_pixels() -> None:
    few = Limits(pixels=48 * 64 // 2)
    assert read_image(encoded(scene(), "JPEG"), limits=few, size=(8, 8)).shape == (8, 8, 3)
    for options in ({"limits": few}, {"limits": Limits(pixels=few.pixels - 1), "size": (8, 8)}):
        with pytest.raises(ImageError, match=r"has 64 x 48 pixels, at most 1,53"):
            read_image(encoded(scene(), "JPEG"), **options)
    with pytest.raises(ImageError, match=r"has 64 x 48 pixels, at most 1,536"):  # is held whole
        read_image(encoded(scene(), "JPEG", progressive=True), limits=few, size=(8, 8))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_photograph_of_108_megapixels_is_read_small() -> None:
    content = encoded(Image.new("RGB", (12_000, 9_000), "teal"), "JPEG", quality=30)
    assert read_image(content, size=(64, 64)).shape == (64, 64, 3)
    with pytest.raises(ImageError, match=r"12000 x 9000 pixels, at most 80,000,000 .*--max-megapixels"):
        read_image(content)


PACKED = zlib.compress(bytes(3 << 20))  # three MiB of nothing


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        (b"zTXt", b"Comment\0\0" + PACKED),
        (b"tEXt", b"Comment\0" + b"x" * (3 << 20)),
        (b"iTXt", b"Comment\0\1\0\0\0" + PACKED),
        (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + PACKED),
        (b"zTXt", b"Raw profile type exif\0\0" + PACKED),
        (b"iCCP", b"profile\0\0" + PACKED),
        (b"iCCP", b"profile\0\0no zlib"),
        (b"zTXt", b"Comment\0\0no zlib"),
    ],
)
@pytest.mark.parametrize("behind", [False, True], ids=["before", "behind"])
def test_large_notes_do_not_cost_a_png(kind: bytes, data: bytes, behind: bool) -> None:
    content = encoded(scene(), "PNG")
    at = content.index(b"IEND" if behind else b"IDAT") - 4
    note = len(data).to_bytes(4) + kind + data + zlib.crc32(kind + data).to_bytes(4)
    np.testing.assert_array_equal(read_image(content[:at] + note + content[at:]), scene())


@pytest.mark.parametrize("keyword", ["Raw profile type exif", "XML:com.adobe.xmp"])
def test_what_says_the_orientation_of_a_png_is_kept(keyword: str) -> None:
    info = PngImagePlugin.PngInfo()
    if keyword.startswith("XML"):
        info.add_itxt(keyword, '<x tiff:Orientation="3"/>', zip=True)
    else:
        raw = exif_bytes(3)
        info.add_text(keyword, f"\nexif\n{len(raw):8}\n{raw.hex()}\n", zip=True)
    np.testing.assert_array_equal(read_image(encoded(scene(), "PNG", pnginfo=info)), scene()[::-1, ::-1])


ODD_FILES = """
import io, random, sys
import numpy as np
from PIL import Image
from captioner.data.images import read_image
from captioner.errors import ImageError
picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
draw = random.Random(1)
for kind, options in (("TIFF", {"compression": "tiff_lzw"}), ("JPEG", {"exif": Image.Exif()}), ("PNG", {})):
    if "exif" in options:
        options["exif"][0x10f] = "camera"
    file = io.BytesIO()
    picture.save(file, kind, **options)
    for _ in range(200):
        content = bytearray(file.getvalue())
        for _ in range(3):
            content[draw.randrange(300)] ^= 1 << draw.randrange(8)
        try:
            read_image(bytes(content), size=(32, 32))
        except ImageError:
            print("refused")
"""


def test_libraries_do_not_speak_for_themselves() -> None:
    done = subprocess.run([sys.executable, "-c", ODD_FILES], capture_output=True, text=True, check=True)
    assert "refused" in done.stdout
    assert done.stderr == ""
