"""What the model that comes along says of a few photographs: the opening of README.md, written anew.

    python scripts/photographs.py            captions docs/photos, puts them between the marks in README.md
    python scripts/photographs.py --check    says whether README.md is what this would write

In: the photographs in docs/photos and the model in checkpoints/flickr8k. Out: README.md and
docs/photos/README.md. A caption counts as right if it names what there is to see, by the words below; at
least one that is wrong is shown.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import NamedTuple

from captioner.data.vocabulary import words_of
from captioner.inference.compiled_captioner import CompiledCaptioner
from captioner.inference.search_options import ALL_LANGUAGES
from captioner.system.files import atomic_write

ROOT = Path(__file__).resolve().parent.parent
PHOTOS, README = ROOT / "docs" / "photos", ROOT / "README.md"
BEGIN, END = "<!-- photographs -->", "<!-- /photographs -->"
SHOWN, WRONG, WIDTH = 3, 1, 240  # photographs in a row, of them wrong ones, pixels


class Photograph(NamedTuple):
    """A photograph, what to look for in its caption, and where it is from."""

    right: str  # a pattern that right captions have
    wrong: str  # a pattern that none of them has
    title: str
    source: str


PHOTOGRAPHS = {
    "camera": Photograph(
        r"camera|tripod",
        r"$^",
        "Man with a camera",
        "Lav Varshney, CC0; `skimage.data.camera` of "
        "[scikit-image](https://scikit-image.org/docs/stable/api/skimage.data.html)",
    ),
    "hopper": Photograph(
        r"woman|lady|person|hat|uniform",
        r"\b(man|boy|dog)\b",
        "Grace Hopper",
        "United States Navy, public domain; sample data of [matplotlib](https://matplotlib.org)",
    ),
    "astronaut": Photograph(
        r"woman|astronaut",
        r"riding|football|basketball|ball|\b(man|boy|dog)\b",
        "Eileen Collins",
        "NASA, public domain; `skimage.data.astronaut`",
    ),
    "cat": Photograph(r"\bcat\b", r"dog", "Chelsea", "Stefan van der Walt, CC0; `skimage.data.cat`"),
    "coffee": Photograph(
        r"coffee|cup|mug|drink|spoon",
        r"dog|boy|girl",
        "Coffee",
        "Rachel Michetti, CC0; `skimage.data.coffee`",
    ),
    "rocket": Photograph(
        r"rocket|firework|smoke|launch",
        r"dog|boy|girl",
        "Start of a Falcon 9",
        "SpaceX, released into the public domain; `skimage.data.rocket`",
    ),
    "raccoon": Photograph(
        r"animal|raccoon|racoon",
        r"person|dog|boy|girl",
        "Raccoon",
        "public-domain-image.com, public domain; `scipy.misc.face` of SciPy 1.9",
    ),
}


def main() -> int:
    """Writes the two files, or compares them with what is there."""
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=plain)
    parser.add_argument("--run", default=ROOT / "checkpoints" / "flickr8k", type=Path, help="whose captions")
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if anything differs")
    arguments = parser.parse_args()
    names = list(PHOTOGRAPHS)
    captioner = CompiledCaptioner.load(arguments.run)
    every = {"language": ALL_LANGUAGES} if captioner.vocabulary.languages else {}
    said = captioner.caption([PHOTOS / f"{name}.jpg" for name in names], **every)
    texts = {name: caption.text for name, caption in zip(names, said, strict=True)}
    right = {name: is_right(name, text) for name, text in texts.items()}
    others = {
        name: [other.text for other in list(caption.by_language.values())[1:]]
        for name, caption in zip(names, said, strict=True)
    }
    readme = README.read_text(encoding="utf-8")
    table = first_page(texts, right, others)
    new = re.sub(f"{BEGIN}.*?{END}", lambda _: f"{BEGIN}\n{table}{END}", readme, flags=re.DOTALL)
    files = {README: new, PHOTOS / "README.md": sources(texts, right)}
    differing = [path for path, text in files.items() if not path.exists() or path.read_text("utf-8") != text]
    for path in differing:
        print(f"{path.relative_to(ROOT)}: {'differs' if arguments.check else 'written'}")
        if not arguments.check:
            atomic_write(path, files[path].encode())
    return 1 if arguments.check and differing else 0


def is_right(name: str, caption: str) -> bool:
    """Whether a caption names what there is to see, and nothing that is not there."""
    text, photograph = " ".join(words_of(caption)), PHOTOGRAPHS[name]
    return bool(re.search(photograph.right, text)) and not re.search(photograph.wrong, text)


def first_page(texts: dict[str, str], right: dict[str, bool], others: dict[str, list[str]]) -> str:
    """A row of photographs with their captions, in other languages, too, the last of them wrong."""
    good = [name for name in texts if right[name]][: SHOWN - WRONG]
    bad = [name for name in texts if not right[name]][: SHOWN - len(good)]
    shown = (*good, *bad)
    cells = "".join(
        f"<td>{_image(name)}<br>{_marked(texts[name], right[name])}"
        f"{''.join(f'<br><sub>{text}</sub>' for text in others[name] if right[name])}</td>\n"
        for name in shown
    )
    wrong = f"The {'last is' if len(bad) == 1 else f'last {len(bad)} are'} wrong" if bad else "None is wrong"
    return (
        f"<table><tr>\n{cells}</tr></table>\n\n"
        f"The sentences are those of the model that comes along, unedited. {wrong}, and shown for that: it\n"
        "knows what its training photographs show, and is as sure of itself beyond it.\n"
        "[All that were tried, and their sources](docs/photos/README.md)\n"
    )


def _image(name: str) -> str:
    return f'<img src="docs/photos/{name}.jpg" width="{WIDTH}" alt="{PHOTOGRAPHS[name].title}">'


def _marked(text: str, right: bool) -> str:
    return text if right else f"✗ {text}"


def sources(texts: dict[str, str], right: dict[str, bool]) -> str:
    """The page of all photographs."""
    rows = "".join(
        f'| <img src="{name}.jpg" width="120" alt="{photo.title}"> | {texts[name]} | '
        f"{'right' if right[name] else 'wrong'} | {photo.title}: {photo.source} |\n"
        for name, photo in PHOTOGRAPHS.items()
    )
    return (
        "# Photographs\n\n"
        "They may be used by anyone for anything: CC0 or public domain, as the packages say that they were\n"
        "taken from. Made smaller, nothing else. The sentences are by `captioner caption`, with the model\n"
        "that comes along; all that were tried are here. This page and the opening of README.md are by\n"
        f"`python scripts/photographs.py`.\n\n| | caption | | from |\n|---|---|---|---|\n{rows}"
    )


if __name__ == "__main__":
    sys.exit(main())
