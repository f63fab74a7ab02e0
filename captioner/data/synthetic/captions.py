"""What people would say of a scene of colored shapes, in English, German, Korean and Japanese.

In: a `Scene`. Out: five sentences that are true of it. Writes nothing, draws nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from captioner.errors import ConfigError, unknown_name

COLORS = ("red", "yellow", "green", "blue", "purple", "white")
SHAPES = ("circle", "square", "triangle", "star", "heart")
SIZES = ("small", "large")
PLACES = ("centre", "top left", "top right", "bottom left", "bottom right")
COUNTS = (2, 3, 4)
# The two roles of each relation, in the order of the scene's things.
RELATIONS = {"beside": ("left", "right"), "above": ("above", "below"), "inside": ("inside", "around")}


@dataclass(frozen=True)
class Thing:
    """A shape, or `count` equal ones. Where there are several, nobody speaks of their size."""

    color: str
    shape: str
    size: str = "small"
    count: int = 1


@dataclass(frozen=True)
class Scene:
    """One thing at a place (`kind` "place"), several equal ones ("count"), or two things in a relation.

    >>> describe(Scene("place", (Thing("red", "star"),), "top left"), "en")[0]
    'A small red star is in the top left corner.'
    """

    kind: str  # place, count, or a key of RELATIONS
    things: tuple[Thing, ...]
    place: str = ""

    def roles(self) -> tuple[str, ...]:
        """The part that each thing plays."""
        if self.kind == "place":
            return (self.place,)
        if self.kind == "count":
            return (f"{self.things[0].count} of them",)
        return RELATIONS[self.kind]


def describe(scene: Scene, language: str) -> list[str]:
    """Five different sentences that are true of the scene.

    Raises:
        ConfigError: the language is not a row of LANGUAGES.
    """
    if language not in LANGUAGES:
        raise ConfigError(unknown_name("language", language, LANGUAGES))
    speech = LANGUAGES[language]
    words = {"place": speech.places.get(scene.place, "")}
    for letter, thing in zip("ab", scene.things, strict=False):
        words |= {f"{letter}_{case}": form for case, form in speech.forms(thing).items()}
    sentences = (pattern.format(**words) for pattern in speech.patterns[scene.kind])
    return [sentence[0].upper() + sentence[1:] + speech.stop for sentence in sentences]


@dataclass(frozen=True)
class Language:
    """How a language names a thing (its forms by case), a place, and what it says of each kind of scene."""

    forms: Callable[[Thing], dict[str, str]]
    places: Mapping[str, str]
    patterns: Mapping[str, tuple[str, ...]]
    stop: str = "."


def _english(thing: Thing) -> dict[str, str]:
    if thing.count > 1:
        return {"it": f"{_ENGLISH_NUMBERS[thing.count]} {thing.color} {thing.shape}s"}
    return {"it": f"a {thing.size} {thing.color} {thing.shape}"}


_ENGLISH_NUMBERS = {2: "two", 3: "three", 4: "four"}
_ENGLISH = Language(
    _english,
    {place: f"in the {place} corner" for place in PLACES[1:]} | {"centre": "in the centre"},
    {
        "place": (
            "{a_it} is {place}",
            "there is {a_it} {place}",
            "{place} there is {a_it}",
            "the picture shows {a_it} {place}",
            "{a_it} can be seen {place}",
        ),
        "count": (
            "there are {a_it}",
            "the picture shows {a_it}",
            "{a_it} can be seen",
            "{a_it} are in the picture",
            "in the picture there are {a_it}",
        ),
        "beside": (
            "{a_it} is to the left of {b_it}",
            "{b_it} is to the right of {a_it}",
            "there is {a_it} to the left of {b_it}",
            "on the left is {a_it} and on the right is {b_it}",
            "the picture shows {a_it} and to the right of it {b_it}",
        ),
        "above": (
            "{a_it} is above {b_it}",
            "{b_it} is below {a_it}",
            "there is {a_it} above {b_it}",
            "at the top is {a_it} and at the bottom is {b_it}",
            "the picture shows {a_it} and below it {b_it}",
        ),
        "inside": (
            "{a_it} is inside {b_it}",
            "{b_it} is around {a_it}",
            "there is {a_it} inside {b_it}",
            "inside {b_it} is {a_it}",
            "the picture shows {b_it} and inside it {a_it}",
        ),
    },
)


def _german(thing: Thing) -> dict[str, str]:
    color = _GERMAN_COLORS[thing.color]
    noun, plural, ending, accusative, dative = _GERMAN_NOUNS[thing.shape]
    if thing.count > 1:
        words = f"{_GERMAN_NUMBERS[thing.count]} {color}e {plural}"
        return {"wer": words, "wen": words}
    size = {"small": "klein", "large": "groß"}[thing.size]
    return {
        "wer": f"ein {size}{ending} {color}{ending} {noun}",
        "wen": f"{accusative[0]} {size}{accusative[1]} {color}{accusative[1]} {noun}",
        "wem": f"einem {size}en {color}en {dative}",
    }


_GERMAN_COLORS = dict(zip(COLORS, ("rot", "gelb", "grün", "blau", "violett", "weiß"), strict=True))
_GERMAN_NUMBERS = {2: "zwei", 3: "drei", 4: "vier"}
# singular, plural, ending of adjectives in the nominative, article and ending in the accusative, dative
_GERMAN_NOUNS = {
    "circle": ("Kreis", "Kreise", "er", ("einen", "en"), "Kreis"),
    "square": ("Quadrat", "Quadrate", "es", ("ein", "es"), "Quadrat"),
    "triangle": ("Dreieck", "Dreiecke", "es", ("ein", "es"), "Dreieck"),
    "star": ("Stern", "Sterne", "er", ("einen", "en"), "Stern"),
    "heart": ("Herz", "Herzen", "es", ("ein", "es"), "Herzen"),
}
_GERMAN = Language(
    _german,
    {
        "centre": "in der Mitte",
        "top left": "oben links",
        "top right": "oben rechts",
        "bottom left": "unten links",
        "bottom right": "unten rechts",
    },
    {
        "place": (
            "{a_wer} ist {place}",
            "{place} ist {a_wer}",
            "{place} sieht man {a_wen}",
            "das Bild zeigt {place} {a_wen}",
            "{a_wer} befindet sich {place}",
        ),
        "count": (
            "es gibt {a_wen} im Bild",
            "man sieht {a_wen}",
            "das Bild zeigt {a_wen}",
            "{a_wer} sind zu sehen",
            "im Bild sind {a_wer}",
        ),
        "beside": (
            "{a_wer} ist links von {b_wem}",
            "{b_wer} ist rechts von {a_wem}",
            "links ist {a_wer} und rechts ist {b_wer}",
            "das Bild zeigt {a_wen} links von {b_wem}",
            "man sieht {a_wen} und rechts davon {b_wen}",
        ),
        "above": (
            "{a_wer} ist über {b_wem}",
            "{b_wer} ist unter {a_wem}",
            "oben ist {a_wer} und unten ist {b_wer}",
            "das Bild zeigt {a_wen} über {b_wem}",
            "man sieht {a_wen} und darunter {b_wen}",
        ),
        "inside": (
            "{a_wer} ist in {b_wem}",
            "{b_wer} umgibt {a_wen}",
            "in {b_wem} ist {a_wer}",
            "das Bild zeigt {a_wen} in {b_wem}",
            "man sieht {b_wen} und darin {a_wen}",
        ),
    },
)


def _korean(thing: Thing) -> dict[str, str]:
    color = _KOREAN_COLORS[thing.color]
    noun = _KOREAN_NOUNS[thing.shape]
    # Particles depend on whether the noun's last syllable ends in a consonant.
    closed = (ord(noun[-1]) - 0xAC00) % 28 != 0
    size = "" if thing.count > 1 else {"small": "작은 ", "large": "큰 "}[thing.size]
    it = f"{size}{color} {noun}"
    return {
        "it": it,
        "subject": it + ("이" if closed else "가"),
        "object": it + ("을" if closed else "를"),
        "is": it + ("이다" if closed else "다"),
        "number": _KOREAN_NUMBERS[thing.count],
    }


_KOREAN_COLORS = dict(zip(COLORS, ("빨간", "노란", "초록색", "파란", "보라색", "하얀"), strict=True))
_KOREAN_NOUNS = dict(zip(SHAPES, ("원", "사각형", "삼각형", "별", "하트"), strict=True))
_KOREAN_NUMBERS = {1: "한", 2: "두", 3: "세", 4: "네"}
_KOREAN = Language(
    _korean,
    dict(zip(PLACES, ("가운데에", "왼쪽 위에", "오른쪽 위에", "왼쪽 아래에", "오른쪽 아래에"), strict=True)),
    {
        "place": (
            "{a_subject} {place} 있다",
            "{place} {a_subject} 있다",
            "그림 {place} {a_subject} 보인다",
            "{place} {a_subject} 하나 있다",
            "{place} 있는 것은 {a_is}",
        ),
        "count": (
            "{a_subject} {a_number} 개 있다",
            "{a_it} {a_number} 개가 있다",
            "그림에 {a_subject} {a_number} 개 보인다",
            "{a_number} 개의 {a_subject} 보인다",
            "그림에는 {a_it} {a_number} 개가 있다",
        ),
        "beside": (
            "{a_subject} {b_it}의 왼쪽에 있다",
            "{b_subject} {a_it}의 오른쪽에 있다",
            "왼쪽에는 {a_subject} 있고 오른쪽에는 {b_subject} 있다",
            "{b_it} 왼쪽에 {a_subject} 보인다",
            "{a_subject} 있고 그 오른쪽에 {b_subject} 있다",
        ),
        "above": (
            "{a_subject} {b_it}의 위에 있다",
            "{b_subject} {a_it}의 아래에 있다",
            "위에는 {a_subject} 있고 아래에는 {b_subject} 있다",
            "{b_it} 위에 {a_subject} 보인다",
            "{a_subject} 있고 그 아래에 {b_subject} 있다",
        ),
        "inside": (
            "{a_subject} {b_it} 안에 있다",
            "{b_it} 안에 {a_subject} 보인다",
            "{b_subject} {a_object} 둘러싸고 있다",
            "{b_subject} 있고 그 안에 {a_subject} 있다",
            "그림에는 {b_it} 안에 {a_subject} 있다",
        ),
    },
)


def _japanese(thing: Thing) -> dict[str, str]:
    size = "" if thing.count > 1 else {"small": "小さな", "large": "大きな"}[thing.size]
    it = size + _JAPANESE_COLORS[thing.color] + _JAPANESE_NOUNS[thing.shape]
    return {"it": it, "number": _JAPANESE_NUMBERS[thing.count]}


_JAPANESE_COLORS = dict(zip(COLORS, ("赤い", "黄色い", "緑の", "青い", "紫の", "白い"), strict=True))
_JAPANESE_NOUNS = dict(zip(SHAPES, ("円", "四角形", "三角形", "星", "ハート"), strict=True))
_JAPANESE_NUMBERS = {1: "一つ", 2: "二つ", 3: "三つ", 4: "四つ"}
_JAPANESE = Language(
    _japanese,
    dict(zip(PLACES, ("中央に", "左上に", "右上に", "左下に", "右下に"), strict=True)),
    {
        "place": (
            "{a_it}が{place}あります",
            "{place}{a_it}があります",
            "絵の{place}{a_it}が見えます",
            "{place}あるのは{a_it}です",
            "この絵では{place}{a_it}があります",
        ),
        "count": (
            "{a_it}が{a_number}あります",
            "{a_number}の{a_it}があります",
            "絵に{a_it}が{a_number}見えます",
            "{a_number}の{a_it}が見えます",
            "この絵には{a_it}が{a_number}あります",
        ),
        "beside": (
            "{a_it}が{b_it}の左にあります",
            "{b_it}が{a_it}の右にあります",
            "左に{a_it}、右に{b_it}があります",
            "{b_it}の左に{a_it}が見えます",
            "{a_it}があり、その右に{b_it}があります",
        ),
        "above": (
            "{a_it}が{b_it}の上にあります",
            "{b_it}が{a_it}の下にあります",
            "上に{a_it}、下に{b_it}があります",
            "{b_it}の上に{a_it}が見えます",
            "{a_it}があり、その下に{b_it}があります",
        ),
        "inside": (
            "{a_it}が{b_it}の中にあります",
            "{b_it}の中に{a_it}があります",
            "{b_it}が{a_it}を囲んでいます",
            "{b_it}があり、その中に{a_it}があります",
            "この絵では{b_it}の中に{a_it}があります",
        ),
    },
    "。",
)

LANGUAGES: dict[str, Language] = {"en": _ENGLISH, "de": _GERMAN, "ko": _KOREAN, "ja": _JAPANESE}
