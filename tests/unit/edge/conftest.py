"""The fixture of the edge's tests."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.unit.edge.world import World


@pytest.fixture
def world() -> Iterator[World]:
    # A short path: a Unix socket's may not be longer than 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="edge"))
    yield World(folder)
    shutil.rmtree(folder)
