"""How sure a run says it is: measured on what it learned from, said of every caption, by both captioners."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from captioner.apps.export.export import ExportPlan, export
from captioner.cli.main import main
from captioner.data.datasets import load_split
from captioner.errors import RunError
from captioner.evaluation.calibration import auc, fit_odds
from captioner.inference.caption import Caption
from captioner.inference.captioner import Captioner
from captioner.inference.compiled_captioner import CompiledCaptioner
from captioner.inference.familiarity import FAMILIAR, FILE, Familiarity


def cells(count: int, *, seed: int, middle: float = 3.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(middle, 1, (count, 4, 16)).astype(np.float16)


def test_as_many_dev_pictures_are_unfamiliar_as_it_says() -> None:
    dev = cells(400, seed=1)
    found = Familiarity.measure(cells(900, seed=0), dev, odds={})
    assert (found.distances(dev) > found.bound).mean() == pytest.approx(1 - FAMILIAR, abs=0.01)
    assert found.distances(dev).mean() == pytest.approx(1, abs=0.1)
    other = cells(50, seed=2) * np.linspace(0.2, 2, 16).astype(np.float16)
    assert auc(found.distances(dev), found.distances(other)) > 0.95


def test_a_picture_is_judged_alone_as_among_others() -> None:
    found = Familiarity.measure(cells(50, seed=0), cells(50, seed=1), odds={"de": (1.0, 0.5)})
    captions = [Caption("", score=-float(number), language="de") for number in range(8)]
    together = found.judged(captions, cells(8, seed=3))
    assert together == [
        found.judged([caption], cells(8, seed=3)[row : row + 1])[0] for row, caption in enumerate(captions)
    ]
    assert [one.confidence for one in together] == sorted((one.confidence for one in together), reverse=True)
    assert found.confidence(-1.0, "en") is None  # nobody measured English


def test_odds_stay_finite_where_all_are_right() -> None:
    intercept, slope = fit_odds(np.array([-1.0, -2.0, -3.0]), np.array([True, True, True]))
    assert np.isfinite([intercept, slope]).all() and intercept - 2 * slope > 0


@pytest.fixture(scope="module")
def run(tiny_run: Path, scenes_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A calibrated run with a compiled form."""
    folder = shutil.copytree(tiny_run, tmp_path_factory.mktemp("calibrated") / "run")
    export(folder, ExportPlan(quiet=True))
    command = ["calibrate", "--run", str(folder), "--data", str(scenes_folder), "--quiet"]
    assert main([*command, "--against", str(scenes_folder)]) == 0
    return folder


def test_both_captioners_say_the_same_of_their_captions(run: Path, scenes_folder: Path) -> None:
    pictures = [record.path for record in load_split(scenes_folder, "dev").records]
    compiled = CompiledCaptioner.load(run).caption(pictures)
    original = Captioner.load(run).caption(pictures)
    assert [one.unfamiliar for one in compiled] == [one.unfamiliar for one in original]
    for ours, theirs in zip(compiled, original, strict=True):
        assert ours.confidence == pytest.approx(theirs.confidence, abs=0.01)
    assert (run / FILE).stat().st_size < 12_000


def test_the_command_line_says_it_where_json_is_asked_for(
    run: Path, tiny_run: Path, scenes_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = str(load_split(scenes_folder, "dev").records[0].path)
    for folder, known in ((run, True), (tiny_run, False)):
        assert main(["caption", picture, "--run", str(folder), "--json", "--quiet"]) == 0
        line = json.loads(capsys.readouterr().out)
        assert ("confidence" in line, "unfamiliar" in line) == (known, known)


def test_what_was_measured_with_other_weights_is_not_used(run: Path, tiny_run: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_run, tmp_path / "run")
    shutil.copy(run / FILE, folder / FILE)
    assert Familiarity.load(folder) is not None  # the same weights
    manifest = folder / "best" / "best.json"
    manifest.unlink()
    assert Familiarity.load(folder) is None
    (folder / FILE).write_text((folder / FILE).read_text().replace('"bound"', '"bond"'), encoding="utf-8")
    with pytest.raises(RunError, match="damaged"):
        Familiarity.load(folder)
