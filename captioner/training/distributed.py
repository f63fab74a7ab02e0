"""Training on several GPUs, or on several machines, as if it were one: the same batches, the same losses.

In: what `train.train` takes, and the workers that $TF_CONFIG names (or the GPUs that are here). Out: the same
run folder, written by the first worker alone; the others need the pictures, and nothing else of it.

Each batch is cut into `train.micro_batches` parts, dealt to the workers. A worker adds up the gradients of
its own, divided by the real words of the whole batch; tf.distribute adds up those of all, and every worker
takes the same step with its own copy of the weights. What a part drops out or draws at random depends on
its number alone: so any number of workers gives the losses of one, but for rounding, and may go on where
another number stopped.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from captioner.config import Config, PhaseConfig
from captioner.data.datasets import CaptionedImage
from captioner.errors import CaptionerError, ConfigError
from captioner.models.feature_extraction import FeatureStore, extract, extract_part
from captioner.runs.run_folder import Run
from captioner.system import console
from captioner.system.hardware import cores
from captioner.system.shard_spec import ShardSpec
from captioner.training import train as alone
from captioner.training.signals import Interrupted, StopRequest
from captioner.training.sync_batch_norm import GraphContext, RunningAverages
from captioner.training.teams import WorkerGroup, all_reduce_sum, this_worker
from captioner.training.train_loop import PhaseTrainer
from captioner.training.train_step import StepStats, TrainStep, use_cores_side_by_side

_LOST = (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.DeadlineExceededError)


def train(
    config: Config,
    data: str | Path | Sequence[str | Path],
    folder: str | Path,
    *,
    language: str | None = None,
    resume: bool = False,
    minutes: float = 0,
    quiet: bool = False,
    devices: Sequence[str] = (),
) -> Run | None:
    """`train.train`, with everybody who takes part.

    Args:
        config: as in `train.train`; `train.micro_batches` must be a multiple of the devices of all workers.
        data: what every worker reaches.
        folder: of the run; only the first worker writes there.
        language: as in `train.train`.
        resume: as in `train.train`; what the first worker finds there counts.
        minutes: only without others.
        quiet: no bars, no narration.
        devices: of this machine, where it is the only one, such as "GPU:0"; none: all its GPUs.

    Returns:
        the finished run; None at all workers but the first.

    Raises:
        CaptionerError: as `train.train`; also when another worker is lost, or cannot be reached.
    """
    number, workers = this_worker()
    gpus = tf.config.list_physical_devices("GPU") if workers == 1 and not devices else []
    settings: dict[str, Any] = {"language": language, "resume": resume, "minutes": minutes, "quiet": quiet}
    if workers == 1 and len(gpus) < 2 and not devices:
        return alone.train(config, data, folder, **settings)
    if minutes:
        raise ConfigError("--budget is for one worker: set the epochs of the phases instead")
    use_cores_side_by_side()
    # Asking for devices starts TensorFlow, which must not be before it knows of several workers.
    found = [gpu.name for gpu in tf.config.list_logical_devices("GPU")] if gpus else devices
    group = WorkerGroup(number, workers, found)
    console.info(f"worker {group.number + 1} of {group.workers}, {group.count} devices in all", quiet=quiet)
    with ExitStack() as stack:
        own = Path(folder)
        if not group.first:  # what the others would write is of no use
            own = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="captioner-"))) / "run"
            settings |= {"resume": False, "quiet": True}
        try:
            run = alone.train(config, data, own, **settings, kind=partial(DistributedTraining, group))
        except Interrupted as stop:
            raise Interrupted(Path(folder), stop.exit_code - 128) from None
        except _LOST as error:
            raise CaptionerError(
                f"worker {group.number + 1}: another worker is gone, or cannot be reached "
                f"({type(error).__name__}); start all of them again with --resume"
            ) from error
        group.barrier()
    return run if group.first else None


class DistributedTrainStep(TrainStep):
    """`TrainStep` of which each worker computes its share; see `TrainStep` for the arguments."""

    def __init__(
        self,
        config: Config,
        phase: PhaseConfig,
        networks: tuple[Any, Any],
        trained: tuple[Any, Any],
        group: WorkerGroup,
    ) -> None:
        super().__init__(config, phase, *networks, *trained)
        self.group = group
        self._all_micro_batches = _parts(config, group)
        self._micro_batches = self._all_micro_batches // group.workers
        self._making = GraphContext()
        self._norms = RunningAverages(self.encoder.model if self._cnn_training else None)

    def _bound(self, graph: Any, micro_batches: int) -> Any:
        if graph == self._evaluate_graph:  # the first worker judges by itself
            return partial(graph, micro_batches)
        local = self.group.local
        on_each = max(1, micro_batches // local)

        def everywhere(batch: tuple[Any, ...], *rest: Any) -> Any:
            def here(device: int) -> Any:
                self._making.device = device
                self._norms.begin(batch[-1])
                deal = partial(tf.nest.map_structure, lambda x: x[device::local])
                more = [deal(x) if isinstance(x, tuple) else x for x in rest]
                return graph(on_each, deal(batch), *more)

            found = self.group.run(here)
            if graph == self._sample_graph:
                return _interleave(found)
            gradients, sums, moved = found[0]
            self.updater.apply(gradients)
            self._norms.assign(moved)
            return sums

        return everywhere

    def _run(self, graph: Any, batch: tuple[Any, ...], *rest: Any) -> Any:
        short = self.group.local - batch[0].shape[0]
        if short > 0 and graph != self._evaluate_graph:  # no device may be without a picture
            fill = partial(tf.nest.map_structure, lambda x: _filled(x, short))
            more = [fill(x) if isinstance(x, tuple) else x for x in rest]
            found = super()._run(graph, fill(batch), *more)
            return tuple(x[:-short] for x in found) if graph == self._sample_graph else found
        return super()._run(graph, batch, *rest)

    def _place(self, micro_batch: int) -> int:
        self._making.micro_batch = micro_batch
        return self.group.number + self.group.workers * (self._making.device + self.group.local * micro_batch)

    def _everywhere(self, total: Any) -> Any:
        return all_reduce_sum(total)

    def _cells(self, inputs: Any, seed: Any) -> Any:
        if seed is None or not self._norms.found:
            return super()._cells(inputs, seed)
        with self._norms.moved_by(self._place(self._making.micro_batch)):
            return super()._cells(inputs, seed)

    def _follow(self, gradients: list[Any], sums: tuple[Any, ...]) -> Any:
        mine = ([tf.convert_to_tensor(x) for x in gradients], sums, self._norms.making.moved)
        return tf.nest.pack_sequence_as(mine, all_reduce_sum(tf.nest.flatten(mine)))

    def _penalty(self) -> Any:
        return super()._penalty() / self.group.count


class DistributedPhaseTrainer(PhaseTrainer):
    """`PhaseTrainer` of a worker: all stop at the same step; the first one judges."""

    group: WorkerGroup

    @classmethod
    def of(cls, loop: PhaseTrainer, group: WorkerGroup) -> DistributedPhaseTrainer:
        """Of one that was made for a worker alone."""
        made = cls(*(getattr(loop, field.name) for field in dataclasses.fields(PhaseTrainer)))
        made.group = group
        old = loop.steps
        made.steps = DistributedTrainStep(
            old.config, old.phase, (old.decoder, old.encoder), (old.updater, old.vocabulary), group
        )
        made.batches.worker_shard = (group.number, group.workers)
        return made

    def run_epochs(self, stop: StopRequest) -> None:
        """As `PhaseTrainer.run_epochs`; a request to stop counts when all know of it."""
        self._asked, self._agreed = stop, StopRequest()
        super().run_epochs(self._agreed)

    def train_steps(self, epoch: int, done: int) -> Iterator[tuple[int, StepStats]]:
        """As `PhaseTrainer.train_steps`, with the figures of all workers."""
        for step, figures in super().train_steps(epoch, done):
            if self.group.workers == 1:
                self._agreed.requested = self._asked.requested
                yield step, figures
                continue
            own = np.zeros((self.group.workers, 4))
            own[self.group.number] = *figures[3:], self._asked.requested or 0
            everyone = self.group.sum(own)
            self._agreed.requested = int(everyone[:, 3].max())
            captions, reward, samples, _ = everyone.sum(0)
            yield step, figures._replace(captions=captions, reward=reward, samples=samples)

    def _evaluate_epoch(self, epoch: int, sums: StepStats, seconds: float) -> None:
        if self.group.first:
            super()._evaluate_epoch(epoch, sums, seconds)
        else:
            self.run.append_history({"phase": self.name, "epoch": epoch + 1})
        if self.group.workers > 1:
            best, best_epoch = self.group.broadcast([float(self.state.best), float(self.state.best_epoch)])
            self.state.best.assign(best)
            self.state.best_epoch.assign(int(best_epoch))


class DistributedTraining(alone.Training):
    """`Training` of a worker; what it goes on from is the first worker's."""

    def __init__(self, group: WorkerGroup, *everything: Any, **more: Any) -> None:
        self.group = group
        super().__init__(*everything, **more)
        parts = _parts(self.config, group)
        if group.first:
            console.info(f"each batch in {parts} parts on {group.count} devices", quiet=self.quiet)

    def train_phase(self, number: int, name: str, stop: StopRequest) -> None:
        """As `Training.train_phase`; whoever is asked to stop goes on until all know of it."""
        with alone.noting(stop):
            self._loop_of_all(number, name).run_epochs(stop)

    def _loop_of_all(self, number: int, name: str) -> DistributedPhaseTrainer:
        """The phase from its beginning, or from where the first worker says."""
        if self.group.first and self.run.best is not None and (number or not super()._has_begun(name)):
            self.load_best_weights(self.config.phases[name])
        networks = {"decoder": self.decoder, "encoder": self.encoder.model}
        self.group.broadcast_variables(**networks)
        loop = DistributedPhaseTrainer.of(self._loop(number, name), self.group)
        if self.group.first:
            self.begin(loop)
        self.group.broadcast_variables(**networks, updater=loop.steps.updater, state=loop.state)
        return loop

    def _has_begun(self, phase: str) -> bool:
        return bool(self.group.broadcast([super()._has_begun(phase)])[0])

    def _extract(self, records: list[CaptionedImage]) -> FeatureStore:
        """Each extracts a part; the first takes them in; those who have other disks do the rest."""
        if self.group.workers > 1:
            part = ShardSpec(self.group.number + 1, self.group.workers)
            extract_part(records, self.encoder, part, quiet=self.quiet)
            for turn in range(self.group.workers):
                self.group.barrier()
                if turn == self.group.number:
                    extract(records, self.encoder, quiet=True)
            self.group.barrier()
        return super()._extract(records)


def _parts(config: Config, group: WorkerGroup) -> int:
    """In how many parts each batch is computed."""
    on_cpu = not tf.config.list_logical_devices("GPU")
    fewest = -int(group.sum(np.eye(group.workers)[group.number] * -cores()).max()) if on_cpu else 1
    parts = config.train.micro_batches or group.count * max(1, fewest // group.local)
    if parts % group.count:
        raise ConfigError(
            f"train.micro_batches = {parts}: cannot be dealt to {group.count} devices; "
            "expected a multiple of that"
        )
    return parts


def _interleave(found: tuple[Any, ...]) -> tuple[Any, ...]:
    """What each device made of every so-many-th picture, in the pictures' order."""
    if len(found) == 1:
        return tuple(found[0])
    count = sum(tf.shape(part[0])[0] for part in found)
    order = tf.argsort(tf.concat([tf.range(at, count, len(found)) for at in range(len(found))], 0))
    return tuple(tf.gather(tf.concat(parts, 0), order) for parts in zip(*found, strict=True))


def _filled(x: Any, short: int) -> Any:
    """So many more pictures, without words."""
    x = tf.convert_to_tensor(x)
    return tf.concat([x, tf.zeros([short, *x.shape[1:]], x.dtype)], 0)
