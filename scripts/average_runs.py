#!/usr/bin/env python3
"""Make one run of several: the mean of their weights, in given shares.

    scripts/average_runs.py runs/one runs/two*3 --out runs/mean --data FLICKR8K

Here the second run counts three times as much as the first. Runs can be averaged if they have the same words
and networks and came from one another or from a common start: means of trainings that began apart say nothing
(Izmailov et al. 2018; Wortsman et al. 2022, "Model soups"). With --data the mean is scored on the dev split.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from captioner.errors import CaptionerError, ConfigError
from captioner.evaluation.evaluate import EvaluationOptions, evaluate
from captioner.runs.run_folder import DATA, Run


def weighted(text: str) -> tuple[Path, float]:
    """A run and how much it counts, as typed: RUN or RUN*SHARE.

    >>> weighted("runs/two*3"), weighted("runs/one")[1]
    ((PosixPath('runs/two'), 3.0), 1.0)
    """
    found = re.fullmatch(r"(.+)\*(\d*\.?\d+)", text)
    return (Path(found[1]), float(found[2])) if found else (Path(text), 1.0)


class Mean:
    """What `Run.save_best` takes: the mean of the weights of several networks."""

    def __init__(self, networks: Sequence[Any], shares: Sequence[float]) -> None:
        self._networks, self._shares = networks, shares

    def weights_dict(self) -> dict[str, np.ndarray]:
        """Their weights by name."""
        weights = [network.weights_dict() for network in self._networks]
        means: dict[str, np.ndarray] = {}
        for name, first in weights[0].items():
            mean = np.zeros(first.shape)
            for share, own in zip(self._shares, weights, strict=True):
                mean += share * own[name]
            means[name] = mean.astype(np.float32)
        return means


def average(sources: Sequence[tuple[Path, float]], out: Path) -> Run:
    """Writes the mean.

    Raises:
        ConfigError: the runs have other words or networks; the shares are all 0.
        CaptionerError: one is no finished run; there is something at `out` already.
    """
    runs = [Run.open(folder) for folder, _ in sources]
    first, total = runs[0], sum(share for _, share in sources)
    if not total:
        raise ConfigError("the shares add up to 0: give one run at least a share above 0")
    loaded = []
    for run in runs:
        if run.vocabulary.words != first.vocabulary.words:
            raise ConfigError(
                f"{run.folder}: has other words than {first.folder}; train one with --from the other"
            )
        if (run.config.decoder, run.encoder_info["name"]) != (
            first.config.decoder,
            first.encoder_info["name"],
        ):
            raise ConfigError(f"{run.folder}: has other networks than {first.folder}; they have no mean")
        loaded.append(run.load_best())
    shares = [share / total for _, share in sources]
    decoders, encoders = zip(*loaded, strict=True)
    config = dataclasses.replace(first.config, start="")
    made = Run.create(out, config, first.vocabulary, encoders[0], first.seeded_splits)
    if (first.folder / DATA).exists():
        shutil.copy(first.folder / DATA, out / DATA)
    told = ", ".join(f"{run.folder.name} {share:.0%}" for run, share in zip(runs, shares, strict=True))
    made.save_best(Mean(decoders, shares), Mean(encoders, shares), {"phase": f"mean of {told}", "epoch": 1})
    return made


def main() -> int:
    """Parse, average, score."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", metavar="RUN[*SHARE]", type=weighted)
    parser.add_argument("--out", type=Path, required=True, help="a new folder for the mean")
    parser.add_argument("--data", type=Path, help="data set whose dev split scores it")
    parser.add_argument("--language", help="of that data set, where its captions tell none")
    arguments = parser.parse_args()
    try:
        average(arguments.runs, arguments.out)
        print(f"{arguments.out}: mean of {len(arguments.runs)} runs")
        if arguments.data:
            from captioner.inference.search_options import CaptionOptions

            decoding = CaptionOptions(batch_size=64, language=arguments.language)
            plan = EvaluationOptions(split="dev", decoding=decoding)
            scores = evaluate(arguments.out, arguments.data, arguments.out / "dev", plan=plan).scores
            print(f"BLEU-4 {scores['bleu4']:.1f}, CIDEr {scores['cider']:.1f} on dev")
    except CaptionerError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
