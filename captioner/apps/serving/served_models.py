"""Run folders as models to serve: which folders are meant, what each is, its networks when first asked for.

In: run folders, or folders of run folders. Out: `ServedModel` models. Reads the run folders; loads TensorFlow
only when a network is wanted.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from captioner.apps.serving.service import ServedModel
from captioner.errors import RunError
from captioner.inference.caption import Caption
from captioner.inference.compiled_captioner import CompiledCaptioner
from captioner.inference.loading import load_captioner
from captioner.inference.search_options import CaptionOptions
from captioner.runs.run_folder import CONFIG, Run
from captioner.system import console
from captioner.system.hardware import cores

SCORES = ("bleu4", "cider", "rouge_l")  # of the dev pictures, shown beside a model's name


def open_runs(folders: Sequence[str | Path]) -> list[ServedModel]:
    """The models of run folders, and of all finished runs in a folder of runs; none is loaded yet.

    Raises:
        RunError: a folder holds no run, or one that is damaged or has no finished epoch.
    """
    found: dict[Path, None] = {}
    for folder in map(Path, folders):
        if (folder / CONFIG).is_file():
            found[folder.resolve()] = None
        else:
            found |= dict.fromkeys(_runs_in(folder))
    names = _names(list(found))
    return [_served_model(Run.open(folder), name) for folder, name in zip(found, names, strict=True)]


def _runs_in(folder: Path) -> list[Path]:
    inside = [path.parent for path in sorted(folder.glob(f"*/{CONFIG}"))] if folder.is_dir() else []
    finished = [path.resolve() for path in inside if (path / "best" / "best.json").is_file()]
    for path in inside:
        if path.resolve() not in finished:
            console.info(f"{path}: left out, it has no finished epoch yet")
    if not finished:
        Run.open(folder)  # says what the folder is, if anything
        raise RunError(f"{folder}: holds no finished run; `captioner train` makes them")
    return finished


def _names(folders: Sequence[Path]) -> list[str]:
    """Folder names; with the parents' where two are the same."""
    last = [folder.name for folder in folders]
    names: list[str] = []
    for folder in folders:
        name = plain = folder.name if last.count(folder.name) == 1 else f"{folder.parent.name}-{folder.name}"
        count = 1
        while name in names:
            count += 1
            name = f"{plain}-{count}"
        names.append(name)
    return names


class _Networks:
    """The captioners of a run, loaded when first used: the compiled one where it is there and can do it."""

    def __init__(self, run: Run) -> None:
        self._folder = run.folder
        self._captioners: dict[bool, Any] = {}  # for words found by search, for words drawn
        self._threads = ThreadPoolExecutor(cores(), thread_name_prefix="encode")

    def caption(self, pixels: np.ndarray, options: CaptionOptions) -> list[Caption]:
        """The captions of (n, H, W, 3) pixels that `read_image` gave already."""
        captioner = self._captioner(options)
        if isinstance(captioner, CompiledCaptioner):  # encodes one by one: here, one in each thread
            rows = list(self._threads.map(captioner.encode, pixels[:, None]))
            features = np.concatenate(rows)  # (n, P, C)
        else:
            features = captioner.encode(pixels)
        found: list[Caption] = captioner.caption_features(features, **vars(options))
        return found

    def _captioner(self, options: CaptionOptions) -> Any:
        if options.drawn not in self._captioners:
            heavy = [one for one in self._captioners.values() if not isinstance(one, CompiledCaptioner)]
            self._captioners[options.drawn] = (
                heavy[0] if heavy else load_captioner(self._folder, vars(options), quiet=True)
            )
        return self._captioners[options.drawn]


def _served_model(run: Run, name: str) -> ServedModel:
    best = run.best_info()
    if best is None:
        raise RunError(f"{run.folder}: no finished epoch yet; go on with `captioner train … --resume`")
    encoder, languages = run.encoder_info, list(run.vocabulary.languages)
    height, width = encoder["size"]
    # Of the first language, which is written unless another is asked for: a mean compares with nothing.
    suffix = f"_{languages[0]}" if languages else ""
    found = {name: best.get(name + suffix) or best.get(name) for name in SCORES}
    scores = {name: round(score, 1) for name, score in found.items() if score}
    about = {
        "encoder": encoder["name"],
        "words": len(run.vocabulary),
        "languages": languages,
        "scores": scores,
        "bytes": sum(path.stat().st_size for path in (run.folder / "best").iterdir()),
        "modified": (run.folder / "best" / "best.json").stat().st_mtime,
    }
    return ServedModel(name, (height, width), _Networks(run).caption, run.config.decode, about)
