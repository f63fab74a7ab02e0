"""A picture is its whole path: what is known of one is never taken for another's, nor lost with a copy."""

from __future__ import annotations

import csv
import os
import shutil
import unicodedata
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from PIL import Image

from captioner.apps.sidecars.file_kinds import WRITERS, Sidecar
from captioner.apps.sidecars.job import caption_folders
from captioner.apps.sidecars.journal import picture_stamp, same_stamp
from captioner.apps.sidecars.out_tree import OutTree
from captioner.apps.sidecars.plan import FolderPlan
from captioner.apps.sidecars.summary import Outcomes
from captioner.data.image_files import gather
from captioner.errors import CaptionerError, DataError
from captioner.inference.caption import Caption

KINDS = [kind for kind in WRITERS if kind != "xmp" or find_spec("lxml")]
SIDECARS = [kind for kind in KINDS if isinstance(WRITERS[kind], Sidecar)]


def model(paths: Iterable[Path]) -> Iterator[Caption]:
    """Names the picture's folder, so that a caption tells whose it is."""
    for path in paths:
        color = Image.open(path).getpixel((0, 0))
        yield Caption(str(path), f"{path.parent.name} {color[0]}", score=-0.5)


def photos(folder: Path, *names: str, red: int = 1) -> Path:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (6, 4), (red + number, 0, 0)).save(folder / name, "PNG")
    return folder


def caption(named: Path | list[Path], *kinds: str, loads: bool = True, **plan: object) -> Outcomes:
    def forbidden(paths: Iterable[Path]) -> Iterator[Caption]:
        pytest.fail(f"asked for {list(paths)}")

    paths = named if isinstance(named, list) else [named]
    settings = FolderPlan(kinds or ("txt",), job="one", **plan)  # type: ignore[arg-type]
    pictures = gather(paths, recursive=True)
    return caption_folders(pictures, settings, model if loads else forbidden, quiet=True)


def rows(folder: Path) -> dict[str, str]:
    with (folder / "captions.csv").open(encoding="utf-8", newline="") as file:
        found = [(row["file_name"], row["caption"]) for row in csv.DictReader(file)]
    assert len(dict(found)) == len(found)
    return dict(found)


def texts(folder: Path, suffix: str = ".txt") -> dict[str, str]:
    found = sorted(folder.rglob(f"*{suffix}"))
    return {path.relative_to(folder).as_posix(): path.read_text(encoding="utf-8").strip() for path in found}


# One --out for several commands.


@pytest.mark.parametrize("order", [("2023", "2024"), ("2024", "2023"), ("2023", ".", "2024"), (".", "2023")])
def test_folders_captioned_one_after_the_other_into_one_out(order: tuple[str, ...], tmp_path: Path) -> None:
    pictures = photos(tmp_path / "photos", "2023/IMG_1.jpg", "2023/IMG_2.jpg", "2024/IMG_1.jpg")
    out = tmp_path / "captions"
    for name in order:
        caption(pictures / name, "txt", "csv", out=out)
    said = sorted(texts(out).values())
    assert said == sorted(rows(out).values()) == (["2023 1", "2023 2", "2024 3"])
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    for name in (*order, *reversed(order)):
        outcomes = caption(pictures / name, "txt", "csv", out=out, loads=False)
        assert outcomes.done == len(gather([pictures / name], recursive=True))
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_a_later_list_of_one_folder_keeps_the_folder(tmp_path: Path) -> None:
    pictures = photos(tmp_path / "photos", "2023/IMG_1.jpg", "2024/IMG_1.jpg", "2024/IMG_2.jpg")
    out = tmp_path / "captions"
    caption([pictures / "2023/IMG_1.jpg", pictures / "2024/IMG_1.jpg"], "csv", "txt", out=out)
    caption([pictures / "2024/IMG_2.jpg"], "csv", "txt", out=out)
    assert sorted(rows(out)) == ["2023/IMG_1.jpg", "2024/IMG_1.jpg", "2024/IMG_2.jpg"]
    assert sorted(texts(out)) == ["2023/IMG_1.txt", "2024/IMG_1.txt", "2024/IMG_2.txt"]


def test_a_folder_in_the_way_of_another_root(tmp_path: Path) -> None:
    """photos/2023 holds a folder 2024, and photos/2024 is captioned, too."""
    pictures = photos(tmp_path / "photos", "2023/a.jpg", "2024/a.jpg", "2023/2024/a.jpg")
    out = tmp_path / "captions"
    caption([pictures / "2023" / "a.jpg"], out=out)
    caption(pictures / "2024", out=out)
    caption(pictures / "2023", out=out)
    assert sorted(texts(out).values()) == ["2023 1", "2024 2", "2024 3"]
    assert caption(pictures, out=out, loads=False).done == 3


def test_an_out_of_an_earlier_version_is_gone_on_with(tmp_path: Path) -> None:
    pictures = photos(tmp_path / "photos", "2023/IMG_1.jpg", "2024/IMG_1.jpg")
    out = tmp_path / "captions"
    caption(pictures / "2023", out=out)
    (out / ".captioner-roots.jsonl").unlink(missing_ok=True)
    assert caption(pictures / "2023", out=out, loads=False).done == 1
    (out / ".captioner-roots.jsonl").unlink(missing_ok=True)
    assert caption(pictures / "2024", out=out).captioned == 1
    assert sorted(texts(out).values()) == ["2023 1", "2024 2"]


def test_out_is_the_folder_of_the_pictures_above(tmp_path: Path) -> None:
    pictures = photos(tmp_path / "photos", "IMG_1.jpg", "2024/IMG_1.jpg")
    caption([pictures / "IMG_1.jpg"])
    caption(pictures / "2024", out=pictures)
    assert texts(pictures) == {"IMG_1.txt": "photos 1", "2024/IMG_1.txt": "2024 2"}


@pytest.mark.parametrize("how", ["copied", "moved", "pictures moved"])
def test_what_is_known_goes_with_a_copy(how: str, tmp_path: Path) -> None:
    home, other = tmp_path / "home", tmp_path / "other"
    photos(home / "photos", "a.jpg", "sub/b.jpg")
    caption(home / "photos", "txt", "csv", out=home / "captions")
    pictures, out = other / "photos", other / "captions"
    if how == "copied":
        shutil.copytree(home, other)
    elif how == "moved":
        home.rename(other)
    else:
        pictures, out = home / "holidays" / "pictures", home / "captions"
        pictures.parent.mkdir()
        (home / "photos").rename(pictures)
    assert caption(pictures, "txt", "csv", out=out, loads=False).done == 2
    assert sorted(texts(out)) == ["a.txt", "sub/b.txt"]


def test_two_that_begin_at_once_do_not_share_a_root(tmp_path: Path) -> None:
    pictures, out = photos(tmp_path / "photos", "2023/a.jpg", "2024/a.jpg"), tmp_path / "captions"
    trees = [OutTree(out, gather([pictures / year])) for year in ("2023", "2024")]
    folders = [
        tree.sidecar_folder(pictures / year) for tree, year in zip(trees, ("2023", "2024"), strict=True)
    ]
    assert folders[0] == folders[1]
    trees[0].save()
    with pytest.raises(CaptionerError, match="give the command again"):
        trees[1].save()


# One picture, several names.


def test_links_and_dots_are_one_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos(tmp_path, "photos/a.jpg")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "photos", target_is_directory=True)
    for named in ("photos", "./photos", "photos/../photos/.", "photos/a.jpg", str(tmp_path / "photos")):
        caption(Path(named), "txt", "csv", out=Path("captions"))
    assert texts(tmp_path / "captions") == {"a.txt": "photos 1"}
    assert caption(Path("link"), "txt", out=Path("captions"), loads=True).failed == 0
    assert set(texts(tmp_path / "captions").values()) <= {"photos 1", "link 1"}


@pytest.mark.parametrize("kind", SIDECARS)
@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_a_sidecar_in_another_unicode_form_is_the_pictures(kind: str, form: str, tmp_path: Path) -> None:
    other = {"NFC": "NFD", "NFD": "NFC"}[form]
    name = unicodedata.normalize(form, "\u00fcb\u00e9 \uac1c.jpg")
    photos(tmp_path, name)
    row = WRITERS[kind]
    assert isinstance(row, Sidecar)
    there = unicodedata.normalize(other, Path(name).stem) + row.suffix
    (tmp_path / there).write_bytes(row.write(b"", "by hand", {}))
    assert caption(tmp_path, kind, loads=False).kept == 1
    assert caption(tmp_path, kind, if_exists="overwrite").captioned == 1
    assert row.read((tmp_path / there).read_bytes()) != "by hand"
    assert len([path for path in tmp_path.iterdir() if path.suffix == row.suffix]) == 1


def test_a_journal_knows_names_in_another_unicode_form(tmp_path: Path) -> None:
    composed, decomposed = (unicodedata.normalize(form, "\u00e9t\u00e9.jpg") for form in ("NFC", "NFD"))
    photos(tmp_path, composed)
    caption(tmp_path, "json")
    for name in (composed, composed.replace(".jpg", ".json")):
        (tmp_path / name).rename(tmp_path / unicodedata.normalize("NFD", name))
    assert (tmp_path / decomposed).exists()
    assert caption(tmp_path, "json", loads=False).done == 1


@pytest.mark.parametrize("kind", SIDECARS)
@pytest.mark.parametrize("named", ["DSC_1", "DSC_1.JPG", "dsc_1"])
def test_sidecars_are_found_in_any_case(kind: str, named: str, tmp_path: Path) -> None:
    photos(tmp_path, "DSC_1.JPG", "DSC_2.JPG")
    row = WRITERS[kind]
    assert isinstance(row, Sidecar)
    there = tmp_path / (named + row.suffix.upper())
    there.write_bytes(row.write(b"", "by hand", {}))
    outcomes = caption(tmp_path, kind)
    assert (outcomes.kept, outcomes.captioned) == (1, 1)
    assert row.read(there.read_bytes()) == "by hand"
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix.lower() == row.suffix) == sorted(
        [there.name, f"DSC_2{row.suffix}"]
    )


def test_pictures_that_differ_in_case_alone_keep_their_own(tmp_path: Path) -> None:
    photos(tmp_path, "a.jpg", "A.jpg", "A.JPG")
    if len(list(tmp_path.iterdir())) < 3:
        pytest.skip("this disk does not tell them apart")
    caption(tmp_path, "txt", "json")
    assert len(texts(tmp_path)) == len(texts(tmp_path, ".json")) == 3
    assert len(set(texts(tmp_path).values())) == 3
    assert caption(tmp_path, "txt", "json", loads=False).done == 3


# Long names.


@pytest.mark.parametrize(
    ("size", "names", "fits"), [(255, "short", True), (255, "full", False), (251, "full", True)]
)
def test_names_as_long_as_the_file_system_allows(size: int, names: str, fits: bool, tmp_path: Path) -> None:
    photos(tmp_path, "x" * (size - 4) + ".jpg", "b.jpg")
    outcomes = caption(tmp_path, "txt", "csv", names=names)
    assert len(rows(tmp_path)) == 2  # whatever becomes of the sidecar, the sheet has both
    assert (outcomes.failed == 0) is fits and len(texts(tmp_path)) == 1 + fits
    if not fits:
        assert any("the name of its sidecar would be too long" in line for line in outcomes.lines())


# Times of coarse disks.


@pytest.mark.parametrize("step", [2_000_000_000, 1_000_000_000, 10_000_000, 100])
@pytest.mark.parametrize("up", [0, 1])
def test_a_copy_on_a_disk_with_coarse_times_is_known(step: int, up: int, tmp_path: Path) -> None:
    photos(tmp_path, "a.jpg")
    os.utime(tmp_path / "a.jpg", ns=(1_700_000_001_987_654_321,) * 2)
    caption(tmp_path)
    stamp = picture_stamp(tmp_path / "a.jpg")
    coarse = (1_700_000_001_987_654_321 // step + up) * step
    os.utime(tmp_path / "a.jpg", ns=(coarse, coarse))
    assert stamp != picture_stamp(tmp_path / "a.jpg")
    assert caption(tmp_path, loads=False).done == 1


@pytest.mark.parametrize("ns", [1, 999_999, -1_234_567_891])
def test_a_picture_that_is_written_anew_is_another(ns: int) -> None:
    time = 1_700_000_001_987_654_321
    assert not same_stamp(f"9-{time}", f"9-{time + ns}")
    assert not same_stamp(f"9-{time}", f"8-{time}") and not same_stamp("", f"9-{time}")


# Tables of people.


def test_a_table_of_a_person_is_not_mixed_with_ours(tmp_path: Path) -> None:
    photos(tmp_path, "a.jpg")
    table = tmp_path / "captions.csv"
    table.write_text("image,caption\nz.jpg,by hand\n")
    for part in ("captions.csv", "Captions.CSV"):
        table = table.rename(tmp_path / part)
        with pytest.raises(DataError, match="did not write.*--out.*--force"):
            caption(tmp_path, "csv", loads=False)
        assert table.read_text() == "image,caption\nz.jpg,by hand\n"
    assert caption(tmp_path, "csv", force=True).captioned == 1
    added = f"a.jpg,{tmp_path.name} 1,-0.5\n"
    assert table.read_text() == "image,caption,score\nz.jpg,by hand,\n" + added
    photos(tmp_path, "b.jpg")
    assert caption(tmp_path, "csv").captioned == 1  # from now on it is known
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *(".captioner.jsonl", "Captions.CSV", "a.jpg", "b.jpg"),
    ]
