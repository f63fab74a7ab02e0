"""What the tests of the server share: really trained runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.live import train_runs


@pytest.fixture(scope="session")
def served_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an English, a German and a Korean run; do not write into it."""
    return train_runs(tmp_path_factory.mktemp("served"), ["scenes", "szenen", "장면"])
