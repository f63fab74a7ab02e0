"""What this machine can do, as far as it changes what the program does.

Reads the processor's flags; loads nothing.
"""

from __future__ import annotations

import os
import resource
import sys
from functools import cache
from pathlib import Path


@cache
def processor_flags() -> frozenset[str]:
    """The processor's capabilities as Linux names them; empty where it does not say."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return frozenset()
    lines = [line.partition(":")[2] for line in text.splitlines() if line.startswith(("flags", "Features"))]
    return frozenset(lines[0].split()) if lines else frozenset()


def precision(wanted: str) -> str:
    """`float32` or `bfloat16` for matrix products; `auto`: bfloat16 where the processor multiplies in it."""
    if wanted != "auto":
        return wanted
    return "bfloat16" if processor_flags() & {"avx512_bf16", "amx_bf16", "bf16"} else "float32"


def cores() -> int:
    """Processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def peak_memory_gib() -> float:
    """Most memory this process has held so far, in GiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**30 if sys.platform == "darwin" else peak / 2**20
