"""The forms in which captioned pictures are handed about: one reader each, a row in `DATASETS`.

In: captions files and split lists. Out: what they say, added to a `Listing`. Opens no picture.
"""

from __future__ import annotations

import ast
import csv
import io
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from captioner.data.image_files import is_picture_name
from captioner.data.listings import (
    SPLIT_NAMES,
    CaptionsFile,
    Listing,
    Problems,
    Reader,
    files_of,
    head_of,
    named_split,
    plain_name,
    read_text,
    refuse,
)
from captioner.data.own_captions import is_own_row
from captioner.data.pairs import CAPTION_KEYS, find_pairs, parse_pairs
from captioner.errors import DataError

# Flickr8k, Flickr30k: name#number<TAB>caption, with split lists beside it

_TOKEN_LINE = re.compile(r"(.+?)#\d+\t(.*)")
_SPLIT_LIST = re.compile(r"(?:.*[_.-])?(train|dev|val|test)(?:images)?\.txt", re.IGNORECASE)


def _find_flickr(root: Path) -> list[CaptionsFile]:
    """The file of customary name, else any with such lines; of several the one with the words as written."""
    customary = files_of(root, ".token.txt", ".token", "captions.txt", "results.csv")
    found = [path for path in customary if _is_token_file(path) or header_of(path)]
    found = found or [path for path in files_of(root, ".txt") if _is_token_file(path)]
    # Flickr8k's archive holds its captions again as lemmas ("two dog be run"), which are shorter.
    found.sort(key=lambda path: ("lemma" in path.name.lower(), -_mean_length(path), path.name))
    return _chosen(found) or [
        CaptionsFile(path, certain=False) for path in customary[:1] if ".token" in path.name
    ]


def _is_token_file(path: Path) -> bool:
    return bool(_TOKEN_LINE.fullmatch(_first_line(head_of(path))))


def _mean_length(path: Path) -> int:
    lines = [line for line in head_of(path).split("\n") if line.strip()]
    return round(sum(map(len, lines)) / max(1, len(lines)))


def _chosen(found: list[Path]) -> list[CaptionsFile]:
    """The first of several files; it names the others as passed over."""
    return [CaptionsFile(path, beside=tuple(other.name for other in found[1:])) for path in found[:1]]


def _first_line(text: str) -> str:
    return next((line for line in text.split("\n") if line.strip()), "")


def _parse_flickr(listing: Listing, source: CaptionsFile, split: str) -> None:
    text = read_text(source.path)
    first_line = _first_line(text)
    if _TOKEN_LINE.fullmatch(first_line):
        for number, line in enumerate(text.split("\n"), start=1):
            match = _TOKEN_LINE.fullmatch(line)
            if match:
                listing.add(match[1], [match[2]], source.split)
            elif line.strip():
                listing.problems.note("lines not understood", f"{source.path.name}:{number}")
    elif _header(first_line):
        _parse_csv(listing, source, split)
    else:
        refuse(source, 'lines like "name.jpg#0<TAB>caption", or a table headed image,caption', first_line)
    _add_split_lists(listing, source.path, split)


def _add_split_lists(listing: Listing, captions_file: Path, split: str) -> None:
    stems: dict[str, str] = {}
    for path in sorted(captions_file.parent.iterdir()):
        match = _SPLIT_LIST.fullmatch(path.name)
        if not match or path == captions_file:
            continue
        name = SPLIT_NAMES[match[1].lower()]
        members = listing.splits.setdefault(name, {})
        if split not in (name, "all"):
            continue  # that it is there says that the set has splits of its own
        for line in filter(None, map(plain_name, map(str.strip, read_text(path).split("\n")))):
            if line not in listing.captions and not stems:  # Flickr30k's lists leave the suffix out
                stems = {os.path.splitext(known)[0]: known for known in listing.captions}
            picture = line if line in listing.captions else stems.get(line, line)
            if picture in members:
                listing.problems.note(f"pictures twice in {path.name}", picture)
            members[picture] = None


# JSON: Karpathy's splits and COCO

_KARPATHY_FORM = '{"images": [{"filename", "split", "sentences": [{"raw"}]}]}'
_COCO_FORM = '{"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}'


def _find_karpathy(root: Path) -> list[CaptionsFile]:
    files = files_of(root, ".json")
    found = [path for path in files if _json_form(path) == "karpathy"]
    if not found:  # one that is called so is read, to be told what is wrong with it
        customary = [path for path in files if re.fullmatch(r"dataset(_.*)?\.json", path.name)]
        return [CaptionsFile(path, certain=False) for path in customary[:1]]
    return _chosen(sorted(found, key=lambda path: not path.name.startswith("dataset")))


def _find_coco(root: Path) -> list[CaptionsFile]:
    """Files named after splits, or called captions…; else the only one."""
    files = files_of(root, ".json")
    found = [path for path in files if _json_form(path) == "coco"]
    if not found:
        customary = [path for path in files if path.name.startswith("captions")]
        return [CaptionsFile(path, named_split(path), certain=False) for path in customary[:1]]
    customary = [path for path in found if path.name.startswith("captions")]
    named = customary or [path for path in found if named_split(path)]
    beside = tuple(path.name for path in found if path not in named) if named else ()
    return [
        CaptionsFile(path, named_split(path), beside=beside) for path in named or found[: len(found) == 1]
    ]


def _json_form(path: Path) -> str:
    """Which form a JSON file is of, by the keys in it; dataset_infos.json and its like are of none."""
    try:
        content = path.read_bytes()
    except OSError:
        return ""
    if b'"images"' not in content:
        return ""
    if b'"annotations"' in content and b'"caption"' in content:
        return "coco"
    return "karpathy" if b'"filename"' in content and b'"sentences"' in content else ""


def _load_json(source: CaptionsFile, form: str) -> dict[str, Any]:
    text = read_text(source.path)
    try:
        data = json.loads(text, object_hook=_without_tokens)
    except json.JSONDecodeError as error:
        where = f"{source.path}, line {error.lineno}"
        raise DataError(f"{where}: not JSON ({error.msg}); expected {form}") from error
    if not isinstance(data, dict):
        refuse(source, form, text)
    return data


def _without_tokens(each: dict[str, Any]) -> dict[str, Any]:
    """An object of the file, less what is not read: of COCO's size that would be half a gigabyte."""
    if each.get("raw"):
        for key in ("tokens", "sentid", "imgid"):
            each.pop(key, None)
    each.pop("sentids", None)
    return each


def _parse_karpathy(listing: Listing, source: CaptionsFile, split: str) -> None:
    data = _load_json(source, _KARPATHY_FORM)
    try:
        for image in data["images"]:
            name = "/".join(filter(None, (image.get("filepath"), image["filename"])))
            split_name = listing.split_of(image.get("split"), name)
            listing.add(name, (), split_name)
            for each in image["sentences"]:
                language = each.get("language") or image.get("language")
                listing.add(name, [each.get("raw") or " ".join(each["tokens"])], language=language)
            number = image.get("cocoid", image.get("imgid"))
            if number is not None:
                listing.numbers[str(number)] = name
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{source.path}: expected {_KARPATHY_FORM}; missing or odd: {error}") from error


def _parse_coco(listing: Listing, source: CaptionsFile, split: str) -> None:
    data = _load_json(source, _COCO_FORM)
    try:
        names = {image["id"]: image["file_name"] for image in data["images"]}
        listing.numbers.update((str(number), name) for number, name in names.items())
        for name in names.values():
            listing.add(name, (), source.split)
        for annotation in data["annotations"]:
            picture = names.get(annotation["image_id"])
            if picture is None:
                listing.problems.note("captions of an unlisted picture", f"image_id {annotation['image_id']}")
            else:
                listing.add(picture, [annotation["caption"]], language=annotation.get("language"))
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{source.path}: expected {_COCO_FORM}; missing or odd: {error}") from error


# Tables (CSV, TSV) and JSON lines: one row a caption, or one a picture

_NAME_KEYS = (
    *("file_name", "filename", "image", "image_name", "image_path", "filepath", "file", "path"),
    *("image_file_name", "img", "image_id", "picture"),
)
_SPLIT_KEYS = ("split", "set", "subset")
_MOST_LINES = 50  # of one caption
_NUMBERED = re.compile(rf"({'|'.join(CAPTION_KEYS)})[ _-]?\d+")  # caption_1, caption_2, …
_LANGUAGE_KEYS = ("language", "lang")


def _find_rows(holds_rows: Callable[[Path], bool], *suffixes: str) -> Callable[[Path], list[CaptionsFile]]:
    def find(root: Path) -> list[CaptionsFile]:
        """`metadata` or `captions`, else files or folders named after splits, else the only file."""
        found = [path for path in files_of(root, *suffixes) if holds_rows(path)]
        customary = [path for path in found if path.stem.lower() in ("metadata", "captions")]
        if customary:
            return _chosen(customary + [path for path in found if path not in customary])
        named = [CaptionsFile(path, named_split(path)) for path in found if named_split(path)]
        for folder in sorted(child for child in root.iterdir() if child.name.lower() in SPLIT_NAMES):
            inside = (folder / f"metadata{suffix}" for suffix in suffixes)
            split = SPLIT_NAMES[folder.name.lower()]
            named += [CaptionsFile(path, split, folder.name + "/") for path in inside if holds_rows(path)]
        if named or len(found) == 1:
            return named or _chosen(found)
        customary = [
            path for path in files_of(root, *suffixes) if path.stem.lower() in ("metadata", "captions")
        ]
        # One of ours last: a person may have changed some of it.
        customary.sort(key=is_own_table)
        return [CaptionsFile(path, certain=False) for path in customary[:1]]

    return find


def is_own_table(path: Path) -> bool:
    """Whether a table, by how it begins, holds nothing but captions that captioner wrote."""
    first_line, _, rest = head_of(path).partition("\n")
    if path.suffix.lower() == ".jsonl":
        rows = [row for line in first_line.split("\n") if isinstance(row := _json_or_none(line), dict)]
    else:
        header = _header(first_line.strip())
        if header is None or "score" not in header[1]:
            return False
        delimiter, columns = header
        lines = csv.reader(rest.split("\n")[:-1] or [rest], delimiter=delimiter)
        rows = [dict(zip(columns, row, strict=False)) for row in lines if row]
    return bool(rows) and all(map(is_own_row, rows))


def header_of(path: Path) -> tuple[str, list[str]] | None:
    """Delimiter and columns of a table of pictures and captions that people wrote; None: it is none."""
    return None if is_own_table(path) else _header(head_of(path).partition("\n")[0].strip())


def _header(line: str) -> tuple[str, list[str]] | None:
    """Delimiter and column names (lower case) if the line heads a table of pictures and captions."""
    for delimiter in "\t|;,":
        columns = [column.strip().strip('"').lower() for column in line.split(delimiter)]
        if any(key in columns for key in _NAME_KEYS) and _caption_columns(columns):
            return delimiter, columns
    return None


def _caption_columns(columns: list[str]) -> list[str]:
    """The column of captions, or several: caption_1, caption_2, …"""
    numbered = [column for column in columns if _NUMBERED.fullmatch(column) and column != "comment_number"]
    return [key for key in CAPTION_KEYS if key in columns][:1] or numbered


def _parse_csv(listing: Listing, source: CaptionsFile, split: str) -> None:
    lines = read_text(source.path).split("\n")
    header = _header(lines[0].strip())
    if header is None:
        refuse(source, "a first line that names the columns: image,caption[,split]", lines[0])
    for number, row in _table_rows(lines, header, listing.problems, source.path.name):
        _add_row(listing, dict(zip(header[1], row, strict=False)), source, number)


def _table_rows(
    lines: list[str], header: tuple[str, list[str]], problems: Problems, file: str
) -> Iterator[tuple[int, list[str]]]:
    """The rows of a table, each with the number of its line.

    A quoted caption may run over several lines, but not over one that is a row itself: then its quotation
    mark was left open, and belongs to the caption.
    """
    delimiter, columns = header
    quotes = delimiter in ",;"  # elsewhere a quotation mark belongs to the caption
    caption = columns.index(_caption_columns(columns)[-1])
    name = next(columns.index(key) for key in _NAME_KEYS if key in columns)
    suffixed = len(lines) > 1 and is_picture_name(_name_in(lines[1], delimiter, name))

    def is_row(line: str) -> bool:
        """Whether a line is a row by itself: with enough fields, and a picture's name where it should be."""
        enough = line.count(delimiter) >= len(columns) - 1
        return enough and (not suffixed or is_picture_name(_name_in(line, delimiter, name)))

    number = 1
    while number < len(lines):
        start, text = number, lines[number]
        number += 1
        if not text.strip():
            continue
        is_open = quotes and '"' in text and _left_open(text, delimiter)
        while is_open and number < min(len(lines), start + _MOST_LINES) and not is_row(lines[number]):
            text += "\n" + lines[number]
            number += 1
            is_open = _left_open(text, delimiter)
        if is_open:
            problems.note("quotation marks left open", f"{file}:{start + 1}")
            number, text = start + 1, lines[start]
        row = _fields(text, delimiter, quoted=quotes and not is_open)
        if len(row) > len(columns):
            extra = len(row) - len(columns)
            row[caption : caption + extra + 1] = [delimiter.join(row[caption : caption + extra + 1])]
            problems.note("delimiters in captions without quotes", f"{file}:{start + 1}")
        yield start + 1, row


def _fields(text: str, delimiter: str, *, quoted: bool) -> list[str]:
    if not quoted or '"' not in text:
        return text.split(delimiter)
    try:
        return next(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter))
    except csv.Error:  # longer than any caption
        return text.split(delimiter)


def _left_open(text: str, delimiter: str) -> bool:
    """Whether a quotation mark that begins a field is not closed in these lines."""
    d = re.escape(delimiter)
    rest = re.sub(rf'(?:(?<=^)|(?<={d}))"(?:[^"]|"")*"(?={d}|$)', "", text)
    return re.search(rf'(^|{d})"', rest) is not None


def _name_in(line: str, delimiter: str, name: int) -> str:
    """The field of a line in which the picture's name should stand, without folders."""
    fields = [*line.split(delimiter), *[""] * name]
    return re.split(r"[/\\]", fields[name].strip().strip('"'))[-1]


def _json_rows(source: CaptionsFile, problems: Problems) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(read_text(source.path).split("\n"), start=1):
        try:
            row = json.loads(line) if line.strip() else None
        except json.JSONDecodeError:
            row = ()
        if isinstance(row, dict):
            yield number, row
        elif row is not None:
            problems.note("lines not understood", f"{source.path.name}:{number}")


def _holds_json_rows(path: Path) -> bool:
    """Whether the first line is an object with a picture and captions that captioner did not write."""
    row = _json_or_none(_first_line(head_of(path)))
    keys = isinstance(row, dict) and any(key in row for key in _NAME_KEYS) and _caption_columns(list(row))
    return bool(keys) and not is_own_row(row)


def _json_or_none(text: str) -> Any:
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError):
        return None


def _parse_jsonl(listing: Listing, source: CaptionsFile, split: str) -> None:
    for number, row in _json_rows(source, listing.problems):
        _add_row(listing, row, source, number)
    if not listing.captions:
        refuse(source, 'lines like {"file_name": "a.jpg", "text": "a caption"}', read_text(source.path)[:60])


def _add_row(listing: Listing, row: dict[str, Any], source: CaptionsFile, line: int) -> None:
    name = next((row[key] for key in _NAME_KEYS if row.get(key)), None)
    keys = _caption_columns(list(row))
    captions = [row[key] for key in keys if row[key] is not None or len(keys) == 1]
    if not isinstance(name, str) or not keys:
        listing.problems.note("lines not understood", f"{source.path.name}:{line}")
        return
    picture = source.prefix + name.strip().replace("\\", "/")
    told = next((row[key] for key in _SPLIT_KEYS if row.get(key)), None)
    split = listing.split_of(told, picture) or source.split
    texts = [text for each in captions for text in (each if isinstance(each, list) else _list_in(each))]
    if is_own_row(row):
        known = listing.scored.setdefault(plain_name(picture), set())
        known.update(" ".join(str(text).split()) for text in texts)
    language = next((row[key] for key in _LANGUAGE_KEYS if row.get(key)), None)
    listing.add(picture, texts, split, language=language)


def _list_in(value: Any) -> list[Any]:
    """The sentences of a list that was written into one cell, as pandas does; else the value alone.

    >>> _list_in("['a dog', 'a cat']"), _list_in("[sic] a dog")
    (['a dog', 'a cat'], ['[sic] a dog'])
    """
    if isinstance(value, str) and value[:1] == "[" and value.rstrip()[-1:] == "]":
        for read in (json.loads, ast.literal_eval):
            with suppress(ValueError, SyntaxError, RecursionError, MemoryError):
                found = read(value)
                if isinstance(found, list) and all(isinstance(each, str) for each in found):
                    return found
    return [value]


_FLICKR = Reader(
    "*.token.txt (or captions.txt) with lines name.jpg#0<TAB>caption",
    "*_{train,dev,test}Images.txt beside the captions file",
    _find_flickr,
    _parse_flickr,
)
_CSV = Reader(
    "*.csv or *.tsv headed image,caption[,split][,language]",
    "a column split, or files train.csv, dev.csv, test.csv",
    _find_rows(lambda path: header_of(path) is not None, ".csv", ".tsv"),
    _parse_csv,
)
_JSONL = Reader(
    'metadata.jsonl (or *.jsonl) with lines {"file_name": …, "text": …}',
    'a key "split", or files or folders named train, dev, test',
    _find_rows(_holds_json_rows, ".jsonl"),
    _parse_jsonl,
)
_KARPATHY = Reader(
    "dataset_*.json, Karpathy's form",
    '"split" of each image',
    _find_karpathy,
    _parse_karpathy,
)
_COCO = Reader(
    "captions_*.json, COCO's form",
    "captions_{train,val,test}*.json",
    _find_coco,
    _parse_coco,
)
_PAIRS = Reader(
    "pictures with a file of their name beside them: photo.jpg and photo.txt (or photo.jpg.txt, .xmp, .json)",
    "folders named train, dev, test",
    find_pairs,
    parse_pairs,
)

# In the order in which `auto` tries them; a name may stand for a reader that another row has, too.
DATASETS: dict[str, Reader] = {
    "flickr8k": _FLICKR,
    "flickr30k": _FLICKR,
    "karpathy": _KARPATHY,
    "coco": _COCO,
    "jsonl": _JSONL,
    "imagefolder": _JSONL,
    "csv": _CSV,
    "tsv": _CSV,
    "pairs": _PAIRS,
}
