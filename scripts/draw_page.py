#!/usr/bin/env python3
"""The picture of `captioner serve`'s page in docs/serve.md, taken anew: docs/serve.png.

    python scripts/draw_page.py

Serves the model that comes along, gives the page docs/photos/camera.jpg, touches the last word but one and
takes a screenshot. Needs `captioner[serve]`, `pip install playwright` and a Chromium, the one named in
$CAPTIONER_CHROMIUM or on the PATH.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
PICTURE, PHOTO = ROOT / "docs" / "serve.png", ROOT / "docs" / "photos" / "camera.jpg"
WIDTH, COLORS, SECONDS = 960, 256, 300


def main() -> int:
    """Starts the server, takes the picture, ends the server."""
    from playwright.sync_api import sync_playwright

    command = [sys.executable, "-m", "captioner", "serve", "--port", "0"]
    command += ["--run", str(ROOT / "checkpoints" / "flickr8k")]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr is not None
            lines = (re.match(r"page: +(\S+)", line) for line in server.stderr)
            address = next(found[1] for found in lines if found)
            with sync_playwright() as playwright:
                path = os.environ.get("CAPTIONER_CHROMIUM") or shutil.which("chromium")
                flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
                browser = playwright.chromium.launch(executable_path=path, args=flags)
                page = browser.new_page(viewport={"width": WIDTH, "height": 900})
                page.set_default_timeout(1000 * SECONDS)
                page.goto(address)
                page.set_input_files("input[type=file]", PHOTO)
                page.wait_for_selector("#results .card .caption")
                page.wait_for_timeout(3000)  # the words come one by one
                words = page.locator("#results .word")
                words.nth(max(words.count() - 2, 0)).click()
                page.wait_for_timeout(2000)
                content = page.screenshot(full_page=True)
                browser.close()
        finally:
            server.terminate()
    shown = Image.open(io.BytesIO(content)).convert("RGB")
    shown.quantize(COLORS, method=Image.Quantize.FASTOCTREE).save(PICTURE, optimize=True)
    print(f"{PICTURE.relative_to(ROOT)}: {PICTURE.stat().st_size / 1000:.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
