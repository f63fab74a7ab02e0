"""From a configuration and a folder of captioned pictures to a finished run.

    records ─▶ vocabulary, encoder ─▶ run folder ─▶ for each phase: sources ─▶ batches ─▶ loop (train_loop)

Everything random is a function of (seed, phase, epoch, step), and a checkpoint holds all that is not: a
training that is stopped anywhere, even by kill -9, and resumed ends with the weights of the unbroken one
(CPU, one machine).
"""

from __future__ import annotations

import dataclasses
import importlib.util
import shutil
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict, cast

import numpy as np

from captioner.config import Config, PhaseConfig, language_of
from captioner.data.corrections import OTHER_WORDING, known_share
from captioner.data.data_folders import DataFolder, load_folders
from captioner.data.datasets import CaptionedImage, Split, languages_of
from captioner.data.feature_cache import FeatureStore
from captioner.data.statistics import facts, training_warnings
from captioner.data.vocabulary import END, Vocabulary
from captioner.errors import ConfigError, DataError, MissingExtra
from captioner.inference.captioner import Captioner
from captioner.models.decoder import CaptionDecoder
from captioner.models.device import find_device
from captioner.models.encoder import Encoder, load_encoder
from captioner.models.feature_extraction import extract
from captioner.models.regularizers import load_regularizer
from captioner.runs.run_folder import DATA, Run
from captioner.runs.weights import select_prefix
from captioner.system import console
from captioner.system.files import atomic_write, json_text
from captioner.training.adapt import AdaptStep, StartCaptions
from captioner.training.checkpoints import CheckpointManager
from captioner.training.distill import DistillStep, Teachers
from captioner.training.input_pipeline import (
    PixelSource,
    TokenizedCaptions,
    TrainingBatches,
    shrink_batch,
)
from captioner.training.losses import OBJECTIVES, load_loss
from captioner.training.micro_batches import use_cores_side_by_side
from captioner.training.new_words import fit_new_words, sink_unused_words
from captioner.training.optimizers import TrainOptimizer, load_optimizer
from captioner.training.rewards import CaptionReward
from captioner.training.signals import Interrupted, StopRequest, noting
from captioner.training.time_budget import within
from captioner.training.train_loop import DevSet, PhaseTrainer, State
from captioner.training.train_step import (
    TrainStep,
    encoder_variables,
    trained_variables,
)
from captioner.training.warm_start import WarmStart, config_from, first_rows, grow_vocabulary, grown_start

__all__ = ["train"]

PROBED = 8  # steps whose median tells what an epoch costs
JUDGING = 1.2  # an epoch with its dev scores, to its steps alone: Flickr8k, 1.1 to 1.2


class TrainSettings(TypedDict, total=False):
    """How a training is run, whatever trains: see `train`."""

    language: str | None
    resume: bool
    minutes: float
    quiet: bool


def train(
    config: Config,
    data: str | Path | Sequence[str | Path],
    folder: str | Path,
    *,
    language: str | None = None,
    resume: bool = False,
    minutes: float = 0,
    quiet: bool = False,
    kind: Callable[..., Training] | None = None,
    splits: Mapping[str, Split] | None = None,
) -> Run:
    """Train a captioner.

    Args:
        config: what `load_config` returned.
        data: folder of captioned pictures; several are one data set: `[LANGUAGE=]FOLDER[*TIMES]`, see
            `data_folders.DataFolder`.
        language: of captions that carry none, in folders that name none.
        folder: of the run; new, unless `resume`.
        resume: go on where a stopped training in `folder` was.
        minutes: there are for all of it: epochs are left out where they are too few. 0: as many as it takes.
        quiet: no bars, no narration.
        kind: what makes the `Training`, where it is a special one.
        splits: "train" and "dev", where they are not those that `data` has; "uncorrected" may hold pictures
            whose captions nobody has looked at: with `closeness` they hold the model to what it says of them.

    Returns:
        the finished run; `Captioner.load(folder)` captions with its best weights.

    Raises:
        CaptionerError: bad data or configuration; a damaged run; an interruption, which says how to go on.
    """
    started = time.monotonic()
    use_cores_side_by_side()
    _check_names(config)
    run = Run.open(folder) if resume else None
    several = [data] if isinstance(data, str | Path) else data
    folders = [DataFolder.of(one, language) for one in several]
    start = Run.open(config.start) if config.start and not (run and run.start) else None
    if start and not run:
        config = config_from(config, start.config)
    splits = splits or _load_splits(config, folders, run)
    _check_select(config, splits["dev"])
    warnings = training_warnings(splits["train"].records, splits["dev"].records, config.data)
    encoder = _load_encoder(config, start, run)
    for phase in config.phases.values():
        encoder_variables(phase, encoder)  # the layer it names must be there
    config = _resolved(config, splits)
    if run is not None and not config.start:
        run.check_first_weights(encoder)
    run = run or _create_run(config, folders, folder, splits, encoder, start)
    with run.training(), console.recording(run.folder / "log.txt"):
        if run.config != config:
            run.replace_config(config)
        console.info(str(run.config), quiet=quiet)
        console.info(f"computes on {find_device()}, products in {config.train.precision}", quiet=quiet)
        train = splits["train"]
        for line in [f"captions from {train.files}", *train.problems.lines(), *warnings, *config.warnings()]:
            console.info(line, quiet=quiet)
        try:
            training = (kind or Training)(run, splits, encoder, quiet=quiet)
            if minutes:
                training.fit_to_budget(60 * minutes, since=started)
            training.run_all()
        except KeyboardInterrupt:  # while features are extracted, or impatiently
            raise Interrupted(run.folder, signal.SIGINT) from None
    return run


class Training:
    """One training of a run: its networks, its data and its phases.

    Args:
        run: its folder, locked by the caller.
        splits: "train" and "dev".
        encoder: with its first weights.
        quiet: no bars, no narration.
    """

    def __init__(self, run: Run, splits: Mapping[str, Split], encoder: Encoder, *, quiet: bool) -> None:
        self.run, self.quiet = run, quiet
        self.records = {name: list(split.records) for name, split in splits.items()}
        limit = self.config.train.dev_pictures
        self.records["dev"] = self.records["dev"][: limit or None]
        self.encoder = encoder
        self.extracted: dict[Any, FeatureStore] = {}
        self.decoder = self._new_decoder(len(run.vocabulary))
        if self.config.start:
            self.start = self._load_start()
            self.decoder.load_weights_dict(self.start.decoder)
        else:
            self.decoder.init_output_bias(_word_counts(_words(splits["train"]), run.vocabulary))
            if run.vocabulary.languages:
                self.decoder.set_spoken(spoken_words(splits["train"].records, run.vocabulary))
        self.captioner = Captioner(self.encoder, self.decoder, run.vocabulary, self.config.decode)

    @property
    def config(self) -> Config:
        """That of the run."""
        return self.run.config

    def _new_decoder(self, words: int) -> CaptionDecoder:
        return CaptionDecoder(
            self.config.decoder,
            vocabulary_size=words,
            channels=self.encoder.channels,
            languages=len(self.run.vocabulary.languages),
            seed=self.config.seed,
            precision=find_device().precision(self.config.train.precision),
        )

    def _load_start(self) -> WarmStart:
        """The networks that training begins with; taken into the run folder, which then needs no other."""
        kept = self.run.load_start()
        if kept is None:
            earlier = Run.open(self.config.start)
            shown = None
            if len(self.run.vocabulary) > len(earlier.vocabulary):  # features only where there are new words
                source = self._store("train")
                shown = self._table("train", source), source
            start = grown_start(earlier, self.run.vocabulary, shown)
            if self.run.vocabulary.languages != earlier.vocabulary.languages:
                start.decoder["spoken"] = self._spoken(start.decoder["spoken"], earlier.vocabulary)
            self.run.save_start(start.arrays(self.encoder), start.info)
            return start
        return WarmStart.of(*kept)

    def _spoken(self, known: np.ndarray, old: Vocabulary) -> np.ndarray:
        """(L, V): which words may be written in each language, where a start has learned some more.

        Old words in old languages as ever, all others where captions have them; those that none has in all.
        """
        spoken = spoken_words(self.records["train"], self.run.vocabulary)
        L, words = len(old.languages), len(old) + len(spoken) - len(old.languages)
        spoken[:L, :words] = known[:L, :words]
        spoken[:, ~spoken.any(0)] = 1
        spoken[:, : END + 1] = 1
        return spoken

    def fit_to_budget(self, seconds: float, *, since: float) -> None:
        """Leaves out epochs that do not fit into the time there is; times a few steps of each phase first.

        Args:
            seconds: there are for everything.
            since: `time.monotonic()` when they began.
        """
        costs = {name: self._epoch_seconds(number, name) for number, name in enumerate(self.config.phases)}
        spent = time.monotonic() - since
        config = within(self.config, costs, seconds - spent)
        self.run.replace_config(config)
        for name, cost in costs.items():
            epochs = config.phases[name].epochs if name in config.phases else 0
            console.info(
                f"phase {name}: {epochs} epochs of about {console.duration(cost)} each", quiet=self.quiet
            )

    def _epoch_seconds(self, number: int, name: str) -> float:
        """Seconds an epoch of this phase takes; weights and run folder are unchanged afterwards."""
        decoder, encoder = self.decoder.weights_dict(), self.encoder.weights_dict()
        loop = self._loop(number, name)
        times = [time.monotonic()]
        for _ in loop.train_steps(0, 0):
            times.append(time.monotonic())
            if len(times) > PROBED + 3:  # the first ones are compiled, or read ahead
                break
        self.decoder.load_weights_dict(decoder)
        self.encoder.load_weights_dict(encoder)
        return JUDGING * loop.batches.steps * float(np.median(np.diff(times)))

    def run_all(self) -> None:
        """Trains all phases that are not finished."""
        names = list(self.config.phases)
        begun = [i for i, name in enumerate(names) if self._has_begun(name)]
        stop = StopRequest()
        for number in range(begun[-1] if begun else 0, len(names)):
            if stop.requested:
                raise Interrupted(self.run.folder, stop.requested)
            self.train_phase(number, names[number], stop)
            for earlier in names[:number]:
                shutil.rmtree(self._latest(earlier), ignore_errors=True)

    def train_phase(self, number: int, name: str, stop: StopRequest) -> None:
        """Trains one phase from its beginning or from its newest checkpoint."""
        phase = self.config.phases[name]
        # Also when going on: features of a frozen encoder are needed before its checkpoint is read.
        if self.run.best_info() is not None and (number or not self._has_begun(name)):
            self.load_best_weights(phase)
        loop = self._loop(number, name)
        self.begin(loop)
        with noting(stop):
            loop.run_epochs(stop)

    def begin(self, loop: PhaseTrainer) -> None:
        """Restores the phase's newest checkpoint; saves a first one if there is none."""
        if loop.latest.restore() is None:
            if self.config.start and self.run.best_info() is None:
                loop.keep_start()
            if self.config.start and loop.name == next(iter(self.config.phases)):
                self._fit_new_words(loop)
            loop.state.best.assign((self.run.best_info() or {}).get("selected", float("-inf")))
            loop.latest.save()

    def _fit_new_words(self, loop: PhaseTrainer) -> None:
        """Lets the first phase begin with words that know their places."""
        source, updater = loop.batches.source, loop.steps.updater
        if not len(self.start.shares) or not isinstance(source, FeatureStore):
            return
        table, known = loop.batches.table, self.start.shares.shape[1]
        said = [caption for record in self.records["train"] for caption in record.captions]
        if known_share(said, Vocabulary(self.run.vocabulary.words[:known])) < OTHER_WORDING:
            sunk = sink_unused_words(self.decoder, known, table)
            console.info(f"another language: {sunk} words of the start fall behind", quiet=self.quiet)
        else:
            own = None
            if isinstance(loop.steps, AdaptStep):
                own = (loop.steps.captions.captions, loop.steps.captions.source)
            fitted = fit_new_words(
                self.decoder, self.start.shares, (table, source), own, seed=self.config.seed
            )
            console.info(f"new words whose places are learned first: {fitted}", quiet=self.quiet)
        for average, variable in zip(updater.averages, updater.variables_trained, strict=False):
            average.assign(variable)

    def _loop(self, number: int, name: str) -> PhaseTrainer:
        """Batches, optimizer, step and checkpoints of a phase, at its beginning."""
        phase = self.config.phases[name]
        sources = self._sources(phase)
        tables = {split: self._table(split, source) for split, source in sources.items()}
        seed = self.config.seed * 100 + number
        judged = TrainingBatches(tables["dev"], sources["dev"], phase=without_augmentation(phase), seed=seed)
        phase = shrink_batch(phase, len(tables["train"].ids))
        batches = TrainingBatches(tables["train"], sources["train"], phase=phase, seed=seed)
        variables = trained_variables(phase, self.decoder, self.encoder)
        updater = TrainOptimizer(phase, batches.steps * phase.epochs, *variables)
        state = State()
        latest = CheckpointManager(
            self._latest(name),
            {"decoder": self.decoder, "encoder": self.encoder.model, "updater": updater, "state": state},
            self.config.train.max_to_keep,
        )
        return PhaseTrainer(
            self.run,
            name,
            batches,
            DevSet(judged, self.records["dev"], self.captioner),
            self._train_step(phase, updater, sources["train"], seed),
            latest,
            state,
            _reward(tables["train"]) if phase.objective == "reward" else None,
            self.quiet,
        )

    def _train_step(
        self, phase: PhaseConfig, updater: TrainOptimizer, source: FeatureStore, seed: int
    ) -> TrainStep:
        networks = (self.decoder, self.encoder, updater, self.run.vocabulary)
        if phase.objective == "distill":
            products = self.decoder.casted_weights.dtype.name
            teachers = Teachers(phase.teachers, self.run.vocabulary, self.encoder, precision=products)
            return DistillStep(self.config, phase, *networks, teachers=teachers)
        if not phase.closeness:
            return TrainStep(self.config, phase, *networks)
        words = self.start.shares.shape[1]
        decoder = self._new_decoder(words)
        decoder.load_weights_dict(first_rows(self.start.decoder, words))
        vocabulary = Vocabulary(self.run.vocabulary.words[:words])
        captioner = Captioner(self.encoder, decoder, vocabulary, self.config.decode)
        records = [*self.records.get("uncorrected", ()), *self.records["train"]]
        records = [record for record in records if record.id in source]
        language = next(iter(languages_of(self.records["train"])), None)
        own = StartCaptions(captioner, source, records, self.run.vocabulary, language=language, seed=seed)
        return AdaptStep(self.config, phase, *networks, start=decoder, shares=self.start.shares, captions=own)

    def _sources(self, phase: PhaseConfig) -> dict[str, Any]:
        """Features of frozen encoders come from the cache, everything else from the pictures."""
        if "encoder" not in phase.trains and not phase.augment:
            store = self._store(*self.records)
            return {"train": store, "dev": store}
        everyone = self.records["train"] + self.records["dev"]
        source = PixelSource(everyone, self.encoder.size, quiet=self.quiet)
        return {"train": source, "dev": source if "encoder" in phase.trains else self._store("dev")}

    def _store(self, *splits: str) -> FeatureStore:
        key = (self.encoder.digest, splits)
        if key not in self.extracted:
            records = [record for split in splits for record in self.records[split]]
            store = self._extract(records)
            for failure in store.failures:
                console.info(f"{failure.path}: {failure.reason}; left out", quiet=self.quiet)
            self.extracted[key] = store
        return self.extracted[key]

    def _extract(self, records: list[CaptionedImage]) -> FeatureStore:
        return extract(records, self.encoder, quiet=self.quiet)

    def _table(self, split: str, source: Any) -> TokenizedCaptions:
        """Captions of the pictures that have features; of all, where they are read as training goes."""
        usable = self.records[split]
        if isinstance(source, FeatureStore):
            usable = [record for record in usable if record.id in source]
            if not usable:
                raise DataError(f"not one picture of the {split} split could be read; see the list above")
        return TokenizedCaptions(usable, self.run.vocabulary, max_words=self.config.data.max_words)

    def load_best_weights(self, phase: PhaseConfig) -> None:
        """Loads the best weights so far: a new phase begins with them."""
        decoder, encoder = self.run.load_best()
        self.decoder.load_weights_dict(decoder.weights_dict())
        arrays = encoder.weights_dict()
        if self.config.encoder.round_to_float16 and "encoder" not in phase.trains:
            arrays = {name: array.astype(np.float16).astype(np.float32) for name, array in arrays.items()}
        self.encoder.load_weights_dict(arrays)

    def _has_begun(self, phase: str) -> bool:
        return any(self._latest(phase).glob("ckpt-*.json"))

    def _latest(self, phase: str) -> Path:
        return self.run.folder / "latest" / phase


def _reward(table: TokenizedCaptions) -> CaptionReward:
    return CaptionReward(table.captions, table.languages, table.cut)


def _load_splits(config: Config, data: Sequence[DataFolder], run: Run | None) -> dict[str, Split]:
    made = run.seeded_splits if run else None
    settings: dict[str, Any] = {"format": config.data.format, "seed": config.seed, "made": made}
    return load_folders(data, ("train", "dev"), **settings)


def _create_run(
    config: Config,
    data: Sequence[DataFolder],
    folder: str | Path,
    splits: Mapping[str, Split],
    encoder: Encoder,
    start: Run | None,
) -> Run:
    captions = _words(splits["train"])
    sizes: dict[str, Any] = {"min_count": config.data.min_count, "max_size": config.data.max_size}
    languages = languages_of(splits["train"].records)
    if start:
        if any(phase.closeness for phase in config.phases.values()):
            for language in languages:
                start.vocabulary.start(language)  # it is kept to its own captions in it, so it must know it
        known = start.vocabulary.with_languages(languages)
        vocabulary = grow_vocabulary(known, captions, named=config.data.words, **sizes)
    else:
        vocabulary = Vocabulary.build(captions, languages=languages, **sizes)
    run = Run.create(folder, config, vocabulary, encoder, splits["train"].made)
    atomic_write(run.folder / DATA, json_text(facts([one.path for one in data], splits)) + "\n")
    return run


def _resolved(config: Config, splits: Mapping[str, Split]) -> Config:
    """The configuration as this training follows it: with what depends on the data and the machine."""
    pictures = len(splits["train"].records)
    phases = {name: shrink_batch(phase, pictures) for name, phase in config.phases.items()}
    train = dataclasses.replace(config.train, precision=find_device().precision(config.train.precision))
    return dataclasses.replace(config, phases=phases, train=train)


def _load_encoder(config: Config, start: Run | None, run: Run | None) -> Encoder:
    """That of the start, if there is one: from there, or from the run that has taken it over."""
    wanted = config.encoder
    if start:
        return cast(Encoder, start.load_best()[1])
    kept = run.load_start() if run else None
    if run and kept:
        size = run.encoder_info["size"][0]
        return load_encoder(
            wanted.name,
            weights=select_prefix(kept[0], "encoder/"),
            size=size,
            flip_augmented=wanted.flip_augmented,
            architecture=run.encoder_info.get("architecture"),
        )
    return load_encoder(
        wanted.name,
        weights=wanted.weights,
        size=wanted.size,
        flip_augmented=wanted.flip_augmented,
        seed=config.seed,
    )


def _words(split: Split) -> list[tuple[str, ...]]:
    """The words of each caption."""
    return [words for record in split.records for words in record.words]


def spoken_words(records: Sequence[CaptionedImage], vocabulary: Vocabulary) -> np.ndarray:
    """(L, V): 1 where captions in a language have a word."""
    spoken = np.zeros((len(vocabulary.languages), len(vocabulary)), np.float32)
    for record in records:
        for words, language in zip(record.words, record.languages, strict=False):
            spoken[vocabulary.languages.index(language), vocabulary.ids(words)] = 1
    return spoken


def _word_counts(captions: list[tuple[str, ...]], vocabulary: Vocabulary) -> np.ndarray:
    counts = np.zeros(len(vocabulary))
    for words in captions:
        np.add.at(counts, vocabulary.ids(words), 1)
    counts[END] = len(captions)  # every caption ends once
    return counts


def _check_names(config: Config) -> None:
    """Raises for unknown names, and for settings that cannot work, before anything is read or written."""
    config.check_phases()
    if config.train.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise MissingExtra("tensorboard", "train.tensorboard")
    if config.decoder.regularizer:
        load_regularizer(config.decoder.regularizer, config.decoder.regularizer_strength)
    for name, phase in config.phases.items():
        if phase.objective not in OBJECTIVES:
            load_loss(phase.objective)
        if phase.closeness and (
            not config.start or phase.augment or "encoder" in phase.trains or phase.objective == "reward"
        ):
            raise ConfigError(
                f"phases.{name}.closeness = {phase.closeness}: expected 0, except in a phase of cross "
                "entropy that trains the decoder alone, without augment, and begins with a run (--from)"
            )
        load_optimizer(phase, phase.learning_rate)


def _check_select(config: Config, dev: Split) -> None:
    """Raises where the language whose score is to pick the best epoch has no dev captions."""
    select, known = config.train.select, languages_of(dev.records)
    if language_of(select) and language_of(select) not in known:
        raise ConfigError(
            f"train.select = {select}: the dev captions are in {', '.join(known) or 'no language'}; "
            f"expected one of these, or {select.rpartition('_')[0]}"
        )


def without_augmentation(phase: PhaseConfig) -> PhaseConfig:
    return dataclasses.replace(phase, augment=False, captions_per_picture=0)
