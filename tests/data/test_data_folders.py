"""Several folders of captioned pictures as one data set."""

from __future__ import annotations

from pathlib import Path

import pytest

from captioner.data.data_folders import DataFolder, load_folders
from captioner.data.datasets import languages_of, load_split
from captioner.errors import DataError
from tests.data.test_datasets import pictures, put_as


def two_folders(root: Path) -> list[str]:
    """Pictures a and b in English; German captions of b in a folder that has a link in place of pictures."""
    put_as(root, "english/captions.csv", "image,caption,split\nimages/a.jpg,a,train\nimages/b.jpg,b,train\n")
    pictures(root, "english/images/a.jpg", "english/images/b.jpg")
    put_as(root, "german/captions.csv", "image,caption,split\nimages/b.jpg,be,train\n")
    put_as(root, "german/images", "../english/images\n")  # as git leaves a link where there are none
    return [f"en={root / 'english'}*3", f"de={root / 'german'}"]


def test_a_picture_in_several_folders_has_the_captions_of_all(tmp_path: Path) -> None:
    folders = [DataFolder.of(name) for name in two_folders(tmp_path)]
    a, b = load_folders(folders, ["train"])["train"].records
    assert (a.captions, a.languages, a.times) == (("a",), ("en",), 3)
    assert (b.captions, b.languages) == (("b", "be"), ("en", "de"))
    assert languages_of([a, b]) == ("en", "de")


def test_captions_of_which_only_some_carry_a_language_are_refused(tmp_path: Path) -> None:
    english, german = two_folders(tmp_path)
    with pytest.raises(DataError, match="without a language, while others carry one"):
        load_folders([DataFolder.of(english.removeprefix("en=")), DataFolder.of(german)], ["train"])


def test_a_folder_without_the_split_is_passed_over_where_another_has_it(tmp_path: Path) -> None:
    folders = [DataFolder.of(name) for name in two_folders(tmp_path)]
    put_as(tmp_path, "english/captions.csv", "image,caption,split\nimages/a.jpg,a,dev\n")
    assert [record.id for record in load_folders(folders, ["dev"])["dev"].records] == ["images/a.jpg"]
    with pytest.raises(DataError, match="no test split"):
        load_folders(folders, ["test"])


def test_one_folder_without_a_language_is_read_as_ever(tmp_path: Path) -> None:
    put_as(tmp_path, "captions.csv", "image,caption,split\na.jpg,a dog,train\n")
    pictures(tmp_path, "a.jpg")
    plain = load_split(tmp_path, "train")
    assert load_folders([DataFolder.of(tmp_path)], ["train"])["train"].records == plain.records
    assert plain.records[0].languages == ()
