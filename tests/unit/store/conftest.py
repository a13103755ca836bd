"""A fresh store."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.fakes.clock import FakeClock

from cloche_server.config import Config
from cloche_server.store.store import Store


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config(state=str(tmp_path))


@pytest.fixture
def store(config: Config) -> Iterator[Store]:
    opened = Store.open(config.database, owner_uid=config.state_dir.stat().st_uid)
    yield opened
    opened.close()
