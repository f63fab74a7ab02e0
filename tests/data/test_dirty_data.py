"""Captions files as people really have them: read as what they are, or refused; what is odd is named."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from captioner.config import DataConfig
from captioner.data.datasets import load_split, load_splits
from captioner.data.listings import without_markers
from captioner.data.statistics import summarize, training_warnings
from captioner.errors import DataError

NAMES = [f"p{number}.jpg" for number in range(6)]


def make(folder: Path, files: dict[str, str | bytes], pictures: list[str] = NAMES) -> Path:
    for name in pictures:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def captions_in(folder: Path) -> dict[str, list[str]]:
    return {record.id: list(record.captions) for record in load_split(folder, "all").records}


def table(*rows: str, head: str = "image,caption") -> str:
    return "\n".join([head, *rows]) + "\n"


# Which file.

TOKENS = "".join(f"{name}#0\tTwo dogs are running .\n" for name in NAMES)
LEMMAS = "".join(f"{name}#0\ttwo dog be run .\n" for name in NAMES)
ROWS = "".join(json.dumps({"file_name": name, "text": f"a ball {name}"}) + "\n" for name in NAMES)
OWN_ROWS = "".join(json.dumps({"path": name, "caption": "ours", "score": -0.5}) + "\n" for name in NAMES)
PEOPLE = table(*(f"{name},a ball {name}" for name in NAMES))
OWN = table(*(f"{name},ours,-0.5" for name in NAMES), head="file_name,caption,score")
CLASSES = table(*(f"{name},3" for name in NAMES), head="image,label")
COCO = json.dumps(
    {
        "images": [{"id": number, "file_name": name} for number, name in enumerate(NAMES)],
        "annotations": [{"image_id": number, "caption": "a ball"} for number in range(6)],
    }
)
BOXES = COCO.replace("caption", "bbox")
KARPATHY = json.dumps({"images": [{"filename": n, "sentences": [{"raw": "a ball"}]} for n in NAMES]})
INFOS = '{"default": {"description": "", "features": {}, "splits": {}}}'


@pytest.mark.parametrize(
    ("files", "chosen", "passed_over"),
    [
        ({"Flickr8k.lemma.token.txt": LEMMAS, "Flickr8k.token.txt": TOKENS}, "Flickr8k.token.txt", "lemma"),
        ({"a.token.txt": LEMMAS, "b.token.txt": TOKENS}, "b.token.txt", "a.token.txt"),
        ({"words.txt": TOKENS}, "words.txt", ""),
        ({"dataset_infos.json": INFOS, "metadata.jsonl": ROWS}, "metadata.jsonl", ""),
        ({"dataset_info.json": INFOS, "dataset_dict.json": "{}", "metadata.csv": PEOPLE}, "metadata.csv", ""),
        ({"dataset.json": KARPATHY, "dataset_infos.json": INFOS}, "dataset.json", ""),
        ({"annotations/instances_train2017.json": BOXES, "all.json": COCO}, "all.json", ""),
        ({"classes.csv": CLASSES, "sentences.csv": PEOPLE}, "sentences.csv", ""),
        ({"captions.csv": OWN, "people.csv": PEOPLE}, "people.csv", ""),
        ({"captions.jsonl": OWN_ROWS, "captions.csv": PEOPLE}, "captions.csv", ""),
        ({"captions.csv": OWN, "metadata.csv": PEOPLE, "captions.1-of-2.csv": OWN}, "metadata.csv", ""),
        ({"captions.csv": PEOPLE, "metadata.jsonl": ROWS}, "metadata.jsonl", "captions.csv"),
        ({"captions.csv": PEOPLE, "metadata.csv": PEOPLE}, "captions.csv", "metadata.csv"),
    ],
)
def test_the_captions_file_is_chosen_by_what_is_in_it_and_said(
    files: dict[str, str | bytes], chosen: str, passed_over: str, tmp_path: Path
) -> None:
    summary = summarize(make(tmp_path, files))
    assert summary.pictures == 6
    read, _, beside = summary.files.partition("; not read: ")
    assert read == chosen
    assert passed_over in beside and bool(beside) == bool(passed_over)
    assert f"captions from {summary.files}" in summary.lines()
    assert load_split(tmp_path, "all").files == summary.files


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"captions.csv": OWN}, "captions that captioner wrote: 6 (p0.jpg: ours, "),
        ({"captions.jsonl": OWN_ROWS}, "captions that captioner wrote: 6 (p0.jpg: ours, "),
        ({"data.parquet": b"PAR1"}, "data.parquet: export its rows"),
        ({"images.zip": b"PK"}, "images.zip: unpack it first"),
        ({"captions.xlsx": b"PK"}, "captions.xlsx: save it as CSV first"),
        ({"captions.csv": b"\xef\xbb\xbf"}, "captions.csv: expected a first line that names the columns"),
        ({"metadata.jsonl": ""}, "it is empty"),
        ({"dataset_x.json": '{"pictures": []}'}, 'dataset_x.json: expected {"images"'),
        ({"dataset_x.json": '{"images": ['}, "dataset_x.json, line 1: not JSON"),
        (
            {"captions_train.json": '{"annotations": 3, "images": []}'},
            'captions_train.json: expected {"images"',
        ),
        ({"a.token.txt": b"\xef\xbb\xbf"}, "it is empty"),
    ],
)
def test_what_cannot_be_read_is_refused_with_a_remedy(
    files: dict[str, str | bytes], said: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError) as told:
        summarize(make(tmp_path, files))
    assert said in str(told.value)


# What stands in it.


@pytest.mark.parametrize("coding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("name", ["captions.csv", "metadata.jsonl", "a.token.txt"])
def test_any_coding_and_any_line_end(name: str, end: str, coding: str, tmp_path: Path) -> None:
    text = {"captions.csv": PEOPLE, "metadata.jsonl": ROWS, "a.token.txt": TOKENS}[name]
    make(tmp_path, {name: text.replace("\n", end).encode(coding)})
    assert len(load_split(tmp_path, "all").records) == 6 and not load_split(tmp_path, "all").problems


@pytest.mark.parametrize("delimiter", [",", ";"])
@pytest.mark.parametrize("last", [False, True])
def test_an_open_quotation_mark_swallows_nothing(delimiter: str, last: bool, tmp_path: Path) -> None:
    rows = [f"{name}{delimiter}a sign says {number}" for number, name in enumerate(NAMES)]
    at = -1 if last else 2
    rows[at] = rows[at].replace("a sign", '"a sign')
    make(tmp_path, {"captions.csv": table(*rows, head=f"image{delimiter}caption")})
    found = captions_in(tmp_path)
    assert len(found) == 6 and all(
        len(captions) == 1 and "\n" not in captions[0] for captions in found.values()
    )
    (line,) = load_split(tmp_path, "all").problems.lines()
    assert line.startswith(f"quotation marks left open: 1 (captions.csv:{7 if last else 4})")
    assert "close or double them" in line


def test_captions_of_several_lines_and_with_quotation_marks_are_whole(tmp_path: Path) -> None:
    rows = [
        'p0.jpg,"a dog,\nwhich runs, fast\nand barks"',
        'p1.jpg,"he says ""hello"" twice"',
        "p2.jpg,plain",
    ]
    make(tmp_path, {"captions.csv": table(*rows)})
    assert captions_in(tmp_path) == {
        "p0.jpg": ["a dog, which runs, fast and barks"],
        "p1.jpg": ['he says "hello" twice'],
        "p2.jpg": ["plain"],
    }
    assert not load_split(tmp_path, "all").problems


@pytest.mark.parametrize("head", ["image,caption,split", "caption,image,split", "split,image,caption"])
def test_delimiters_without_quotes_stay_in_the_caption(head: str, tmp_path: Path) -> None:
    values = {"image": "p{}.jpg", "caption": "a dog, big, and a cat", "split": "{}"}
    rows = [
        ",".join(values[column] for column in head.split(",")).format(
            *((number, split) if head.index("image") < head.index("split") else (split, number))
        )
        for number, split in enumerate(("train", "val", "test"))
    ]
    make(tmp_path, {"captions.csv": table(*rows, head=head)})
    for split in ("train", "dev", "test"):
        (record,) = load_split(tmp_path, split).records
        assert record.captions == ("a dog, big, and a cat",)
    problems = load_split(tmp_path, "all").problems
    assert problems.counts == {"delimiters in captions without quotes": 3}
    assert "quote the caption" in problems.lines()[0]


NO_TEXT: list[tuple[Any, str]] = [
    (None, "stand for nothing"),
    (float("nan"), "stand for nothing"),
    ("NaN", "stand for nothing"),
    ("null", "stand for nothing"),
    (5, "no text"),
    (2.5, "no text"),
    (True, "no text"),
    ("17", "no text"),
    ([["a"]], "no text"),
    ({"words": 3}, "no text"),
]


@pytest.mark.parametrize(("value", "kind"), NO_TEXT, ids=str)
@pytest.mark.parametrize("form", ["jsonl", "coco", "karpathy"])
def test_values_that_are_no_text_never_become_captions(
    form: str, value: Any, kind: str, tmp_path: Path
) -> None:
    good = "a ball"
    values = [value, *[good] * 5]
    if form == "jsonl":
        rows = [{"file_name": name, "text": text} for name, text in zip(NAMES, values, strict=True)]
        make(tmp_path, {"metadata.jsonl": "\n".join(map(json.dumps, rows))})
    elif form == "coco":
        notes = [{"image_id": number, "caption": text} for number, text in enumerate(values)]
        make(tmp_path, {"captions.json": json.dumps({**json.loads(COCO), "annotations": notes})})
    else:
        images = [
            {"filename": name, "sentences": [{"raw": text, "tokens": []}]}
            for name, text in zip(NAMES, values, strict=True)
        ]
        make(tmp_path, {"dataset.json": json.dumps({"images": images})})
    assert captions_in(tmp_path) == dict.fromkeys(NAMES[1:], [good])
    assert any(kind in line or "empty" in line for line in load_split(tmp_path, "all").problems.lines())


def test_cells_that_are_lists_numbers_or_nothing(tmp_path: Path) -> None:
    cells = ["\"['a dog', 'a cat']\"", '"[""a cow""]"', "nan", "42", "[sic] a dog", ""]
    make(
        tmp_path,
        {"captions.csv": table(*(f"{name},{cell}" for name, cell in zip(NAMES, cells, strict=True)))},
    )
    assert captions_in(tmp_path) == {
        "p0.jpg": ["a dog", "a cat"],
        "p1.jpg": ["a cow"],
        "p4.jpg": ["[sic] a dog"],
    }


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("<start> a dog runs <end>", "a dog runs"),
        ("startseq a dog runs endseq", "a dog runs"),
        ("<s>a dog runs</s>", "a dog runs"),
        ("[CLS] a dog runs [SEP]", "a dog runs"),
        ("<|startoftext|>a dog runs<|endoftext|>", "a dog runs"),
        ("<BOS> a dog runs <EOS> <PAD> <PAD>", "a dog runs"),
        ("start a dog runs end", "a dog runs"),
        ("a dog at the start of a race", "a dog at the start of a race"),
        ("the dogs < the cats", "the dogs < the cats"),
    ],
)
def test_marker_words_do_not_become_words(written: str, read: str, tmp_path: Path) -> None:
    assert without_markers(written) == read
    make(tmp_path, {"captions.csv": table(f"p0.jpg,{written}")})
    loaded = load_split(tmp_path, "all")
    assert loaded.records[0].captions == (read,)
    assert ("captions with marker words" in loaded.problems.counts) == (written != read)


def test_a_caption_with_an_unknown_word_is_left_out(tmp_path: Path) -> None:
    make(tmp_path, {"captions.csv": table("p0.jpg,a dog on a <unk>", "p1.jpg,a dog on a junk heap")})
    assert captions_in(tmp_path) == {"p1.jpg": ["a dog on a junk heap"]}


# Whose captions.


def test_captions_that_captioner_wrote_into_the_set_are_not_learned_from(tmp_path: Path) -> None:
    rows = [f"images/{name},a ball {name}" for name in NAMES] + ["p0.jpg,ours", "p1.jpg,ours but corrected"]
    make(tmp_path, {"captions.csv": table(*rows)}, [f"images/{name}" for name in NAMES])
    journal = [{"picture": name, "found": {"caption": "ours", "score": -0.5}} for name in NAMES]
    make(tmp_path / "images", {".captioner.jsonl": "".join(json.dumps(line) + "\n" for line in journal)}, [])
    found = captions_in(tmp_path)
    assert found["images/p0.jpg"] == ["a ball p0.jpg"]
    assert found["images/p1.jpg"] == ["a ball p1.jpg", "ours but corrected"]
    assert len(found) == 6
    problems = load_split(tmp_path, "all").problems
    assert problems.counts == {"pictures under two names": 2, "captions that captioner wrote": 1}


def test_what_a_person_changes_in_our_table_is_learned_from_if_a_journal_tells(tmp_path: Path) -> None:
    make(tmp_path, {"captions.csv": OWN.replace("p2.jpg,ours", "p2.jpg,a person's")})
    with pytest.raises(DataError, match="captions that captioner wrote: 6"):
        load_split(tmp_path, "all")
    journal = [{"picture": name, "found": {"caption": "ours", "score": -0.5}} for name in NAMES]
    journal.append({**journal[4], "accepted": "0123"})
    make(tmp_path, {".captioner.jsonl": "".join(json.dumps(line) + "\n" for line in journal)}, [])
    assert captions_in(tmp_path) == {"p2.jpg": ["a person's"], "p4.jpg": ["ours"]}


def test_rows_with_a_score_of_ours_among_those_of_people_are_left_out(tmp_path: Path) -> None:
    rows = ["p0.jpg,a person's,", "p1.jpg,ours,-0.25", "p1.jpg,a person's too,"]
    make(tmp_path, {"captions.csv": table(*rows, head="file_name,caption,score")})
    assert captions_in(tmp_path) == {"p0.jpg": ["a person's"], "p1.jpg": ["a person's too"]}


# Which picture.


@pytest.mark.parametrize(
    "other",
    [
        "./p{}.jpg",
        ".//p{}.jpg",
        "in/../p{}.jpg",
        "images/p{}.jpg",
        "./images//p{}.jpg",
        "P{}.JPG",
        ".\\p{}.jpg",
    ],
)
def test_one_picture_under_two_names_is_one(other: str, tmp_path: Path) -> None:
    rows = [row for n in range(6) for row in (f"p{n}.jpg,a ball", f"{other.format(n)},the ball")]
    make(tmp_path, {"captions.csv": table(*rows)}, [f"images/{name}" for name in NAMES])
    assert captions_in(tmp_path) == dict.fromkeys(NAMES, ["a ball", "the ball"])
    summary = summarize(tmp_path)
    assert summary.pictures == 6 and sum(summary.splits.values()) == 6


def test_splits_drawn_by_an_earlier_version_are_kept_whatever_their_names_looked_like(tmp_path: Path) -> None:
    make(tmp_path, {"captions.csv": table(*(f"./{name},a ball" for name in NAMES))})
    made = {"train": [f"./{name}" for name in NAMES[2:]], "dev": ["./p0.jpg"], "test": ["./p1.jpg"]}
    loaded = load_splits(tmp_path, ("train", "dev"), made=made)
    assert [record.id for record in loaded["dev"].records] == ["p0.jpg"]
    assert [record.id for record in loaded["train"].records] == NAMES[2:]


def test_pictures_are_found_in_another_case_and_in_any_unicode_form(tmp_path: Path) -> None:
    on_disk = ["IMG_1.JPG", "e\u0301te\u0301/a.jpg", "both.jpg", "BOTH.jpg"]
    rows = ["img_1.jpg,one", "\u00e9t\u00e9/a.jpg,two", "both.jpg,three", "Both.jpg,four"]
    make(tmp_path, {"captions.csv": table(*rows)}, on_disk)
    found = {record.id: record.path.name for record in load_split(tmp_path, "all").records}
    assert found == {"img_1.jpg": "IMG_1.JPG", "\u00e9t\u00e9/a.jpg": "a.jpg", "both.jpg": "both.jpg"}
    problems = load_split(tmp_path, "all").problems
    assert problems.names["picture names in another case"] == ["img_1.jpg: IMG_1.JPG"]
    assert problems.names["missing pictures"] == ["Both.jpg"]


@pytest.mark.parametrize("file", ["captions.csv", "open/p1.txt"])
def test_a_folder_that_cannot_be_listed_is_said(
    file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As root, tests may list everything: the file system's refusal is told, not made."""
    content = table("open/p1.jpg,a ball", "images/p2.jpg,a ball") if file == "captions.csv" else "a ball"
    make(tmp_path, {file: content}, ["open/p1.jpg", "images/p2.jpg"])
    for name in ("listdir", "scandir"):
        real = getattr(os, name)

        def refuse(folder: Any = ".", real: Any = real) -> Any:
            if os.path.basename(os.fspath(folder)) == "images":
                raise PermissionError(errno.EACCES, "Permission denied", os.fspath(folder))
            return real(folder)

        monkeypatch.setattr(os, name, refuse)
    (line,) = [line for line in load_split(tmp_path, "all").problems.lines() if "cannot be listed" in line]
    assert line == f"folders that cannot be listed: 1 ({tmp_path / 'images'}: Permission denied)"


def test_pictures_are_not_looked_for_among_thumbnails(tmp_path: Path) -> None:
    make(tmp_path, {"captions.csv": table("p0.jpg,a ball")}, ["@eaDir/p0.jpg", "holiday/p0.jpg"])
    assert load_split(tmp_path, "all").records[0].path == tmp_path / "holiday" / "p0.jpg"


@pytest.mark.parametrize(
    ("file", "content", "captions"),
    [
        ("IMG_1.TXT", "a ball\nthe ball\n", ["a ball", "the ball"]),
        ("img_1.txt", "a ball", ["a ball"]),
        ("img_1.jpg.txt", b"\xef\xbb\xbfa ball\r\n", ["a ball"]),
        ("IMG_1.txt", "a ball".encode("utf-16"), ["a ball"]),
        ("IMG_1.json", '{"caption": "a ball"}', ["a ball"]),
        ("IMG_1.json", '{"caption": ["a ball", 5, null, {"x": 1}, "NaN"]}', ["a ball"]),
        ("IMG_1.json", '{"caption": {"raw": "a ball"}}', ["a ball"]),
        ("IMG_1.txt", "<start> a ball <end>", ["a ball"]),
    ],
)
def test_pairs_are_read_with_the_same_care(
    file: str, content: str | bytes, captions: list[str], tmp_path: Path
) -> None:
    make(tmp_path, {file: content}, ["IMG_1.JPG"])
    assert captions_in(tmp_path) == {"IMG_1.JPG": captions}


# What a training would suffer from.


def test_long_captions_few_words_and_one_dev_picture_are_said_before_training(tmp_path: Path) -> None:
    long = " ".join(["a", "very"] * 20)
    rows = [
        f"{name},{long if name == 'p0.jpg' else 'a ball'},{'val' if name == 'p5.jpg' else 'train'}"
        for name in NAMES
    ]
    make(tmp_path, {"captions.csv": table(*rows, head="image,caption,split")})
    splits = load_splits(tmp_path, ("train", "dev"))
    train, dev = splits["train"].records, splits["dev"].records
    long_line, dev_line = training_warnings(train, dev, DataConfig(max_words=30))
    assert "longer than data.max_words = 30: 1, cut there (p0.jpg, 40 words: a very a" in long_line
    assert "--set data.max_words=40" in long_line
    assert "dev has one picture" in dev_line
    assert training_warnings(train, dev, DataConfig(max_words=40)) == [dev_line]
    assert training_warnings(train, dev * 2, DataConfig(max_words=40)) == []
    with pytest.raises(
        DataError, match=r"no word occurs data.min_count = 50 times .* \"a\", occurs 24 times"
    ):
        training_warnings(train, dev, DataConfig(min_count=50))
    assert {long_line, dev_line} <= set(summarize(tmp_path).lines())
