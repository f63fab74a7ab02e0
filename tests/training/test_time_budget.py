"""Trainings that have only so many minutes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from captioner.cli.main import main
from captioner.config import Config, PhaseConfig
from captioner.runs.run_folder import Run
from captioner.training.time_budget import within
from tests.conftest import FROZEN, recipe_of

RECIPE = Config(phases={"decoder": PhaseConfig(epochs=8), "finetune": PhaseConfig(epochs=6)})
COSTS = {"decoder": 10.0, "finetune": 30.0}  # 260 seconds in all


@pytest.mark.parametrize("seconds", [*range(5, 300, 5), 10_000])
def test_what_is_left_of_a_recipe_fits_and_keeps_its_proportions(seconds: float) -> None:
    phases = within(RECIPE, COSTS, seconds).phases
    epochs = {name: phase.epochs for name, phase in phases.items()}
    cost = sum(COSTS[name] * count for name, count in epochs.items())
    assert epochs["decoder"] >= 1 and cost <= max(seconds, COSTS["decoder"])
    assert ("finetune" in epochs) == (seconds >= 40)
    if seconds >= 260:
        assert epochs == {"decoder": 8, "finetune": 6}
    elif "finetune" in epochs:
        assert seconds - cost < 30  # no epoch of either kind more
        # What is left over may be too little for the dear phase, and enough for 2 epochs of the cheap one.
        assert abs(epochs["decoder"] / 8 - epochs["finetune"] / 6) <= 1 / 6 + 2 / 8


def test_all_but_the_epochs_stays_as_it_was() -> None:
    shortened = within(RECIPE, COSTS, 100)
    assert shortened.phases["decoder"].learning_rate == RECIPE.phases["decoder"].learning_rate
    assert within(RECIPE, COSTS, 260) == RECIPE


def train_within(minutes: str, recipe: Path, data: Path, run: Path) -> Run:
    command = ["train", str(recipe), "--data", str(data), "--run", str(run), "--budget", minutes]
    assert main(command) == 0
    return Run.open(run)


@pytest.mark.parametrize(
    ("recipe", "unhurried"),
    [("two_phases", "two_phase_run"), pytest.param("tiny_recipe", "tiny_run", marks=pytest.mark.slow)],
)
def test_finding_out_what_an_epoch_costs_leaves_no_trace(
    recipe: str, unhurried: str, tmp_path: Path, scenes_folder: Path, request: pytest.FixtureRequest
) -> None:
    without = Run.open(request.getfixturevalue(unhurried))
    found = train_within("600", request.getfixturevalue(recipe), scenes_folder, tmp_path / "run")
    assert found.config == without.config
    ours, theirs = (opened.load_best()[0].weights_dict() for opened in (found, without))
    for name, array in ours.items():
        np.testing.assert_array_equal(array, theirs[name])


def test_where_there_is_no_time_an_epoch_is_left(tmp_path: Path, scenes_folder: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(recipe_of({"one": FROZEN, "two": FROZEN}), encoding="utf-8")
    found = train_within("0.001", recipe, scenes_folder, tmp_path / "run")
    assert list(found.config.phases) == ["one"] and len(found.history()) == 1


@pytest.mark.parametrize("minutes", ["0", "-3", "soon", "nan"])
def test_a_budget_is_a_number_of_minutes(minutes: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "sample", "--data", "x", "--run", "y", "--budget", minutes]) == 2
    assert "minutes above 0" in capsys.readouterr().err
