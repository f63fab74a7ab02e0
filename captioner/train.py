"""From a configuration and a folder of captioned pictures to a finished run.

    records ─▶ vocabulary, encoder ─▶ run folder ─▶ for each phase: batches ─▶ steps ─▶ dev captions ─▶ scores, checkpoint

Everything random is a function of (seed, phase, epoch, step), and a checkpoint holds all that is not: a training that is
stopped anywhere, even by kill -9, and resumed ends with the weights of the unbroken one (CPU, one machine).
"""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from captioner.batches import CaptionTable, PictureSource, TrainingBatches
from captioner.checkpoints import Run
from captioner.config import Config, PhaseConfig
from captioner.datasets import CaptionedImage, Split, load_split
from captioner.decoder import CaptionDecoder
from captioner.encoders import Encoder, load_encoder
from captioner.errors import DataError
from captioner.evaluate import score_captions
from captioner.features import FeatureStore, cache_folder, extract
from captioner.latest import Latest
from captioner.losses import OBJECTIVES, load_loss
from captioner.machine import precision
from captioner.optimisers import Updater, load_optimizer
from captioner.predict import Captioner
from captioner.progress import bar, duration, recording, say
from captioner.rewards import CaptionReward
from captioner.signals import Interrupted, stop_requests
from captioner.steps import Figures, Steps, trained_variables
from captioner.vocabulary import Vocabulary

__all__ = ["train"]


def train(
    config: Config, data: str | Path, folder: str | Path, *, resume: bool = False, quiet: bool = False
) -> Run:
    """Train a captioner.

    Args:
        config: what `load_config` returned.
        data: folder of captioned pictures.
        folder: of the run; new, unless `resume`.
        resume: go on where a stopped training in `folder` was.
        quiet: no bars, no narration.

    Returns:
        the finished run; `Captioner.load(folder)` captions with its best weights.

    Raises:
        CaptionerError: bad data or configuration; a damaged run; an interruption, which says how to go on.
    """
    _check_names(config)
    splits = _load_splits(config, data, Run.open(folder) if resume else None)
    run, decoder, encoder = _open_run(config, folder, splits, resume)
    with run.training(), recording(run.folder / "log.txt"):
        say(str(run.config), quiet=quiet)
        for split in splits.values():
            for line in split.problems.lines():
                say(line, quiet=quiet)
        Training(run, decoder, encoder, splits, quiet=quiet).run_all()
    return run


class Training:
    """One training of a run: the objects that live as long as it does.

    Args:
        run: its folder, locked by the caller.
        decoder: untrained.
        encoder: with its first weights.
        splits: "train" and "dev".
        quiet: no bars, no narration.
    """

    def __init__(
        self, run: Run, decoder: CaptionDecoder, encoder: Encoder, splits: dict[str, Split], *, quiet: bool
    ) -> None:
        self.run, self.config, self.quiet = run, run.config, quiet
        self.decoder, self.encoder = decoder, encoder
        self.records = {name: list(split.records) for name, split in splits.items()}
        limit = self.config.train.dev_pictures
        self.records["dev"] = self.records["dev"][: limit or None]
        self.captioner = Captioner(encoder, decoder, run.vocabulary, self.config.decode)
        self.extracted: dict[str, FeatureStore] = {}

    def run_all(self) -> None:
        """All phases that are not finished yet."""
        names = list(self.config.phases)
        begun = [i for i, name in enumerate(names) if self._has_begun(name)]
        for number in range(begun[-1] if begun else 0, len(names)):
            self.train_phase(number, names[number])
            for earlier in names[:number]:
                shutil.rmtree(self._latest(earlier), ignore_errors=True)

    def train_phase(self, number: int, name: str) -> None:
        """One phase, from its beginning or from where it was stopped."""
        phase = self.config.phases[name]
        state = _State()
        if self.run.best is not None and not self._has_begun(name):
            self._take_best()
        sources = self._sources(phase)
        tables = {
            split: CaptionTable(
                self._usable(split, source), self.run.vocabulary, max_words=self.config.data.max_words
            )
            for split, source in sources.items()
        }
        seed = self.config.seed * 100 + number
        batches = TrainingBatches(tables["train"], sources["train"], phase=phase, seed=seed)
        dev = TrainingBatches(tables["dev"], sources["dev"], phase=_unchanged(phase), seed=seed)
        variables = trained_variables(phase, self.decoder, self.encoder)
        updater = Updater(phase, batches.steps * phase.epochs, *variables)
        latest = Latest(
            self._latest(name),
            {"decoder": self.decoder, "encoder": self.encoder.model, "updater": updater, "state": state},
            self.config.train.max_to_keep,
        )
        if latest.restore() is None:
            state.best.assign((self.run.best or {}).get("selected", float("-inf")))
            latest.save()
        say(_headline(name, phase, batches, int(state.epoch)), quiet=self.quiet)
        steps = Steps(self.config, phase, self.decoder, self.encoder, updater)
        loop = _Loop(self, name, batches, dev, steps, state, latest)
        if phase.objective == "reward":
            loop.reward = CaptionReward(tables["train"].captions)
        with stop_requests() as stop:
            while int(state.epoch) < phase.epochs and not loop.out_of_patience():
                loop.epoch(stop)

    def dev_captions(self, source: Any, ids: list[str]) -> list[str]:
        """What the present weights write for the dev pictures."""
        store = source if isinstance(source, FeatureStore) else _Encoding(source, self.encoder)
        return [caption.text for caption in self.captioner.caption_features(store, ids)]

    def _sources(self, phase: PhaseConfig) -> dict[str, Any]:
        """Features of frozen encoders come from the cache, everything else from the pictures."""
        if "encoder" not in phase.trains and not phase.augment:
            store = self._store()
            return {"train": store, "dev": store}
        source = PictureSource(self.records["train"] + self.records["dev"], self.encoder.size)
        if "encoder" in phase.trains:
            return {"train": source, "dev": source}
        return {"train": source, "dev": self._store()}

    def _store(self) -> FeatureStore:
        key = self.encoder.digest
        if key not in self.extracted:
            everyone = self.records["train"] + self.records["dev"]
            self.extracted[key] = extract(
                everyone, self.encoder, folder=cache_folder(self.encoder), quiet=self.quiet
            )
        return self.extracted[key]

    def _usable(self, split: str, source: Any) -> list[CaptionedImage]:
        if not isinstance(source, FeatureStore):
            return self.records[split]
        usable = [record for record in self.records[split] if record.id in source]
        if not usable:
            raise DataError(f"not one picture of the {split} split could be read; see the list above")
        return usable

    def _take_best(self) -> None:
        """A new phase begins with the best weights so far."""
        decoder, encoder = self.run.load_best()
        self.decoder.load_weights_dict(decoder.weights_dict())
        self.encoder.load_weights_dict(encoder.weights_dict())

    def _has_begun(self, phase: str) -> bool:
        return any(self._latest(phase).glob("ckpt-*.json"))

    def _latest(self, phase: str) -> Path:
        return self.run.folder / "latest" / phase


class _State(tf.Module):
    """Where a phase stands; saved with every checkpoint."""

    def __init__(self) -> None:
        super().__init__(name="state")
        self.epoch = tf.Variable(0, dtype=tf.int64, trainable=False)  # finished epochs
        self.step = tf.Variable(0, dtype=tf.int64, trainable=False)  # finished steps of the epoch under way
        self.best = tf.Variable(float("-inf"), dtype=tf.float64, trainable=False)  # selected score
        self.best_epoch = tf.Variable(0, dtype=tf.int64, trainable=False)  # of this phase; 0: none yet
        self.sums = tf.Variable(np.zeros(len(Figures._fields)), trainable=False)  # of the epoch under way
        self.seconds = tf.Variable(0.0, dtype=tf.float64, trainable=False)  # spent on it so far


class _Loop:
    """The epochs of a phase."""

    reward: CaptionReward | None = None

    def __init__(
        self, training: Training, name: str, batches: TrainingBatches, dev: TrainingBatches, *rest: Any
    ) -> None:
        self.training, self.name, self.batches, self.dev = training, name, batches, dev
        self.steps, self.state, self.latest = rest
        self.phase, self.run = self.steps.phase, training.run

    def out_of_patience(self) -> bool:
        """Whether the dev score has not risen for as many epochs as the phase allows."""
        waited = int(self.state.epoch) - int(self.state.best_epoch)
        return bool(self.phase.patience) and waited >= self.phase.patience

    def epoch(self, stop: Any) -> None:
        """Train one epoch (or the rest of one), judge it, keep it."""
        epoch, done = int(self.state.epoch), int(self.state.step)
        sums, started, saved = Figures(*self.state.sums.numpy()), time.monotonic(), time.monotonic()
        before = float(self.state.seconds)
        title = f"{self.name} {epoch + 1}/{self.phase.epochs}"
        with bar(self.batches.steps, "steps", title, self.training.quiet, done=done) as progress:
            for step, figures in self._train_steps(epoch, done):
                sums = sums.plus(figures)
                seconds = before + time.monotonic() - started
                progress.update(1, **_shown(sums, seconds))
                minutes = (time.monotonic() - saved) / 60
                if stop.requested or minutes >= self.training.config.train.save_minutes:
                    self._note(epoch, step + 1, sums, seconds)
                    self.latest.save()
                    saved = time.monotonic()
                if stop.requested:
                    raise Interrupted(self.run.folder, stop.requested)
        seconds = before + time.monotonic() - started
        self._judge(epoch, sums, seconds)
        self._note(epoch + 1, 0, Figures(), 0.0)
        self.latest.save()
        _plot(self.run)

    def _train_steps(self, epoch: int, done: int) -> Iterator[tuple[int, Figures]]:
        plan = self.batches.plan(epoch)
        for step, batch in enumerate(self.batches.epoch(epoch, skip=done), start=done):
            number = epoch * self.batches.steps + step
            if self.reward is None:
                yield step, self.steps.train(batch, number)
            else:
                yield step, self.steps.reinforce(batch, number, plan[step], self.reward)

    def _judge(self, epoch: int, sums: Figures, seconds: float) -> None:
        """Dev loss and dev captions of the (averaged) weights; history; the best is kept."""
        training, updater = self.training, self.steps.updater
        if updater.averages:
            updater.swap_averages()
        dev = Figures()
        for batch in self.dev.epoch(0):
            dev = dev.plus(self.steps.dev(batch))
        records = {record.id: record for record in training.records["dev"]}
        ids = self.dev.table.ids
        texts = training.dev_captions(self.dev.source, ids)
        scores = score_captions([list(records[i].captions) for i in ids], texts)
        entry = {
            "phase": self.name,
            "epoch": epoch + 1,
            "train_loss": _mean(sums.nats, sums.words),
            "dev_loss": _mean(dev.nats, dev.words),
            "train_accuracy": _mean(sums.correct, sums.words),
            "dev_accuracy": _mean(dev.correct, dev.words),
            **scores,
            "reward": _mean(sums.reward, sums.samples),
            "learning_rate": updater.learning_rate(),
            "captions_per_second": _mean(sums.captions, seconds),
            "seconds": seconds,
        }
        entry = {key: value for key, value in entry.items() if value is not None}
        select = training.config.train.select
        selected = -entry["dev_loss"] if select == "loss" else entry[select]
        self.run.append_history(entry)
        better = selected > float(self.state.best)
        if better:
            self.state.best.assign(selected)
            self.state.best_epoch.assign(epoch + 1)
            self.run.save_best(training.decoder, training.encoder, {**entry, "selected": selected})
        if updater.averages:
            updater.swap_averages()
        say(_verdict(entry, better), quiet=training.quiet)

    def _note(self, epoch: int, step: int, sums: Figures, seconds: float) -> None:
        self.state.epoch.assign(epoch)
        self.state.step.assign(step)
        self.state.sums.assign(np.array(sums, np.float64))
        self.state.seconds.assign(seconds)


class _Encoding:
    """Features of pictures as the encoder in training sees them now."""

    def __init__(self, pictures: PictureSource, encoder: Encoder) -> None:
        self.pictures, self.encoder = pictures, encoder

    def read(self, ids: list[str]) -> np.ndarray:
        return np.asarray(self.encoder.encode(self.pictures.read(ids)))


def _load_splits(config: Config, data: str | Path, run: Run | None) -> dict[str, Split]:
    made = run.made_splits if run else None
    settings: dict[str, Any] = {"format": config.data.format, "seed": config.seed, "made": made}
    return {name: load_split(data, name, **settings) for name in ("train", "dev")}


def _open_run(
    config: Config, folder: str | Path, splits: dict[str, Split], resume: bool
) -> tuple[Run, Any, Any]:
    captions = [caption for record in splits["train"].records for caption in record.captions]
    encoder = load_encoder(
        config.encoder.name, weights=config.encoder.weights, size=config.encoder.size, seed=config.seed
    )
    if resume:
        run = Run.open(folder)
        if run.config != config:
            run.replace_config(config)
    else:
        vocabulary = Vocabulary.build(
            captions, min_count=config.data.min_count, max_size=config.data.max_size
        )
        run = Run.create(folder, config, vocabulary, encoder, splits["train"].made)
    decoder = CaptionDecoder(
        config.decoder,
        vocabulary_size=len(run.vocabulary),
        channels=encoder.channels,
        seed=config.seed,
        precision=precision(config.train.precision),
    )
    decoder.start_from_frequencies(_word_counts(captions, run.vocabulary))
    return run, decoder, encoder


def _word_counts(captions: list[str], vocabulary: Vocabulary) -> np.ndarray:
    counts = np.zeros(len(vocabulary))
    for caption in captions:
        np.add.at(counts, vocabulary.ids(caption), 1)
    counts[3] = len(captions)  # every caption ends once
    return counts


def _check_names(config: Config) -> None:
    """Unknown names are said before anything is read or written."""
    for phase in config.phases.values():
        if phase.objective not in OBJECTIVES:
            load_loss(phase.objective)
        load_optimizer(phase, phase.learning_rate)


def _unchanged(phase: PhaseConfig) -> PhaseConfig:
    return dataclasses.replace(phase, augment=False, captions_per_picture=0)


def _shown(sums: Figures, seconds: float) -> dict[str, float]:
    shown = {"words_per_second": round(sums.words / max(seconds, 1e-9))} if sums.words else {}
    if sums.words:
        shown = {"loss": sums.nats / sums.words, **shown}
    if sums.samples:
        shown["reward"] = sums.reward / sums.samples
    return shown


def _headline(name: str, phase: PhaseConfig, batches: TrainingBatches, done: int) -> str:
    parts = " and ".join(phase.trains)
    going_on = f", going on after epoch {done}" if done else ""
    return f"phase {name}: {phase.objective}, trains the {parts}, {phase.epochs} epochs of {batches.steps} steps{going_on}"


def _verdict(entry: dict[str, Any], better: bool) -> str:
    figures = f"loss {entry['train_loss']:.3f}, " if "train_loss" in entry else ""
    reward = f"reward {entry['reward']:.1f}, " if "reward" in entry else ""
    return (
        f"{entry['phase']} epoch {entry['epoch']}: {figures}{reward}dev loss {entry['dev_loss']:.3f} nats per word, "
        f"BLEU-4 {entry['bleu4']:.1f}, CIDEr {entry['cider']:.1f}, {entry['captions_per_second']:.0f} captions/s, "
        f"{duration(entry['seconds'])}{' (best so far)' if better else ''}"
    )


def _mean(total: float, count: float) -> float | None:
    return total / count if count else None


def _plot(run: Run) -> None:
    try:
        from captioner.plots import plot_history
    except ImportError:
        return
    plot_history(run.history(), run.folder / "loss.png")
