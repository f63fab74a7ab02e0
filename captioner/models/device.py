"""What computes: the processor or one GPU, and what follows from it for training, extraction and captioning.

In: what TensorFlow finds. Out: a `Device`, found once a process. Everything that is done differently on a GPU
is decided here, so that it can be tested without one.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache

import tensorflow as tf

from captioner.errors import CaptionerError
from captioner.system.hardware import cores, precision, processor_name

BFLOAT16_SINCE = (8, 0)  # NVIDIA's compute capability from which products in bfloat16 are faster
# Pictures (with their captions) below which a micro-batch costs more than it brings: each has operations of
# its own for every word, and a set of gradients to be added up. Of 16 pictures, micro-batches of four cost a
# quarter more processor time than one of 16, those of two three quarters more (docs/speed.md).
FEWEST_PICTURES = 4
_SECONDS = 20  # for nvidia-smi


@dataclass(frozen=True)
class Device:
    """What computes.

    Attributes:
        kind: "processor" or "GPU".
        name: what it calls itself.
        cores: of the processor, that this process may use.
        memory_gib: of the GPU.
        capability: NVIDIA's compute capability of the GPU, (major, minor).
        place: TensorFlow's name of the GPU.

    >>> card = Device("GPU", "Tesla T4", cores=2, memory_gib=15, capability=(7, 5))
    >>> card.precision("auto"), card.micro_batches(0, 64), card.extraction_batch
    ('float32', 1, 128)
    >>> print(card)
    GPU Tesla T4, 15 GiB, compute capability 7.5
    """

    kind: str
    name: str
    cores: int
    memory_gib: float = 0.0
    capability: tuple[int, int] = (0, 0)
    place: str = "/GPU:0"

    def __str__(self) -> str:
        if not self.on_gpu:
            return f"{self.cores} core{'s' if self.cores > 1 else ''} of {self.name}"
        memory = f", {self.memory_gib:.0f} GiB" if self.memory_gib else ""
        capability = ".".join(map(str, self.capability))
        return f"GPU {self.name}{memory}, compute capability {capability}"

    @property
    def on_gpu(self) -> bool:
        """Whether it is a GPU."""
        return self.kind == "GPU"

    def precision(self, wanted: str) -> str:
        """`float32` or `bfloat16` for matrix products.

        `auto` on a GPU: bfloat16 from compute capability 8.0 on, else float32. Not float16, whose gradients
        would have to be scaled to stay within its range: cards without bfloat16 spend a step of this
        decoder on many small operations, which it would not make faster.
        """
        if wanted != "auto" or not self.on_gpu:
            return precision(wanted)
        return "bfloat16" if self.capability >= BFLOAT16_SINCE else "float32"

    def micro_batches(self, wanted: int, pictures: int) -> int:
        """How many micro-batches a batch is computed in.

        Args:
            wanted: `train.micro_batches`; 0: one on a GPU, on a processor one a core, but none smaller than
                pays.
            pictures: of the batch.
        """
        if wanted:
            return min(wanted, pictures)
        return 1 if self.on_gpu else max(1, min(self.cores, pictures // FEWEST_PICTURES))

    @property
    def extraction_batch(self) -> int:
        """Pictures that pass through a CNN together where there are thousands: what fills the device."""
        if not self.on_gpu:
            return 32
        return 64 if self.memory_gib < 8 else 128 if self.memory_gib < 24 else 256

    @property
    def encoder_halves(self) -> int:
        """Streams in which a batch goes through a CNN: operations too small for two cores get one each."""
        return 1 if self.on_gpu else min(2, self.cores)

    @property
    def frozen_encoder_batch(self) -> int:
        """Pictures of a micro-batch that go through a frozen CNN together; on a processor few are faster."""
        return 64 if self.on_gpu else 4

    @property
    def reading_threads(self) -> int:
        """Threads that read and decode pictures while the device computes."""
        return max(2, min(16, self.cores))


@cache
def find_device() -> Device:
    """The first GPU that TensorFlow sees, else the processor."""
    gpus = tf.config.list_physical_devices("GPU")
    if not gpus:
        return Device("processor", processor_name(), cores())
    with suppress(RuntimeError, ValueError):  # in use already: then it is too late to choose
        for gpu in gpus:  # memory as it is needed, not all of the card at once
            tf.config.experimental.set_memory_growth(gpu, True)
    details = tf.config.experimental.get_device_details(gpus[0])
    name = str(details.get("device_name", gpus[0].name))
    major, minor = details.get("compute_capability", (0, 0))
    return Device("GPU", name, cores(), _memory_gib(), (int(major), int(minor)))


def _memory_gib() -> float:
    """Memory of the first GPU in GiB; 0 where nvidia-smi does not say."""
    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=True)
        return float(done.stdout.split()[0]) / 1024
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return 0.0


@contextmanager
def memory_advice(remedy: str) -> Iterator[None]:
    """Context in which running out of memory is an error that names the setting to lower.

    Raises:
        CaptionerError: in place of TensorFlow's error.
    """
    try:
        yield
    except tf.errors.ResourceExhaustedError as error:
        reason = str(getattr(error, "message", error)).split("\n", 1)[0]
        raise CaptionerError(f"{find_device()}: out of memory ({reason[:120]}); {remedy}") from error
