"""The epochs of one phase: train, judge on the dev pictures, keep the best, save where it stands.

In: batches, compiled steps, the dev pictures. Out: weights, and in the run folder `history.jsonl`,
`loss.png`, `latest/` and `best/`. A step depends on its number and on the weights alone, so an epoch may be
left after any step and gone on with later.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from captioner.config import PhaseConfig
from captioner.data.datasets import CaptionedImage, languages_of
from captioner.data.feature_cache import Failure
from captioner.errors import CaptionerError, DataError
from captioner.evaluation.scoring import means, score_captions
from captioner.inference.captioner import Captioner
from captioner.models.device import memory_advice
from captioner.runs.run_folder import START, Run
from captioner.system import console
from captioner.training.checkpoints import CheckpointManager
from captioner.training.input_pipeline import PixelSource, TrainingBatches
from captioner.training.rewards import CaptionReward
from captioner.training.signals import Interrupted, StopRequest
from captioner.training.train_step import StepStats, TrainStep


class State(tf.Module):
    """Position of a phase in its epochs and steps, and its best score; part of every checkpoint."""

    def __init__(self) -> None:
        super().__init__(name="state")
        self.epoch = tf.Variable(0, dtype=tf.int64, trainable=False)  # finished epochs
        self.step = tf.Variable(0, dtype=tf.int64, trainable=False)  # finished steps of the epoch under way
        self.best = tf.Variable(float("-inf"), dtype=tf.float64, trainable=False)  # selected score
        self.best_epoch = tf.Variable(0, dtype=tf.int64, trainable=False)  # of this phase; 0: none yet
        self.sums = tf.Variable(np.zeros(len(StepStats._fields)), trainable=False)  # of the epoch under way
        self.seconds = tf.Variable(0.0, dtype=tf.float64, trainable=False)  # spent on it so far

    def set_position(self, epoch: int, step: int, sums: StepStats, seconds: float) -> None:
        """Notes that so many epochs, and so many steps of the next one, are done."""
        self.epoch.assign(epoch)
        self.step.assign(step)
        self.sums.assign(np.array(sums, np.float64))
        self.seconds.assign(seconds)


@dataclass
class DevSet:
    """The pictures that each epoch is judged on.

    Args:
        batches: of all their captions, unchanged.
        records: these pictures.
        captioner: of the networks in training.
    """

    batches: TrainingBatches
    records: Sequence[CaptionedImage]
    captioner: Captioner

    def figures(self, steps: TrainStep) -> StepStats:
        """Teacher-forced loss and accuracy of the present weights."""
        figures = StepStats()
        for batch in self.batches.batches(0):
            figures = figures + steps.evaluate(batch)
        return figures

    def scores(self) -> dict[str, float]:
        """Scores of the captions that the present weights write.

        Where captions carry languages: the means over these, and beside them each language's own, such as
        `cider_de`.

        Raises:
            DataError: not one picture that can be read.
        """
        source, failed = self.batches.source, unreadable(self.batches.source)
        ids = [name for name in self.batches.table.ids if name not in failed]
        if not ids:
            raise DataError("not one picture of the dev split could be read; see above")
        store = _Encoding(source, self.captioner) if isinstance(source, PixelSource) else source
        languages = self._languages()
        if not languages:
            return self._scores(store, ids, None)
        if isinstance(store, _Encoding):
            store = _EncodedOnce(store, ids)
        own = {language: self._scores(store, ids, language) for language in languages}
        each = {f"{name}_{lang}": value for lang in languages for name, value in own[lang].items()}
        return {**means(list(own.values())), **each}

    def _languages(self) -> list[str]:
        """Those of the dev captions that the model knows."""
        told = languages_of(self.records)
        return [language for language in self.captioner.vocabulary.languages if language in told]

    def _scores(self, store: Any, ids: Sequence[str], language: str | None) -> dict[str, float]:
        references = {record.id: record.in_language(language) for record in self.records}
        judged = [name for name in ids if references[name]]
        captions = self.captioner.caption_features(store, judged, language=language)
        return score_captions([references[name] for name in judged], [caption.text for caption in captions])


@dataclass
class PhaseTrainer:
    """The epochs of a phase.

    Args:
        run: where everything is kept; locked by the caller.
        name: of the phase.
        batches: of the training pictures.
        dev: what each epoch is judged on.
        steps: compiled, with the networks and their updater.
        latest: checkpoints of all that changes, `state` included.
        state: where the phase stands.
        reward: of sampled captions, if that is the objective.
        quiet: no bars, no narration.
    """

    run: Run
    name: str
    batches: TrainingBatches
    dev: DevSet
    steps: TrainStep
    latest: CheckpointManager
    state: State
    reward: CaptionReward | None = None
    quiet: bool = False

    def run_epochs(self, stop: StopRequest) -> None:
        """Trains all epochs that are left.

        Raises:
            Interrupted: `stop` was requested; everything is saved.
        """
        phase = self.steps.phase
        console.info(
            phase_line(self.name, phase, self.batches.steps, int(self.state.epoch)), quiet=self.quiet
        )
        while int(self.state.epoch) < phase.epochs and not self.out_of_patience():
            if stop.requested:
                raise Interrupted(self.run.folder, stop.requested)
            self.run_epoch(stop)

    def out_of_patience(self) -> bool:
        """Whether the best epoch is `patience` epochs ago."""
        waited = int(self.state.epoch) - int(self.state.best_epoch)
        return bool(self.steps.phase.patience) and waited >= self.steps.phase.patience

    def run_epoch(self, stop: StopRequest) -> None:
        """Trains one epoch (or the rest of one), evaluates it, saves a checkpoint."""
        epoch, done = int(self.state.epoch), int(self.state.step)
        sums, started, saved = StepStats(*self.state.sums.numpy()), time.monotonic(), time.monotonic()
        before = float(self.state.seconds)
        title = f"{self.name} {epoch + 1}/{self.steps.phase.epochs}"
        with console.progress_bar(self.batches.steps, "steps", title, self.quiet, done=done) as progress:
            for step, figures in self.train_steps(epoch, done):
                self._check(epoch, step, figures)
                sums = sums + figures
                seconds = before + time.monotonic() - started
                progress.update(1, **_shown(sums, seconds))
                minutes = (time.monotonic() - saved) / 60
                if stop.requested or minutes >= self.run.config.train.save_minutes:
                    self.state.set_position(epoch, step + 1, sums, seconds)
                    self.latest.save()
                    saved = time.monotonic()
                if stop.requested:
                    raise Interrupted(self.run.folder, stop.requested)
        seconds = before + time.monotonic() - started
        self._evaluate_epoch(epoch, sums, seconds)
        self.state.set_position(epoch + 1, 0, StepStats(), 0.0)
        self.latest.save()
        from captioner.visualization.plots import plot_history  # here: matplotlib is slow to load

        plot_history(self.run.history(), self.run.folder / "loss.png", select=self.run.config.train.select)

    def train_steps(self, epoch: int, done: int) -> Iterator[tuple[int, StepStats]]:
        """Trains the steps of an epoch from `done` on and yields the number and the figures of each."""
        plan = self.batches.batch_order(epoch)
        for step, batch in enumerate(self.batches.batches(epoch, skip=done), start=done):
            number = epoch * self.batches.steps + step
            with memory_advice(f"lower phases.{self.name}.pictures_per_batch"):
                if self.reward is None:
                    figures = self.steps.train(batch, number)
                else:
                    figures = self.steps.self_critical_step(batch, number, plan[step], self.reward)
            yield step, figures

    def _check(self, epoch: int, step: int, figures: StepStats) -> None:
        if not all(map(math.isfinite, figures)):
            raise CaptionerError(
                f"{self.name} epoch {epoch + 1}, step {step + 1}: the loss is no number any more; go on from "
                f"the last checkpoint with --resume and a lower phases.{self.name}.learning_rate (or "
                "encoder_learning_rate, or clip_norm)"
            )

    def _evaluate_epoch(self, epoch: int, sums: StepStats, seconds: float) -> None:
        """Evaluates the (averaged) weights on the dev split; saves them if they are the best so far."""
        updater = self.steps.updater
        if updater.averages:
            updater.swap_ema_weights()
        found: dict[str, Any] = {
            "phase": self.name,
            "epoch": epoch + 1,
            "train_loss": _mean(sums.cross_entropy_sum, sums.words),
            "train_accuracy": _mean(sums.correct, sums.words),
            **self._dev_scores(),
            "reward": _mean(sums.reward, sums.samples),
            "learning_rate": updater.learning_rate(),
            "captions_per_second": _mean(sums.captions, seconds),
            "seconds": seconds,
            "unreadable": len(unreadable(self.batches.source, self.dev.batches.source)),
        }
        entry = {key: value for key, value in found.items() if value is not None}
        selected = self._selected(entry)
        self.run.append_history(entry)
        if self.run.config.train.tensorboard:
            _summarize(entry, str(self.run.folder / "tensorboard" / self.name))
        known = (self.run.best_info() or {}).get("dev_loss", math.inf)
        better = (selected, -entry["dev_loss"]) > (float(self.state.best), -known)
        if better:
            self.state.best.assign(selected)
            self.state.best_epoch.assign(epoch + 1)
            self.run.save_best(self.steps.decoder, self.steps.encoder, {**entry, "selected": selected})
        if updater.averages:
            updater.swap_ema_weights()
        console.info(epoch_line(entry, better), quiet=self.quiet)

    def keep_start(self) -> None:
        """Scores the weights as they are and keeps them as the best so far: what training has to better."""
        entry = {"phase": START, "epoch": 0, **self._dev_scores()}
        self.run.append_history(entry)
        selected = self._selected(entry)
        self.run.save_best(self.steps.decoder, self.steps.encoder, {**entry, "selected": selected})
        console.info(epoch_line(entry, False), quiet=self.quiet)

    def _dev_scores(self) -> dict[str, Any]:
        dev = self.dev.figures(self.steps)
        means = {
            "dev_loss": _mean(dev.cross_entropy_sum, dev.words),
            "dev_accuracy": _mean(dev.correct, dev.words),
        }
        return {**means, **self.dev.scores()}

    def _selected(self, entry: Mapping[str, Any]) -> float:
        """The score by which the best epoch is chosen; higher is better."""
        select = self.run.config.train.select
        return float(-entry["dev_loss"] if select == "loss" else entry[select])


class _Encoding:
    """A source of features that encodes pictures with the encoder's present weights."""

    def __init__(self, pictures: Any, captioner: Captioner) -> None:
        self.pictures, self.captioner = pictures, captioner

    def read(self, ids: list[str]) -> np.ndarray:
        return self.captioner.encode(self.pictures.read(ids))


class _EncodedOnce:
    """Features that several searches read."""

    def __init__(self, encoding: _Encoding, ids: Sequence[str]) -> None:
        parts = [encoding.read(list(ids[start : start + 64])) for start in range(0, len(ids), 64)]
        self._features, self._rows = np.concatenate(parts), {name: row for row, name in enumerate(ids)}

    def read(self, ids: Sequence[str]) -> np.ndarray:
        return self._features[[self._rows[name] for name in ids]]


def unreadable(*sources: Any) -> set[str]:
    """Ids of pictures that were to be looked at and could not be read."""
    failures = [failure for source in sources for failure in getattr(source, "failures", ())]
    return {failure.id if isinstance(failure, Failure) else failure for failure in failures}


def phase_line(name: str, phase: PhaseConfig, steps: int, done: int) -> str:
    """One line on what a phase is about to do.

    >>> phase_line("decoder", PhaseConfig(epochs=3), 40, 0)
    'phase decoder: cross_entropy, trains the decoder, 3 epochs of 40 steps, 16 pictures each'
    """
    parts = " and ".join(phase.trains)
    going_on = f", going on after epoch {done}" if done else ""
    work = f"{phase.epochs} epochs of {steps} steps, {phase.pictures_per_batch} pictures each"
    return f"phase {name}: {phase.objective}, trains the {parts}, {work}{going_on}"


def epoch_line(entry: Mapping[str, Any], better: bool) -> str:
    """One line on the scores of an epoch."""
    parts = [f"loss {entry['train_loss']:.3f}"] if "train_loss" in entry else []
    parts += [f"reward {entry['reward']:.1f}"] if "reward" in entry else []
    parts += [
        f"dev loss {entry['dev_loss']:.3f} nats per word",
        f"BLEU-4 {entry['bleu4']:.1f}",
        f"CIDEr {entry['cider']:.1f}{_each_language(entry)}",
    ]
    if "seconds" in entry:
        parts += [f"{entry['captions_per_second']:.0f} captions/s", console.duration(entry["seconds"])]
    name = f"{entry['phase']} epoch {entry['epoch']}" if entry["epoch"] else "before"
    return f"{name}: {', '.join(parts)}{' (best so far)' if better else ''}"


def _each_language(entry: Mapping[str, Any]) -> str:
    own = {name.removeprefix("cider_"): entry[name] for name in entry if name.startswith("cider_")}
    return f" ({', '.join(f'{language} {value:.1f}' for language, value in own.items())})" if own else ""


def _summarize(entry: Mapping[str, Any], folder: str) -> None:
    """The figures of an epoch for TensorBoard; a file an epoch, so that none is ever open or torn."""
    writer = tf.summary.create_file_writer(folder)
    with writer.as_default(step=entry["epoch"]):
        for name, value in entry.items():
            if isinstance(value, int | float) and name != "epoch":
                tf.summary.scalar(name, value)
    writer.close()


def _shown(sums: StepStats, seconds: float) -> dict[str, float]:
    shown: dict[str, float] = {}
    if sums.words:
        shown = {
            "loss": sums.cross_entropy_sum / sums.words,
            "words_per_second": round(sums.words / max(seconds, 1e-9)),
        }
    if sums.samples:
        shown["reward"] = sums.reward / sums.samples
    return shown


def _mean(total: float, count: float) -> float | None:
    return total / count if count else None
