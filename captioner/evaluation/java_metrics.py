"""METEOR 1.5 and SPICE as the coco-caption toolkit gives them: by its own Java programs, on its own words.

In: references and captions. Out: figures in per cent, and a sentence about what had to be left out. Needs
Java and the extra `captioner[java]` (pycocoevalcap); starts processes, which use temporary files.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from captioner.errors import CaptionerError, MissingExtra
from captioner.system.console import silent_stderr

_CORE_NLP = "stanford-corenlp-3.6.0.jar"
_FETCH = "from pycocoevalcap.spice.get_stanford_models import get_stanford_models as get; get()"

# SPICE keeps objects of Java's own classes by reflection, which Java from 16 on refuses unless it is told to.
# Java 8 does not read the variable, and needs no permission.
_OPENED = (
    *(f"java.base/java.{name}" for name in ("lang", "math", "net", "text", "util", "util.concurrent")),
    "java.sql/java.sql",
)
JAVA_OPTIONS = " ".join(f"--add-opens={name}=ALL-UNNAMED" for name in _OPENED)


class JavaScores(NamedTuple):
    """What the Java programs gave."""

    scores: dict[str, float]  # meteor15, spice
    missing: str = ""  # a sentence about what could not be computed


def check_java() -> None:
    """Raises the CaptionerError of one sentence unless Java and pycocoevalcap are there."""
    if find_spec("pycocoevalcap") is None:
        raise MissingExtra("java", "METEOR 1.5 and SPICE, as coco-caption gives them,")
    if shutil.which("java") is None:
        raise CaptionerError(
            "METEOR 1.5 and SPICE run on Java, and there is no `java` here: install a Java runtime "
            "(apt install default-jre-headless), or leave out --java"
        )


def java_scores(references: Sequence[Sequence[str]], captions: Sequence[str]) -> JavaScores:
    """METEOR 1.5 over all captions and, where Stanford CoreNLP is beside it, SPICE; in per cent.

    Raises:
        CaptionerError: Java or pycocoevalcap is missing; a Java program fails.
    """
    check_java()
    from pycocoevalcap.meteor.meteor import Meteor
    from pycocoevalcap.spice.spice import Spice
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    people = {i: [{"caption": _one_line(text)} for text in texts] for i, texts in enumerate(references)}
    model = {i: [{"caption": _one_line(text)}] for i, text in enumerate(captions)}
    try:
        with contextlib.redirect_stdout(io.StringIO()), silent_stderr():
            tokenizer = PTBTokenizer()
            people, model = tokenizer.tokenize(people), tokenizer.tokenize(model)
            scores = {"meteor15": 100 * float(Meteor().compute_score(people, model)[0])}
            folder = Path(Spice.__init__.__code__.co_filename).parent / "lib"
            if not (folder / _CORE_NLP).is_file():
                missing = (
                    f'SPICE is left out: it needs Stanford CoreNLP 3.6.0, fetched by: python -c "{_FETCH}"'
                )
                return JavaScores(scores, missing)
            with _java_options(JAVA_OPTIONS):
                spice = 100 * float(Spice().compute_score(people, model)[0])
            return JavaScores({**scores, "spice": spice})
    except Exception as error:  # whatever a process of another language dies of
        raise CaptionerError(
            f"coco-caption's Java programs failed ({type(error).__name__}: {error}); try `java -version`, or "
            "leave out --java"
        ) from error


@contextlib.contextmanager
def _java_options(options: str) -> Iterator[None]:
    """Java programs started meanwhile get these, too."""
    before = os.environ.get("JDK_JAVA_OPTIONS")
    os.environ["JDK_JAVA_OPTIONS"] = f"{before or ''} {options}".strip()
    try:
        yield
    finally:
        if before is None:
            del os.environ["JDK_JAVA_OPTIONS"]
        else:
            os.environ["JDK_JAVA_OPTIONS"] = before


def _one_line(text: str) -> str:
    return " ".join(text.split())
