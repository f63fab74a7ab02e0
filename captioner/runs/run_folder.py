"""The run folder: everything a training leaves behind, and all that captioning needs.

    config.json          the configuration; vouches for the next three; written last when a run is made
    vocabulary.txt       one word a line
    encoder.json         which CNN, with what grid and preprocessing
    splits.json          picture ids per split, where the data set had no split of its own
    data.json            name and size of the data set, for people
    history.jsonl        one JSON object an epoch
    log.txt, loss.png    what training said, and its curves
    latest/              what `--resume` goes on from (see training/checkpoints.py)
    best/                decoder and encoder of the best epoch, and which epoch that is (see weights.py)
    start/               the same of the run that training began with, grown by new words, if it did

Nothing in it points outside, so a run can be moved and given away. No file is pickled or runs code. Each file
is written beside its place and renamed, and checked against its digest when opened.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from captioner.config import Config
from captioner.data.vocabulary import Vocabulary
from captioner.errors import ConfigError, RunError
from captioner.runs.weights import WEIGHTS, file_stamps, read_best, read_info, save_best, select_prefix
from captioner.schema import former_key
from captioner.system.files import (
    append_line,
    digest_bytes,
    digest_file,
    json_text,
    lock,
    read_json_lines,
    remove_leftovers,
    write_json,
)
from captioner.system.manifest import REMEDY, check, entries, read_manifest, write_manifest
from captioner.version import __version__

FORMAT = 1
CONFIG, VOCABULARY, ENCODER, SPLITS = "config.json", "vocabulary.txt", "encoder.json", "splits.json"
DATA, HISTORY, LATEST, BEST, START = "data.json", "history.jsonl", "latest", "best", "start"
# Beside CONFIG:
RUN_FILES = (VOCABULARY, ENCODER, SPLITS, DATA, HISTORY, LATEST, BEST, START, "log.txt", "loss.png")


class Run:
    """One run folder, as `create` or `open` found it.

    Attributes:
        folder: where it is.
        config: its configuration.
        vocabulary: its words.
        encoder_info: what encoder.json says: name, size, grid, cells, channels, preprocessing, digest.
        seeded_splits: picture ids per split, or None where the data set had its own.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp()) / "run"
    >>> encoder_info = {"name": "small_cnn", "size": [64, 64]}
    >>> run = Run.create(folder, Config(), Vocabulary.build(["a dog"]), encoder_info)
    >>> Run.open(folder).vocabulary.words[4:]
    ('a', 'dog')
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._checked: tuple[Any, dict[str, Any] | None] | None = None
        content = _read_config(folder)
        check(folder, content["files"])
        self.config = Config.from_dict(content["config"], source=str(folder / CONFIG))
        self.vocabulary = Vocabulary.load(folder / VOCABULARY)
        self.encoder_info: dict[str, Any] = json.loads((folder / ENCODER).read_text(encoding="utf-8"))
        self.seeded_splits: dict[str, list[str]] | None = None
        if SPLITS in content["files"]:
            self.seeded_splits = json.loads((folder / SPLITS).read_text(encoding="utf-8"))

    @classmethod
    def create(
        cls,
        folder: str | Path,
        config: Config,
        vocabulary: Vocabulary,
        encoder: Any,
        seeded_splits: Mapping[str, Sequence[str]] | None = None,
    ) -> Run:
        """Makes the folder of a new training.

        Args:
            folder: new, empty, or without a run.
            config: as resolved.
            vocabulary: of the training captions.
            encoder: an `Encoder`, or what `encoder.json` should say of it.
            seeded_splits: ids per split, if a split was drawn from the seed.

        Raises:
            RunError: there is a run already.
        """
        folder = Path(folder)
        with lock(folder):
            if (folder / CONFIG).exists():
                raise RunError(f"{folder}: holds a run already; go on with --resume, or use another folder")
            if (folder / BEST).exists() or (folder / LATEST).exists():
                raise RunError(f"{folder / CONFIG}: missing, but there are checkpoints beside it; {REMEDY}")
            vocabulary.save(folder / VOCABULARY)
            write_json(folder / ENCODER, encoder if isinstance(encoder, Mapping) else _describe(encoder))
            if seeded_splits is not None:
                write_json(folder / SPLITS, seeded_splits)
            names = [VOCABULARY, ENCODER, *([SPLITS] if seeded_splits is not None else [])]
            _write_config(folder, config, entries(folder, names))
        return cls(folder)

    @classmethod
    def open(cls, folder: str | Path, *, weights: bool = True) -> Run:
        """The run in a folder, complete and undamaged as far as it has come.

        Args:
            folder: where it is.
            weights: also read and check those of the best epoch.

        Raises:
            RunError: it is not one, or a file is missing, damaged or of another version; says which, and what
                to do.
        """
        folder = Path(folder)
        if not (folder / CONFIG).is_file():
            raise RunError(_not_a_run(folder))
        run = cls(folder)
        if weights:
            run.best_info()  # read and checked
        return run

    @contextmanager
    def training(self) -> Iterator[None]:
        """Locks the folder for one training, and removes the half-written files of a killed one.

        Raises:
            RunError: another process is training in it.
        """
        with lock(self.folder):
            for folder in (self.folder, self.folder / BEST, self.folder / START):
                remove_leftovers(folder)
            yield

    def replace_config(self, config: Config) -> None:
        """Replaces the configuration: longer training, another optimizer; never another network.

        Raises:
            ConfigError: a part differs that the run's weights or words depend on.
        """
        for section in ("seed", "start", "data", "encoder", "decoder"):
            old, new = getattr(self.config, section), getattr(config, section)
            if old != new:
                raise ConfigError(
                    f"{section}: differs from the run in {self.folder} ({new}, not {old}); resume with the "
                    "run's own, or train in another folder"
                )
        if self.config.train.select != config.train.select:
            raise ConfigError(
                f'train.select: "{config.train.select}" cannot be compared with the best so far, chosen by '
                f'"{self.config.train.select}"; resume with that, or train in another folder'
            )
        _write_config(self.folder, config, _read_config(self.folder)["files"])
        self.config = config

    # History.

    def append_history(self, entry: Mapping[str, Any]) -> None:
        """Appends the scores of one epoch; `phase` and `epoch` name it."""
        append_line(self.folder / HISTORY, json_text(entry))

    def history(self) -> list[dict[str, Any]]:
        """The scores of each epoch, in order; of an epoch that was trained again after a resume, the last."""
        history: list[dict[str, Any]] = []
        for entry in read_json_lines(self.folder / HISTORY):
            known = [_epoch(earlier) for earlier in history]
            if _epoch(entry) in known:  # the training went back to here: what came after was not kept
                del history[known.index(_epoch(entry)) :]
            history.append(entry)
        return history

    # The best weights.

    def best_info(self) -> dict[str, Any] | None:
        """What `save_best` was told of the best epoch; None before there is one.

        The weights are read and checked when this is first called, and again when their files have changed.

        Raises:
            RunError: a file of it is missing or damaged, or it belongs to another vocabulary or encoder.
        """
        stamps = file_stamps(self.folder / BEST)
        if self._checked is None or self._checked[0] != stamps:
            info = read_info(self.folder / BEST)
            self._checked = (stamps, self._fitting(info) if info else None)
        return copy.deepcopy(self._checked[1])

    def identity(self, options: Mapping[str, Any]) -> str:
        """Stands for all that a caption depends on, but for the picture: 16 hex digits.

        Args:
            options: those of `captioner caption` that differ from the run's configuration.

        Raises:
            RunError: no epoch is finished yet.
        """
        if self.best_info() is None:
            raise RunError(f"{self.folder}: no finished epoch yet; go on with `captioner train … --resume`")
        decode = self.config.to_dict()["decode"]
        # Under the names that they had first: what an earlier version captioned is not out of date.
        settings = {former_key(f"decode.{key}"): value for key, value in decode.items()}
        parts = [digest_file(self.folder / BEST / WEIGHTS), self.vocabulary.digest, settings, options]
        return digest_bytes(json_text(parts).encode())[:16]

    def save_best(self, decoder: Any, encoder: Any, info: Mapping[str, Any], *, half: bool = False) -> None:
        """Saves these weights as the best; after a crash either the old or the new ones are there, complete.

        Args:
            decoder: anything with `weights_dict()`.
            encoder: the same; always kept, so that the run needs no other file.
            info: epoch, phase, scores, …
            half: float16 instead of float32.
        """
        arrays = {
            f"{part}/{name}": array
            for part, network in {"decoder": decoder, "encoder": encoder}.items()
            for name, array in network.weights_dict().items()
        }
        save_best(self.folder / BEST, arrays, {**info, "fits": self._fits()}, half=half)

    def load_best(self) -> tuple[Any, Any]:
        """The decoder and the encoder of the best epoch, rebuilt from this folder alone.

        Raises:
            RunError: there is none yet; a file is damaged; this version makes another encoder of that name.
        """
        found = read_best(self.folder / BEST)
        if found is None:
            raise RunError(f"{self.folder}: no finished epoch yet; go on with `captioner train … --resume`")
        arrays, best = found
        self._fitting(best)
        return self._rebuilt(arrays)

    # The run that training began with.

    @property
    def start(self) -> dict[str, Any] | None:
        """What `save_start` was told of it; None where training began with no other run."""
        info = read_info(self.folder / START)
        return self._fitting(info) if info else None

    def save_start(self, arrays: Mapping[str, np.ndarray], info: Mapping[str, Any]) -> None:
        """Keeps what training begins with.

        Args:
            arrays: of `decoder/…` and `encoder/…`, and whatever else is needed to go on.
            info: what is known of the run that they come from.
        """
        save_best(self.folder / START, arrays, {**info, "fits": self._fits()})

    def load_start(self) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
        """What `save_start` kept; None where it did not."""
        found = read_best(self.folder / START)
        return (found[0], self._fitting(found[1])) if found else None

    def load_start_networks(self) -> tuple[Any, Any]:
        """The decoder, grown by new words, and the encoder that training began with.

        Raises:
            RunError: it began with no other run; a file is damaged.
        """
        found = read_best(self.folder / START)
        if found is None:
            raise RunError(f"{self.folder}: training did not begin with another run, or has not begun")
        return self._rebuilt(found[0])

    def info(self) -> dict[str, Any]:
        """What `captioner info` shows; plain values."""
        history = self.history()
        sizes = {
            path.relative_to(self.folder).as_posix(): path.stat().st_size
            for path in sorted(self.folder.rglob("*"))
            if path.is_file() and not path.name.startswith(".")
        }
        return {
            "folder": str(self.folder),
            "version": self._version(),
            "encoder": self.encoder_info,
            "words": len(self.vocabulary),
            "languages": list(self.vocabulary.languages),
            "start": self.start,
            "data": next(iter(read_json_lines(self.folder / DATA)), None),
            "splits": {name: len(ids) for name, ids in (self.seeded_splits or {}).items()},
            "epochs": len(history),
            "last": history[-1] if history else None,
            "best": self.best_info(),
            "checkpoints": [name.removesuffix(".index") for name in sizes if name.endswith(".index")],
            "files": sizes,
            "bytes": sum(sizes.values()),
            "config": self.config.to_dict(),
        }

    def _rebuilt(self, arrays: Mapping[str, np.ndarray]) -> tuple[Any, Any]:
        """Decoder and encoder with these weights."""
        # Here, not above: a look into a run (`captioner info`) should not wait for TensorFlow.
        from captioner.models.decoder import CaptionDecoder
        from captioner.models.encoder import load_encoder

        info = self.encoder_info
        # By the configuration's name: it may be a "package.module:name".
        wanted, size = self.config.encoder, info["size"][0]
        encoder = load_encoder(
            wanted.name,
            weights=select_prefix(arrays, "encoder/"),
            size=size,
            flip_augmented=wanted.flip_augmented,
            architecture=info.get("architecture"),
        )
        self._check_encoder(encoder)
        decoder = CaptionDecoder(
            self.config.decoder,
            vocabulary_size=len(self.vocabulary),
            channels=info["channels"],
            languages=len(self.vocabulary.languages),
        )
        decoder.load_weights_dict(select_prefix(arrays, "decoder/"))
        return decoder, encoder

    def _fits(self) -> dict[str, str]:
        return {VOCABULARY: self.vocabulary.digest, "encoder": self.encoder_info["name"]}

    def _fitting(self, best: dict[str, Any]) -> dict[str, Any]:
        fits = best.pop("fits")
        for side, own in self._fits().items():
            if fits[side] != own:
                raise RunError(
                    f"{self.folder / BEST}: these weights do not fit this run's {side} ({own}), they were "
                    f"trained with another ({fits[side]}); {REMEDY}"
                )
        return best

    def check_first_weights(self, encoder: Any) -> None:
        """Checks that a training goes on with the encoder that it began with.

        Raises:
            RunError: its weights are others.
        """
        began = self.encoder_info.get("digest")
        if began and encoder.digest != began:
            raise RunError(
                f"{self.folder / ENCODER}: the training began with other weights of {encoder.name} (digest "
                f"{began}) than encoder.weights gives now ({encoder.digest}); resume with the first ones, or "
                "train in another folder"
            )

    def _check_encoder(self, encoder: Any) -> None:
        info = self.encoder_info
        for key, now in json.loads(json_text(_describe(encoder))).items():
            if key != "digest" and now != info.get(key):
                raise RunError(
                    f"{self.folder / ENCODER}: {info['name']} had {key} {info.get(key)}, in this version of "
                    f"captioner it has {now}; use version {self._version()}, or train again"
                )

    def _version(self) -> str:
        return str(_read_config(self.folder)["captioner"])


def _describe(encoder: Any) -> dict[str, Any]:
    names = ("name", "size", "grid", "channels", "preprocessing", "digest")
    facts = {"cells": encoder.num_cells, **{name: getattr(encoder, name) for name in names}}
    # Kept of encoders alone that are not this package's own.
    return facts | ({"architecture": encoder.architecture} if encoder.architecture else {})


def _write_config(folder: Path, config: Config, files: Mapping[str, Any]) -> None:
    version = {"format": FORMAT, "captioner": __version__}
    write_manifest(folder / CONFIG, {**version, "config": config.to_dict(), "files": files})


def _read_config(folder: Path) -> dict[str, Any]:
    content = read_manifest(folder / CONFIG)
    if content["format"] != FORMAT:
        raise RunError(
            f"{folder / CONFIG}: run format {content['format']} of captioner {content['captioner']}; this is "
            f"{__version__}, which reads format {FORMAT}: use that version, or train again"
        )
    return content


def _not_a_run(folder: Path) -> str:
    if not folder.is_dir():
        return f"{folder}: no such folder; give the run folder that `captioner train --run` made"
    if (folder / BEST).exists() or (folder / LATEST).exists():
        return f"{folder / CONFIG}: missing; {REMEDY}"
    inside = [path.parent for path in sorted(folder.glob(f"*/{CONFIG}"))[:3]]
    hint = f"did you mean {' or '.join(map(str, inside))}?" if inside else "`captioner train` makes them"
    return f"{folder}: not a run folder, it has no {CONFIG}; {hint}"


def _epoch(entry: Mapping[str, Any]) -> tuple[Any, Any]:
    return entry.get("phase"), entry.get("epoch")
