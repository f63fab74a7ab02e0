"""Captioning folders: every picture once, nothing lost, whatever is there already and whatever happens."""

from __future__ import annotations

import csv
import json
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from captioner.apps.sidecars.file_kinds import WRITERS, Sidecar, names_needing_suffix
from captioner.apps.sidecars.job import FolderPlan, caption_folders
from captioner.apps.sidecars.journal import JOURNAL, Journal, folder_lock
from captioner.apps.sidecars.summary import Outcomes
from captioner.apps.sidecars.targets import writable
from captioner.cli.main import main
from captioner.config import load_config
from captioner.data.image_files import Pictures, gather, named_paths
from captioner.data.synthetic import scenes
from captioner.data.vocabulary import Vocabulary
from captioner.errors import CaptionerError, ConfigError, DataError, RunError
from captioner.inference.caption import Caption
from captioner.runs.run_folder import Run
from captioner.system.files import digest_file
from tests.photos import captions_of, make_photos

ROOT = Path(__file__).resolve().parents[3]


class Model:
    """Says what it is told to, and notes which pictures it was shown."""

    def __init__(self, says: str = "ein Bild") -> None:
        self.says, self.shown = says, []  # type: str, list[str]

    def __call__(self, paths: Iterable[Path]) -> Iterator[Caption]:
        for path in paths:
            self.shown.append(path.name)
            yield Caption(str(path), self.says, score=-1.0, log_probability=-2.0)


def photos(folder: Path, *names: str, color: str = "red") -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (6, 4), color).save(folder / name)
    return folder


def caption(folder: Path | Pictures, model: Any, *write: str, job: str = "one", **plan: Any) -> Outcomes:
    pictures = folder if isinstance(folder, Pictures) else gather([str(folder)], recursive=True)
    return caption_folders(pictures, FolderPlan(write or ("txt",), job=job, **plan), model, quiet=True)


def texts(folder: Path, suffix: str = ".txt") -> dict[str, str]:
    found = sorted(folder.rglob(f"*{suffix}"))
    return {path.relative_to(folder).as_posix(): path.read_text(encoding="utf-8").strip() for path in found}


def test_sidecars_stand_beside_the_pictures(tmp_path: Path) -> None:
    photos(tmp_path, "a.jpg", "sub/b.png", "sub/c.jpg", "sub/c.png")
    outcomes = caption(tmp_path, Model("개"), "txt", "json")
    assert (outcomes.captioned, outcomes.failed) == (4, 0)
    assert texts(tmp_path) == dict.fromkeys(["a.txt", "sub/b.txt", "sub/c.jpg.txt", "sub/c.png.txt"], "개")
    assert json.loads((tmp_path / "sub/b.json").read_text()) == {"caption": "개", "score": -1.0}


def test_sidecars_go_into_another_tree(tmp_path: Path) -> None:
    photos(tmp_path / "in", "a.jpg", "sub/deep/b.jpg")
    before = sorted((tmp_path / "in").rglob("*"))
    caption(tmp_path / "in", Model(), "txt", "csv", out=tmp_path / "out")
    assert texts(tmp_path / "out") == dict.fromkeys(["a.txt", "sub/deep/b.txt"], "ein Bild")
    with (tmp_path / "out" / "captions.csv").open(newline="") as file:
        assert [row["file_name"] for row in csv.DictReader(file)] == ["a.jpg", "sub/deep/b.jpg"]
    assert sorted((tmp_path / "in").rglob("*")) == before


def test_two_folders_stay_apart_in_the_other_tree(tmp_path: Path) -> None:
    photos(tmp_path, "x/one/a.jpg", "x/two/a.jpg", "x/b.jpg")
    pictures = gather([str(tmp_path / "x/one"), str(tmp_path / "x/two")])
    caption(pictures, Model(), "txt", out=tmp_path / "out")
    assert list(texts(tmp_path / "out")) == ["one/a.txt", "two/a.txt"]


def test_a_second_run_shows_the_model_nothing(tmp_path: Path) -> None:
    photos(tmp_path, "a.jpg", "b.jpg")
    (tmp_path / "broken.jpg").write_bytes(b"<html>")
    caption(tmp_path, captions_of, "txt", "csv")
    journal = (tmp_path / JOURNAL).read_bytes()
    again = Model("something else")
    outcomes = caption(photos(tmp_path, "new.jpg"), again, "txt", "csv")
    assert again.shown == ["new.jpg"]
    assert (outcomes.done, outcomes.captioned, outcomes.failed) == (2, 1, 1)
    assert (tmp_path / JOURNAL).read_bytes().startswith(journal)
    assert len((tmp_path / JOURNAL).read_bytes().splitlines()) == 4


def test_what_fails_is_said_every_time_and_mended_when_it_can_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (photos(tmp_path, "a.jpg") / "broken.jpg").write_bytes(b"<html>")
    for model in (captions_of, None, None):  # without a model: it would fail again
        outcomes = caption(tmp_path, model)
        assert outcomes.failed == 1
        assert "broken.jpg: is no picture" in capsys.readouterr().err
    assert len((tmp_path / JOURNAL).read_bytes().splitlines()) == 2
    assert Journal(tmp_path).entry("broken.jpg")["error"].startswith("is no picture")
    assert any("1 failed" in line for line in outcomes.lines())
    # A disk that could not be read, and now can; the picture is as it was.
    monkeypatch.setattr("captioner.apps.sidecars.folder_state.read_image", lambda path: None)
    assert caption(tmp_path, Model("ein Bild")).captioned == 1


def test_nothing_to_do_loads_no_model_and_leaves_no_trace(tmp_path: Path) -> None:
    photos(tmp_path, "a.jpg")
    (tmp_path / "a.txt").write_text("by hand")
    assert caption(tmp_path, lambda _: pytest.fail("loaded")).kept == 1
    assert sorted(os.listdir(tmp_path)) == ["a.jpg", "a.txt"]


def test_what_is_known_is_written_without_the_model(tmp_path: Path) -> None:
    caption(photos(tmp_path, "a.jpg", "b.jpg"), Model("개 한 마리"))
    (tmp_path / "b.txt").unlink()
    outcomes = caption(tmp_path, None, "txt", "json", "csv")
    assert (outcomes.restored, outcomes.captioned) == (2, 0)
    assert texts(tmp_path) == {"a.txt": "개 한 마리", "b.txt": "개 한 마리"}
    assert json.loads((tmp_path / "b.json").read_text())["caption"] == "개 한 마리"


def test_a_changed_picture_is_captioned_again_but_no_word_of_a_person_is_lost(tmp_path: Path) -> None:
    caption(photos(tmp_path, "a.jpg", "b.jpg", "c.jpg"), Model("old"), "txt", "csv")
    (tmp_path / "b.txt").write_text("improved by hand")
    photos(tmp_path, "a.jpg", "b.jpg", color="blue")
    model = Model("new")
    caption(tmp_path, model, "txt", "csv")
    assert model.shown == ["a.jpg", "b.jpg"]
    assert texts(tmp_path) == {"a.txt": "new", "b.txt": "improved by hand", "c.txt": "old"}
    rows = (tmp_path / "captions.csv").read_text().splitlines()
    assert sorted(rows) == ["a.jpg,new,-1.0", "b.jpg,new,-1.0", "c.jpg,old,-1.0", "file_name,caption,score"]
    outcomes = caption(tmp_path, None, "txt", "csv")
    assert (outcomes.done, outcomes.kept) == (2, 1)


@pytest.mark.parametrize(
    ("if_exists", "by_hand", "by_us"),
    [("skip", "by hand", "one"), ("overwrite", "two", "two"), ("append", "by hand\ntwo", "one\ntwo")],
)
def test_captions_that_are_there(tmp_path: Path, if_exists: str, by_hand: str, by_us: str) -> None:
    """Another model meets captions by hand and captions of the first model."""
    photos(tmp_path, "hand.jpg", "ours.jpg", "empty.jpg", "none.jpg")
    (tmp_path / "hand.txt").write_text("by hand\n")
    caption(gather([str(tmp_path / "ours.jpg")]), Model("one"))
    (tmp_path / "empty.txt").write_text(" \n")  # as a tool leaves it that died while writing
    for _ in range(2):  # the second time changes nothing
        caption(tmp_path, Model("two"), job="two", if_exists=if_exists)
        expected = {"hand.txt": by_hand, "ours.txt": by_us, "empty.txt": "two", "none.txt": "two"}
        assert texts(tmp_path) == expected


def test_appending_can_be_followed_by_overwriting(tmp_path: Path) -> None:
    (photos(tmp_path, "a.jpg") / "a.txt").write_text("by hand")
    caption(tmp_path, Model("one"), if_exists="append")
    caption(tmp_path, None, if_exists="append")
    assert texts(tmp_path) == {"a.txt": "by hand\none"}
    caption(tmp_path, None, if_exists="overwrite")
    assert texts(tmp_path) == {"a.txt": "one"}


def test_a_correction_by_hand_survives_the_same_command(tmp_path: Path) -> None:
    for if_exists in ("skip", "overwrite", "append"):
        photos(tmp_path / if_exists, "a.jpg")
        caption(tmp_path / if_exists, Model("a red picture"), if_exists=if_exists)
        (tmp_path / if_exists / "a.txt").write_text("a red flag")
        assert caption(tmp_path / if_exists, None, if_exists=if_exists).done == 1
        assert texts(tmp_path / if_exists) == {"a.txt": "a red flag"}


def test_a_new_picture_of_the_same_name_moves_the_sidecar(tmp_path: Path) -> None:
    caption(photos(tmp_path, "a.jpg"), Model("first"))
    (tmp_path / "a.txt").write_text("corrected")
    model = Model("second")
    caption(photos(tmp_path, "a.png"), model)
    assert model.shown == ["a.png"]
    assert texts(tmp_path) == {"a.jpg.txt": "corrected", "a.png.txt": "second"}
    (tmp_path / "a.png").unlink()
    assert caption(tmp_path, None).done == 1
    assert caption(tmp_path, None, names="full").done == 1


def test_full_names_when_asked_for_or_found(tmp_path: Path) -> None:
    photos(tmp_path, "a.jpg", "b.jpg")
    caption(tmp_path, Model("full"), names="full")
    assert list(texts(tmp_path)) == ["a.jpg.txt", "b.jpg.txt"]
    assert caption(tmp_path, None).done == 2  # the habit found is kept


def test_xmp_sidecars_of_either_habit_are_added_to(tmp_path: Path) -> None:
    pytest.importorskip("lxml")
    row = WRITERS["xmp"]
    assert isinstance(row, Sidecar)
    rating = b'<xmp:Rating xmlns:xmp="http://ns.adobe.com/xap/1.0/">5</xmp:Rating>'
    blank = row.write(b"", "x", {}).replace(b">x</rdf:li>", b"></rdf:li>")
    rated = blank.replace(b"<dc:description>", rating + b"<dc:description>")
    assert row.read(rated) is None
    photos(tmp_path, "lightroom.jpg", "darktable.jpg", "new.jpg", "hand.jpg", "damaged.jpg")
    for name in ("lightroom.xmp", "darktable.jpg.xmp"):
        (tmp_path / name).write_bytes(rated)
    (tmp_path / "hand.xmp").write_bytes(row.write(rated, "손으로", {}))
    (tmp_path / "damaged.xmp").write_bytes(rated[:200])
    outcomes = caption(tmp_path, Model("ein Bild"), "xmp")
    names = ["damaged.xmp", "darktable.jpg.xmp", "hand.xmp", "lightroom.xmp", "new.xmp"]
    assert sorted(path.name for path in tmp_path.glob("*.xmp")) == names
    assert (outcomes.captioned, outcomes.kept, outcomes.failed) == (3, 1, 1)
    assert (tmp_path / "damaged.xmp").read_bytes() == rated[:200]
    for name in ("darktable.jpg.xmp", "hand.xmp", "lightroom.xmp"):
        content = (tmp_path / name).read_bytes()
        assert row.read(content) == ("손으로" if name == "hand.xmp" else "ein Bild")
        assert rating in content
    # In another tree: begun with what is beside the picture.
    caption(tmp_path, Model(), "xmp", out=tmp_path / "out", if_exists="overwrite", names="full")
    for name in ("lightroom.jpg.xmp", "darktable.jpg.xmp", "hand.jpg.xmp"):
        content = (tmp_path / "out" / name).read_bytes()
        assert row.read(content) == "ein Bild" and rating in content


def test_a_description_inside_the_picture_counts_as_there(tmp_path: Path) -> None:
    pytest.importorskip("lxml")
    row = WRITERS["xmp"]
    assert isinstance(row, Sidecar)
    Image.new("RGB", (4, 4)).save(tmp_path / "a.jpg", xmp=row.write(b"", "by hand", {}))
    assert caption(tmp_path, None, "xmp").kept == 1
    assert caption(tmp_path, Model("new"), "xmp", if_exists="append").captioned == 1
    assert row.read((tmp_path / "a.xmp").read_bytes()) == "by hand\nnew"


def test_no_picture_is_ever_written_to(tmp_path: Path) -> None:
    """A picture called like a sidecar; a sidecar that is a link to a picture."""
    Image.new("RGB", (4, 4)).save(tmp_path / "a.txt", format="PNG")
    photos(tmp_path, "a.jpg", "b.jpg", "c.jpg")
    (tmp_path / "b.txt").symlink_to(tmp_path / "c.jpg")
    digests = {name: digest_file(tmp_path / name) for name in ("a.txt", "a.jpg", "b.jpg", "c.jpg")}
    named = [str(tmp_path / name) for name in digests]
    outcomes = caption(gather(named), Model(), if_exists="overwrite")
    assert {name: digest_file(tmp_path / name) for name in digests} == digests
    assert outcomes.failed == 1
    assert (tmp_path / "a.txt.txt").is_file() and (tmp_path / "a.jpg.txt").is_file()


def test_one_that_cannot_be_written_does_not_stop_the_others(tmp_path: Path) -> None:
    photos(tmp_path, "a.jpg", "b.jpg")
    (tmp_path / "a.txt").mkdir()
    outcomes = caption(tmp_path, Model("ein Bild"))
    assert (outcomes.captioned, outcomes.failed) == (1, 1)
    assert list(outcomes.failures) == ["a.txt cannot be read"]
    assert (tmp_path / "b.txt").read_text() == "ein Bild\n"


def test_a_full_disk_stops_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise CaptionerError("full") from OSError(28, "No space left on device")

    photos(tmp_path, *(f"{number}.jpg" for number in range(40)))
    monkeypatch.setattr("captioner.apps.sidecars.targets.atomic_write", full)
    model = Model()
    with pytest.raises(CaptionerError, match="full"):
        caption(tmp_path, model)
    monkeypatch.undo()
    outcomes = caption(tmp_path, model)
    assert len(texts(tmp_path)) == 40
    assert outcomes.restored + outcomes.captioned == 40 and outcomes.restored > 0


def test_a_folder_that_cannot_be_written_costs_no_captioning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("captioner.apps.sidecars.job.writable", lambda place: place.name != "locked")
    photos(tmp_path, "locked/a.jpg", "free/b.jpg")
    model = Model()
    outcomes = caption(tmp_path, model)
    assert model.shown == ["b.jpg"] and outcomes.failed == 1
    assert "cannot be written" in next(iter(outcomes.failures))
    assert writable(tmp_path / "not" / "there" / "yet") and not writable(tmp_path / "free" / "b.jpg" / "x")


def test_a_caption_of_no_words_is_a_failure(tmp_path: Path) -> None:
    outcomes = caption(photos(tmp_path, "a.jpg"), Model(" "))
    assert list(outcomes.failures) == ["the model found no words for it"] and texts(tmp_path) == {}
    assert caption(tmp_path, None).failed == 1


def test_two_at_once_do_not_meet(tmp_path: Path) -> None:
    photos(tmp_path, "a.jpg")
    for kinds in (("txt",), ("csv",)):
        with folder_lock(tmp_path), pytest.raises(RunError, match="another captioner is at work"):
            caption(tmp_path, Model(), *kinds)
    assert caption(tmp_path, Model(), "txt", "csv").captioned == 1


def test_a_journal_survives_what_crashes_leave(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.add([{"picture": "a", "n": 1}, {"picture": "개", "n": 2}])
    with journal.path.open("ab") as file:
        file.write(b'{"picture": "b", "n"')
    for opened in (journal, Journal(tmp_path)):
        assert [opened.entry(name).get("n") for name in ("a", "개", "b")] == [1, 2, None]
    journal.add([{"picture": "a", "n": 3}, {"picture": os.fsdecode(b"caf\xe9"), "n": 4}])
    for opened in (journal, Journal(tmp_path)):
        assert opened.entry("a")["n"] == 3 and opened.entry("caf\udce9")["n"] == 4


def test_leftovers_of_a_killed_run_go_and_nothing_else(tmp_path: Path) -> None:
    photos(tmp_path, "a.jpg")
    for name in (".tmp-123-0123abcd.txt", ".tmp-mine.txt", ".tmp-123-0123abcd.txt.keep"):
        (tmp_path / name).write_text("x")
    caption(tmp_path, Model())
    assert not (tmp_path / ".tmp-123-0123abcd.txt").exists()
    assert (tmp_path / ".tmp-mine.txt").exists() and (tmp_path / ".tmp-123-0123abcd.txt.keep").exists()


def test_paths_come_from_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["a.jpg", "여름 휴가.png", os.fsdecode(b"caf\xe9.jpg")]
    monkeypatch.chdir(photos(tmp_path, "a.jpg"))
    listing = tmp_path / "list.txt"
    listing.write_bytes(b"\xef\xbb\xbf" + b"\r\n".join(map(os.fsencode, names)) + b"\r\n\r\n")
    assert list(named_paths(["x"], str(listing))) == ["x", *names]
    listing.write_bytes(b"\0".join(map(os.fsencode, [*names, "two\nlines.jpg"])) + b"\0")
    with listing.open("rb") as file, monkeypatch.context() as patch:
        patch.setattr("sys.stdin", type("Stdin", (), {"buffer": file}))
        assert list(named_paths(["-", "y"])) == [*names, "two\nlines.jpg", "y"]
    with pytest.raises(DataError, match="cannot be read"):
        list(named_paths([], str(tmp_path / "missing")))
    with pytest.raises(CaptionerError, match="list is empty"):
        gather([])


def test_pictures_are_gathered_once(tmp_path: Path) -> None:
    photos(tmp_path, "a.jpg", "sub/B.JPG", ".hidden/c.jpg", ".d.jpg")
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "folder.jpg").mkdir()
    named = [str(tmp_path), str(tmp_path / "sub" / "B.JPG"), f"{tmp_path}/sub/../a.jpg"]
    found = gather(named, recursive=True)
    assert {path.name: names for path, names in found.folders.items()} == {
        tmp_path.name: ["a.jpg"],
        "sub": ["B.JPG"],
    }
    assert len(found) == 2 and found.base == tmp_path
    with pytest.raises(CaptionerError, match="--recursive looks into folders"):
        gather([str(photos(tmp_path, "only/deeper/a.jpg") / "only")])


def test_a_picture_that_is_not_there_is_a_failure(tmp_path: Path) -> None:
    photos(tmp_path, "a.jpg")
    outcomes = caption(gather([str(tmp_path / "missing.jpg"), str(tmp_path / "a.jpg")]), captions_of)
    assert (outcomes.captioned, outcomes.failed) == (1, 1)


@pytest.mark.parametrize(
    "plan",
    [{"write": ("txt", "jsn")}, {"if_exists": "replace"}, {"names": "long"}],
)
def test_plans_that_cannot_be(plan: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="known: "):
        caption_folders(gather([str(photos(tmp_path, "a.jpg"))]), FolderPlan(**plan), Model())


def test_memory_does_not_grow_with_the_number_of_pictures(tmp_path: Path) -> None:
    """Never are many captions under way, and each is written before the next batch is asked for."""
    photos(tmp_path, *(f"{number % 7}/{number}.jpg" for number in range(120)))
    ahead = []

    def lazily(paths: Iterable[Path]) -> Iterator[Caption]:
        for number, path in enumerate(paths, start=1):
            ahead.append(number - len(list(tmp_path.rglob("*.txt"))))
            yield Caption(str(path), "x")

    assert caption(tmp_path, lazily).captioned == 120
    assert max(ahead) <= 32


def test_the_command_writes_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every `captioner` line of docs/folders.md, its programs, and what the command refuses."""
    manual = (ROOT / "docs" / "folders.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    scenes.draw_dataset("scenes", pictures=12, size=32)
    opinionated(tmp_path / "runs" / "scenes", tmp_path / "scenes" / "captions.csv")
    monkeypatch.setenv("CAPTIONER_RUN", "runs/scenes")
    make_photos(tmp_path / "photos", 8, broken=0)
    chosen = [str(path) for path in (tmp_path / "photos").rglob("*") if path.is_file()][:3]
    Path("chosen.txt").write_text("\n".join(chosen), encoding="utf-8")
    for line in re.findall(r"^captioner (.*)", manual, re.MULTILINE):
        assert main([*shlex.split(line), "--quiet"]) == 0, line
    assert len(texts(tmp_path / "photos")) == 8
    for name, rows in {"captions": 8, "chosen": 3}.items():
        assert len((tmp_path / name / "captions.csv").read_text().splitlines()) == rows + 1
    space: dict[str, Any] = {}
    for block in re.findall(r"^```python\n(.*?)^```", manual, re.MULTILINE | re.DOTALL):
        exec(compile(block, "folders.md", "exec"), space)
    assert space["outcomes"].captioned == 12 and len(space["records"]) == 4
    for wrong in (["--out", "x"], ["--write", "txt", "--json"], ["--write", "text"], ["--write", "txt,"]):
        assert main(["caption", "photos", "--recursive", *wrong]) == 2
    assert main(["caption", "--write", "txt"]) == 2


def test_killed_again_and_again(tmp_path: Path) -> None:
    """SIGKILL at random moments until it is through."""
    kinds = [name for name in WRITERS if name != "xmp" or find_spec("lxml")]
    made = make_photos(tmp_path / "photos", 200, seed=3)
    command = [sys.executable, "-m", "tests.photos", str(tmp_path / "photos"), "--write", ",".join(kinds)]
    kills, code = kill_until_through(command, tmp_path / "photos", made, kills=4)
    assert kills >= 2 and code == 1  # some are broken
    check_all(tmp_path / "photos", made, kinds)


@pytest.mark.slow
@pytest.mark.parametrize(("language", "script"), [("ko", "[\uac00-\ud7a3]"), ("de", "[äöüÄÖÜß]")])
def test_two_thousand_pictures_killed_until_through(tmp_path: Path, language: str, script: str) -> None:
    """All kinds of pictures and of files: in the end, all is as if the command had never been killed."""
    from captioner.inference.captioner import Captioner

    scenes.draw_dataset(tmp_path / "scenes", pictures=60, size=64, language=language)
    model = opinionated(tmp_path / "run", tmp_path / "scenes" / "captions.csv")
    motifs = sorted((tmp_path / "scenes" / "images").iterdir())
    made = make_photos(tmp_path / "photos", 2000, seed=5, motifs=motifs)
    good = [path for path, text in made.items() if text]
    for path, caption in zip(good, Captioner.load(model).captions_of(good), strict=True):
        made[path] = caption.text
    good = [path for path in good if made[path]]  # of an untrained decoder some have no word
    assert len(good) > 1800
    assert sum(bool(re.search(script, made[path] or "")) for path in good) > 100
    assert len(set(made.values())) > 20

    kinds = [name for name in WRITERS if name != "xmp" or find_spec("lxml")]
    command = [sys.executable, "-m", "captioner", "caption", str(tmp_path / "photos"), "--recursive"]
    command += ["--run", str(model), "--write", ",".join(kinds)]
    kills, code = kill_until_through(command, tmp_path / "photos", made, kills=8)
    assert kills >= 4 and code == 1
    check_all(tmp_path / "photos", made, kinds)
    # Once more: nothing to do but to try the broken ones again.
    before = {path: digest_file(path) for path in tmp_path.rglob("*") if path.is_file()}
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=3600)
    assert f"{len(good):,} were done already" in again.stdout
    assert {path: digest_file(path) for path in tmp_path.rglob("*") if path.is_file()} == before


def opinionated(folder: Path, table: Path) -> Path:
    """A run that was never trained, but says something else of every picture, in the words of a table."""
    from captioner.models.decoder import CaptionDecoder
    from captioner.models.encoder import load_encoder

    with table.open(encoding="utf-8", newline="") as file:
        vocabulary = Vocabulary.build(row["caption"] for row in csv.DictReader(file))
    sizes = ["encoder.name=small_cnn", "encoder.weights=none", "encoder.size=48", "decode.max_words=8"]
    config = load_config("", [*sizes, "decoder.units=16", "decoder.embedding=8", "decode.beam=2"])
    encoder = load_encoder("small_cnn", weights="none", size=48)
    decoder = CaptionDecoder(config.decoder, vocabulary_size=len(vocabulary), channels=encoder.channels)
    draw = np.random.default_rng(2)
    for variable in decoder.variables:
        if not variable.name.endswith("bias"):
            variable.assign(draw.normal(0, 1, variable.shape))
    Run.create(folder, config, vocabulary, encoder).save_best(decoder, encoder, {"epoch": 0})
    return folder


def kill_until_through(
    command: list[str], folder: Path, made: dict[Path, Any], *, kills: int, seed: int = 0
) -> tuple[int, int]:
    """Starts the command and kills it a moment after it has begun to write; in the end lets it finish.

    Returns:
        How often it was killed, and its exit code in the end.
    """
    draw = random.Random(seed)
    digests = {path: digest_file(path) for path in made}
    done = 0
    for _ in range(kills):
        lines = noted(folder)
        with open(folder.parent / "log.txt", "ab") as log:
            process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
        wait = lines + draw.randrange(0, max(2, 2 * len(made) // kills))
        while process.poll() is None and noted(folder) <= wait:
            time.sleep(0.001)
        time.sleep(draw.random() * 0.01)
        done += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert {path: digest_file(path) for path in made} == digests
        check_whole(folder)
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=3600)
    assert finished.returncode in (0, 1), finished.stderr.decode()
    assert {path: digest_file(path) for path in made} == digests
    return done, finished.returncode


def noted(folder: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in folder.rglob(JOURNAL))


def check_whole(folder: Path) -> None:
    """No sidecar is half-written, whenever one looks."""
    for path in folder.rglob("*"):
        row = WRITERS.get(path.suffix[1:])
        if isinstance(row, Sidecar) and not path.name.startswith("."):
            assert row.read(path.read_bytes()), path


def check_all(folder: Path, made: dict[Path, str | None], kinds: list[str]) -> None:
    """Every good picture has one right sidecar of each kind, every broken one none; nothing else is there."""
    for kind in kinds:
        row = WRITERS[kind]
        if not isinstance(row, Sidecar):
            with (folder / row.file_name).open(encoding="utf-8", newline="") as file:
                rows = [(found["file_name"], found["caption"]) for found in csv.DictReader(file)]
            good = {path.relative_to(folder).as_posix(): text for path, text in made.items() if text}
            assert sorted(rows) == sorted(good.items())
            continue
        expected = {sidecar_of(path, made, row.suffix): text for path, text in made.items() if text}
        found = {path: row.read(path.read_bytes()) for path in folder.rglob(f"*{row.suffix}")}
        assert found == expected
    others = {path.name for path in folder.rglob("*") if path.is_file() and path.name.startswith(".")}
    assert others == {JOURNAL}


def sidecar_of(picture: Path, made: Iterable[Path], suffix: str) -> Path:
    crowded = names_needing_suffix([path.name for path in made if path.parent == picture.parent])
    return picture.with_name((picture.name if picture.name in crowded else picture.stem) + suffix)
