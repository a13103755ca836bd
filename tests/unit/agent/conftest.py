"""One agent for all tests of this folder that do not change its settings."""

from __future__ import annotations

from collections.abc import Generator

import pytest
from tests.unit.agent.running_agent import Agent, running_agent


@pytest.fixture(scope="session")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Generator[Agent]:
    with running_agent(tmp_path_factory.mktemp("agent")) as agent:
        yield agent
