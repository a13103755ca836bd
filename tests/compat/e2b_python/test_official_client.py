"""Every claim of suite/ holds for the unmodified official clients (PyPI, pinned in this folder's lock)."""

import ast
from pathlib import Path

import pytest
from tests.support import official
from tests.support.fixtures import NEEDS_A_SERVER
from tests.support.server import Server

SUITE = Path(__file__).parent / "suite"
POLYGLOT = "test_polyglot.py"
pytestmark = NEEDS_A_SERVER


def claims() -> list[str]:
    """Names of all tests of the suite, read from its source: they need another interpreter to be imported."""
    return [
        f"{path.name}::{node.name}"
        for path in sorted(SUITE.glob("test_*.py"))
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    ]


@pytest.fixture(scope="module")
def verdicts(server: Server, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return official.run_suite(server, tmp_path_factory.mktemp("official") / "report.xml")


# The first of them runs the whole suite.
@pytest.mark.timeout(1260)
@pytest.mark.parametrize(
    "claim",
    [
        pytest.param(claim, marks=pytest.mark.needs("polyglot") if claim.startswith(POLYGLOT) else ())
        for claim in claims()
    ],
)
def test_the_official_python_client(claim: str, verdicts: dict[str, str]) -> None:
    verdict = verdicts[claim]
    if verdict.startswith("skipped: "):
        pytest.skip(verdict.removeprefix("skipped: "))
    assert not verdict, verdict
