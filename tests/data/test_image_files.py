"""Which pictures are meant: folders, files as named, lists in any coding, what is left out and what is
hinted at."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import pytest

from captioner.data.image_files import IMAGE_SUFFIXES, Pictures, gather, missing_hint, named_paths
from captioner.data.images import read_image
from captioner.errors import CaptionerError, DataError, ImageError
from captioner.system.shard_spec import ShardSpec


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def names(found: Pictures) -> list[str]:
    return [os.path.relpath(path, found.base) for path in found.paths()]


def test_a_folder_stands_for_its_pictures(tmp_path: Path) -> None:
    touch(
        tmp_path, "b.PNG", "a.jpg", "notes.txt", ".hidden.png", "sub/c.webp", "sub/deep/d.HEIC", ".git/e.png"
    )
    (tmp_path / "folder.png").mkdir()
    assert names(gather([tmp_path])) == ["a.jpg", "b.PNG"]
    assert names(gather([tmp_path], recursive=True)) == ["a.jpg", "b.PNG", "sub/c.webp", "sub/deep/d.HEIC"]
    with pytest.raises(CaptionerError, match="no picture in this folder"):
        gather([tmp_path / "folder.png"])


def test_files_are_taken_as_named_in_that_order_and_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, "b.PNG", "a.jpg", "notes.txt", ".hidden.png", "sub/c.jpg")
    monkeypatch.chdir(tmp_path)
    named = ["sub/c.jpg", "notes.txt", "./b.PNG", ".hidden.png", "sub/../b.PNG", "gone.jpg"]
    found = gather([*named, ".", "sub"])
    assert [str(path) for path in found.paths()] == [
        "sub/c.jpg", "notes.txt", "b.PNG", ".hidden.png", "gone.jpg", "a.jpg",
    ]  # fmt: skip
    shares = [[path for path in found.part(ShardSpec(number, 2)).paths()] for number in (1, 2)]
    assert sorted(shares[0] + shares[1]) == sorted(found.paths()) and len(shares[0]) == 3


@pytest.mark.parametrize(
    "foreign",
    [
        "@eaDir",
        "@EADIR",
        "#recycle",
        "$RECYCLE.BIN",
        "lost+found",
        "My.photoslibrary",
        "Lightroom Previews.lrdata",
    ]
    + ["System Volume Information", ".thumbnails", "Caches", "__MACOSX", "tagged"],
)
def test_folders_of_other_programs_are_left_out_unless_named(foreign: str, tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", f"x/{foreign}/deeper/b.jpg")
    if foreign == "tagged":
        (tmp_path / "x/tagged/CACHEDIR.TAG").write_text(
            "Signature: 8a477f597d28d172789f06886806bc55\n# a cache"
        )
    found = gather([tmp_path], recursive=True)
    assert names(found) == ["a.jpg"]
    assert found.left_out == ([] if foreign.startswith(".") else [str(tmp_path / "x" / foreign)])
    assert len(gather([tmp_path / "x" / foreign], recursive=True)) == 1
    with pytest.raises(CaptionerError, match="no picture in this folder") as told:
        gather([tmp_path / "x"], recursive=True)
    assert foreign in str(told.value) or foreign.startswith(".")


@pytest.mark.parametrize(
    ("patterns", "left"),
    [
        (["*.png"], ["a.jpg", "raw/c.jpg", "raw/in/d.jpg"]),
        (["raw"], ["a.jpg", "b.png"]),
        (["raw/in/"], ["a.jpg", "b.png", "raw/c.jpg"]),
        (["raw/*.jpg", "b.*"], ["a.jpg"]),
        (["A.jpg"], ["a.jpg", "b.png", "raw/c.jpg", "raw/in/d.jpg"]),
    ],
)
def test_exclude(patterns: list[str], left: list[str], tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "b.png", "raw/c.jpg", "raw/in/d.jpg")
    assert names(gather([tmp_path], recursive=True, exclude=patterns)) == left


def test_exclude_holds_for_files_that_are_named_too(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "b.png")
    assert names(gather([tmp_path / "a.jpg", tmp_path / "b.png"], exclude=["*.png"])) == ["a.jpg"]
    with pytest.raises(CaptionerError, match="--exclude leaves all of them out"):
        gather([tmp_path / "b.png"], exclude=["*.png"])


def test_a_folder_that_cannot_be_listed_is_a_problem_of_its_own(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "closed/b.jpg")
    (tmp_path / "closed").chmod(0)
    if os.access(tmp_path / "closed", os.R_OK):
        pytest.skip("this user may list every folder")
    found = gather([tmp_path], recursive=True)
    assert names(found) == ["a.jpg"]
    assert found.problems == [(str(tmp_path / "closed"), "cannot be listed (Permission denied)")]


LISTED = ["a.jpg", "여름 휴가/가.png"]


@pytest.mark.parametrize("coding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\0"])
def test_a_list_in_any_coding(coding: str, end: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, *LISTED, "not-listed.jpg")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list").write_bytes((end.join(LISTED) + end).encode(coding))
    assert list(named_paths([], "list")) == LISTED


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\xff\xd8\xff\xe0 a picture", "not a list of paths"),
        (b"\xff\xfea", "damaged UTF-16"),
        (b"gone.jpg\nA.JPG\n", "none of its 2 paths is there"),
        (b"C:\\photos\\a.jpg\r\n", "a path of Windows"),
        (b"sub\\b.jpg\r\n", 'did you mean "sub/b.jpg"'),
    ],
)
def test_what_cannot_be_a_list_is_refused(
    content: bytes, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(touch(tmp_path, "a.jpg", "sub/b.jpg"))
    (tmp_path / "list").write_bytes(content)
    with pytest.raises(DataError, match="list: ") as told:
        list(named_paths([], "list"))
    assert said in str(told.value)


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xef\xbb\xbf", b"\xff\xfe", b"\0"])
def test_an_empty_list(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "list").write_bytes(content)
    with pytest.raises(CaptionerError, match="the list is empty"):
        gather(named_paths([], str(tmp_path / "list")))


def test_every_part_of_a_path_may_be_in_any_unicode_form(tmp_path: Path) -> None:
    on_disk = unicodedata.normalize("NFD", "여름/été/größe.jpg")
    touch(tmp_path, on_disk)
    typed = tmp_path / unicodedata.normalize("NFC", on_disk)
    assert list(gather([typed, tmp_path / on_disk]).paths()) == [tmp_path / on_disk]
    assert list(gather([typed.parent]).paths()) == [tmp_path / on_disk]
    with pytest.raises(ImageError, match="is empty"):  # found, that is
        read_image(typed)


@pytest.mark.parametrize(
    ("asked", "nearest"),
    [
        ("img_1.jpg", "IMG_1.JPG"),
        ("IMG_1.jpg", "IMG_1.JPG"),
        ("Sub/deep/c.png", "sub/deep/c.png"),
        ("sub/deeep/c.png", "sub/deep/c.png"),
        ("sub\\deep\\c.png", "sub/deep/c.png"),
        ("nothing like it.bmp", None),
    ],
)
def test_the_nearest_name_is_hinted_at(
    asked: str, nearest: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(touch(tmp_path, "IMG_1.JPG", "sub/deep/c.png"))
    assert missing_hint(asked) == ("" if nearest is None else f'; did you mean "{nearest}"?')
    with pytest.raises(ImageError, match="no such file") as told:
        read_image(asked)
    assert str(told.value).endswith(missing_hint(asked))


def test_every_suffix_is_lower_case() -> None:
    assert all(suffix == suffix.lower() and suffix.startswith(".") for suffix in IMAGE_SUFFIXES)
