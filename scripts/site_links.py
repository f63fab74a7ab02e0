"""What the documentation's site needs beside its pages: README.md as its front, and no link out of docs/.

In: README.md, CONTRIBUTING.md and CHANGELOG.md. Out: pages of the site. A hook of MkDocs (mkdocs.yml), not a
program. Links to files that the site does not hold (modules, checkpoints) become plain text.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parent.parent
PAGES = {"index.md": "README.md", "contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}
_LINK = re.compile(r"(?<!!)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")


def on_files(files: Any, config: Any) -> Any:
    """Adds the pages that lie outside docs/."""
    for name, source in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        text = text.replace("](docs/", "](").replace('src="docs/', 'src="')
        for page, other in PAGES.items():
            text = text.replace(f"]({other})", f"]({page})")
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """The page's text without the links that would lead nowhere."""
    folder = posixpath.dirname(page.file.src_uri)
    outside = {f"../{source}": name for name, source in PAGES.items()}

    def keep(link: re.Match[str]) -> str:
        target, mark, place = link[2].partition("#")
        if not target or "://" in target:
            return link[0]
        path = posixpath.normpath(posixpath.join(folder, target))
        if path in outside:
            return f"[{link[1]}]({posixpath.relpath(outside[path], folder or '.')}{mark}{place})"
        return link[0] if files.get_file_from_path(path) else link[1]

    return _LINK.sub(keep, markdown)
