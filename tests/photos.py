"""Folders of pictures of all kinds for the tests, some of them broken; and captions of what is in them.

`python -m tests.photos FOLDER --write txt …` is `captioner caption FOLDER --recursive …` with a captioner
that needs no training and no TensorFlow: it names a picture's color, in a language of that color.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from captioner.apps.sidecars.job import FolderPlan, caption_folders
from captioner.cli.parser import parse
from captioner.data.image_files import gather
from captioner.data.images import read_image
from captioner.errors import ImageError
from captioner.inference.caption import Caption

COLOURS = {
    (200, 30, 40): "빨간색 그림",
    (30, 160, 60): "ein grünes Bild",
    (40, 60, 200): "青い絵",
    (120, 120, 120): "a grey picture",
}
STEMS = ("photo", "urlaub-größe", "여름 휴가", "夏の旅行", "IMG_0001", "with  two spaces", "a.b.c", "été")
FOLDERS = (".", "2024/여름", "2024/Österreich", "夏", "deep/er/still")


def make_photos(
    folder: Path, count: int, *, seed: int = 0, broken: float = 0.05, motifs: Sequence[Path] = ()
) -> dict[Path, str | None]:
    """Draws `count` pictures into sub-folders: path → its caption by `captions_of`, or None for a broken one.

    With `motifs` they show those pictures instead of plain colors, and their captions mean nothing.
    """
    draw = random.Random(seed)
    made: dict[Path, str | None] = {}
    while len(made) < count:
        stem = f"{draw.choice(STEMS)}{draw.choice(('', f' {draw.randrange(count)}'))}"
        suffix = draw.choice(tuple(_SAVED))
        path = folder / draw.choice(FOLDERS) / (stem + suffix)
        if path in made:
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        color = draw.choice(list(COLOURS))
        size = (draw.randrange(9, 90), draw.randrange(9, 90))
        picture = Image.new("RGB", size, color)
        if motifs:
            picture = Image.open(draw.choice(motifs)).convert("RGB").resize((size[0] * 3, size[1] * 3))
        _save(path, picture, draw)
        made[path] = COLOURS[color]
        if draw.random() < broken:
            _break(path, draw)
            made[path] = None
    return made


def captions_of(paths: Iterable[Path], *, seconds: float = 0.0) -> Iterator[Caption]:
    """As `Captioner.captions_of`: a caption a picture, by its color."""
    for path in paths:
        time.sleep(seconds)
        try:
            pixels = read_image(path, size=(8, 8)).reshape(-1, 3)
        except ImageError as error:
            yield Caption(str(path), error=error.reason)
            continue
        color = np.median(pixels, axis=0)
        nearest = min(COLOURS, key=lambda known: float(np.abs(color - np.array(known)).sum()))
        yield Caption(str(path), COLOURS[nearest], score=-0.5, log_probability=-1.5)


def _save(path: Path, picture: Image.Image, draw: random.Random) -> None:
    grey = np.asarray(picture.convert("L"))
    if path.suffix == ".png" and np.array_equal(np.asarray(picture)[..., 0], grey):
        Image.fromarray(grey.astype(np.uint16) * 257).save(path)  # 16 bits
        return
    options: dict[str, Any] = dict(_SAVED[path.suffix])
    if path.suffix in (".jpg", ".webp"):
        exif = Image.Exif()
        exif[0x0112] = draw.randrange(1, 9)  # orientation
        options["exif"] = exif
    elif path.suffix in (".png", ".tif") and draw.random() < 0.5:
        picture.putalpha(Image.new("L", picture.size, 255))
    picture.save(path, **options)


def _break(path: Path, draw: random.Random) -> None:
    content = path.read_bytes()
    damages = (content[: len(content) // 3], b"", b"<html>404</html>", bytes(draw.randbytes(300)))
    path.write_bytes(draw.choice(damages))


_SAVED: dict[str, dict[str, Any]] = {
    ".jpg": {"quality": 92},
    ".JPEG": {},
    ".png": {},
    ".webp": {"lossless": True},
    ".gif": {},
    ".bmp": {},
    ".tif": {},
    ".ppm": {},
}


def main(arguments: list[str]) -> int:
    """The command with the captioner above."""
    parsed = parse(["caption", "--recursive", *arguments])
    plan = FolderPlan(
        tuple(",".join(parsed.write).split(",")),
        out=Path(parsed.out) if parsed.out else None,
        if_exists=parsed.if_exists or "skip",
        names=parsed.names or "short",
        job="colors",
    )
    found = caption_folders(gather(parsed.paths, recursive=True), plan, captions_of, quiet=True)
    print(*found.lines(), sep="\n")
    return 1 if found.failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
