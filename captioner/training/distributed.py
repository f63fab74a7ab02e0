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
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Unpack

import keras
import numpy as np
import tensorflow as tf

from captioner.config import Config, PhaseConfig
from captioner.data.datasets import CaptionedImage
from captioner.data.feature_cache import FeatureStore
from captioner.errors import CaptionerError, ConfigError
from captioner.models.feature_extraction import extract, extract_part
from captioner.runs.run_folder import Run
from captioner.system import console
from captioner.system.hardware import cores
from captioner.system.shard_spec import ShardSpec
from captioner.training import train as alone
from captioner.training.encoder_forward import Moved
from captioner.training.micro_batches import use_cores_side_by_side
from captioner.training.signals import Interrupted, StopRequest
from captioner.training.train_loop import PhaseTrainer
from captioner.training.train_step import StepStats, TrainStep, spoiled

_LOST = (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.DeadlineExceededError)


def train_distributed(
    config: Config,
    data: str | Path | Sequence[str | Path],
    folder: str | Path,
    *,
    devices: Sequence[str] = (),
    **settings: Unpack[alone.TrainSettings],
) -> Run | None:
    """Trains as `train.train` does, on all workers and GPUs together.

    Args:
        config: as in `train.train`; `train.micro_batches` must be a multiple of the devices of all workers.
        data: what every worker reaches.
        folder: of the run; only the first worker writes there, and only what it finds there is resumed.
        devices: of this machine, where it is the only one, such as "GPU:0"; none: all its GPUs.
        settings: as in `train.train`; `minutes` only without others.

    Returns:
        the finished run; None at all workers but the first.

    Raises:
        CaptionerError: as `train.train`; also when another worker is lost, or cannot be reached.
    """
    number, workers = this_worker()
    gpus = tf.config.list_physical_devices("GPU") if workers == 1 and not devices else []
    if workers == 1 and len(gpus) < 2 and not devices:
        return alone.train(config, data, folder, **settings)
    if settings.get("minutes"):
        raise ConfigError("--budget is for one worker: set the epochs of the phases instead")
    use_cores_side_by_side()
    # Asking for devices starts TensorFlow, which must not be before it knows of several workers.
    found = [gpu.name for gpu in tf.config.list_logical_devices("GPU")] if gpus else devices
    group = WorkerGroup(number, workers, found)
    console.info(
        f"worker {group.number + 1} of {group.workers}, {group.count} devices in all",
        quiet=settings.get("quiet", False),
    )
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


class WorkerGroup:
    """All devices and workers that train together.

    Args:
        number: of this worker, from 0.
        workers: how many there are.
        devices: names of this machine's, where this worker is the only one.
    """

    def __init__(self, number: int, workers: int, devices: Sequence[str] = ()) -> None:
        self.number, self.workers, self.first = number, workers, number == 0
        if workers > 1:
            self._strategy = tf.distribute.MultiWorkerMirroredStrategy()
        else:
            self._strategy = tf.distribute.MirroredStrategy(list(devices))
        self.count: int = self._strategy.num_replicas_in_sync
        self.local = self.count // workers
        self._replicas = self._strategy.experimental_distribute_values_from_function(
            lambda context: context.replica_id_in_sync_group % self.local
        )
        # float32 holds the sums that are added here, and float64 the bits of the values that are handed on.
        self._sum = tf.function(
            lambda x: self._strategy.run(all_reduce_sum, args=(x,)), reduce_retracing=True
        )

    def run(self, function: Any) -> tuple[Any, ...]:
        """In a graph: the results of `function(number)` for the number of each device of this worker."""
        results = self._strategy.run(function, args=(self._replicas,))
        return tuple(
            tf.nest.map_structure(
                lambda value, at=at: self._strategy.experimental_local_results(value)[at], results
            )
            for at in range(self.local)
        )

    def sum(self, values: Any) -> np.ndarray:
        """The sum over all workers of an array that each of them has."""
        own = tf.convert_to_tensor(values) / self.local  # every device of a worker brings it along
        return np.asarray(self._strategy.experimental_local_results(self._sum(own))[0])

    def broadcast(self, values: Any) -> np.ndarray:
        """The first worker's array, at every worker."""
        values = np.asarray(values, np.float64)
        return self.sum(values if self.first else np.zeros_like(values))

    def barrier(self) -> None:
        """Waits until every worker is here."""
        if self.workers > 1:
            self.sum(np.zeros(1))

    def broadcast_variables(self, **trackables: Any) -> None:
        """Gives all variables of these objects the first worker's values."""
        if self.workers == 1:
            return
        variables = _variables(tf.train.Checkpoint(**trackables))
        for variable in (v for v in variables if v.dtype.is_floating or v.dtype.is_integer):
            wide = tf.cast(variable, tf.float64)  # holds every float32 and int32, and counts as they occur
            found = self.sum(wide if self.first else tf.zeros_like(wide))
            variable.assign(tf.cast(found, variable.dtype))


def all_reduce_sum(values: Any) -> Any:
    """In `WorkerGroup.run`: sums over all devices of all workers."""
    context = tf.distribute.get_replica_context()
    values = tf.nest.map_structure(tf.identity, values)  # on this device: that is where the sum will be
    return context.all_reduce(tf.distribute.ReduceOp.SUM, values)


def this_worker() -> tuple[int, int]:
    """Number of this worker, and how many there are, by $TF_CONFIG.

    Raises:
        ConfigError: it is not as TensorFlow wants it.
    """
    text = os.environ.get("TF_CONFIG", "")
    if not text.strip():
        return 0, 1
    try:
        found = json.loads(text)
        sizes = {kind: len(found["cluster"].get(kind, ())) for kind in ("chief", "worker")}
        workers = [(kind, index) for kind, size in sizes.items() for index in range(size)]
        return workers.index((found["task"]["type"], int(found["task"]["index"]))), len(workers)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"$TF_CONFIG {text}: expected, on the first of two machines, "
            '{"cluster": {"worker": ["host1:2222", "host2:2222"]}, "task": {"type": "worker", "index": 0}}'
        ) from error


def _variables(checkpoint: Any) -> list[Any]:
    """The variables that a checkpoint would hold, in the same order everywhere."""
    found = tf.train.TrackableView(checkpoint).descendants()
    inner = [v.value if isinstance(v, keras.Variable) else v for v in found]
    return list({id(v): v for v in inner if isinstance(v, tf.Variable)}.values())


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
        self._of_worker = count_of_all(config, group) // group.workers
        self._averages: list[Any] = []

    def _run(self, name: str, batch: tuple[Any, ...], seed: Any) -> Any:
        short = self.group.local - batch[0].shape[0]
        if short <= 0 or name == "evaluate":
            return super()._run(name, batch, seed)
        found = super()._run(name, tuple(_filled(x, short) for x in batch), seed)
        return tuple(x[:-short] for x in found) if name == "sample" else found

    def _count(self, pictures: int) -> int:
        return min(self._of_worker, pictures)

    def _whole_batch(self, graph: Any, count: int, batch: tuple[Any, ...], seed: Any) -> Any:
        if graph == self._evaluate_graph:  # the first worker judges by itself
            return super()._whole_batch(graph, count, batch, seed)
        local = self.group.local
        pictures = self.group.number + self.group.workers * tf.range(tf.shape(batch[0])[0])

        def here(device: int) -> Any:
            *own, numbers = (x[device::local] for x in (*batch, pictures))
            return graph(max(1, count // local), own, numbers, seed)

        found = self.group.run(here)
        if graph == self._sample_graph:
            return _interleave(found)
        gradients, sums, moved = found[0]
        norm = self.updater.apply(gradients)
        for average, value in zip(self._averages, moved, strict=True):
            average.assign(value)
        return spoiled(sums, norm)

    def _pictures(self, pictures: Any) -> Any:
        return tf.reduce_max(pictures) + 1

    def _everywhere(self, total: Any) -> Any:
        return all_reduce_sum(total)

    def _apply(self, gradients: list[Any], sums: tuple[Any, ...], moved: Moved) -> Any:
        """Sums of all devices, which `_whole_batch` follows once; the averages are the same on each."""
        self._averages = [average for average, _ in moved]
        mine = ([tf.convert_to_tensor(x) for x in gradients], sums)
        all_of_it = tf.nest.pack_sequence_as(mine, all_reduce_sum(tf.nest.flatten(mine)))
        return *all_of_it, [value for _, value in moved]

    def _penalty(self) -> Any:
        return super()._penalty() / self.group.count


class DistributedPhaseTrainer(PhaseTrainer):
    """`PhaseTrainer` of a worker: all stop after the same step; only the first one evaluates and saves."""

    group: WorkerGroup

    @classmethod
    def of(cls, loop: PhaseTrainer, group: WorkerGroup) -> DistributedPhaseTrainer:
        """Made from the trainer of a single worker.

        Raises:
            ConfigError: its steps are of a kind that only one worker can take.
        """
        if type(loop.steps) is not TrainStep:
            setting = 'objective = "distill"' if loop.steps.phase.objective == "distill" else "closeness"
            raise ConfigError(
                f"phases.{loop.name}: {setting} is for one worker with one device; start only one"
            )
        made = cls(*(getattr(loop, field.name) for field in dataclasses.fields(PhaseTrainer)))
        made.group = group
        old = loop.steps
        made.steps = DistributedTrainStep(
            old.config, old.phase, (old.decoder, old.encoder), (old.updater, old.vocabulary), group
        )
        made.batches.worker_shard = (group.number, group.workers)
        return made

    def run_epochs(self, stop: StopRequest) -> None:
        """As `PhaseTrainer.run_epochs`; all workers stop after the same step."""
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
    """`Training` of a worker; all begin with the weights and the position of the first one."""

    def __init__(self, group: WorkerGroup, *everything: Any, **more: Any) -> None:
        self.group = group
        super().__init__(*everything, **more)
        parts = count_of_all(self.config, group)
        if group.first:
            console.info(f"each batch in {parts} parts on {group.count} devices", quiet=self.quiet)

    def train_phase(self, number: int, name: str, stop: StopRequest) -> None:
        """As `Training.train_phase`; a worker that is asked to stop trains on until all have been told."""
        with alone.noting(stop):
            self._loop_of_all(number, name).run_epochs(stop)

    def _loop_of_all(self, number: int, name: str) -> DistributedPhaseTrainer:
        """The phase at its beginning, or where the first worker's checkpoint stands."""
        if self.group.first and self.run.best_info() is not None and (number or not super()._has_begun(name)):
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
        """Each worker extracts its share; they are merged; without a shared disk each computes all."""
        if self.group.workers > 1:
            part = ShardSpec(self.group.number + 1, self.group.workers)
            extract_part(records, self.encoder, part, quiet=self.quiet)
            for turn in range(self.group.workers):
                self.group.barrier()
                if turn == self.group.number:
                    extract(records, self.encoder, quiet=True)
            self.group.barrier()
        return super()._extract(records)


def count_of_all(config: Config, group: WorkerGroup) -> int:
    """In how many micro-batches all devices together compute a batch."""
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
    """The devices' results in the order of the batch, whose pictures were dealt to them in turn."""
    if len(found) == 1:
        return tuple(found[0])
    count = sum(tf.shape(part[0])[0] for part in found)
    order = tf.argsort(tf.concat([tf.range(at, count, len(found)) for at in range(len(found))], 0))
    return tuple(tf.gather(tf.concat(parts, 0), order) for parts in zip(*found, strict=True))


def _filled(x: Any, short: int) -> Any:
    """With so many pictures appended that are all zero and have no words."""
    x = tf.convert_to_tensor(x)
    return tf.concat([x, tf.zeros([short, *x.shape[1:]], x.dtype)], 0)
