"""Captions from elsewhere: how files are read, how they find their pictures, which of two is better."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from captioner.cli.main import main
from captioner.errors import CaptionerError, DataError
from captioner.evaluation.bootstrap import paired_bootstrap
from captioner.evaluation.caption_files import match_captions, read_captions, write_coco_results
from captioner.evaluation.compare import compare, verdicts
from captioner.evaluation.html_report import write_comparison
from captioner.evaluation.java_metrics import JAVA_OPTIONS, check_java, java_scores
from captioner.evaluation.metrics import bleu_counts, bleu_of_counts, score

THINGS = ("dog", "cat", "red car", "tall tree", "small boat", "black horse")
GOOD = [f"a {thing} stands on the grass" for thing in THINGS]
BAD = [f"a {thing} is there" for thing in THINGS]
PEOPLE = [[f"a {thing} stands on the grass", f"one {thing} on green grass"] for thing in THINGS]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A COCO data set of six pictures, numbered from 40 on, dev split, pictures there."""
    folder = tmp_path / "photos"
    (folder / "annotations").mkdir(parents=True)
    images = [{"id": 40 + i, "file_name": f"{name}.png"} for i, name in enumerate("abcdef")]
    captions = [{"image_id": 40 + i, "caption": text} for i, texts in enumerate(PEOPLE) for text in texts]
    content = json.dumps({"images": images, "annotations": captions})
    (folder / "annotations" / "captions_val.json").write_text(content)
    for number, image in enumerate(images):
        Image.new("RGB", (40, 30), (40 * number, 90, 90)).save(folder / str(image["file_name"]))
    return folder


def coco(path: Path, texts: list[str]) -> Path:
    path.write_text(json.dumps([{"image_id": 40 + i, "caption": text} for i, text in enumerate(texts)]))
    return path


ROWS = {"a.jpg": "a dog", "b.jpg": 'a "cat", sitting'}


@pytest.mark.parametrize(
    "form", ["results.json", "lines.jsonl", "table.csv", "table.tsv", "predictions.jsonl"]
)
def test_each_form_is_read(tmp_path: Path, form: str) -> None:
    file = tmp_path / form
    if form == "results.json":
        file.write_text(json.dumps([{"image_id": key, "caption": text} for key, text in ROWS.items()]))
    elif form == "lines.jsonl":
        file.write_text("".join(f"{json.dumps({'image': k, 'text': t})}\n\n" for k, t in ROWS.items()))
    elif form == "predictions.jsonl":  # as `captioner caption --json` writes them; one could not be read
        lines = [
            *({"path": k, "caption": t, "score": -0.5} for k, t in ROWS.items()),
            {"path": "c", "error": "x"},
        ]
        file.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    else:
        with open(file, "w", newline="") as opened:
            writer = csv.writer(opened, delimiter="\t" if form.endswith("tsv") else ",")
            writer.writerows([("Image", "Caption", "score"), *((k, t, "1") for k, t in ROWS.items())])
    assert read_captions(file) == ROWS


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "expected"),
        ("[]", "has no captions"),
        ("[1]", "entry 1: expected"),
        ('[{"image_id": 1}]', "entry 1: names no picture or no caption"),
        ('[{"image_id": 1, "caption": "a"}, {"image_id": 1, "caption": "b"}]', '"1" has a caption already'),
        ('{"image": "a", "caption": "b"}\n{', "line 2: not JSON"),
        ("one,two\n1,2\n", "expected"),
    ],
)
def test_a_file_of_another_form_is_refused_with_its_place(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "x").write_text(content)
    with pytest.raises(DataError, match=re.escape(said)):
        read_captions(tmp_path / "x")


def test_captions_find_their_pictures_by_any_name_that_fits_one_alone() -> None:
    names = ["train/1.jpg", "test/1.jpg", "test/2.jpg", "사진.png"]
    captions = {"/data/test/1.jpg": "x", "1.jpg": "either", "2": "y", "사진": "z", "9.jpg": "?"}
    assert match_captions(captions, names) == {"test/1.jpg": "x", "test/2.jpg": "y", "사진.png": "z"}
    # COCO's own names end with the number; a data set's numbers come before what names look like.
    assert match_captions({"42": "x"}, ["COCO_val2014_000000000042.jpg"]) == {
        "COCO_val2014_000000000042.jpg": "x"
    }
    assert match_captions({"7": "x"}, ["a7.jpg", "b.jpg"], {"7": "b.jpg"}) == {"b.jpg": "x"}


def test_coco_results_go_out_and_come_back(tmp_path: Path) -> None:
    captions = {"a.jpg": "a dog", "b.jpg": "a cat"}
    file = tmp_path / "results.json"
    for numbers, ids in (({"7": "a.jpg", "8": "b.jpg"}, [7, 8]), ({}, ["a.jpg", "b.jpg"])):
        write_coco_results(file, captions, numbers)
        assert [row["image_id"] for row in json.loads(file.read_text())] == ids
        assert match_captions(read_captions(file), captions, numbers) == captions
    write_coco_results(file, {"COCO_val2014_000000000042.jpg": "x"})
    assert json.loads(file.read_text()) == [{"image_id": 42, "caption": "x"}]


@pytest.mark.parametrize(
    "captions", [GOOD, BAD, ["", *GOOD[1:]], ["a b c"] * 6], ids=["good", "bad", "empty", "none"]
)
def test_bleu_from_summed_counts_is_bleu_of_the_set(captions: list[str]) -> None:
    found = bleu_of_counts(bleu_counts(PEOPLE, captions).sum(0))
    expected = score(PEOPLE, captions, metrics=["bleu"])
    assert found == pytest.approx([expected[f"bleu{order}"] for order in (1, 2, 3, 4)], abs=1e-6)


def test_the_bootstrap_knows_better_from_equal_and_from_luck() -> None:
    by_name = {found.metric: found for found in paired_bootstrap(PEOPLE, GOOD, BAD)}
    assert list(by_name)[:3] == ["bleu4", "rouge_l", "cider"]
    assert by_name["cider"].certain and by_name["cider"].better == 1
    assert by_name["cider"].low < by_name["cider"].difference < by_name["cider"].high
    same = paired_bootstrap(PEOPLE, GOOD, GOOD)
    assert [(found.difference, found.certain, found.better) for found in same] == [(0, False, 0.5)] * len(
        same
    )
    # One picture better, one worse: nothing can be told. The other way round, everything turns its sign.
    mixed = [GOOD[0], BAD[1], *GOOD[2:]], [BAD[0], GOOD[1], *GOOD[2:]]
    there, back = paired_bootstrap(PEOPLE, *mixed), paired_bootstrap(PEOPLE, *mixed[::-1])
    assert not any(found.certain for found in there)
    assert [found.low for found in there] == [-found.high for found in back]


def test_of_independent_models_that_are_equal_about_one_in_twenty_seems_better() -> None:
    rng = np.random.default_rng(0)
    people = [[f"{word} one two three"] for word in "abcdefghijklmnopqrst"]
    wrong = 0
    for trial in range(100):
        texts = [
            [texts[0] if good else "x y" for texts, good in zip(people, row, strict=True)]
            for row in rng.random((2, len(people))) < 0.5
        ]
        found = paired_bootstrap(people, *texts, resamples=200, seed=trial)
        wrong += next(each for each in found if each.metric == "rouge_l").certain
    assert 0 < wrong < 15


def test_one_file_gets_the_scores_of_a_run(photos: Path, tmp_path: Path) -> None:
    found = compare([coco(tmp_path / "good.json", GOOD)], photos, split="dev")
    (evaluation,) = found.evaluations.values()
    assert evaluation.scores["bleu4"] == pytest.approx(score(PEOPLE, GOOD)["bleu4"], abs=1e-3)
    assert evaluation.scores["shuffled"]["cider"] < evaluation.scores["cider"]
    assert evaluation.scores["protocol"]["run"] == "good.json"
    assert (found.pairs, found.notes) == ([], [])


def test_the_pictures_themselves_need_not_be_there(photos: Path, tmp_path: Path) -> None:
    for path in photos.glob("*.png"):
        path.unlink()
    assert len(compare([coco(tmp_path / "good.json", GOOD)], photos, split="dev").records) == 6


def test_several_files_count_the_pictures_that_all_describe(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    files = [coco(tmp_path / "x.json", GOOD), coco(tmp_path / "one" / "x.json", BAD[:5])]
    found = compare(files, photos, split="dev")
    assert list(found.evaluations) == [f"{tmp_path.name}/x.json", "one/x.json"]
    assert [evaluation.scores["images"] for evaluation in found.evaluations.values()] == [5, 5]
    assert found.notes == [
        "1 of the 6 pictures of dev are left out, since not every file describes them "
        "(one/x.json describes 5)"
    ]
    assert verdicts(found.pairs[0])[0].startswith(
        f"cider: {tmp_path.name}/x.json is better than one/x.json, +"
    )


def test_captions_of_other_pictures_are_refused_with_both_names(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("image,caption\nz.png,a dog\n")
    with pytest.raises(DataError, match="describes no picture of dev.*“z.png”.*“a.png”"):
        compare([tmp_path / "x.csv"], photos, split="dev")


def test_the_command_prints_and_writes(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [str(coco(tmp_path / f"{name}.json", texts)) for name, texts in (("good", GOOD), ("bad", BAD))]
    assert main(["score", *files, "--data", str(photos), "--split", "dev"]) == 0
    said = capsys.readouterr().out
    assert "good.json against bad.json\n  cider: good.json is better than bad.json" in said
    assert "written" not in said
    out = tmp_path / "out"
    assert (
        main(["score", *files, "--data", str(photos), "--split", "dev", "--out", str(out), "--report"]) == 0
    )
    content = json.loads((out / "scores.json").read_text())
    assert list(content["files"]) == ["good.json", "bad.json"]
    assert content["pairs"][0]["differences"][0]["metric"] == "bleu4"
    page = (out / "report.html").read_text()
    assert page.count("better here") == 2 and "Paired bootstrap" in page and "a dog stands" not in said
    addresses = re.findall(r"""(?:src|href)=["']?([^"'\s>]+)|url\(([^)]+)\)""", page)
    assert addresses and all((a or b).startswith("data:image/") for a, b in addresses)


def test_the_page_of_one_file_escapes_what_it_shows(photos: Path, tmp_path: Path) -> None:
    texts = ["<script>alert(1)</script>", *GOOD[1:]]
    file = coco(tmp_path / "<b>.json", texts)
    write_comparison(compare([file], photos, split="dev"), tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "<script>alert" not in page and "<b>.json" not in page and "&lt;b&gt;.json" in page
    assert page.count('class="exhibit"') == 6


def test_evaluate_writes_what_the_coco_server_takes(
    tiny_run: Path, scenes_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [
        "evaluate",
        "--run",
        str(tiny_run),
        "--data",
        str(scenes_folder),
        "--out",
        str(tmp_path),
        "--quiet",
    ]
    assert main([*command, "--coco-results", str(tmp_path / "results.json")]) == 0
    scores = json.loads((tmp_path / "scores.json").read_text())
    rows = json.loads((tmp_path / "results.json").read_text())
    assert rows and all(set(row) == {"image_id", "caption"} for row in rows)
    (evaluation,) = compare([tmp_path / "results.json"], scenes_folder).evaluations.values()
    same = ("bleu4", "cider", "rouge_l", "shuffled", "distinct", "novel")
    assert [evaluation.scores[name] for name in same] == [scores[name] for name in same]


def test_without_java_there_is_one_sentence(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(CaptionerError, match="--java|captioner\\[java\\]"):
        check_java()
    assert main(["score", "x.json", "--data", "nowhere", "--java"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("java") is None, reason="no Java")
def test_meteor_is_that_of_coco_caption() -> None:
    pytest.importorskip("pycocoevalcap")
    best, worse = java_scores(PEOPLE, GOOD), java_scores(PEOPLE, ["", *BAD[1:]])
    assert best.scores["meteor15"] == pytest.approx(100, abs=1e-6)
    assert 0 < worse.scores["meteor15"] < 60
    assert "spice" in best.scores or "Stanford CoreNLP" in best.missing


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("javac") is None, reason="no Java compiler")
def test_the_part_of_spice_that_new_java_refuses_is_allowed(tmp_path: Path) -> None:
    """SPICE as a whole needs models of 400 MB; its cache begins with this, and would fail from Java 16 on."""
    spice = pytest.importorskip("pycocoevalcap.spice")
    program = tmp_path / "Cache.java"
    program.write_text(
        "import org.nustaq.serialization.FSTConfiguration;\n"
        "public class Cache { public static void main(String[] none) throws Exception {\n"
        "    FSTConfiguration cache = FSTConfiguration.createDefaultConfiguration();\n"
        '    var tuples = new java.util.ArrayList<>(java.util.List.of("dog", "brown"));\n'
        "    System.out.println(cache.asObject(cache.asByteArray(tuples))); } }\n"
    )
    command = ["java", "-cp", str(Path(spice.__path__[0]) / "lib" / "*"), str(program)]
    environment = os.environ | {"JDK_JAVA_OPTIONS": JAVA_OPTIONS}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout == "[dog, brown]\n", done.stderr
