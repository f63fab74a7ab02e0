"""The house keeps its shape: which room may use which, what importing one costs, no circle."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "captioner"

# Room by room, from the ground up: what each may import. Beside the rooms stand a few single files.
GROUND = {"errors", "version", "schema"}
BELOW_APPS = {"inference", "runs", "models", "data", "system", "config", *GROUND}
MAY_IMPORT = {
    "errors": set(),
    "version": set(),
    "schema": {"errors"},
    "config": {*GROUND},
    "system": {*GROUND},
    "data": {"system", "config", *GROUND},
    "visualization": {"data", "system", *GROUND},
    "models": {"data", "config", "system", *GROUND},
    "runs": {"models", "data", "config", "system", *GROUND},
    "inference": {"runs", "models", "visualization", "data", "config", "system", *GROUND},
    "evaluation": {"inference", "runs", "visualization", "models", "data", "config", "system", *GROUND},
    "training": {
        *("evaluation", "inference", "runs", "visualization", "models", "data", "config", "system"),
        *GROUND,
    },
    "apps": {*GROUND},
    "apps/sidecars": BELOW_APPS,
    "apps/serving": BELOW_APPS,
    "apps/export": BELOW_APPS,
    "apps/cluster": BELOW_APPS,
}
# They use everything: the command line, and the public names, each where it is asked for.
OPEN = {"cli", "__init__", "__main__"}
# Rooms, or single modules of a room, whose import loads TensorFlow; nothing else may.
HEAVY = (
    "captioner.models",
    "captioner.training",
    "captioner.inference.captioner",
    "captioner.inference.beam_search",
    "captioner.evaluation.calibration",
    "captioner.evaluation.evaluate",
    "captioner.apps.export",
)
MOST_FILES_BESIDE_THE_ROOMS = 8
SLOW_TO_LOAD = {"tensorflow", "keras", "torch", "fastapi", "ray", "onnx", "fsspec"}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def room_of(module: str) -> str:
    """The room in which a module lies, or the file beside the rooms.

    >>> [room_of(f"captioner.{name}") for name in ("errors", "data.images", "apps.serving.api")]
    ['errors', 'data', 'apps/serving']
    """
    _, *rest = module.split(".")
    if not rest:
        return "__init__"
    return "/".join(rest[:2]) if rest[0] == "apps" else rest[0]


def imports_of(source: str, *, at_head: bool = False) -> Iterator[str]:
    """The modules of `captioner` that a source text imports; with `at_head`, those loaded with it.

    >>> list(imports_of("import captioner.config; from captioner.data.images import read_image"))
    ['captioner.config', 'captioner.data.images']
    """
    for node in _nodes(ast.parse(source), at_head):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import: write captioner.… instead"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name.split(".")[0] == "captioner":
                yield name if name in MODULES else name.rpartition(".")[0]


def _nodes(node: ast.AST, at_head: bool) -> Iterator[ast.AST]:
    """All nodes, but with `at_head` those within functions, and within `if TYPE_CHECKING`, are left out."""
    for child in ast.iter_child_nodes(node):
        if at_head and isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if at_head and isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            continue
        yield child
        yield from _nodes(child, at_head)


def test_the_walk_sees_every_form_of_import() -> None:
    source = """
from typing import TYPE_CHECKING
import captioner.config
from captioner import errors, __version__
if TYPE_CHECKING:
    from captioner.data.datasets import Split
def later():
    from captioner.training.train import train
"""
    at_head = ["captioner.config", "captioner.errors", "captioner"]
    assert list(imports_of(source, at_head=True)) == at_head
    assert list(imports_of(source)) == [*at_head, "captioner.data.datasets", "captioner.training.train"]


def test_every_room_is_known() -> None:
    assert {room_of(module) for module in MODULES} <= {*MAY_IMPORT, *OPEN}
    beside = [path for path in PACKAGE.glob("*.py")]
    assert len(beside) <= MOST_FILES_BESIDE_THE_ROOMS, sorted(beside)


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_from_rooms_below_its_own(module: str) -> None:
    room = room_of(module)
    if room in OPEN:
        return
    used = {room_of(name) for name in imports_of(MODULES[module].read_text(encoding="utf-8"))} - {room}
    assert used <= MAY_IMPORT[room], f"{module} imports from {sorted(used - MAY_IMPORT[room])}"


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = {
        module: set(imports_of(path.read_text(encoding="utf-8"), at_head=True)) - {module}
        for module, path in MODULES.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_every_file_says_what_it_is() -> None:
    for path in PACKAGE.rglob("*.py"):
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), path


def test_light_modules_load_nothing_slow() -> None:
    optional = ("captioner.apps.",)  # their extras may not be installed
    light = [
        module
        for module in MODULES
        if not module.startswith((*HEAVY, *optional)) and module != "captioner.__main__"
    ]
    code = (
        "import importlib, sys\n"
        f"for name in {light!r}:\n"
        "    importlib.import_module(name)\n"
        f"    slow = {SLOW_TO_LOAD!r} & set(sys.modules)\n"
        "    if slow: sys.exit(f'{name} loads {sorted(slow)}')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_the_package_itself_is_quick_and_lazy() -> None:
    import captioner

    assert captioner.load_config is sys.modules["captioner.config"].load_config
    assert "Captioner" in dir(captioner)
    with pytest.raises(AttributeError, match="no attribute 'capshun'"):
        _ = captioner.capshun


def test_every_public_name_is_there() -> None:
    import captioner

    for name in captioner.__all__:
        assert getattr(captioner, name).__class__.__name__ != "module", name
