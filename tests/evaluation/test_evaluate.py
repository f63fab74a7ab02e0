"""Evaluation: what is scored, what is written, and how a model that does not look is found out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from captioner.data.datasets import load_split, training_captions
from captioner.errors import DataError
from captioner.evaluation.evaluate import EvaluationOptions, evaluate
from captioner.evaluation.metrics import score
from captioner.evaluation.scoring import score_captions, score_with_chance, shuffled
from captioner.inference.search_options import CaptionOptions

REFERENCES = [[f"a {color} {shape}"] for color in ("red", "blue", "green", "white") for shape in "abcd"]


def test_shuffling_leaves_no_picture_its_own_features() -> None:
    assert shuffled(2).tolist() == [1, 0]
    for count in range(2, 40):
        places = shuffled(count)
        assert sorted(places) == list(range(count))
        assert not np.any(places == np.arange(count))
        assert np.array_equal(places, shuffled(count))


def test_captions_that_fit_beat_the_same_captions_shuffled() -> None:
    captions = [references[0] for references in REFERENCES]
    found = score_with_chance(REFERENCES, captions, known=captions[:4])
    assert found["bleu1"] == found["rouge_l"] == 100
    assert found["cider"] > 4 * found["shuffled"]["cider"]
    assert (found["distinct"], found["novel"], found["mean_words"]) == (100, 75, 3)
    assert found["warnings"] == []
    assert "novel" not in score_with_chance(REFERENCES, captions)


def test_a_model_that_does_not_look_is_found_out() -> None:
    found = score_with_chance(REFERENCES, ["a red a"] * len(REFERENCES))
    alike, chance = found["warnings"]
    assert "only 1 different captions for 16 pictures" in alike and "16 times" in alike
    assert "with the pictures shuffled" in chance
    assert found["shuffled"] == {name: found[name] for name in found["shuffled"]}


def test_varied_captions_of_other_pictures_are_found_out_too() -> None:
    captions = [REFERENCES[place][0] for place in shuffled(len(REFERENCES))]
    assert len(score_with_chance(REFERENCES, captions)["warnings"]) == 1


def test_empty_captions_are_counted() -> None:
    captions = ["", "", *(references[0] for references in REFERENCES[2:])]
    assert score_with_chance(REFERENCES, captions)["warnings"] == ["2 captions are empty"]


def test_one_picture_has_nothing_to_be_shuffled_with() -> None:
    found = score_with_chance([["a dog"]], ["a dog"])
    assert found["shuffled"] is None and found["warnings"] == []


def test_figures_of_an_epoch() -> None:
    captions = [references[0] for references in REFERENCES]
    found = score_captions(REFERENCES, captions)
    assert {"bleu1", "bleu4", "rouge_l", "cider", "mean_words", "distinct"} <= set(found)
    assert "meteor" not in found  # minutes, with WordNet


def test_evaluation_writes_predictions_and_scores(
    untrained_run: Path, scenes_folder: Path, tmp_path: Path
) -> None:
    plan = EvaluationOptions(decoding=CaptionOptions(batch_size=8))
    found = evaluate(untrained_run, scenes_folder, tmp_path, plan=plan, quiet=True)
    records = load_split(scenes_folder, "test").records
    lines = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text("utf-8").splitlines()]
    assert [line["id"] for line in lines] == [record.id for record in records]
    assert [Path(line["path"]) for line in lines] == [record.path for record in records]
    assert [line["caption"] for line in lines] == [caption.text for caption in found.captions]
    assert [line["score"] for line in lines] == [round(caption.score, 5) for caption in found.captions]

    scores = json.loads((tmp_path / "scores.json").read_text("utf-8"))
    assert scores == found.scores
    again = score([record.captions for record in records], [line["caption"] for line in lines])
    assert all(scores[name] == pytest.approx(value, abs=0.001) for name, value in again.items())
    assert scores["images"] == len(records) and scores["images_per_second"] > 0
    rule = scores["protocol"]
    assert (rule["split"], rule["beam"], rule["max_words"]) == ("test", 3, 6)
    assert (rule["length_normalization"], rule["no_repeat"]) == (0.7, 0)
    assert rule["references"] == f"{len(records)} pictures, 5 references each"
    assert "novel" in scores and "cider" in scores["shuffled"]


def test_evaluation_gives_the_same_files_again(
    untrained_run: Path, scenes_folder: Path, tmp_path: Path
) -> None:
    plan = EvaluationOptions("dev", decoding=CaptionOptions(beam=2))
    for name in ("one", "two"):
        evaluate(untrained_run, scenes_folder, tmp_path / name, plan=plan, quiet=True)
    one, two = ((tmp_path / name / "predictions.jsonl").read_bytes() for name in ("one", "two"))
    assert one == two
    first, second = (json.loads((tmp_path / name / "scores.json").read_bytes()) for name in ("one", "two"))
    assert {**first, "images_per_second": 0} == {**second, "images_per_second": 0}


def test_a_picture_that_cannot_be_read_is_left_out_and_named(
    untrained_run: Path, scenes_folder: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(scenes_folder, data)
    records = load_split(data, "test").records
    records[1].path.write_bytes(b"not a picture")
    found = evaluate(untrained_run, data, tmp_path / "out", quiet=True)
    assert [record.id for record in found.records] == [r.id for r in records if r is not records[1]]
    ((path, reason),) = found.failures
    assert path == str(records[1].path) and "no picture that can be read" in reason
    assert found.scores["failed"] == 1
    for record in records:
        record.path.write_bytes(b"")
    with pytest.raises(DataError, match="not one picture of test could be read"):
        evaluate(untrained_run, data, tmp_path / "none", quiet=True)
    assert not (tmp_path / "none").exists()


def test_a_folder_with_nothing_but_the_test_list_is_enough(
    untrained_run: Path, scenes_folder: Path, tmp_path: Path
) -> None:
    data = tmp_path / "flickr"
    (data / "images").mkdir(parents=True)
    records = load_split(scenes_folder, "test").records
    for record in records:
        shutil.copy(record.path, data / "images")
    tokens = [f"{r.path.name}#{i}\t{text}\n" for r in records for i, text in enumerate(r.captions)]
    (data / "Set.token.txt").write_text("".join(tokens), encoding="utf-8")
    (data / "Set_testImages.txt").write_text("".join(f"{r.path.name}\n" for r in records), encoding="utf-8")
    found = evaluate(untrained_run, data, tmp_path / "out", quiet=True)
    assert found.scores["images"] == len(records)
    assert "novel" not in found.scores
    assert found.scores["protocol"]["novel"] == "no training captions known"


def test_training_captions_are_those_of_the_split_trained_on(scenes_folder: Path, tmp_path: Path) -> None:
    wanted = [text for record in load_split(scenes_folder, "train").records for text in record.captions]
    assert training_captions(scenes_folder) == wanted
    table = tmp_path / "captions.csv"
    table.write_text("image,caption\na.png,a dog\nb.png,a cat\n", encoding="utf-8")
    assert training_captions(tmp_path) == []
    assert training_captions(tmp_path, made={"train": ["b.png"], "dev": ["a.png"]}) == ["a cat"]
    assert training_captions(tmp_path / "nowhere") == []
