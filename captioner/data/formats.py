"""The formats in which captioned pictures are handed about: one reader each, a row in `DATASETS`.

In: captions files and split lists. Out: what they say, added to a `Listing`. Opens no picture.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from captioner.data.listings import (
    SPLIT_NAMES,
    CaptionsFile,
    Listing,
    Problems,
    Reader,
    files_of,
    named_split,
    read_text,
    refuse,
)
from captioner.data.pairs import CAPTION_KEYS, find_pairs, parse_pairs
from captioner.errors import DataError

# Flickr8k, Flickr30k: name#number<TAB>caption, with split lists beside it

_TOKEN_LINE = re.compile(r"(.+?)#\d+\t(.*)")
_SPLIT_LIST = re.compile(r"(?:.*[_.-])?(train|dev|val|test)(?:images)?\.txt", re.IGNORECASE)


def _find_flickr(root: Path) -> list[CaptionsFile]:
    found = files_of(root, ".token.txt", ".token", "captions.txt", "results.csv")
    return [CaptionsFile(path) for path in found[:1]]


def _parse_flickr(listing: Listing, source: CaptionsFile, split: str) -> None:
    lines = read_text(source.path).split("\n")
    first_line = next((line for line in lines if line.strip()), "").rstrip("\r")
    if _TOKEN_LINE.fullmatch(first_line):
        for number, line in enumerate(lines, start=1):
            match = _TOKEN_LINE.fullmatch(line.rstrip("\r"))
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
        for line in filter(None, map(str.strip, read_text(path).splitlines())):
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
    found = [path for path in files_of(root, ".json") if re.fullmatch(r"dataset(_.*)?\.json", path.name)]
    return [CaptionsFile(path) for path in found[:1]]


def _find_coco(root: Path) -> list[CaptionsFile]:
    found = [path for path in files_of(root, ".json") if re.fullmatch(r"captions.*\.json", path.name)]
    return [CaptionsFile(path, named_split(path)) for path in found]


def _load_json(source: CaptionsFile, form: str) -> dict[str, Any]:
    text = read_text(source.path)
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        where = f"{source.path}, line {error.lineno}"
        raise DataError(f"{where}: not JSON ({error.msg}); expected {form}") from error
    if not isinstance(data, dict):
        refuse(source, form, text)
    return data


def _parse_karpathy(listing: Listing, source: CaptionsFile, split: str) -> None:
    data = _load_json(source, _KARPATHY_FORM)
    try:
        for image in data["images"]:
            name = "/".join(filter(None, (image.get("filepath"), image["filename"])))
            captions = [each.get("raw") or " ".join(each["tokens"]) for each in image["sentences"]]
            listing.add(name, captions, listing.split_of(image.get("split"), name))
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{source.path}: expected {_KARPATHY_FORM}; missing or odd: {error}") from error


def _parse_coco(listing: Listing, source: CaptionsFile, split: str) -> None:
    data = _load_json(source, _COCO_FORM)
    try:
        names = {image["id"]: image["file_name"] for image in data["images"]}
        for name in names.values():
            listing.add(name, (), source.split)
        for annotation in data["annotations"]:
            picture = names.get(annotation["image_id"])
            if picture is None:
                listing.problems.note("captions of an unlisted picture", f"image_id {annotation['image_id']}")
            else:
                listing.captions[picture].append(str(annotation["caption"]))
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{source.path}: expected {_COCO_FORM}; missing or odd: {error}") from error


# Tables (CSV, TSV) and JSON lines: one row a caption, or one a picture

_NAME_KEYS = ("file_name", "filename", "image", "image_name", "image_path", "filepath", "file", "path")
_SPLIT_KEYS = ("split", "set", "subset")


def _find_rows(*suffixes: str) -> Callable[[Path], list[CaptionsFile]]:
    def find(root: Path) -> list[CaptionsFile]:
        """`metadata` or `captions`, else files or folders named after splits, else the only file."""
        found = files_of(root, *suffixes)
        customary = [path for path in found if path.stem.lower() in ("metadata", "captions")]
        if customary:
            return [CaptionsFile(path) for path in customary[:1]]
        named = [CaptionsFile(path, named_split(path)) for path in found if named_split(path)]
        for folder in sorted(child for child in root.iterdir() if child.name.lower() in SPLIT_NAMES):
            inside = (folder / f"metadata{suffix}" for suffix in suffixes)
            split = SPLIT_NAMES[folder.name.lower()]
            named += [CaptionsFile(path, split, folder.name + "/") for path in inside if path.is_file()]
        return named or [CaptionsFile(path) for path in found[:1] if len(found) == 1]

    return find


def _header(line: str) -> tuple[str, list[str]] | None:
    """Delimiter and column names (lower case) if the line heads a table of pictures and captions."""
    for delimiter in "\t|;,":
        columns = [column.strip().strip('"').lower() for column in line.split(delimiter)]
        if any(key in columns for key in _NAME_KEYS) and any(key in columns for key in CAPTION_KEYS):
            return delimiter, columns
    return None


def _parse_csv(listing: Listing, source: CaptionsFile, split: str) -> None:
    text = read_text(source.path)
    first_line, _, rest = text.partition("\n")
    header = _header(first_line.strip())
    if header is None:
        refuse(source, "a first line that names the columns: image,caption[,split]", first_line)
    delimiter, columns = header
    # Only comma-separated files quote; elsewhere a quotation mark belongs to the caption.
    quoting: Any = csv.QUOTE_MINIMAL if delimiter in ",;" else csv.QUOTE_NONE
    rows = csv.reader(io.StringIO(rest, newline=""), delimiter=delimiter, quoting=quoting)
    try:
        for row in rows:
            if len(row) > len(columns) and columns[-1] in CAPTION_KEYS:  # a caption with commas, not quoted
                row[len(columns) - 1 :] = [delimiter.join(row[len(columns) - 1 :])]
            if row:
                _add_row(listing, dict(zip(columns, row, strict=False)), source, rows.line_num + 1)
    except csv.Error as error:
        where = f"{source.path}, line {rows.line_num + 1}"
        raise DataError(f"{where}: {error}; is a quotation mark left open?") from error


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


def _parse_jsonl(listing: Listing, source: CaptionsFile, split: str) -> None:
    for number, row in _json_rows(source, listing.problems):
        _add_row(listing, row, source, number)
    if not listing.captions:
        refuse(source, 'lines like {"file_name": "a.jpg", "text": "a caption"}', read_text(source.path)[:60])


def _add_row(listing: Listing, row: dict[str, Any], source: CaptionsFile, line: int) -> None:
    name = next((row[key] for key in _NAME_KEYS if row.get(key)), None)
    captions = next((row[key] for key in CAPTION_KEYS if row.get(key) is not None), None)
    if not isinstance(name, str) or captions is None:
        listing.problems.note("lines not understood", f"{source.path.name}:{line}")
        return
    picture = source.prefix + name.strip().replace("\\", "/")
    told = next((row[key] for key in _SPLIT_KEYS if row.get(key)), None)
    texts = captions if isinstance(captions, list) else [captions]
    listing.add(picture, map(str, texts), listing.split_of(told, picture) or source.split)


_FLICKR = Reader(
    "*.token.txt (or captions.txt) with lines name.jpg#0<TAB>caption",
    "*_{train,dev,test}Images.txt beside the captions file",
    _find_flickr,
    _parse_flickr,
)
_CSV = Reader(
    "*.csv or *.tsv headed image,caption[,split]",
    "a column split, or files train.csv, dev.csv, test.csv",
    _find_rows(".csv", ".tsv"),
    _parse_csv,
)
_JSONL = Reader(
    'metadata.jsonl (or *.jsonl) with lines {"file_name": …, "text": …}',
    'a key "split", or files or folders named train, dev, test',
    _find_rows(".jsonl"),
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
