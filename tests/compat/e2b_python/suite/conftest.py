"""One sandbox for the tests that only look, a fresh one for those that change something for good."""

from collections.abc import Iterator

import pytest

from e2b_code_interpreter import Sandbox


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    """A sandbox that the tests of one file share."""
    with Sandbox.create(timeout=300) as created:
        yield created


@pytest.fixture
def own_sandbox() -> Iterator[Sandbox]:
    """A sandbox of one test alone; it may end it itself."""
    created = Sandbox.create(timeout=120)
    yield created
    created.kill()
