"""The documentation as a site: built without a warning, links that lead somewhere, a notebook that runs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urldefrag

import pytest

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.slow


class _Links(HTMLParser):
    """The ids of a page and where its links and pictures lead."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.targets: list[str] = []
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("id", "name") and value:
                self.ids.add(value)
            elif name in ("href", "src") and value:
                self.targets.append(value)


@pytest.mark.skipif(
    any(find_spec(name) is None for name in ("mkdocs", "material", "mkdocstrings", "mkdocs_jupyter")),
    reason="pip install 'captioner[docs]'",
)
def test_the_site_is_built_without_a_warning_and_its_links_lead_somewhere(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    quiet = os.environ | {"NO_MKDOCS_2_WARNING": "1"}  # Material's notice of its successor
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500, env=quiet)
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stderr
    pages = {path: _Links(path) for path in tmp_path.rglob("*.html")}
    assert len(pages) >= 13
    broken = []
    for path, page in pages.items():
        for target in page.targets:
            address, place = urldefrag(target)
            if re.match(r"[a-z]+:|//", address) or path.name == "404.html":
                continue
            file = (path.parent / unquote(address)).resolve() if address else path
            if file.is_dir():
                file /= "index.html"
            if not file.exists() or (place and file in pages and unquote(place) not in pages[file].ids):
                broken.append(f"{path.name}: {target}")
    assert broken == []


@pytest.mark.skipif(find_spec("nbclient") is None, reason="pip install 'captioner[docs]'")
def test_the_notebook_runs_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On fewer pictures and epochs. Its commands are this Python's, from this checkout."""
    import nbformat
    from nbclient import NotebookClient

    _command(tmp_path / "bin" / "captioner")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("TOUR_PICTURES", "60")
    monkeypatch.setenv("TOUR_EPOCHS", "1")
    notebook = nbformat.read(ROOT / "docs" / "tour.ipynb", as_version=4)
    client = NotebookClient(notebook, timeout=500, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    said = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))
    assert not re.search(r"^error:|^Traceback", said, re.MULTILINE), said  # TensorFlow tells of CUDA errors
    assert "captions are the run's own" in said and "against mine/test/predictions.jsonl" in said


def test_the_notebook_shows_its_outputs() -> None:
    nbformat = pytest.importorskip("nbformat")
    notebook = nbformat.read(ROOT / "docs" / "tour.ipynb", as_version=4)
    silent = [cell.source for cell in notebook.cells[2:] if cell.cell_type == "code" and not cell.outputs]
    assert silent == []
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    kinds = {kind for output in outputs for kind in output.get("data", {})}
    assert {"image/png", "text/html"} <= kinds


def test_the_first_page_shows_what_the_model_says() -> None:
    done = subprocess.run(
        [sys.executable, "scripts/photographs.py", "--check"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def _command(path: Path) -> None:
    """A `captioner` that is this Python's, whatever is installed."""
    path.parent.mkdir()
    path.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m captioner "$@"\n', encoding="utf-8")
    path.chmod(0o755)
