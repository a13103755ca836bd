"""Every claim of suite/ holds for the unmodified official npm clients, pinned in this folder's lock."""

import re
from pathlib import Path

import pytest
from _pytest.mark import ParameterSet
from tests.support import official
from tests.support.fixtures import NEEDS_A_SERVER
from tests.support.server import Server

SUITE = Path(__file__).parent / "suite"
MORE_NEEDS = {"volumes.test.mjs": ("loop",)}
pytestmark = [NEEDS_A_SERVER, pytest.mark.needs("node")]


def claims() -> list[ParameterSet]:
    """Names of all tests of the suite, read from its source."""
    return [
        pytest.param(f"{path.name}::{name}", marks=pytest.mark.needs(*MORE_NEEDS.get(path.name, ())))
        for path in sorted(SUITE.glob("*.test.mjs"))
        for name in re.findall(r'^test\("([^"]+)"', path.read_text(), re.MULTILINE)
    ]


@pytest.fixture(scope="module")
def verdicts(server: Server, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return official.run_node_suite(server, SUITE, tmp_path_factory.mktemp("official-js"))


# The first of them runs the whole suite.
@pytest.mark.timeout(960)
@pytest.mark.parametrize("claim", claims())
def test_the_official_javascript_client(claim: str, verdicts: dict[str, str]) -> None:
    assert claim in verdicts, f"it did not run: {sorted(verdicts)}"
    assert not verdicts[claim], verdicts[claim]
