"""What every test may use, and how a test says what it needs of the machine."""

import pytest
from hypothesis import settings

from tests.support import capabilities
from tests.support.fixtures import gvisor_server, own_server, pair, sandboxes, server

__all__ = ["gvisor_server", "own_server", "pair", "sandboxes", "server"]


@pytest.fixture
def anyio_backend() -> str:
    """Async tests run on asyncio, as the server and the agent do."""
    return "asyncio"


settings.register_profile("each run", derandomize=True, database=None, deadline=None)
settings.register_profile("nightly", max_examples=3000, deadline=None, print_blob=True)


def pytest_configure(config: pytest.Config) -> None:
    """The same random input in every run, so that a failure is the change's; new input every night."""
    settings.load_profile("nightly" if "nightly" in config.getoption("markexpr") else "each run")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the nightly tests out unless they are asked for with `-m nightly`; the fuzzing runs in both."""
    if "nightly" in config.getoption("markexpr"):
        for item in items:
            if item.get_closest_marker("fuzz"):
                item.add_marker("nightly")
        return
    nightly = [item for item in items if item.get_closest_marker("nightly")]
    if nightly:
        config.hook.pytest_deselected(items=nightly)
        items[:] = [item for item in items if not item.get_closest_marker("nightly")]


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test whose machine lacks what it needs; fail it where the floor promises that it is there."""
    for marker in item.iter_markers("needs"):
        for name in marker.args:
            reason = capabilities.missing(name)
            if reason is None:
                continue
            if name in capabilities.required():
                pytest.fail(
                    f"this machine must have {name!r} (tests/support/floor.toml): {reason}", pytrace=False
                )
            pytest.skip(f"needs {name}: {reason}")
