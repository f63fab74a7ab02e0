"""`captioner review`: whose captions stand in a folder, and which ones a person should look at first.

In: the parsed arguments. Out: counts and a list on stdout; with --accept, notes in the journal.
"""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

from captioner.cli.arguments import whole

MORE = (
    "Tells captions that people wrote or corrected from those that captioner wrote, by the journal that\n"
    "`captioner caption --write` keeps, and lists first what the model was least sure of. What is right as\n"
    "it stands can be accepted: `captioner adapt` then learns from it, too."
)
EXAMPLES = (
    "  captioner review photos\n"
    "  captioner review photos --most 100 --paths > to-correct.txt\n"
    "  captioner review photos --accept photos/dog.jpg photos/cat.jpg"
)


def add_arguments(add: Any) -> None:
    """Adds the arguments of `captioner review`."""
    add("folder", metavar="FOLDER", help="pictures that captioner has captioned")
    add("--captions", metavar="DIR", help="where the captions are, if `--out` put them elsewhere")
    add("--most", type=whole(0), default=20, metavar="N", help="how many are listed (20)")
    add("--paths", dest="paths_only", action="store_true", help="only the paths of the pictures, one a line")
    add("--accept", nargs="+", metavar="PICTURE", help="note that the captions of these are right")


def run(arguments: Namespace) -> int:
    """`captioner review`: what has been corrected, and what should be."""
    from captioner.apps.sidecars.human_captions import least_sure
    from captioner.apps.sidecars.origins import ORIGINS, accept, captions_in

    folder = Path(arguments.folder)
    place = Path(arguments.captions) if arguments.captions else None
    if arguments.accept:
        count = accept(folder, map(Path, arguments.accept), out=place)
        print(f"accepted: {count} of {len(arguments.accept)}")
        return 0 if count == len(arguments.accept) else 1
    found = captions_in(folder, out=place)
    doubtful = least_sure(found.of("untouched"), arguments.most)
    if arguments.paths_only:
        for each in doubtful:
            print(each.picture)
        return 0
    for origin, count in found.counts.items():
        print(f"{origin:10}{count:8,}   {ORIGINS[origin]}")
    print(f"{'without':10}{len(found.without):8,}   no caption yet")
    for path, reason in found.problems:
        print(f"not read: {path}: {reason}")
    if doubtful:
        print("\nleast sure of (mean log probability of a word):")
    for each in doubtful:
        print(f"{each.score:7.2f}  {each.picture}: {each.captions[0]}")
    return 0
