"""People's captions are told from ours, in every kind of file, after whatever they did to them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from captioner.apps.sidecars.csv_table import Table
from captioner.apps.sidecars.file_kinds import WRITERS, Sidecar
from captioner.apps.sidecars.job import caption_folders
from captioner.apps.sidecars.origins import FolderCaptions, accept, captions_in
from captioner.apps.sidecars.plan import FolderPlan
from captioner.apps.sidecars.summary import Outcomes
from captioner.data.image_files import gather
from captioner.inference.caption import Caption

KINDS = [kind for kind in WRITERS if kind != "xmp" or find_spec("lxml")]


def model(paths: Iterable[Path]) -> Iterator[Caption]:
    for path in paths:
        yield Caption(str(path), f"a picture called {path.stem}", score=-0.5, log_probability=-2.5)


def photos(folder: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (6, 4), (number * 40, 0, 0)).save(folder / name)
    return folder


def better(paths: Iterable[Path]) -> Iterator[Caption]:
    for path in paths:
        yield Caption(str(path), f"{path.stem}, seen by a better model", score=-0.25)


def caption(folder: Path, *kinds: str, by: Callable[..., Any] = model, **plan: Any) -> Outcomes:
    pictures = gather([folder], recursive=True)
    return caption_folders(pictures, FolderPlan(kinds, **{"job": "one", **plan}), by, quiet=True)


def write(folder: Path, picture: str, kind: str, text: str) -> None:
    """As a person does, with another program."""
    row = WRITERS[kind]
    if isinstance(row, Sidecar):
        path = (folder / picture).with_suffix(row.suffix)
        content = path.read_bytes() if path.exists() else b""
        path.write_bytes(row.write(content, text, {}))
    else:
        table = Table(folder / row.file_name)
        table.put(picture, text, {})
        table.save()


def found(captions: FolderCaptions) -> dict[str, tuple[str, tuple[str, ...]]]:
    return {each.picture.name: (each.origin, each.captions) for each in captions.known}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("out", [False, True])
def test_each_caption_has_its_origin(kind: str, out: bool, tmp_path: Path) -> None:
    names = ("a.jpg", "b.jpg", "c.jpg", "d.jpg", "sub/e.jpg")
    folder = photos(tmp_path / "photos", *names)
    place = tmp_path / "captions" if out else folder
    options = {"out": place} if out else {}
    if not out and kind != "csv":
        write(folder, "b.jpg", kind, "by hand")
    caption(folder, kind, **options)
    write(place, "a.jpg", kind, "two dogs called Bello and Rex")
    accept(folder, [folder / "d.jpg", folder / "a.jpg"], **options)
    captions = captions_in(folder, **options)
    origins = found(captions)
    assert origins["a.jpg"] == ("corrected", ("two dogs called Bello and Rex",))
    if not out and kind != "csv":
        assert origins["b.jpg"] == ("person", ("by hand",))
    assert origins["c.jpg"] == ("untouched", ("a picture called c",))
    assert origins["d.jpg"] == ("accepted", ("a picture called d",))
    assert origins["e.jpg"] == ("untouched", ("a picture called e",))
    (a,) = captions.of("corrected")
    assert (a.written, a.score) == ("a picture called a", -0.5)
    assert captions.counts["untouched"] >= 2 and not captions.problems and not captions.without


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_journal_all_are_peoples(kind: str, tmp_path: Path) -> None:
    folder = photos(tmp_path, "a.jpg", "b.jpg")
    write(folder, "a.jpg", kind, "by hand")
    captions = captions_in(folder)
    assert found(captions) == {"a.jpg": ("person", ("by hand",))}
    assert captions.without == [folder / "b.jpg"]


@pytest.mark.parametrize("kind", KINDS)
def test_ours_below_a_persons_is_not_taken_for_theirs(kind: str, tmp_path: Path) -> None:
    folder = photos(tmp_path, "a.jpg")
    write(folder, "a.jpg", kind, "by hand")
    caption(folder, kind, if_exists="append", force=True)
    assert found(captions_in(folder)) == {"a.jpg": ("person", ("by hand",))}
    write(folder, "a.jpg", kind, "by hand, and better\na picture called a")
    assert found(captions_in(folder)) == {"a.jpg": ("corrected", ("by hand, and better",))}


def test_a_correction_in_one_file_counts_whatever_the_others_say(tmp_path: Path) -> None:
    folder = photos(tmp_path, "a.jpg")
    caption(folder, *KINDS)
    assert found(captions_in(folder))["a.jpg"][0] == "untouched"
    for kind in KINDS:
        write(folder, "a.jpg", kind, "better")
        assert found(captions_in(folder)) == {"a.jpg": ("corrected", ("better",))}
        write(folder, "a.jpg", kind, "a picture called a")


def test_the_description_inside_a_picture_is_a_persons(tmp_path: Path) -> None:
    pytest.importorskip("lxml")
    row = WRITERS["xmp"]
    assert isinstance(row, Sidecar)
    packet = row.write(b"", "by hand", {})
    Image.new("RGB", (6, 4)).save(tmp_path / "a.jpg", xmp=packet)
    (known,) = captions_in(tmp_path).known
    assert (known.origin, known.captions, known.file) == ("person", ("by hand",), tmp_path / "a.jpg")


def test_what_cannot_be_read_is_named_and_the_rest_is_told(tmp_path: Path) -> None:
    folder = photos(tmp_path, "a.jpg", "b.jpg")
    caption(folder, "txt", "json")
    (folder / "a.json").write_bytes(b"{")
    captions = captions_in(folder)
    assert [each.origin for each in captions.known] == ["untouched", "untouched"]
    assert len(captions.problems) == 1 and "a.json is not JSON" in captions.problems[0][1]


@pytest.mark.parametrize("kind", KINDS)
def test_a_better_model_renews_what_nobody_has_touched(kind: str, tmp_path: Path) -> None:
    folder = photos(tmp_path, "corrected.jpg", "accepted.jpg", "untouched.jpg", "hand.jpg")
    if kind != "csv":
        write(folder, "hand.jpg", kind, "by hand")
    caption(folder, kind)
    write(folder, "corrected.jpg", kind, "corrected")
    accept(folder, [folder / "accepted.jpg"])
    outcomes = caption(folder, kind, by=better, job="two", if_exists="renew")
    said = {name: captions[0] for name, (_, captions) in found(captions_in(folder)).items()}
    assert said["corrected.jpg"] == "corrected" and said["accepted.jpg"] == "a picture called accepted"
    assert said["untouched.jpg"] == "untouched, seen by a better model"
    assert said["hand.jpg"] == ("by hand" if kind != "csv" else "hand, seen by a better model")
    assert outcomes.captioned == (1 if kind != "csv" else 2)
    assert caption(folder, kind, by=better, job="two", if_exists="renew").captioned == 0
    # The one that is renewed is the new model's now, and untouched.
    assert found(captions_in(folder))["untouched.jpg"][0] == "untouched"


def test_names_too_long_for_sidecars_are_no_problem_of_reading(tmp_path: Path) -> None:
    photos(tmp_path, "x" * 251 + ".jpg")
    captions = captions_in(tmp_path)
    assert not captions.problems and len(captions.without) == 1
