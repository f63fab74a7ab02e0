"""The sample set that draws itself: what is said, what is shown, and what only the test shows."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from captioner.data.datasets import load_split
from captioner.data.statistics import summarize
from captioner.data.synthetic.captions import (
    COLORS,
    COUNTS,
    LANGUAGES,
    PLACES,
    RELATIONS,
    SHAPES,
    Scene,
    Thing,
    describe,
)
from captioner.data.synthetic.scenes import ROLES, combination_split, draw, draw_dataset, scenes, split_of
from captioner.data.vocabulary import words_of
from captioner.errors import ConfigError, DataError

SMALL_RED_STAR = Thing("red", "star", "small")
LARGE_BLUE_HEART = Thing("blue", "heart", "large")


@pytest.mark.parametrize(
    ("language", "sentences"),
    [
        (
            "en",
            (
                "A small red star is to the left of a large blue heart.",
                "A large blue heart is to the right of a small red star.",
            ),
        ),
        (
            "de",
            (
                "Ein kleiner roter Stern ist links von einem großen blauen Herzen.",
                "Ein großes blaues Herz ist rechts von einem kleinen roten Stern.",
            ),
        ),
        (
            "ko",
            (
                "작은 빨간 별이 큰 파란 하트의 왼쪽에 있다.",
                "큰 파란 하트가 작은 빨간 별의 오른쪽에 있다.",
            ),
        ),
        (
            "ja",
            (
                "小さな赤い星が大きな青いハートの左にあります。",
                "大きな青いハートが小さな赤い星の右にあります。",
            ),
        ),
    ],
)
def test_what_is_said_of_a_pair(language: str, sentences: tuple[str, str]) -> None:
    assert tuple(describe(Scene("beside", (SMALL_RED_STAR, LARGE_BLUE_HEART)), language)[:2]) == sentences


def test_what_is_said_of_several_and_of_a_place() -> None:
    three = Scene("count", (Thing("green", "square", count=3),))
    assert describe(three, "en")[0] == "There are three green squares."
    assert describe(three, "de")[1] == "Man sieht drei grüne Quadrate."
    assert describe(three, "ko")[0] == "초록색 사각형이 세 개 있다."
    assert describe(three, "ja")[0] == "緑の四角形が三つあります。"
    corner = Scene("place", (LARGE_BLUE_HEART,), "top left")
    assert describe(corner, "en")[2] == "In the top left corner there is a large blue heart."
    assert describe(corner, "de")[2] == "Oben links sieht man ein großes blaues Herz."
    assert describe(corner, "ko")[1] == "왼쪽 위에 큰 파란 하트가 있다."
    assert describe(corner, "ja")[1] == "左上に大きな青いハートがあります。"


@pytest.mark.parametrize("language", LANGUAGES)
def test_five_different_sentences_for_every_scene(language: str) -> None:
    for split in ("train", "dev", "test"):
        for scene, _ in scenes(split, 100):
            sentences = describe(scene, language)
            assert len({tuple(words_of(sentence)) for sentence in sentences}) == 5
            assert min(len(words_of(sentence)) for sentence in sentences) >= 4  # long enough for BLEU-4


def combinations(split: str, count: int) -> list[set[tuple[str, str, str]]]:
    """Of each scene, what plays which part."""
    return [
        {(thing.color, thing.shape, role) for thing, role in zip(scene.things, scene.roles(), strict=True)}
        for scene, _ in scenes(split, count)
    ]


def test_test_and_dev_show_combinations_that_training_never_shows() -> None:
    trained = set().union(*combinations("train", 2000))
    tuned = [shown - trained for shown in combinations("dev", 200)]
    tested = [shown - trained for shown in combinations("test", 200)]
    assert 290 < len(trained) <= 300  # of 420; the 300 that training may show
    assert all(tuned) and all(tested)
    assert not set().union(*tuned) & set().union(*tested)


def test_training_shows_every_color_shape_and_role_in_every_pair() -> None:
    trained = [
        (color, shape, role)
        for color, shape, role in itertools.product(COLORS, SHAPES, ROLES)
        if combination_split(Thing(color, shape), role) == "train"
    ]
    assert len(trained) == len(COLORS) * len(SHAPES) * 10  # of 14 roles
    assert {(color, shape) for color, shape, _ in trained} == set(itertools.product(COLORS, SHAPES))
    assert {(color, role) for color, _, role in trained} == set(itertools.product(COLORS, ROLES))
    assert {(shape, role) for _, shape, role in trained} == set(itertools.product(SHAPES, ROLES))


def test_the_example_of_the_docstring_is_true() -> None:
    assert combination_split(Thing("red", "circle"), "2 of them") == "train"
    assert combination_split(Thing("red", "heart"), "4 of them") == "train"
    assert combination_split(Thing("red", "circle"), "4 of them") == "test"
    assert split_of(Scene("count", (Thing("red", "circle", count=4),))) == "test"


def test_every_kind_of_scene_occurs() -> None:
    seen = {role for scene, _ in scenes("train", 400) for role in scene.roles()}
    assert seen == set(ROLES)
    counted = [f"{count} of them" for count in COUNTS]
    assert set(ROLES) == {*PLACES, *counted, *itertools.chain(*RELATIONS.values())}


@pytest.mark.parametrize("size", [32, 96, 160])
def test_a_shape_is_where_and_what_it_is_said_to_be(size: int) -> None:
    scene = Scene("beside", (Thing("red", "circle", "large"), Thing("blue", "square", "large")))
    pixels = np.asarray(draw(scene, random.Random(1), size=size)).astype(int)
    assert pixels.shape == (size, size, 3)
    left, right = (pixels[int(size * 0.5), int(size * x)] for x in (0.27, 0.73))
    assert left[0] > 180 and left[2] < 110  # red
    assert right[2] > 180 and right[0] < 110  # blue


def test_no_shape_leaves_the_picture() -> None:
    for split in ("train", "test"):
        for scene, rng in scenes(split, 150):
            pixels = np.asarray(draw(scene, rng, size=96)).astype(int)
            for edge in (pixels[0], pixels[:60, 0], pixels[:60, -1]):  # below are hills
                assert np.abs(np.diff(edge, axis=0)).max() < 20, scene


def test_the_drawn_set_is_read_back(tmp_path: Path) -> None:
    draw_dataset(tmp_path / "set", pictures=24, language="ko", size=32)
    for split, count in (("train", 20), ("dev", 2), ("test", 2)):
        loaded = load_split(tmp_path / "set", split)
        assert len(loaded.records) == count
        assert not loaded.problems
        for record in loaded.records:
            assert len(record.captions) == 5
            with Image.open(record.path) as picture:
                assert (picture.size, picture.mode) == ((32, 32), "RGB")
    assert not summarize(tmp_path / "set").problems


def test_the_same_arguments_give_the_same_files(tmp_path: Path) -> None:
    def files(folder: str, **options: int | str) -> dict[str, bytes]:
        draw_dataset(tmp_path / folder, size=32, **options)  # type: ignore[arg-type]
        paths = sorted(path for path in (tmp_path / folder).rglob("*") if path.is_file())
        return {str(path.relative_to(tmp_path / folder)): path.read_bytes() for path in paths}

    first = files("one", pictures=12)
    assert files("two", pictures=12) == first
    assert files("one", pictures=12) == first  # drawn over itself
    more = files("more", pictures=36)
    german = files("german", pictures=12, language="de")
    names = [name for name in first if name.endswith(".png")]
    assert len(names) == 12
    assert all(more[name] == german[name] == first[name] for name in names)
    assert files("other", pictures=12, seed=1)["images/test_00000.png"] != first["images/test_00000.png"]


def test_wrong_use_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match='unknown language "eng"; did you mean "en"'):
        draw_dataset(tmp_path / "set", pictures=12, language="eng")
    with pytest.raises(DataError, match="at least 12"):
        draw_dataset(tmp_path / "set", pictures=3)
    (tmp_path / "thesis.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(DataError, match="holds other files"):
        draw_dataset(tmp_path, pictures=12)
    with pytest.raises(DataError, match="a file"):
        draw_dataset(tmp_path / "thesis.txt", pictures=12)


def test_a_large_drawing_is_the_small_one_with_more_detail() -> None:
    """A model that learned from small drawings knows large ones, too: they have the same dark rims."""
    for (scene, small), (_, large) in zip(scenes("test", 8, seed=5), scenes("test", 8, seed=5), strict=True):
        fine = draw(scene, large, size=480).resize((96, 96), Image.Resampling.BOX)
        apart = np.abs(np.asarray(draw(scene, small), float) - np.asarray(fine, float))
        assert np.percentile(apart.max(-1), 99) < 40
