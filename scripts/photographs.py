"""What README.md says of the model that comes along, written anew: photographs with captions, scores, size.

    python scripts/photographs.py            captions docs/photos, writes between the marks in README.md
    python scripts/photographs.py --check    says whether README.md is what this would write

In: the photographs in docs/photos, the model in checkpoints/flickr8k and the scores in its `best.json`. Out:
README.md and docs/photos/README.md. A caption counts as right if it names what there is to see, by the words
below; at least one that is wrong is shown.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from captioner.data.vocabulary import words_of
from captioner.inference.caption import Caption
from captioner.inference.compiled_captioner import CompiledCaptioner
from captioner.inference.search_options import ALL_LANGUAGES
from captioner.system.files import atomic_write

ROOT = Path(__file__).resolve().parent.parent
PHOTOS, README = ROOT / "docs" / "photos", ROOT / "README.md"
LANGUAGES = {"en": "English", "de": "German", "zh": "Chinese"}
SCORES = {"bleu4": "BLEU-4", "cider": "CIDEr"}
SHOWN, WRONG, WIDTH = 3, 1, 240  # photographs in a row, of them wrong ones, pixels


class Photograph(NamedTuple):
    """A photograph, what to look for in its captions, and where it is from."""

    right: dict[
        str, str
    ]  # by language, a pattern that right captions have; a language without one is not shown
    wrong: dict[str, str]  # by language, a pattern that none of them has
    title: str
    source: str


# German captions are compared in lower case, Chinese ones without spaces.
PHOTOGRAPHS = {
    "camera": Photograph(
        {"en": r"camera|tripod", "de": r"kamera|stativ|foto", "zh": r"相机|摄像|拍"},
        {"zh": r"在照相机$"},  # a man "in a camera"
        "Man with a camera",
        "Lav Varshney, CC0; `skimage.data.camera` of "
        "[scikit-image](https://scikit-image.org/docs/stable/api/skimage.data.html)",
    ),
    "hopper": Photograph(
        {"en": r"woman|lady|person|hat|uniform", "de": r"frau|person|uniform", "zh": r"女|帽|制服"},
        {"en": r"\b(man|boy|dog)\b", "de": r"\b(mann|junge|hund)\b", "zh": r"男|狗"},
        "Grace Hopper",
        "United States Navy, public domain; sample data of [matplotlib](https://matplotlib.org)",
    ),
    "astronaut": Photograph(
        {"en": r"woman|astronaut", "de": r"frau|astronaut", "zh": r"女|宇航"},
        {
            "en": r"riding|ball|\b(man|boy|dog)\b",
            "de": r"ball|fährt|\b(mann|junge|hund)\b",
            "zh": r"球|骑|男|狗",
        },
        "Eileen Collins",
        "NASA, public domain; `skimage.data.astronaut`",
    ),
    "cat": Photograph(
        {"en": r"\bcat\b", "de": r"katze", "zh": r"猫"},
        {"en": r"dog", "de": r"hund", "zh": r"狗"},
        "Chelsea",
        "Stefan van der Walt, CC0; `skimage.data.cat`",
    ),
    "coffee": Photograph(
        {"en": r"coffee|cup|mug|drink|spoon", "de": r"kaffee|tasse|getränk|löffel", "zh": r"咖啡|杯|勺"},
        {"en": r"dog|boy|girl", "de": r"hund|junge|mädchen|kind", "zh": r"狗|孩"},
        "Coffee",
        "Rachel Michetti, CC0; `skimage.data.coffee`",
    ),
    "rocket": Photograph(
        {"en": r"rocket|firework|smoke|launch", "de": r"rakete|feuerwerk|rauch", "zh": r"火箭|烟火"},
        {"en": r"dog|boy|girl", "de": r"hund|junge|mädchen|kind|mann", "zh": r"狗|孩|人"},
        "Start of a Falcon 9",
        "SpaceX, released into the public domain; `skimage.data.rocket`",
    ),
    "raccoon": Photograph(
        {"en": r"animal|raccoon|racoon", "de": r"tier|waschbär", "zh": r"动物|浣熊"},
        {"en": r"person|dog|boy|girl", "de": r"person|hund|junge|mädchen", "zh": r"人|狗|孩"},
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
    captioner = CompiledCaptioner.load(arguments.run)
    every = {"language": ALL_LANGUAGES} if captioner.vocabulary.languages else {}
    captions = captioner.caption([PHOTOS / f"{name}.jpg" for name in PHOTOGRAPHS], **every)
    said = dict(zip(PHOTOGRAPHS, captions, strict=True))
    readme = README.read_text(encoding="utf-8")
    readme = marked(readme, "photographs", first_page(said))
    readme = marked(readme, "scores", scores(arguments.run))
    readme = re.sub(
        r"^(\| captioner \| yes \| )\d+ MB", rf"\g<1>{size(arguments.run)} MB", readme, flags=re.M
    )
    files = {README: readme, PHOTOS / "README.md": sources(said)}
    differing = [path for path, text in files.items() if not path.exists() or path.read_text("utf-8") != text]
    for path in differing:
        print(f"{path.relative_to(ROOT)}: {'differs' if arguments.check else 'written'}")
        if not arguments.check:
            atomic_write(path, files[path].encode())
    return 1 if arguments.check and differing else 0


def marked(page: str, name: str, text: str) -> str:
    """The page with another text between two marks."""
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    return re.sub(f"{begin}.*?{end}", lambda _: f"{begin}\n{text}{end}", page, flags=re.DOTALL)


def scores(run: Path) -> str:
    """A table of the dev scores in each language."""
    best = json.loads((run / "best" / "best.json").read_text(encoding="utf-8"))
    known = [language for language in LANGUAGES if f"cider_{language}" in best]
    rows = [("", [LANGUAGES[language] for language in known])]
    rows += [(title, [f"{best[f'{key}_{one}']:.1f}" for one in known]) for key, title in SCORES.items()]
    lines = [f"| {title} | {' | '.join(cells)} |\n" for title, cells in rows]
    return "".join([lines[0], "|---" * (1 + len(known)) + "|\n", *lines[1:]])


def size(run: Path) -> int:
    """Of the model's files, in megabytes."""
    return round(sum(file.stat().st_size for file in run.rglob("*") if file.is_file()) / 1e6)


def is_right(name: str, caption: str, language: str = "en") -> bool:
    """Whether a caption names what there is to see, and nothing that is not there."""
    photograph = PHOTOGRAPHS[name]
    text = " ".join(words_of(caption)) if language == "en" else caption.lower()
    wrong = photograph.wrong.get(language)
    return bool(re.search(photograph.right[language], text)) and not (wrong and re.search(wrong, text))


def first_page(said: Mapping[str, Caption]) -> str:
    """A row of photographs with their captions in each language, those last whose English is wrong."""
    good = [name for name, caption in said.items() if is_right(name, caption.text)][: SHOWN - WRONG]
    bad = [name for name, caption in said.items() if not is_right(name, caption.text)][: SHOWN - len(good)]
    cells = "".join(_cell(name, said[name]) for name in (*good, *bad))
    told = [caption for caption in said.values() if caption.confidence is not None]
    unlike = sum(bool(caption.unfamiliar) for caption in told)
    sure = (
        "Shares: how often captions of such a score\n"
        "were right on photographs of the kind it learned from. "
        f"{unlike} of the {len(told)} that were tried it calls unlike those.\n"
    )
    return (
        f"<table><tr>\n{cells}</tr></table>\n\n"
        "Sentences of the model that comes along, unedited; those with a ✗ are wrong, and shown for that. "
        f"{sure if told else chr(10)}"
        "[All that were tried, and their sources](docs/photos/README.md)\n"
    )


def _cell(name: str, caption: Caption) -> str:
    picture = f'<img src="docs/photos/{name}.jpg" width="{WIDTH}" alt="{PHOTOGRAPHS[name].title}">'
    others = {one: said.text for one, said in caption.by_language.items() if said.text != caption.text}
    shown = [f"<sub>{_marked(name, text, one)}</sub>" for one, text in others.items() if one in LANGUAGES]
    sure = f" <sub>{_percent(caption)}</sub>" if caption.confidence is not None else ""
    return f"<td>{'<br>'.join([picture, _marked(name, caption.text) + sure, *shown])}</td>\n"


def _marked(name: str, text: str, language: str = "en") -> str:
    return text if is_right(name, text, language) else f"✗ {text}"


def _percent(caption: Caption) -> str:
    return "" if caption.confidence is None else f"{100 * caption.confidence:.0f} %"


def sources(said: Mapping[str, Caption]) -> str:
    """The page of all photographs."""
    rows = "".join(
        f'| <img src="{name}.jpg" width="120" alt="{photo.title}"> | {_marked(name, said[name].text)} | '
        f"{_percent(said[name])} | {'yes' if said[name].unfamiliar else 'no'} | "
        f"{photo.title}: {photo.source} |\n"
        for name, photo in PHOTOGRAPHS.items()
    )
    return f"{SOURCES}\n| | caption | sure | unfamiliar | from |\n|---|---|---|---|---|\n{rows}"


SOURCES = """# Photographs

They may be used by anyone for anything: CC0 or public domain, as the packages say that they were
taken from. Made smaller, nothing else. The sentences are by `captioner caption`, with the model
that comes along; all that were tried are here, wrong ones with a ✗. *Sure* is the `confidence` of `--json`:
how often captions of such a score were right on its dev pictures. *Unfamiliar*: it finds the picture
unlike those that it learned from. This page and the opening of README.md are by
`python scripts/photographs.py`.
"""


if __name__ == "__main__":
    sys.exit(main())
