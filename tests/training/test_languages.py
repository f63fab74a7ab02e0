"""One model for several languages, from folders to captions, scores and what a run says of itself."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from captioner.cli.main import main
from captioner.data.data_folders import DataFolder, load_folders
from captioner.data.synthetic.scenes import draw_dataset
from captioner.errors import ConfigError
from captioner.evaluation.evaluate import EvaluationOptions, evaluate
from captioner.inference.captioner import Captioner
from captioner.inference.search_options import CaptionOptions
from captioner.runs.run_folder import Run
from tests.conftest import FROZEN, REWARD, recipe_of


@pytest.fixture(scope="module")
def german_folder(scenes_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """German captions of the pictures of `scenes_folder`, which are not here but linked."""
    folder = tmp_path_factory.mktemp("szenen")
    draw_dataset(folder, pictures=48, seed=0, language="de", size=16)
    shutil.rmtree(folder / "images")
    (folder / "images").symlink_to(scenes_folder / "images")
    return folder


@pytest.fixture(scope="module")
def data(scenes_folder: Path, german_folder: Path) -> list[str]:
    """Both as `--data` takes them."""
    return [f"en={scenes_folder}", f"de={german_folder}"]


@pytest.fixture(scope="module")
def run(data: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished training in two languages: cross entropy, then a reward."""
    folder = tmp_path_factory.mktemp("languages")
    phases = {"frozen": {**FROZEN, "epochs": 1}, "reward": {**REWARD, "languages": ["de", "de", "en"]}}
    recipe = folder / "recipe.toml"
    recipe.write_text(recipe_of(phases), encoding="utf-8")
    command = ["train", str(recipe), "--run", str(folder / "run"), "--set", "train.select=cider_de"]
    assert main([*command, *(word for one in data for word in ("--data", one))]) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def marked_folder(scenes_folder: Path, data: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The captions of both in one table with a column `language`."""
    folder = tmp_path_factory.mktemp("marked")
    lines = ["image,caption,split,language"]
    for split in ("train", "dev", "test"):
        for record in load_folders([DataFolder.of(one) for one in data], [split])[split].records:
            for text, language in zip(record.captions, record.languages, strict=True):
                lines.append(f"images/{record.path.name},{text},{split},{language}")
    (folder / "captions.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "images").symlink_to(scenes_folder / "images")
    return folder


def test_a_run_knows_its_languages_and_each_has_scores(
    run: Path, scenes_folder: Path, german_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    opened = Run.open(run)
    assert opened.vocabulary.languages == ("en", "de")
    for entry in opened.history():
        assert entry["cider"] == pytest.approx((entry["cider_en"] + entry["cider_de"]) / 2, abs=1e-3)
    assert opened.info()["data"]["name"] == f"{scenes_folder.name} + {german_folder.name}"
    assert main(["info", str(run)]) == 0
    assert "languages    en, de" in capsys.readouterr().out


def test_one_language_may_pick_the_best_epoch(
    run: Path, tiny_recipe: Path, data: list[str], tmp_path: Path, capsys
):
    epochs, best = Run.open(run).history(), Run.open(run).best_info()
    assert best is not None and best["selected"] == max(epoch["cider_de"] for epoch in epochs)
    command = ["train", str(tiny_recipe), "--data", data[0], "--run", str(tmp_path / "run")]
    assert main([*command, "--set", "train.select=cider_de"]) == 2
    assert "train.select = cider_de: the dev captions are in en; expected one of" in capsys.readouterr().err


@pytest.mark.slow
def test_one_recipe_trains_all_phases_in_all_languages(data: list[str], tmp_path: Path) -> None:
    """`multilingual` as it is, with networks that a test can train."""
    small = ["encoder.name=small_cnn", "encoder.weights=none", "encoder.size=32", "decoder.units=16"]
    small += ["decoder.embedding=8", "data.min_count=1", "phases.finetune.encoder_from=''"]
    small += [f"phases.{name}.epochs=1" for name in ("decoder", "finetune", "reward")]
    command = ["train", "multilingual", "--run", str(tmp_path / "run"), "--quiet"]
    command += [word for one in data for word in ("--data", one)]
    assert main([*command, *(word for one in small for word in ("--set", one))]) == 0
    history = Run.open(tmp_path / "run").history()
    assert [entry["phase"] for entry in history] == ["decoder", "finetune", "reward", "polish"]
    assert all({"cider_en", "cider_de"} <= entry.keys() for entry in history)


def test_the_command_writes_one_language_or_all(
    run: Path, scenes_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = str(next((scenes_folder / "images").iterdir()))
    command = ["caption", picture, "--run", str(run), "--quiet"]
    assert main([*command, "--language", "all"]) == 0
    english, german = capsys.readouterr().out.splitlines()
    assert english.startswith("en: ") and german.startswith("de: ")
    assert main([*command, "--language", "de", "--json"]) == 0
    line = json.loads(capsys.readouterr().out)
    assert (line["language"], line["caption"]) == ("de", german.removeprefix("de: "))
    assert main([*command, "--language", "dee"]) == 2
    assert 'unknown language "dee"; did you mean "de"?' in capsys.readouterr().err


def test_an_evaluation_judges_each_language_by_its_references(
    run: Path, marked_folder: Path, german_folder: Path, tmp_path: Path
) -> None:
    both = evaluate(run, marked_folder, tmp_path / "both", quiet=True)
    assert list(both.scores["languages"]) == ["en", "de"]
    own = both.scores["languages"]
    assert both.scores["bleu1"] == pytest.approx((own["en"]["bleu1"] + own["de"]["bleu1"]) / 2, abs=1e-3)
    assert own["de"]["protocol"]["references"] == "4 pictures, 5 references each"
    lines = [json.loads(text) for text in (tmp_path / "both" / "predictions.jsonl").read_text().splitlines()]
    assert [line["language"] for line in lines] == ["en"] * 4 + ["de"] * 4
    # The same German captions in a folder that does not say that they are.
    plan = EvaluationOptions(decoding=CaptionOptions(language="de"))
    alone = evaluate(run, german_folder, tmp_path / "de", plan=plan, quiet=True)
    assert alone.scores["protocol"]["language"] == "de"
    for name in ("bleu1", "bleu4", "cider", "rouge_l", "novel", "shuffled"):
        assert alone.scores[name] == own["de"][name], name
    with pytest.raises(ConfigError, match='unknown language "fr"'):
        evaluate(run, german_folder, tmp_path, plan=EvaluationOptions(decoding=CaptionOptions(language="fr")))


def test_the_report_has_every_language(run: Path, marked_folder: Path, tmp_path: Path) -> None:
    command = ["evaluate", "--run", str(run), "--data", str(marked_folder), "--out", str(tmp_path), "--quiet"]
    assert main([*command, "--report"]) == 0
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    for name, count in (("en", 1), ("de", 1), ("fr", 0)):
        assert page.count(f'<section class="language" lang="{name}">') == count


def test_a_model_without_languages_is_judged_in_the_one_that_is_named(
    tiny_run: Path, marked_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="name the one to evaluate with --language"):
        evaluate(tiny_run, marked_folder, tmp_path, quiet=True)
    plan = EvaluationOptions(decoding=CaptionOptions(language="en"))
    found = evaluate(tiny_run, marked_folder, tmp_path, plan=plan, quiet=True)
    assert found.scores["protocol"]["references"] == "4 pictures, 5 references each"


def test_a_start_learns_languages_that_it_lacks(
    tiny_run: Path, tiny_recipe: Path, data: list[str], tmp_path: Path
) -> None:
    """From a run that speaks of no language to one of two; the second begins as what the first would say."""
    old, folder = Run.open(tiny_run), tmp_path / "run"
    recipe = tmp_path / "short.toml"
    sections = tiny_recipe.read_text(encoding="utf-8").partition("[phases.both]")[0]
    recipe.write_text(sections.replace("epochs = 2", "epochs = 1"), encoding="utf-8")
    command = ["train", str(recipe), "--from", str(tiny_run), "--run", str(folder)]
    assert main([*command, *(word for one in data for word in ("--data", one))]) == 0
    run = Run.open(folder)
    assert run.vocabulary.languages == ("en", "de")
    known = old.vocabulary.with_languages(["en", "de"]).words
    assert run.vocabulary.words[: len(known)] == known and "ein" in run.vocabulary.words[len(known) :]
    assert run.start is not None and run.start["new_languages"] == ["en", "de"]
    # What training began with: old words as they were, a start word a language as <start> was.
    before, after = old.load_best()[0].weights_dict(), run.load_start_networks()[0].weights_dict()
    moved = [run.vocabulary.words.index(word) for word in old.vocabulary.words]
    np.testing.assert_array_equal(after["embedding"][moved], before["embedding"])
    np.testing.assert_array_equal(after["word_kernel"][:, moved], before["word_kernel"])
    np.testing.assert_array_equal(after["embedding"][4:6], before["embedding"][[2, 2]])
    ein, circle = (run.vocabulary.words.index(word) for word in ("ein", "circle"))
    assert after["spoken"][:, [ein, circle]].tolist() == [[0, 1], [1, 0]]
    picture = next((Path(data[0].removeprefix("en=")) / "images").iterdir())
    (caption,) = Captioner.load(folder).caption([picture], language="all")
    assert list(caption.by_language) == ["en", "de"]


def test_what_holds_a_model_to_its_own_captions_needs_a_language_it_knows(
    run: Path, scenes_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", "adapt", "--from", str(run), "--run", str(tmp_path / "run")]
    assert main([*command, "--data", f"fr={scenes_folder}"]) == 2
    assert 'unknown language "fr"' in capsys.readouterr().err
