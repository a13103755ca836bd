"""A fresh sandbox for each test: all of them change what becomes of it."""

from collections.abc import Iterator

import pytest

from e2b_code_interpreter import Sandbox


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    created = Sandbox.create(timeout=120)
    yield created
    created.kill()
