"""Those who train together: which worker this is, and what passes between all of them.

In: $TF_CONFIG, or the GPUs of this machine. Out: sums over all, values of the first worker at every one. Only
numbers pass between workers, through tf.distribute; the weights are plain variables of each.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from captioner.errors import ConfigError


class WorkerGroup:
    """Those who train together.

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
        """In a graph: what the function gives for each device of this worker, called with its number here."""
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
        """Waits for everybody."""
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
    """In `WorkerGroup.run`: the sums over all devices of all workers."""
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
