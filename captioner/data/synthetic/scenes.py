"""A data set that draws itself: colored shapes, five sentences a picture, a test of what was really learned.

In: a number of pictures, a seed, a language. Out: a folder with `images/*.png` and `captions.csv`
(image,caption,split), which `datasets` reads. Every picture takes looking: one shape at a place, several
equal ones, or two in a relation. Each test and dev picture shows a combination of color, shape and role that
training never shows: two red circles and four red hearts are in training, four red circles only in the test.
"""

from __future__ import annotations

import csv
import io
import math
import random
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from PIL import Image, ImageChops, ImageDraw, ImageFilter

from captioner.data.synthetic.captions import (
    COLORS,
    COUNTS,
    PLACES,
    RELATIONS,
    SHAPES,
    SIZES,
    Scene,
    Thing,
    describe,
)
from captioner.errors import DataError
from captioner.system import console
from captioner.system.files import atomic_write, storing

CAPTIONS_FILE = "captions.csv"
ROLES = (
    *PLACES,
    *(f"{count} of them" for count in COUNTS),
    *(role for roles in RELATIONS.values() for role in roles),
)
Points = list[tuple[float, float]]


def draw_dataset(
    folder: str | Path,
    *,
    pictures: int = 4800,
    seed: int = 0,
    language: str = "en",
    size: int = 96,
) -> None:
    """Draws the set: ten twelfths train, a twelfth dev, a twelfth test.

    The same arguments give the same files; another language gives the same pictures; more pictures leave the
    first ones of each split as they were.

    Args:
        folder: a new or empty folder, or one that this function filled earlier.
        pictures: in all splits together, at least 12.
        size: height and width in pixels.

    Raises:
        DataError: the folder holds something else, or too few pictures are asked for.
        ConfigError: the language is not known.
    """
    folder = Path(folder)
    if pictures < 12:
        raise DataError(f"{pictures} pictures: at least 12 are needed for train, dev and test")
    _refuse_foreign(folder)
    held_out = pictures // 12
    counts = {"train": pictures - 2 * held_out, "dev": held_out, "test": held_out}
    table = io.StringIO(newline="")
    rows = csv.writer(table, lineterminator="\n")
    rows.writerow(("image", "caption", "split"))
    images = folder / "images"
    with storing(images):
        images.mkdir(parents=True, exist_ok=True)
    with console.progress_bar(pictures, "pictures", f"drawing {folder}") as progress:
        for split, count in counts.items():
            for number, (scene, rng) in enumerate(scenes(split, count, seed=seed)):
                name = f"{split}_{number:05d}.png"
                rows.writerows((name, sentence, split) for sentence in describe(scene, language))
                _save(draw(scene, rng, size=size), images / name)
                progress.update(1)
    atomic_write(folder / CAPTIONS_FILE, table.getvalue())


def _save(picture: Image.Image, path: Path) -> None:
    """Whole or not at all; nobody waits for the disk, since `captions.csv` comes last and vouches for all."""
    with storing(path):
        try:
            picture.save(path)
        except BaseException:
            path.unlink(missing_ok=True)
            raise


def scenes(split: str, count: int, *, seed: int = 0) -> Iterator[tuple[Scene, random.Random]]:
    """`count` scenes of a split, each with the random numbers that will decide how it is drawn."""
    for number in range(count):
        rng = random.Random(f"{seed} {split} {number}")
        scene = _any_scene(rng)
        while split_of(scene) != split:
            scene = _any_scene(rng)
        yield scene, rng


def split_of(scene: Scene) -> str | None:
    """Where a scene may stand: in train if all its combinations do, nowhere (None) if test and dev mix."""
    splits = {combination_split(thing, role) for thing, role in zip(scene.things, scene.roles(), strict=True)}
    if splits == {"train"}:
        return "train"
    splits.discard("train")
    return splits.pop() if len(splits) == 1 else None


def combination_split(thing: Thing, role: str) -> str:
    """Of the 14 roles that a colored shape can play, 2 are kept for the test, 2 for dev.

    The arithmetic spreads them so that every color, every shape and every role, and every pair of them, is
    seen in training.
    """
    number = COLORS.index(thing.color) + 2 * SHAPES.index(thing.shape) + ROLES.index(role)
    return {0: "test", 3: "dev"}.get(number % 7, "train")


def _any_scene(rng: random.Random) -> Scene:
    # Two things keep to the combinations of a split less often than one: so each kind is a fifth of training.
    kind = rng.choices(("place", "count", *RELATIONS), weights=(16, 16, 22, 22, 24))[0]
    if kind == "place":
        return Scene(kind, (_any_thing(rng, rng.choice(SIZES)),), rng.choice(PLACES))
    if kind == "count":
        return Scene(kind, (_any_thing(rng, "small", rng.choice(COUNTS)),))
    sizes = ("small", "large") if kind == "inside" else (rng.choice(SIZES), rng.choice(SIZES))
    first, second = (_any_thing(rng, size) for size in sizes)
    if first.color == second.color:  # two colors a picture: it looks better, and nothing melts together
        return _any_scene(rng)
    return Scene(kind, (first, second))


def _any_thing(rng: random.Random, size: str, count: int = 1) -> Thing:
    return Thing(rng.choice(COLORS), rng.choice(SHAPES), size, count)


def _refuse_foreign(folder: Path) -> None:
    if folder.is_file():
        raise DataError(f"{folder}: a file; a folder was expected")
    if not folder.exists() or not any(folder.iterdir()):
        return
    if {path.name for path in folder.iterdir()} - {"images", CAPTIONS_FILE}:
        raise DataError(f"{folder}: holds other files; name a new or empty folder for the sample set")


# Drawing. Lengths are shares of the picture's side; the origin is the top left corner.

_INK = {  # top of the shape, bottom, rim
    "red": ((244, 92, 84), (206, 38, 48), (150, 22, 36)),
    "yellow": ((255, 226, 92), (248, 190, 30), (190, 134, 10)),
    "green": ((106, 202, 104), (36, 146, 72), (16, 98, 50)),
    "blue": ((84, 158, 244), (30, 92, 208), (16, 56, 150)),
    "purple": ((182, 116, 226), (126, 56, 184), (84, 30, 134)),
    "white": ((255, 255, 255), (236, 238, 244), (160, 166, 182)),
}
_SKIES = (  # top of the sky, horizon, near ground, far hills
    ((150, 200, 226), (214, 232, 230), (156, 190, 160), (178, 206, 186)),
    ((238, 184, 160), (250, 222, 190), (178, 156, 164), (206, 176, 172)),
    ((166, 176, 216), (222, 208, 226), (138, 146, 178), (168, 170, 202)),
    ((160, 210, 200), (226, 234, 210), (190, 180, 140), (204, 200, 164)),
    ((200, 190, 180), (232, 222, 206), (160, 150, 140), (186, 176, 164)),
)
_FINE = 4  # shapes are drawn this many times larger and averaged down


def draw(scene: Scene, rng: random.Random, *, size: int = 96) -> Image.Image:
    """Draws a scene as an RGB picture; `rng` decides background, exact places, sizes and tilts."""
    picture = _background(rng.randrange(len(_SKIES)), rng.randrange(4), size).copy()
    for thing, (x, y), radius in _placed(scene, rng):
        tilt = rng.uniform(-0.2, 0.2)
        outline = [(x + radius * px, y + radius * py) for px, py in _outline(thing.shape, tilt)]
        _shadow(picture, outline, size)
        _ink(picture, outline, thing.color, size)
    return picture


def _placed(scene: Scene, rng: random.Random) -> Iterator[tuple[Thing, tuple[float, float], float]]:
    """Each single shape with its centre and radius, those behind first."""

    def near(x: float, y: float, by: float = 0.02) -> tuple[float, float]:
        return x + rng.uniform(-by, by), y + rng.uniform(-by, by)

    def radius(thing: Thing) -> float:
        return rng.uniform(0.105, 0.12) if thing.size == "small" else rng.uniform(0.17, 0.185)

    first = scene.things[0]
    if scene.kind == "place":
        yield first, near(*_PLACES[scene.place], by=0.03), radius(first)
    elif scene.kind == "count":
        each = radius(first)
        for x, y in rng.choice(_GROUPS[first.count]):
            yield first, near(x, y), each
    elif scene.kind == "inside":
        centre = near(0.5, 0.5, by=0.05)
        yield scene.things[1], centre, rng.uniform(0.31, 0.35)
        yield first, near(*centre, by=0.01), rng.uniform(0.105, 0.12)
    else:
        shift = rng.uniform(-0.08, 0.08)
        for thing, along in zip(scene.things, (0.26, 0.74), strict=True):
            x, y = near(along, 0.5 + shift)
            yield thing, (x, y) if scene.kind == "beside" else (y, x), radius(thing)


_PLACES = dict(zip(PLACES, ((0.5, 0.5), (0.27, 0.27), (0.73, 0.27), (0.27, 0.73), (0.73, 0.73)), strict=True))
_GROUPS = {
    2: (((0.3, 0.5), (0.7, 0.5)), ((0.5, 0.3), (0.5, 0.7)), ((0.32, 0.34), (0.68, 0.66))),
    3: (((0.19, 0.5), (0.5, 0.5), (0.81, 0.5)), ((0.5, 0.28), (0.29, 0.67), (0.71, 0.67))),
    4: (((0.3, 0.3), (0.7, 0.3), (0.3, 0.7), (0.7, 0.7)), ((0.5, 0.2), (0.2, 0.5), (0.8, 0.5), (0.5, 0.8))),
}


def _outline(shape: str, tilt: float) -> Points:
    cos, sin = math.cos(tilt), math.sin(tilt)
    return [(x * cos - y * sin, x * sin + y * cos) for x, y in _OUTLINES[shape]]


def _star() -> Points:
    turns = [(1.18 if point % 2 == 0 else 0.54, math.pi * point / 5) for point in range(10)]
    return [(far * math.sin(turn), -far * math.cos(turn)) for far, turn in turns]


def _heart() -> Points:
    points = []
    for step in range(60):
        turn = 2 * math.pi * step / 60
        x = 16 * math.sin(turn) ** 3
        y = 13 * math.cos(turn) - 5 * math.cos(2 * turn) - 2 * math.cos(3 * turn) - math.cos(4 * turn)
        points.append((x / 15.5, -(y + 2) / 15.5))
    return points


_OUTLINES: dict[str, Points] = {
    "circle": [(math.cos(math.pi * step / 36), math.sin(math.pi * step / 36)) for step in range(72)],
    "square": [(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)],
    "triangle": [(0.0, -1.2), (1.1, 0.75), (-1.1, 0.75)],
    "star": _star(),
    "heart": _heart(),
}


def _shadow(picture: Image.Image, outline: Points, size: int) -> None:
    mask = Image.new("L", picture.size)
    ImageDraw.Draw(mask).polygon([(size * (x + 0.02), size * (y + 0.04)) for x, y in outline], fill=90)
    picture.paste((40, 40, 70), mask=mask.filter(ImageFilter.GaussianBlur(size / 40)))


def _ink(picture: Image.Image, outline: Points, color: str, size: int) -> None:
    """Rim, then the face with light from above, both smooth at their edges."""
    top, bottom, rim = _INK[color]
    rim_mask = _mask(outline, size)
    # The rim is what a minimum filter takes away: about one pixel of 96, evenly all around, at any size.
    rim_filter = ImageFilter.MinFilter(2 * max(1, round(size / 96)) + 1)
    face_mask = ImageChops.darker(rim_mask, rim_mask.filter(rim_filter))
    picture.paste(rim, mask=rim_mask)
    heights = [y for _, y in outline]
    first, last = int(size * min(heights)), max(int(size * max(heights)), int(size * min(heights)) + 1)
    light = Image.new("L", picture.size)
    light.paste(Image.linear_gradient("L").resize((size, last - first)), (0, first))
    face = Image.composite(Image.new("RGB", picture.size, bottom), Image.new("RGB", picture.size, top), light)
    picture.paste(face, mask=face_mask)


def _mask(outline: Points, size: int) -> Image.Image:
    fine = Image.new("L", (size * _FINE, size * _FINE))
    ImageDraw.Draw(fine).polygon([(size * _FINE * x, size * _FINE * y) for x, y in outline], fill=255)
    return fine.reduce(_FINE)


@lru_cache(maxsize=64)
def _background(sky: int, hills: int, size: int) -> Image.Image:
    top, horizon, ground, far = _SKIES[sky]
    side = size * _FINE
    gradient = Image.linear_gradient("L").resize((side, side))
    low, high = (Image.new("RGB", (side, side), color) for color in (horizon, top))
    picture = Image.composite(low, high, gradient)
    pen = ImageDraw.Draw(picture)
    for height, waves, color in ((0.72, 1.1, far), (0.82, 0.8, ground)):
        crest = [
            (x, side * (height + 0.045 * math.sin(2 * math.pi * waves * x / side + 1.7 * hills + 5 * height)))
            for x in range(0, side + _FINE, _FINE)
        ]
        pen.polygon([*crest, (side, side), (0, side)], fill=color)
    return picture.reduce(_FINE)
