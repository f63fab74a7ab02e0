"""The sheet of all captions, `captions.csv`: read, added to, written whole.

In: the table that is there, if any, and captions. Out: the table with them; columns, rows and the separator
that it had are kept, a column `score` is added where it has none. A picture with several captions has several
rows. All rows are held in memory.
"""

from __future__ import annotations

import csv
import io
import posixpath
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from captioner.errors import DataError
from captioner.system.files import replacing

COLUMNS = ["file_name", "caption", "score"]
_NAMES = ("file_name", "filename", "image", "file", "path")
_CAPTIONS = ("caption", "text", "description")


class Table:
    """Rows of pictures and captions.

    Args:
        path: of the file, which need not be there.

    Raises:
        DataError: it is there, and is no table of captions.

    Example:
        >>> table = Table(Path("no-such-folder/captions.csv"))
        >>> table.put("a.jpg", "ein Hund", {"score": -0.5})
        >>> table.text("a.jpg"), table.text("b.jpg")
        ('ein Hund', None)
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.changed = False
        self._columns, self._delimiter, self._ending = COLUMNS, ",", "\n"
        self._mark = ""
        self._rows: list[list[str] | None] = []  # None: taken out
        self._index: dict[str, list[int]] = {}  # picture, see `_key` → its rows
        self._name = self._caption = 0
        self._take(_content(path))

    @property
    def is_ours(self) -> bool:
        """Whether the table is new, or begins with the columns that only captioner writes."""
        return not self._columns or self._columns[: len(COLUMNS)] == COLUMNS

    def text(self, name: str) -> str | None:
        """The captions of a picture, joined with line ends; None if the table has none."""
        rows = (self._rows[number] for number in self._index.get(_key(name), ()))
        return "\n".join(row[self._caption] for row in rows if row).strip() or None

    def put(self, name: str, text: str, found: Mapping[str, Any]) -> None:
        """Replaces the captions of a picture; rows with one of the new captions stay as they are."""
        spoken = {one["caption"]: one for one in found.get("captions", {}).values()}
        self._mark_ours(*(("language",) if "language" in found else ()))
        wanted = dict.fromkeys(text.split("\n"))
        kept = []
        for number in self._index.get(_key(name), ()):
            row = self._rows[number]
            if row and row[self._caption].strip() in wanted:
                del wanted[row[self._caption].strip()]
                kept.append(number)
            else:
                self._rows[number] = None
        for caption in wanted:
            own = spoken.get(caption, found)
            values = {name: own.get(name, "") for name in ("score", "language")}
            row = [str(values.get(column.strip().lower(), "")) for column in self._columns]
            row[self._name], row[self._caption] = name, caption
            kept.append(len(self._rows))
            self._rows.append(row)
        self._index[_key(name)] = kept
        self.changed = True

    def save(self) -> None:
        """Writes the whole file atomically if a row has changed."""
        if not self.changed:
            return
        # Names that are not Unicode leave as the bytes they came as.
        encoding: Any = {"encoding": "utf-8", "errors": "surrogateescape", "newline": ""}
        with replacing(self.path) as temporary, open(temporary, "w", **encoding) as file:
            file.write(self._mark)
            writer = csv.writer(file, delimiter=self._delimiter, lineterminator=self._ending)
            writer.writerow(self._columns)
            writer.writerows(row for row in self._rows if row is not None)
        self.changed = False

    def _mark_ours(self, *more: str) -> None:
        """Adds the column `score` if it is missing: readers of data sets know our rows by their score."""
        for name in ("score", *more):
            if not any(column.strip().lower() == name for column in self._columns):
                self._columns = [*self._columns, name]
                self._rows = [row and [*row, ""] for row in self._rows]

    def _take(self, content: bytes) -> None:
        if not content.strip():
            self._name, self._caption = 0, 1
            return
        text = content.decode("utf-8", "surrogateescape")
        if text.startswith("\ufeff"):
            self._mark, text = "\ufeff", text[1:]
        head = text.split("\n", 1)[0]
        self._ending = "\r\n" if head.endswith("\r") else "\n"
        self._delimiter = max(",;\t", key=head.count)
        try:
            rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=self._delimiter, strict=True))
        except csv.Error as error:
            raise DataError(f"{self.path}: cannot be added to ({error}): move it away, or mend it") from error
        self._columns = rows[0]
        self._name = self._column(_NAMES)
        self._caption = self._column(_CAPTIONS)
        for row in filter(None, rows[1:]):
            row += [""] * (len(self._columns) - len(row))
            self._index.setdefault(_key(row[self._name]), []).append(len(self._rows))
            self._rows.append(row)

    def _column(self, names: tuple[str, ...]) -> int:
        columns = [column.strip().lower() for column in self._columns]
        for name in names:
            if name in columns:
                return columns.index(name)
        raise DataError(
            f"{self.path}: has no column {' or '.join(names)}, so no captions can be added to it: "
            "move it away, or choose another folder with --out"
        )


def _key(name: str) -> str:
    """The key under which all spellings of a path are filed: `./a.jpg` and `a.jpg`, every Unicode form.

    >>> _key("./sub//cafe\u0301.jpg") == _key("sub/caf\u00e9.jpg")
    True
    """
    return unicodedata.normalize("NFC", posixpath.normpath(name)) if name else ""


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return b""
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
