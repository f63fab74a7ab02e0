"""Data sets as people hand them about: each format in its smallest form, and what is said of broken ones."""

from __future__ import annotations

import json
import shutil
import time
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from captioner.data.datasets import (
    DATASETS,
    CaptionedImage,
    draw_splits,
    load_split,
)
from captioner.data.listings import Problems
from captioner.data.statistics import summarize
from captioner.data.synthetic.scenes import draw_dataset
from captioner.errors import ConfigError, DataError

Maker = Callable[[Path], str]  # writes a data set into a folder, returns the format expected


def put_as(folder: Path, name: str, text: str = "") -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def pictures(folder: Path, *names: str) -> None:
    """Empty files: no reader opens a picture."""
    for name in names:
        put_as(folder, name)


def six_lines(pattern: str) -> str:
    """Two captions for each of three animals."""
    return "".join(
        pattern.format(name=name, number=number) + "\n" for name in ("cat", "dog", "owl") for number in (0, 1)
    )


def flickr8k(root: Path) -> str:
    put_as(root, "Flickr8k.token.txt", six_lines("{name}.jpg#{number}\tA {name} , number {number} ."))
    for split, name in (("train", "cat"), ("dev", "dog"), ("test", "owl")):
        put_as(root, f"Flickr_8k.{split}Images.txt", f"{name}.jpg\n")
    pictures(root, "images/cat.jpg", "images/dog.jpg", "images/owl.jpg")
    return "flickr8k"


def flickr8k_as_distributed(root: Path) -> str:
    flickr8k(root)
    (root / "images").rename(root / "Flicker8k_Dataset")
    (root / "Flickr8k_text").mkdir()
    for path in root.glob("*.txt"):
        path.rename(root / "Flickr8k_text" / path.name)
    return "flickr8k"


def flickr8k_csv(root: Path) -> str:
    flickr8k(root)
    (root / "Flickr8k.token.txt").unlink()
    rows = six_lines('{name}.jpg,"A {name} , number {number} ."')
    put_as(root, "captions.txt", "image,caption\n" + rows)
    (root / "images").rename(root / "Images")
    return "flickr8k"


def flickr30k(root: Path) -> str:
    flickr8k(root)
    (root / "Flickr8k.token.txt").unlink()
    for path in root.glob("*Images.txt"):
        path.unlink()
    rows = six_lines("{name}.jpg| {number}| A {name} , number {number} .")
    put_as(root, "results.csv", "image_name| comment_number| comment\n" + rows)
    for split, name in (("train", "cat"), ("val", "dog"), ("test", "owl")):
        put_as(root, f"{split}.txt", f"{name}\n")  # no suffix
    (root / "images").rename(root / "flickr30k_images")
    return "flickr8k"


def karpathy(root: Path) -> str:
    images: list[dict[str, Any]] = []
    for split, name in (("restval", "cat"), ("val", "dog"), ("test", "owl")):
        sentences = [{"raw": f"A {name} , number 0 ."}, {"tokens": ["A", name, ",", "number", "1", "."]}]
        image = {"filename": f"{name}.jpg", "filepath": "val2014", "split": split, "sentences": sentences}
        images.append(image)
    put_as(root, "dataset_coco.json", json.dumps({"images": images, "dataset": "coco"}))
    pictures(root, "val2014/cat.jpg", "val2014/dog.jpg", "val2014/owl.jpg")
    return "karpathy"


def coco(root: Path) -> str:
    for split, name in (("train", "cat"), ("val", "dog"), ("test", "owl")):
        annotations = [{"image_id": 7, "caption": f"A {name} , number {number} ."} for number in (0, 1)]
        data = {"images": [{"id": 7, "file_name": f"{name}.jpg"}], "annotations": annotations}
        put_as(root, f"annotations/captions_{split}2017.json", json.dumps(data))
        pictures(root, f"{split}2017/{name}.jpg")
    return "coco"


def csv_with_splits(root: Path) -> str:
    rows = [
        f'{name}.jpg,"A {name} , number {number} .",{split}'
        for split, name in (("train", "cat"), ("val", "dog"), ("test", "owl"))
        for number in (0, 1)
    ]
    put_as(root, "captions.csv", "\ufeffImage,Caption,Split\r\n" + "\r\n".join(rows))
    pictures(root, "cat.jpg", "dog.jpg", "owl.jpg")
    return "csv"


def tsv_files(root: Path) -> str:
    for split, name in (("train", "cat"), ("dev", "dog"), ("test", "owl")):
        rows = [f"{name}.jpg\tA {name} , number {number} .\n" for number in (0, 1)]
        put_as(root, f"{split}.tsv", "image\tcaption\n" + "".join(rows))
    pictures(root, "images/cat.jpg", "images/dog.jpg", "images/owl.jpg")
    return "csv"


def jsonl(root: Path) -> str:
    rows = [
        {"file_name": f"{name}.jpg", "text": [f"A {name} , number {n} ." for n in (0, 1)], "split": split}
        for split, name in (("train", "cat"), ("validation", "dog"), ("test", "owl"))
    ]
    put_as(root, "metadata.jsonl", "\n".join(map(json.dumps, rows)))
    pictures(root, "cat.jpg", "dog.jpg", "owl.jpg")
    return "jsonl"


def imagefolder(root: Path) -> str:
    for split, name in (("train", "cat"), ("validation", "dog"), ("test", "owl")):
        rows = [{"file_name": "0.jpg", "text": f"A {name} , number {number} ."} for number in (0, 1)]
        put_as(root, f"{split}/metadata.jsonl", "\n".join(map(json.dumps, rows)))
        pictures(root, f"{split}/0.jpg")
    return "jsonl"


def pairs(root: Path) -> str:
    for split, name, ending in (
        ("train", "cat", ".txt"),
        ("val", "dog", ".jpg.txt"),
        ("test", "owl", ".json"),
    ):
        captions = [f"A {name} , number {number} ." for number in (0, 1)]
        text = json.dumps({"caption": captions}) if ending == ".json" else "\n".join(captions) + "\n"
        put_as(root, f"{split}/{name}{ending}", text)
        pictures(root, f"{split}/{name}.jpg")
    return "pairs"


MAKERS: list[Maker] = [
    *(flickr8k, flickr8k_as_distributed, flickr8k_csv, flickr30k),
    *(karpathy, coco, csv_with_splits, tsv_files, jsonl, imagefolder, pairs),
]


@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
def test_every_form_is_recognized_and_read(make: Maker, tmp_path: Path) -> None:
    format = make(tmp_path)
    for split, animal in (("train", "cat"), ("dev", "dog"), ("test", "owl")):
        loaded = load_split(tmp_path, split)
        (record,) = loaded.records
        assert record.captions == (f"A {animal} , number 0 .", f"A {animal} , number 1 .")
        assert record.path.is_file()
        assert not loaded.problems
        assert loaded.made is None
        assert load_split(tmp_path, split, format=format).records == loaded.records
    assert len(load_split(tmp_path, "all").records) == 3
    assert len({record.id for record in load_split(tmp_path, "all").records}) == 3
    assert summarize(tmp_path).format == format


def test_every_row_of_the_table_has_a_smallest_form(tmp_path: Path) -> None:
    made = {DATASETS[make(tmp_path / make.__name__)].looks_for for make in MAKERS}
    assert {reader.looks_for for reader in DATASETS.values()} == made


def karpathys_splits(root: Path, *, coco: bool) -> dict[str, list[str]]:
    """The drawn scenes of a folder as Karpathy hands out COCO or Flickr30k, every key of his there."""
    draw_dataset(root / "drawn", pictures=48, seed=0, size=32)
    members: dict[str, list[str]] = {"train": [], "dev": [], "test": []}
    images: list[dict[str, Any]] = []
    records = load_split(root / "drawn", "all").records
    splits = ["train", "restval", "train", "val", "restval", "test", "restval"]
    for number, (record, split) in enumerate(zip(records, splits * 7, strict=False)):
        # COCO's validation pictures were given out again: most of them became "restval".
        folder = "train2014" if split == "train" else "val2014"
        name = f"COCO_{folder}_{number:012}.jpg" if coco else f"{number}.jpg"
        pictures(root, f"{folder}/{name}" if coco else f"flickr30k-images/{name}")
        (root / (folder if coco else "flickr30k-images") / name).write_bytes(record.path.read_bytes())
        sentences = [
            {"tokens": caption.split(), "raw": caption, "imgid": number, "sentid": 5 * number + place}
            for place, caption in enumerate(record.captions)
        ]
        image = {"filename": name, "imgid": number, "split": split, "sentences": sentences}
        image["sentids"] = [sentence["sentid"] for sentence in sentences]
        images.append({**image, "filepath": folder, "cocoid": number} if coco else image)
        own = {"restval": "train", "val": "dev"}.get(split, split)
        members[own].append(f"{folder}/{name}" if coco else name)
    shutil.rmtree(root / "drawn")
    name = "coco" if coco else "flickr30k"
    put_as(root, f"dataset_{name}.json", json.dumps({"images": images, "dataset": name}))
    return members


@pytest.mark.parametrize("coco", [True, False], ids=["coco", "flickr30k"])
def test_karpathys_splits_as_he_hands_them_out(coco: bool, tmp_path: Path) -> None:
    """ "restval", COCO's validation pictures that are in neither of his small splits, is training."""
    members = karpathys_splits(tmp_path, coco=coco)
    assert {split: len(names) for split, names in members.items()} == {"train": 34, "dev": 7, "test": 7}
    for split, names in members.items():
        loaded = load_split(tmp_path, split)
        assert [record.id for record in loaded.records] == names
        assert all(len(record.captions) == 5 and record.path.is_file() for record in loaded.records)
        assert not loaded.problems
    assert {record.path.parent.name for record in load_split(tmp_path, "train").records} == (
        {"train2014", "val2014"} if coco else {"flickr30k-images"}
    )


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["coco", "flickr30k"])
def test_their_recipes_train_on_them(recipe: str, tmp_path: Path) -> None:
    """All phases of the recipe, with networks that a test can train."""
    from captioner.config import load_config
    from captioner.training.train import train

    karpathys_splits(tmp_path / "data", coco=recipe == "coco")
    small = ["encoder.name=small_cnn", "encoder.weights=none", "encoder.size=32", "decoder.units=16"]
    small += ["decoder.embedding=8", "data.min_count=1", "phases.finetune.encoder_from=''"]
    short = [f"phases.{name}.epochs=1" for name in load_config(recipe).phases]
    run = train(load_config(recipe, [*small, *short]), tmp_path / "data", tmp_path / "run", quiet=True)
    assert [entry["phase"] for entry in run.history()] == ["decoder", "finetune", "reward"]


@pytest.mark.parametrize("make", [flickr8k, coco, jsonl], ids=lambda make: make.__name__)
def test_only_what_the_split_needs_must_be_there(make: Maker, tmp_path: Path) -> None:
    make(tmp_path)
    for pattern in ("*train*", "*dev*", "cat*", "dog*"):
        for path in tmp_path.rglob(pattern):
            if path.is_file():
                path.unlink()
    assert [record.path.name for record in load_split(tmp_path, "test").records] == ["owl.jpg"]


def test_a_captions_file_may_be_named_instead_of_its_folder(tmp_path: Path) -> None:
    coco(tmp_path)
    file = tmp_path / "annotations" / "captions_val2017.json"
    assert load_split(file, "dev").records[0].path == tmp_path / "val2017" / "dog.jpg"
    with pytest.raises(DataError, match="no test split: the set has dev"):
        load_split(file, "test")
    put_as(tmp_path, "mine.txt", "cat.jpg#0\tA cat .\n")
    pictures(tmp_path, "cat.jpg")
    assert load_split(tmp_path / "mine.txt", "all").records == (
        CaptionedImage("cat.jpg", tmp_path / "cat.jpg", ("A cat .",)),
    )


def test_what_is_wrong_is_counted_and_named(tmp_path: Path) -> None:
    put_as(
        tmp_path,
        "set.token.txt",
        "a.jpg#0\tA dog .\na.jpg#1\tA dog .\na.jpg#2\t .\nb.jpg.1#0\tNo picture .\nno tab here\nc.jpg#0\t\n",
    )
    put_as(tmp_path, "set_trainImages.txt", "a.jpg\na.jpg\nb.jpg.1\nc.jpg\nd.jpg\n")
    put_as(tmp_path, "set_devImages.txt", "a.jpg\n")
    pictures(tmp_path, "images/a.jpg", "images/c.jpg", "images/d.jpg", "images/e.jpg")
    loaded = load_split(tmp_path, "train")
    assert [(record.id, record.captions) for record in loaded.records] == [("a.jpg", ("A dog .", "A dog ."))]
    assert loaded.problems.lines() == [
        "lines not understood: 1 (set.token.txt:5)",
        "pictures twice in set_trainImages.txt: 1 (a.jpg)",
        "captions twice at one picture: 1 (a.jpg: A dog .)",
        "empty captions: 2 (a.jpg, c.jpg)",
        "missing pictures: 1 (b.jpg.1)",
        "pictures without a caption: 2 (c.jpg, d.jpg)",
    ]
    said = "\n".join(summarize(tmp_path).lines())
    assert "pictures in two splits: 1 (a.jpg (train, dev))" in said
    assert "picture files without a caption: 2 (d.jpg, e.jpg)" in said


def test_captions_beside_pictures(tmp_path: Path) -> None:
    pictures(tmp_path, "a.jpg", "b.png", "c.jpg", "c.png", "d.jpg", "deep/er/e.jpg", "f.jpg", ".hidden/g.jpg")
    put_as(tmp_path, "a.txt", "\ufeffa dog\r\n\r\nein Hund\r\n")  # a line a caption
    put_as(tmp_path, "a.jpg.txt", "ein Hund\n2 dogs\n")  # two files agree on one
    put_as(tmp_path, "b.json", '{"title": "b.png", "description": "a cat"}')
    put_as(tmp_path, "c.txt", "of which of the two?")
    put_as(tmp_path, "c.png.txt", "an owl")
    put_as(tmp_path, "deep/er/e.txt", "far down")
    put_as(tmp_path, ".hidden/g.txt", "not looked at")
    put_as(tmp_path, "gone.txt", "its picture is gone")
    put_as(tmp_path, "d.json", "{")
    (tmp_path / "f.txt").write_bytes(b"Stra\xdfe")
    loaded = load_split(tmp_path, "all")
    assert {record.id: record.captions for record in loaded.records} == {
        "a.jpg": ("ein Hund", "2 dogs", "a dog"),
        "b.png": ("a cat",),
        "c.png": ("an owl",),
        "deep/er/e.jpg": ("far down",),
    }
    assert loaded.records[-1].path == tmp_path / "deep" / "er" / "e.jpg"
    several, unreadable, gone, without = loaded.problems.lines()
    assert several == "captions of several pictures of one name: 1 (c.txt)"
    assert unreadable.startswith("caption files that cannot be read: 2 (d.json: line 1: not JSON")
    assert "f.txt: line 1: not UTF-8 text" in unreadable
    assert gone == "captions whose picture is gone: 1 (gone.txt)"
    assert without == "pictures without a caption: 2 (d.jpg, f.jpg)"


def test_descriptions_of_photo_programs(tmp_path: Path) -> None:
    pytest.importorskip("lxml")
    pictures(tmp_path, "a.jpg")
    description = '<rdf:Description rdf:about="" dc:description="my aunt at the lake"/>'
    names = (
        'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#" xmlns:dc="http://purl.org/dc/elements/1.1/"'
    )
    put_as(
        tmp_path,
        "a.xmp",
        f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF {names}>{description}</rdf:RDF></x:xmpmeta>',
    )
    (record,) = load_split(tmp_path, "all", format="pairs").records
    assert record.captions == ("my aunt at the lake",)


def test_problems_keep_the_first_names_only() -> None:
    problems = Problems()
    for number in range(7):
        problems.note("missing pictures", f"{number}.jpg")
    assert problems.lines() == ["missing pictures: 7 (0.jpg, 1.jpg, 2.jpg, 3.jpg, 4.jpg, …)"]


def test_splits_are_drawn_from_the_seed_and_stay_when_pictures_are_added() -> None:
    ids = [f"{number}.jpg" for number in range(1000)]
    splits = draw_splits(ids, seed=3)
    assert [len(splits[name]) for name in ("train", "dev", "test")] == pytest.approx([800, 100, 100], abs=30)
    more = draw_splits(ids + [f"new{number}.jpg" for number in range(500)], seed=3)
    assert all(set(splits[name]) <= set(more[name]) for name in splits)
    assert draw_splits(reversed(ids), seed=3)["dev"] == splits["dev"][::-1]
    assert draw_splits(ids, seed=4)["dev"] != splits["dev"]
    pinned = draw_splits(ids, seed=4, pinned=splits)
    assert pinned == splits


@pytest.mark.parametrize("count", range(3, 12))
def test_no_drawn_split_is_empty(count: int) -> None:
    for seed in range(20):
        splits = draw_splits([f"{number}.jpg" for number in range(count)], seed=seed)
        assert all(splits.values())
        assert sum(map(len, splits.values())) == count


def test_a_set_without_splits_gets_them_and_keeps_them(tmp_path: Path) -> None:
    names = [f"{number}.jpg" for number in range(40)]
    put_as(tmp_path, "captions.csv", "image,caption\n" + "".join(f"{name},a cat\n" for name in names))
    pictures(tmp_path, *names)
    train = load_split(tmp_path, "train", seed=1)
    assert train.made is not None
    assert [record.id for record in train.records] == train.made["train"]
    assert sorted(name for members in train.made.values() for name in members) == sorted(names)
    # Evaluated later with another seed, the run hands its splits back in.
    assert load_split(tmp_path, "test", seed=9, made=train.made).made == train.made
    assert summarize(tmp_path, seed=1).splits == {name: len(members) for name, members in train.made.items()}


@pytest.mark.parametrize(
    ("name", "text", "format", "message"),
    [
        ("a.token.txt", "1 2 3\n", "auto", 'expected lines like "name.jpg#0<TAB>caption"'),
        ("a.json", "{", "coco", "line 1: not JSON"),
        ("a.json", "[1]", "coco", 'expected {"images"'),
        ("a.json", '{"images": [{"filename": "a.jpg", "sentences": []}]}', "coco", "annotations"),
        ("a.json", '{"images": [], "annotations": []}', "karpathy", "no usable picture"),
        ("a.json", '{"images": [{"id": 1, "file_name": "a"}], "annotations": []}', "karpathy", "sentences"),
        ("captions.csv", "a.jpg,A dog\n", "auto", "a first line that names the columns"),
        ("captions.csv", 'image,caption\na.jpg,"open\n' + "x" * 200_000, "auto", "quotation mark"),
        ("metadata.jsonl", "a.jpg A dog\n", "auto", 'expected lines like {"file_name"'),
        ("captions.csv", "image,caption\nnone.jpg,a cat\n", "auto", "missing pictures: 1 (none.jpg)"),
        ("captions.csv", "", "auto", "a first line that names the columns"),
        ("nothing.md", "", "auto", "no captions found; there is nothing.md"),
    ],
)
def test_a_broken_set_is_refused_in_one_sentence(
    tmp_path: Path, name: str, text: str, format: str, message: str
) -> None:
    put_as(tmp_path, name, text)
    root = tmp_path / name if format != "auto" else tmp_path
    with pytest.raises(DataError) as caught:
        load_split(root, "all", format=format)
    assert message in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_wrong_use_is_told(tmp_path: Path) -> None:
    flickr8k(tmp_path)
    with pytest.raises(DataError, match='unknown split "tset"; did you mean "test"'):
        load_split(tmp_path, "tset")
    with pytest.raises(DataError, match='unknown data set format "flickr"; did you mean "flickr8k"'):
        load_split(tmp_path, "test", format="flickr")
    with pytest.raises(DataError, match="no such folder"):
        load_split(tmp_path / "none", "test")
    with pytest.raises(ConfigError, match="cannot import"):
        load_split(tmp_path, "test", format="no_such_module_here:READER")
    (tmp_path / "Flickr8k.token.txt").write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(DataError, match="line 1: not UTF-8 text"):
        load_split(tmp_path, "test")
    for path in tmp_path.glob("*.txt"):
        path.unlink()
    (tmp_path / "images").rename(tmp_path / "empty")
    with pytest.raises(DataError, match="no captions found; there is empty; looked for"):
        load_split(tmp_path, "test")


def test_several_unnamed_tables_are_not_guessed_at(tmp_path: Path) -> None:
    put_as(tmp_path, "one.csv", "image,caption\na.jpg,a cat\n")
    put_as(tmp_path, "two.csv", "image,caption\na.jpg,a dog\n")
    pictures(tmp_path, "a.jpg")
    with pytest.raises(DataError, match="give the captions file itself"):
        load_split(tmp_path, "all")
    assert load_split(tmp_path / "two.csv", "all").records[0].captions == ("a dog",)


def test_a_reader_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_as(
        tmp_path,
        "my_reader.py",
        "from captioner.data.listings import Reader, CaptionsFile\n"
        "def find(root): return [CaptionsFile(root / 'list.mine')]\n"
        "def parse(listing, source, split): listing.add('a.jpg', ['a cat'], 'test')\n"
        "READER = Reader('list.mine', 'always test', find, parse)\n",
    )
    pictures(tmp_path, "list.mine", "a.jpg")
    monkeypatch.syspath_prepend(tmp_path)
    (record,) = load_split(tmp_path, "test", format="my_reader:READER").records
    assert record.captions == ("a cat",)


def test_tables_with_the_dirt_of_spreadsheets(tmp_path: Path) -> None:
    text = 'image,caption\na.jpg,a cat, a dog\n\nb.jpg,"a ""big"" dog"\nc.jpg\nsub\\d.jpg,a cow\n'
    (tmp_path / "captions.csv").write_bytes(text.encode("utf-16"))
    pictures(tmp_path, "a.jpg", "b.jpg", "sub/d.jpg")
    loaded = load_split(tmp_path, "all")
    assert [record.captions for record in loaded.records] == [("a cat, a dog",), ('a "big" dog',), ("a cow",)]
    assert loaded.problems.counts == {"delimiters in captions without quotes": 1, "lines not understood": 1}
    assert loaded.problems.names["lines not understood"] == ["captions.csv:5"]


def test_pictures_are_found_in_a_folder_of_any_name_and_composed_names_too(tmp_path: Path) -> None:
    put_as(tmp_path, "captions.tsv", "image\tcaption\n사진.jpg\t빨간 원이 있다\n")
    pictures(tmp_path, unicodedata.normalize("NFD", "urlaub/사진.jpg"))
    (record,) = load_split(tmp_path, "all").records
    assert record.path.is_file()
    assert record.captions == ("빨간 원이 있다",)


def test_summary_in_figures(tmp_path: Path) -> None:
    flickr8k(tmp_path)
    summary = summarize(tmp_path)
    assert summary.splits == {"train": 1, "dev": 1, "test": 1}
    assert summary.captions_per_picture == {2: 3}
    assert summary.words_per_caption == {4: 6}  # a, cat, number, 0
    assert summary.growth == [(1, 4), (2, 5)]
    assert summary.coverage[1] == (5, 1.0)
    assert summary.coverage[2] == (3, 6 / 8)  # a, cat, number of the two training captions
    assert not summary.problems
    assert "splits: train 1, dev 1, test 1" in summary.lines()


def test_looking_for_pictures_is_quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = "".join(f"{number}.jpg,a cat\n" for number in range(20_000))
    put_as(tmp_path, "captions.csv", "image,caption\n" + lines)
    pictures(tmp_path, "images/0.jpg")
    start_seconds = time.process_time()
    loaded = load_split(tmp_path, "all")
    assert time.process_time() - start_seconds < 2
    assert loaded.problems.counts["missing pictures"] == 19_999


def test_flickr8k_itself(flickr8k: Path) -> None:
    assert len(load_split(flickr8k, "train").records) == 6000
    assert len(load_split(flickr8k, "dev").records) == 1000
    everything = load_split(flickr8k, "all")
    assert len(everything.records) == 7091
    assert set(everything.problems.names["missing pictures"]) == {
        "2258277193_586949ec62.jpg",
        "2258277193_586949ec62.jpg.1",
    }


# Languages.


def bilingual_csv(root: Path) -> None:
    put_as(root, "captions.csv", "image,caption,language\na.jpg,a dog,en\na.jpg,ein Hund,de\n")


def bilingual_jsonl(root: Path) -> None:
    rows = [("a dog", "en"), ("ein Hund", "DE")]
    lines = [json.dumps({"file_name": "a.jpg", "text": text, "language": name}) for text, name in rows]
    put_as(root, "metadata.jsonl", "\n".join(lines))


def bilingual_karpathy(root: Path) -> None:
    sentences = [{"raw": "a dog", "language": "en"}, {"raw": "ein Hund", "language": "de"}]
    image = {"filename": "a.jpg", "split": "train", "sentences": sentences}
    put_as(root, "dataset_x.json", json.dumps({"images": [image]}))


def bilingual_coco(root: Path) -> None:
    rows = [("a dog", "en"), ("ein Hund", "de")]
    annotations = [{"image_id": 1, "caption": text, "language": name} for text, name in rows]
    images = [{"id": 1, "file_name": "a.jpg"}]
    put_as(root, "captions_train.json", json.dumps({"images": images, "annotations": annotations}))


@pytest.mark.parametrize("make", [bilingual_csv, bilingual_jsonl, bilingual_karpathy, bilingual_coco])
def test_captions_carry_their_language(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path)
    pictures(tmp_path, "a.jpg")
    (record,) = load_split(tmp_path, "all").records
    assert (record.captions, record.languages) == (("a dog", "ein Hund"), ("en", "de"))
    assert record.in_language("de") == ("ein Hund",)


def test_an_odd_language_code_is_noted(tmp_path: Path) -> None:
    put_as(tmp_path, "captions.csv", "image,caption,language\na.jpg,a dog,English please\n")
    pictures(tmp_path, "a.jpg")
    found = load_split(tmp_path, "all")
    assert found.problems.counts == {"captions with no language code, such as en": 1}
