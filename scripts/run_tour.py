"""Runs docs/tour.ipynb and keeps what it showed, so that the page of the site has it.

    python scripts/run_tour.py           in a temporary folder, about ten minutes on two cores

In: the notebook. Out: the same with outputs: no bars, no warnings of libraries, pictures of few colors.
"""

from __future__ import annotations

import base64
import io
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT / "docs" / "tour.ipynb"
WIDEST, COLORS = 900, 64


def main() -> int:
    """Runs the notebook with this Python's captioner, and writes it."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        command = Path(folder, "bin", "captioner")
        command.parent.mkdir()
        command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m captioner "$@"\n')
        command.chmod(0o755)
        os.environ |= {"PATH": f"{command.parent}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
        NotebookClient(notebook, timeout=3000, resources={"metadata": {"path": folder}}).execute()
    clean(notebook)
    nbformat.write(notebook, NOTEBOOK)
    print(f"{NOTEBOOK.relative_to(ROOT)}: {NOTEBOOK.stat().st_size / 1000:.0f} kB")
    return 0


def clean(notebook: Any) -> None:
    """Leaves of each cell's outputs what a reader wants to see."""
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type == "code":
            cell.outputs = _joined([_smaller(out) for out in cell.outputs if out.get("name") != "stderr"])


def _joined(outputs: list[Any]) -> list[Any]:
    """Neighboring pieces of text as one, of lines written over each other the last."""
    joined: list[Any] = []
    for output in outputs:
        if output.output_type == "stream" and joined and joined[-1].output_type == "stream":
            joined[-1].text += output.text
        else:
            joined.append(output)
    for output in joined:
        if output.output_type == "stream":
            lines = output.text.replace("\r\n", "\n").split("\n")
            kept = [line.rsplit("\r", 1)[-1] for line in lines]
            output.text = "\n".join(line for line in kept if "pictures/s]" not in line)
    return joined


def _smaller(output: Any) -> Any:
    data = output.get("data", {})
    if "image/png" in data:
        picture = Image.open(io.BytesIO(base64.b64decode(data["image/png"]))).convert("RGB")
        picture.thumbnail((WIDEST, WIDEST * 4))
        file = io.BytesIO()
        picture.quantize(COLORS).save(file, "PNG", optimize=True)
        data["image/png"] = base64.b64encode(file.getvalue()).decode("ascii")
        if len(data.get("text/plain", "")) > 1000:  # arrays of attention
            data["text/plain"] = data["text/plain"][:300] + " …"
    return output


if __name__ == "__main__":
    sys.exit(main())
