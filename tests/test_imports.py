"""The house keeps its shape: which room may use which, how large a room may be, what importing one costs."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "captioner"

# A module imports only from modules that stand after it.
ORDER = [
    *("cli", "commands", "usage", "parsing", "completion", "serving", "exporting", "describe", "scaling"),
    *("doctor", "checkup", "welcome", "startup", "reports"),
    *("folders", "works", "places", "journals", "outcomes", "sidecars", "tables", "xmp", "sources"),
    *("review", "exhibits", "replicas", "train", "budget", "loop", "signals", "evaluate"),
    *("predict", "light", "light_decoder", "light_search", "captioning", "captions"),
    "external_weights",
    *("charts", "mistakes", "showing", "plots", "lettering"),
    *("checkpoints", "best", "latest", "teams", "norms", "steps", "losses", "rewards", "batches", "augment"),
    *("decoder", "recurrence", "packing", "products"),
    *("features", "extraction", "shards", "encoders", "backbones"),
    *("depthwise", "efficientnet_lite", "torch_weights"),
    *("optimisers", "search", "search_loop", "hypotheses", "metrics", "cider", "scenes", "phrases", "images"),
    *("summaries", "datasets", "readers", "listings", "vocabulary"),
    *("config", "machine", "manifests", "progress", "voice", "parts", "files", "errors", "version"),
]
# What the command line may load before a command begins to compute.
LIGHT = [
    *("cli", "usage", "folders", "sources", "plots", "checkpoints", "best", "metrics", "cider", "scenes"),
    *("images", "startup", "light", "light_decoder", "light_search", "captioning", "hypotheses"),
    "external_weights",
    *("datasets", "readers", "vocabulary", "config", "manifests", "progress", "files", "errors"),
]
ROOMS = sorted(path.stem for path in PACKAGE.glob("*.py") if not path.stem.startswith("_"))
MOST_LINES = 320


def imported_rooms(source: str) -> Iterator[str]:
    """Rooms of `captioner` that a source text imports, at its head or inside functions.

    >>> list(imported_rooms("import captioner.files; from captioner.extras.serve import x"))
    ['files', 'extras']
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            raise AssertionError("relative import: write captioner.… instead")
        else:
            continue
        for name in names:
            package, _, rest = name.partition(".")
            if package == "captioner" and rest:
                yield rest.split(".")[0]


def test_the_walk_sees_every_form_of_import() -> None:
    source = """
import captioner.files
from captioner import errors, __version__
from captioner.extras.serve import serve
def later():
    from captioner.config import Config
"""
    assert list(imported_rooms(source)) == ["files", "errors", "__version__", "extras", "config"]


def test_every_module_has_its_place_in_the_order() -> None:
    assert set(ROOMS) <= set(ORDER)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_uses_only_rooms_below_it(room: str) -> None:
    below = ORDER[ORDER.index(room) + 1 :]
    used = set(imported_rooms((PACKAGE / f"{room}.py").read_text(encoding="utf-8"))) & {*ORDER, "extras"}
    # The command line is where optional parts are started from, each inside its own command.
    starts_extras = room in ("cli", "serving", "exporting", "describe", "scaling")
    allowed = {*below, "extras"} if starts_extras else set(below)
    assert used <= allowed, f"{room} imports {sorted(used - allowed)}"


def test_no_file_is_longer_than_a_room_should_be() -> None:
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines())
        for path in PACKAGE.rglob("*.py")
    }
    assert {name: lines for name, lines in lengths.items() if lines > MOST_LINES} == {}


def test_every_file_says_what_it_is() -> None:
    for path in PACKAGE.rglob("*.py"):
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), path


def test_light_rooms_load_no_tensorflow() -> None:
    modules = ["captioner", *(f"captioner.{room}" for room in LIGHT if room in ROOMS)]
    code = (
        "import importlib, sys\n"
        f"for name in {modules!r}:\n"
        "    importlib.import_module(name)\n"
        "    heavy = {'tensorflow', 'keras', 'torch', 'gradio'} & set(sys.modules)\n"
        "    if heavy: sys.exit(f'{name} loads {sorted(heavy)}')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_the_package_itself_is_quick_and_lazy() -> None:
    import captioner

    assert captioner.load_config is sys.modules["captioner.config"].load_config
    assert "Captioner" in dir(captioner)
    with pytest.raises(AttributeError, match="no attribute 'capshun'"):
        _ = captioner.capshun
