"""The mean of several runs' weights, as `scripts/average_runs.py` makes it."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from captioner.errors import ConfigError
from captioner.inference.captioner import Captioner
from captioner.runs.run_folder import Run
from tests.inference.test_compiled_captioner import make_run

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"


@pytest.fixture(autouse=True)
def scripts_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))


def test_a_mean_in_shares_of_one_and_three(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import average_runs

    one, two = (make_run(tmp_path / f"run{seed}", seed=seed) for seed in (1, 2))
    out = tmp_path / "mean"
    command = ["average_runs.py", str(one.folder), f"{two.folder}*3", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", command)
    assert average_runs.main() == 0
    assert capsys.readouterr().out == f"{out}: mean of 2 runs\n"
    made = Run.open(out)
    assert made.best_info()["phase"] == "mean of run1 25%, run2 75%"  # type: ignore[index]
    for part in (0, 1):
        weights = [run.load_best()[part].weights_dict() for run in (one, two, made)]
        for name, mean in weights[2].items():
            np.testing.assert_allclose(mean, 0.25 * weights[0][name] + 0.75 * weights[1][name], atol=1e-6)
    (caption,) = Captioner.load(out).caption([np.zeros((32, 32, 3), np.uint8)])
    assert caption.error is None


@pytest.mark.parametrize(
    ("languages", "share", "message"),
    [(("en",), "1", "has other words"), ((), "0", "add up to 0")],
)
def test_what_has_no_mean(languages: tuple[str, ...], share: str, message: str, tmp_path: Path) -> None:
    import average_runs

    runs = make_run(tmp_path / "one"), make_run(tmp_path / "two", languages=languages)
    shares = 0.0 if share == "0" else 1.0, float(share)
    sources = [(run.folder, share) for run, share in zip(runs, shares, strict=True)]
    with pytest.raises(ConfigError, match=message):
        average_runs.average(sources, tmp_path / "mean")
    assert not (tmp_path / "mean").exists()
