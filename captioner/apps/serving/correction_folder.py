"""Corrected captions, kept as a data set from which a model can be adapted.

In: a picture's bytes and the sentence that a person wrote for it. Out: a folder with `NAME.jpg`, as it was
sent, and `NAME.txt`, one line; NAME comes from the picture's content, so that a second correction of the same
picture replaces its sentence. Each file is written whole or not at all, the picture before its sentence:
whatever ends the server, the folder is a data set.
"""

from __future__ import annotations

import io
import os
import threading
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from captioner.data.image_files import FORMATS, is_picture_name
from captioner.data.images import Limits, read_image
from captioner.data.vocabulary import words_of
from captioner.errors import CaptionerError, ConfigError
from captioner.system.files import atomic_write, digest_bytes

MOST_CHARACTERS = 1000  # of a sentence
MOST_WORDS = 60
MOST_PICTURES = 10_000  # in a folder: clients must not fill the disk
NAME_LENGTH = 24  # hexadecimal digits: no two pictures of a folder ever share them


class FolderFull(CaptionerError):
    """The folder holds as many pictures as it may."""


@dataclass(frozen=True)
class Correction:
    """What was kept."""

    name: str  # of the picture in the folder
    caption: str  # as it was written: one line
    replaced: bool  # whether the picture had a sentence before


class CorrectionFolder:
    """A folder of corrected captions; made if it is not there.

    Args:
        folder: where they are kept.
        most: pictures that it may hold.

    Raises:
        CaptionerError: it cannot be made or written.

    Example:
        >>> import tempfile
        >>> corrections = CorrectionFolder(Path(tempfile.mkdtemp()))
        >>> content = io.BytesIO()
        >>> Image.new("RGB", (8, 8)).save(content, "PNG")
        >>> corrections.keep(content.getvalue(), "  a black\\nsquare ").caption
        'a black square'
        >>> sorted(path.suffix for path in corrections.folder.iterdir())
        ['.png', '.txt']
    """

    def __init__(self, folder: str | Path, most: int = MOST_PICTURES) -> None:
        self.folder, self._most = Path(folder), most
        self._lock = threading.Lock()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._count = sum(is_picture_name(path.name) for path in self.folder.iterdir())
        except OSError as error:
            raise CaptionerError(
                f"--corrections {folder}: cannot be used ({error.strerror}); name another folder"
            ) from error
        if not os.access(self.folder, os.W_OK | os.X_OK):
            raise CaptionerError(f"--corrections {folder}: may not be written; name another folder")

    def __len__(self) -> int:
        """Pictures in the folder."""
        return self._count

    def keep(self, picture: bytes, text: str, limits: Limits | None = None) -> Correction:
        """Writes a picture and its sentence, or the sentence alone if the picture is there.

        Args:
            picture: the bytes of its file.
            text: the sentence.
            limits: of the picture.

        Raises:
            ConfigError: the sentence has no words, or too many.
            ImageError: the picture cannot be read.
            FolderFull: it is a new picture, and the folder holds as many as it may.
            CaptionerError: the disk is full, say.
        """
        sentence = checked_sentence(text)
        read_image(picture, size=(8, 8), limits=limits)  # one that cannot be read teaches nothing
        path = self.folder / (digest_bytes(picture)[:NAME_LENGTH] + _suffix(picture))
        with self._lock:
            new = not path.exists()
            if new and self._count >= self._most:
                raise FolderFull(
                    f"{self._most:,} corrected pictures are kept already; adapt a model from them, and start "
                    "the server with another --corrections folder"
                )
            if new:
                atomic_write(path, picture)
                self._count += 1
            caption_path = path.with_suffix(".txt")
            replaced = caption_path.exists()
            atomic_write(caption_path, sentence + "\n")
        return Correction(path.name, sentence, replaced)


def checked_sentence(text: str) -> str:
    """A sentence on one line, with single spaces.

    Raises:
        ConfigError: it is empty, has no words, too many, or characters that no text has.

    >>> checked_sentence("a dog\\t on  the beach\\n")
    'a dog on the beach'
    """
    if len(text) > MOST_CHARACTERS:
        raise ConfigError(f"caption: has {len(text):,} characters, at most {MOST_CHARACTERS:,} are kept")
    sentence = " ".join(text.split())
    if any(unicodedata.category(character) in ("Cc", "Cs", "Cn") for character in sentence):
        raise ConfigError("caption: has control characters; expected a sentence")
    words = len(words_of(sentence))
    if not words:
        raise ConfigError("caption: has no words; write a sentence that describes the picture")
    if words > MOST_WORDS:
        raise ConfigError(f"caption: has {words} words, at most {MOST_WORDS} are kept")
    return sentence


def _suffix(picture: bytes) -> str:
    """Of the picture's own format, whatever name it was sent under."""
    try:
        with Image.open(io.BytesIO(picture)) as opened:
            return FORMATS[opened.format or ""][0]
    except (OSError, KeyError):  # HEIC, which `read_image` reads through another package
        return ".heic"
