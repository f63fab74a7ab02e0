"""Sentences in every script walk from a captions file through words and ids into sidecars, unchanged."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from PIL import Image

from captioner.apps.sidecars.job import caption_folders
from captioner.apps.sidecars.plan import FolderPlan
from captioner.data.datasets import load_split
from captioner.data.image_files import gather
from captioner.data.vocabulary import END, START, Vocabulary
from captioner.inference.caption import Caption
from tests.data.test_vocabulary import SENTENCES


def test_sentences_in_every_script_walk_from_the_captions_file_to_the_sidecars(tmp_path: Path) -> None:
    names = {f"p{number}.png": text for number, text in enumerate(SENTENCES.values())}
    for name in names:
        Image.new("RGB", (2, 2)).save(tmp_path / name)
    with (tmp_path / "captions.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("image", "caption"), *names.items()])
    records = load_split(tmp_path, "all").records
    vocabulary = Vocabulary.build(words for record in records for words in record.words)
    vocabulary.save(tmp_path / "vocabulary.txt")
    vocabulary = Vocabulary.load(tmp_path / "vocabulary.txt")
    ids = {record.path: [START, *vocabulary.ids(record.words[0]), END] for record in records}

    def captions_of(paths: Iterable[Path]) -> Iterator[Caption]:
        """A model that has learned its captions by heart."""
        for path in paths:
            yield Caption(str(path), vocabulary.text(ids[path]), score=-0.5)

    out = tmp_path / "out"
    plan = FolderPlan(("txt", "json", "csv"), out=out)
    outcomes = caption_folders(gather([tmp_path]), plan, captions_of, quiet=True)
    assert (outcomes.captioned, outcomes.failed) == (len(names), 0)
    found = {path.stem: path.read_text(encoding="utf-8").strip() for path in out.rglob("p*.txt")}
    assert found == {name[: -len(".png")]: text for name, text in names.items()}
    found = {
        path.stem: json.loads(path.read_text(encoding="utf-8"))["caption"] for path in out.rglob("p*.json")
    }
    assert set(found.values()) == set(names.values()) and len(found) == len(names)
    (sheet,) = out.rglob("captions.csv")
    with sheet.open(encoding="utf-8", newline="") as file:
        assert {row["caption"] for row in csv.DictReader(file)} == set(names.values())
