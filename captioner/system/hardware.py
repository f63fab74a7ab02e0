"""What this machine can do, as far as it changes what the program does.

Reads the processor's flags; loads nothing.
"""

from __future__ import annotations

import os
import platform
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
    """`float32` or `bfloat16` for matrix products; `auto`: bfloat16 where the processor multiplies in it.

    $ONEDNN_MAX_CPU_ISA, which holds TensorFlow's products to fewer instructions, holds this choice too.
    """
    if wanted != "auto":
        return wanted
    held_to = os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper()
    if held_to not in ("", "ALL", "DEFAULT") and "BF16" not in held_to and "AMX" not in held_to:
        return "float32"
    return "bfloat16" if processor_flags() & {"avx512_bf16", "amx_bf16", "bf16"} else "float32"


def cores() -> int:
    """Processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor_name() -> str:
    """What the processor calls itself, or its architecture."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    names = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def memory_gib() -> float:
    """Memory of this machine, or as much of it as this process may use, in GiB."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for name in ("memory.max", "memory/memory.limit_in_bytes"):  # of a container, cgroup 2 and 1
        try:
            limit = Path("/sys/fs/cgroup", name).read_text(encoding="ascii").strip()
        except (OSError, ValueError):
            continue
        total = min(total, int(limit)) if limit.isdecimal() else total
    return total / 2**30
